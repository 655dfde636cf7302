"""The captured iteration, on a GPU and on the CPU in its place: replays do what Python does, changes change."""

import json
import warnings
from contextlib import nullcontext
from dataclasses import fields

import chainer
import numpy as np
import pytest
import yaml
from chainer.backends.cuda import to_cpu
from cuda_on_cpu import CPURuntime, has_compiler

import trainer
import trainer.functions as F
import trainer.links as L
from trainer import engine
from trainer.config import Config
from trainer.data.augmentation import Sizes, TestView, TrainView
from trainer.data.datasets import Data
from trainer.data.datasets.data import Split
from trainer.data.order import EpochIterator
from trainer.device import open_device
from trainer.engine.cuda import runtime as runtimes
from trainer.engine.errors import EngineWarning
from trainer.errors import TrainingError
from trainer.functions.shifts import find_dead_biases
from trainer.run import testing
from trainer.run.checkpoint import weights_in_place
from trainer.step.average import WeightAverage
from trainer.step.captured import CapturedUpdater
from trainer.step.evaluate import evaluate
from trainer.step.mixing import Mixing
from trainer.step.optimizer import make_optimizer
from trainer.step.parameters import freeze, multiply_rates
from trainer.step.updater import Updater, UpdateSettings

needs_compiler = pytest.mark.skipif(not has_compiler(), reason='no g++ to compile the kernels for the CPU')
N_IMAGE, N_CLASS = 30, 4
SIZES = Sizes.of(12)
HALF = np.dtype(np.float16)
WEIGHTS = np.array([0.5, 3, 1, 1.5], np.float32)  # of the classes


class Net(chainer.Chain):
    """Something of everything: a bypass, maps side by side, pools, dropout, a live and a dead bias, rows."""

    def __init__(self, dropout=0.5):
        super().__init__()
        self.dropout = dropout
        with self.init_scope():
            self.conv = L.Convolution2D(3, 8, 3, pad=1)
            self.layer = L.BNReLUConv(8, 4, 1)
            self.one, self.two = L.BNReLUConv(4, 4, 1), L.BNReLUConv(4, 4, 3, pad=1)
            self.bn = L.BatchNormalization(8)
            self.fc = L.Linear(8, 6)
            self.out = L.Linear(6, N_CLASS)

    def forward(self, x):
        h = F.max_pooling_2d(self.conv(x), 3, stride=2, pad=1)
        s, (a, b) = self.layer(h), F.split(h, (4, 4)) if isinstance(h, F.SideBySide) else (None, None)
        h = F.side_by_side([self.one(s, add=a), self.two(s, add=b)])
        h = F.dropout(self.bn(h, relu=True), self.dropout)
        return self.out(F.relu(self.fc(F.mean(h, axis=(2, 3)))))


@pytest.fixture(
    autouse=True, params=[pytest.param('cpu', marks=needs_compiler), pytest.param('gpu', marks=pytest.mark.gpu)]
)
def gpu(request):
    if request.param == 'gpu':
        open_device(0)
        yield runtimes.runtime()
    else:
        with runtimes.using(CPURuntime()):
            yield runtimes.runtime()


def target():
    """The runtime's device, to Chainer."""
    run = runtimes.current()
    return chainer.get_device('@numpy' if run is None or run.xp is np else '@cupy:0')


def data(n=N_IMAGE):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, 3, 8, 8), np.uint8), rng.integers(0, N_CLASS, n, np.int32)


def make(
    network=Net,
    seed=3,
    batch=7,
    dtype=None,
    optimizer='momentum',
    lr=0.05,
    updater=CapturedUpdater,
    frozen=None,
    multipliers=None,
    ema=0.0,
    **options,
):
    np.random.seed(seed)
    model = network()
    model.to_device(target())
    rule = make_optimizer(optimizer, lr).setup(model)
    rule.add_hook(chainer.optimizer_hooks.WeightDecay(1e-3))
    multiply_rates(rule, multipliers)
    freeze(model, frozen)
    names = {field.name for field in fields(UpdateSettings)} & options.keys()
    settings = {name: options.pop(name) for name in names}
    if ema:
        settings['average'] = WeightAverage(model, ema)
    if updater is CapturedUpdater:
        options.setdefault('interval', 1)
    made = updater(
        EpochIterator(N_IMAGE, batch, seed),
        rule,
        TrainView(data(), SIZES, seed),
        target(),
        UpdateSettings(seed, **settings),
        **options,
    )
    made.settings = {'compute_dtype': dtype}
    return made


def tolerance():
    """cuDNN's fastest plan for a gradient of weights may add in any order; the kernels of ours may not."""
    return 0 if runtimes.runtime().xp is np else 1e-2


def run(updater, n):
    """What it reports in n iterations."""
    reports = []
    with chainer.using_config('compute_dtype', updater.settings['compute_dtype']):
        for _ in range(n):
            with chainer.reporter.Reporter().scope(seen := {}):
                updater.update()
            reports.append(seen)
    return reports


def losses(updater, n):
    return [seen['train/loss'] for seen in run(updater, n)]


def weights(updater):
    return [to_cpu(p.array).copy() for p in updater.get_optimizer('main').target.params()]


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'dtype': HALF},
        {'divide': 2},
        {'optimizer': 'nesterov'},
        {'smoothing': 0.1, 'ema': 0.9, 'multipliers': 'out=10,conv=0'},
        {'class_weight': WEIGHTS, 'dtype': HALF},
        {'frozen': 'conv,layer'},
        {'frozen': 'conv,layer,two/bn,fc', 'dtype': HALF, 'multipliers': 'out=2'},
    ],
    ids=str,
)
def test_replays_do_what_python_does(options):
    """On the CPU to the bit, with memory poisoned before every replay; over 20 iterations, the ends of four epochs."""
    captured, eager = make(**options), make(**options, capture=False)
    np.testing.assert_allclose(losses(captured, 20), losses(eager, 20), rtol=tolerance())
    assert captured._graph is not None and eager._graph is None
    for a, b in zip(weights(captured), weights(eager), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance(), atol=tolerance())


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'smoothing': 0.2, 'multipliers': 'out=3,layer=0.5'},
        {'frozen': 'conv,layer'},
        {'frozen': 'one/bn,out'},
        {'class_weight': WEIGHTS, 'divide': 2, 'smoothing': 0.1},
        {'mixing': Mixing(3, (12, 12), mixup=1.0)},
        {'mixing': Mixing(3, (12, 12), cutmix=1.0), 'divide': 2, 'smoothing': 0.1},
    ],
    ids=str,
)
@pytest.mark.filterwarnings('ignore::trainer.engine.errors.EngineWarning')
def test_the_iteration_is_chainers(options):
    """Against `Updater` on plain Chainer: same pictures, same masks, same arithmetic but for rounding."""
    updater = make(**options)
    found = run(updater, 8)
    with runtimes.using(None), chainer.using_config('engine', 'plain'):
        expected = run(make(updater=Updater, **options), 8)
    for name in ('train/loss', 'train/accuracy'):
        np.testing.assert_allclose([seen[name] for seen in found], [seen[name] for seen in expected], rtol=1e-3)
    assert (updater._graph is None) == ('mixing' in options)


def test_mixed_batches_are_not_captured_and_a_line_says_so():
    with pytest.warns(EngineWarning, match='--mixup and --cutmix draw on the host, so each iteration runs as Python'):
        run(make(mixing=Mixing(3, (12, 12), mixup=1.0)), 1)


def test_what_is_frozen_stays_and_is_captured():
    updater = make(frozen='conv,layer')
    model = updater.get_optimizer('main').target
    before = {name: to_cpu(p.array).copy() for name, p in model.namedparams()}
    mean = to_cpu(model.layer.bn.avg_mean).copy()
    run(updater, 6)
    assert updater._graph is not None
    for name, p in model.namedparams():
        is_frozen = name.startswith(('/conv/', '/layer/')) or any(p is bias for bias in updater._dead)
        assert np.array_equal(to_cpu(p.array), before[name]) == is_frozen, name
    np.testing.assert_array_equal(to_cpu(model.layer.bn.avg_mean), mean)
    updater.serialize(chainer.serializers.DictionarySerializer())
    assert (model.conv.W.update_rule.t, model.out.W.update_rule.t) == (0, 6)


@pytest.mark.parametrize('dtype', [None, HALF], ids=str)
def test_the_average_is_evaluated_and_the_training_goes_on_unmoved(dtype):
    expected = losses(make(dtype=dtype), 9)
    updater = make(dtype=dtype, ema=0.9)
    found = losses(updater, 5)
    model, view = updater.get_optimizer('main').target, TestView(data(29), SIZES)
    with chainer.using_config('compute_dtype', dtype), updater.average.in_place():
        averaged = evaluate(model, view, 29, N_CLASS, 8, target()).loss
        again = evaluate(model, view, 29, N_CLASS, 8, target()).loss
    with chainer.using_config('compute_dtype', dtype):
        own = evaluate(model, view, 29, N_CLASS, 8, target()).loss
    assert averaged == again != own
    np.testing.assert_allclose(found + losses(updater, 4), expected, rtol=tolerance())


def test_each_replay_draws_pictures_and_masks_anew():
    updater = make(lr=0.0)
    found = losses(updater, 12)
    assert len(set(found)) == 12  # weights stand still: only pictures and masks differ
    np.testing.assert_allclose(weights(updater)[0], weights(make(lr=0.0))[0], rtol=1e-6)


def test_a_new_rate_takes_effect_in_a_replay():
    updater = make()
    run(updater, 5)
    updater.get_optimizer('main').lr = 0.0
    before = weights(updater)
    v = [to_cpu(p.update_rule.state['v']).copy() for p in updater.get_optimizer('main').target.params()]
    run(updater, 1)
    for old, new, momentum in zip(before, weights(updater), v, strict=True):
        np.testing.assert_allclose(new, old + 0.9 * momentum, rtol=1e-6, atol=1e-7)


def test_sums_are_reported_at_intervals_and_at_the_end_of_an_epoch():
    each = run(make(batch=10), 6)
    rare = run(make(batch=10, interval=2), 6)
    assert [('train/loss' in seen) for seen in rare] == [False, True, True, False, True, True]
    assert [seen['train/images'] for seen in rare if seen] == [20, 10, 20, 10]
    np.testing.assert_allclose(rare[1]['train/loss'], (each[0]['train/loss'] + each[1]['train/loss']) / 2, rtol=1e-6)
    assert all(0 <= seen['train/accuracy'] <= 1 and seen['train/seconds'] > 0 for seen in each)


def test_an_overflow_is_skipped():
    """A scale beyond float16's range: gradients overflow until it has come down, and weights stay finite."""
    updater = make(dtype=HALF)
    updater._resumed_state = {'scale': 2.0**60}
    run(updater, 30)
    state = updater._state.read()
    assert state['n_skipped'] > 3 and state['scale'] < 2.0**60
    assert all(np.isfinite(w).all() for w in weights(updater))


def test_a_loss_that_is_not_finite_stops():
    updater = make(lr=1e20)
    with pytest.raises(TrainingError, match=r'the loss is (nan|inf) by iteration .*lr 1e\+20.*try a lower --lr'):
        run(updater, 10)


def test_biases_that_cannot_matter_are_left_out_and_stay():
    updater = make()
    run(updater, 6)
    model = updater.get_optimizer('main').target
    dead = {name for name, p in model.namedparams() if any(p is b for b in updater._dead)}
    assert dead == {'/conv/b', '/layer/conv/b', '/one/conv/b', '/two/conv/b'}
    for bias in updater._dead:
        assert not bias.array.any() and not bias.grad.any()
    assert model.fc.b.array.any()


def test_biases_that_are_not_zero_are_kept():
    updater = make()
    bias = updater.get_optimizer('main').target.conv.b
    bias.array[:] = 1
    run(updater, 4)
    assert updater._dead and not any(b is bias for b in updater._dead)


@pytest.mark.skipif(not engine.is_available(), reason="oneDNN is not installed: Chainer's own functions are not walked")
def test_dead_biases_have_no_gradient():
    """By Chainer's own gradients; and the live ones have one."""
    with runtimes.using(None), chainer.using_config('engine', 'fused'):
        np.random.seed(0)
        model = Net(dropout=0.0)
        x = np.random.normal(size=(5, 3, 12, 12)).astype('f')
        model.cleargrads()
        loss = F.softmax_cross_entropy(model(x), np.arange(5, dtype=np.int32) % N_CLASS)
        dead = find_dead_biases(loss)
        loss.backward()
        for name, p in model.namedparams():
            if name.endswith('/b') and p.array.ndim == 1:
                is_dead = any(p is b for b in dead)
                assert (np.abs(p.grad).max() < 1e-6) == is_dead, name


@pytest.mark.skipif(not engine.is_available(), reason="oneDNN is not installed: Chainer's own functions are not walked")
def test_biases_before_a_dropout_are_dead_in_tests():
    with chainer.using_config('engine', 'fused'):
        conv, bn = L.Convolution2D(3, 4, 3), L.BatchNormalization(4)
        x = np.random.default_rng(0).normal(size=(5, 3, 6, 6)).astype('f')
        logits = F.mean(bn(F.dropout(conv(x), 0.5)), axis=(2, 3))
        loss = F.softmax_cross_entropy(logits, np.zeros(5, np.int32))
        assert find_dead_biases(loss) == [] and find_dead_biases(loss, in_tests=True)[0] is conv.b


class Strange(Net):
    """Computes something with Chainer alone that waits for the GPU."""

    def forward(self, x):
        h = super().forward(x)
        return Doubled().apply((h,))[0]


class Doubled(chainer.FunctionNode):
    def forward(self, inputs):
        runtimes.runtime().download(inputs[0])
        return (inputs[0] * 2,)

    def backward(self, indexes, gys):
        return (gys[0] * 2,)


def test_what_cannot_be_captured_runs_as_python_and_is_named():
    updater = make(Strange)
    with pytest.warns(EngineWarning, match='Doubled cannot be captured .*so each iteration runs as Python'):
        found = losses(updater, 6)
    np.testing.assert_allclose(found, losses(make(Strange, capture=False), 6), rtol=tolerance())


class Plain(chainer.Chain):
    """A network of Chainer's own links and functions."""

    def __init__(self):
        super().__init__()
        with self.init_scope():
            self.conv, self.bn = chainer.links.Convolution2D(3, 8, 3), chainer.links.BatchNormalization(8)
            self.out = chainer.links.Linear(8, N_CLASS)

    def forward(self, x):
        h = chainer.functions.relu(self.bn(self.conv(x)))
        return self.out(chainer.functions.mean(h, axis=(2, 3)))


def test_a_network_of_chainers_own_functions_is_trained_too():
    """In float32, which is what they take, even where half precision was asked for."""
    options = {'network': Plain, 'capture': False}
    updater = make(dtype=HALF, **options)
    np.testing.assert_allclose(losses(updater, 5), losses(make(**options), 5), rtol=1e-4)
    with chainer.using_config('compute_dtype', HALF):
        model = updater.get_optimizer('main').target
        assert evaluate(model, TestView(data(29), SIZES), 29, N_CLASS, 8, target()).confusion.sum() == 29


class Unused(Net):
    """Has a parameter that the loss does not depend on."""

    def __init__(self):
        super().__init__()
        with self.init_scope():
            self.unused = L.Linear(3, 3)


@pytest.mark.parametrize('dtype', [None, HALF], ids=str)
def test_a_parameter_without_a_gradient_is_named_and_the_others_learn_as_ever(dtype):
    with pytest.warns(EngineWarning, match='a parameter has no gradient or is not updated, so each iteration'):
        updater = make(Unused, dtype=dtype)
        found = losses(updater, 6)
    parameters = parameters_of_unused()
    reference = make(Net, dtype=dtype, capture=False)
    for name, p in reference.get_optimizer('main').target.namedparams():
        p.array[...] = parameters[name]
    np.testing.assert_allclose(found, losses(reference, 6), rtol=1e-2)


def parameters_of_unused():
    np.random.seed(3)
    model = Unused()
    model.to_device(target())
    return {name: parameter.array for name, parameter in model.namedparams()}


class Noisy(Net):
    def forward(self, x):
        return super().forward(x) * np.random.uniform(0.5, 1.5)


def test_random_numbers_drawn_in_python_are_not_frozen():
    updater = make(Noisy)
    with pytest.warns(EngineWarning, match='draws random numbers in Python'):
        run(updater, 5)
    assert updater._graph is None


def test_copies_are_right_even_if_the_first_update_is_skipped():
    updater = make(dtype=HALF)
    updater._resumed_state = {'scale': 2.0**60}
    run(updater, 1)
    arena = updater.get_optimizer('main').arena
    assert updater._state.read()['n_skipped'] == 1
    np.testing.assert_array_equal(to_cpu(arena.copies), to_cpu(arena.data).astype(HALF))


def test_gradients_that_are_never_finite_stop():
    class Broken(Net):
        def forward(self, x):
            return super().forward(x)

    updater = make(Broken)
    run(updater, 3)
    updater.get_optimizer('main').target.bn.gamma.array[...] = np.nan
    with pytest.raises(TrainingError, match='try a lower --lr'):
        run(updater, 3)


def test_a_state_loaded_into_a_running_updater_is_gone_on_with(tmp_path):
    expected = losses(make(), 9)
    first = make()
    run(first, 5)
    chainer.serializers.save_npz(tmp_path / 'state.npz', first)
    second = make()
    run(second, 8)
    chainer.serializers.load_npz(tmp_path / 'state.npz', second)
    np.testing.assert_allclose(losses(second, 4), expected[5:], rtol=max(tolerance(), 1e-6))


def test_maps_side_by_side_are_convolved_whatever_the_plans():
    """A plan that does not add: the second part must not overwrite what it is to add to."""

    class Beside(Net):
        def __init__(self):
            super().__init__()
            with self.init_scope():
                self.behind = L.Convolution2D(8, 8, 1)

        def forward(self, x):
            h = self.conv(x)
            h = self.behind(F.side_by_side([h[:, :4], h[:, 4:]]))
            return self.out(F.relu(self.fc(F.mean(self.bn(h, relu=True), axis=(2, 3)))))

    model = Beside()
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    with chainer.using_config('train', False):
        with runtimes.using(None):
            expected = model(x).array
        model.to_device(target())
        found = model(target().send(x)).array
    np.testing.assert_allclose(to_cpu(found), expected, rtol=1e-4, atol=1e-5)


def test_new_arrays_given_to_parameters_are_noticed():
    updater = make()
    run(updater, 5)
    graph = updater._graph
    parameter = updater.get_optimizer('main').target.out.W
    parameter.array = parameter.array.copy()
    run(updater, 5)
    assert updater._graph is not None and updater._graph is not graph


def test_a_resumed_run_is_the_unbroken_one(tmp_path):
    unbroken = make(dtype=HALF, interval=100)
    expected = run(unbroken, 13)
    first = make(dtype=HALF, interval=100)
    run(first, 6)  # in the middle of an epoch: what was counted so far has to be in the checkpoint
    chainer.serializers.save_npz(tmp_path / 'state.npz', first)
    second = make(dtype=HALF, interval=100)
    chainer.serializers.load_npz(tmp_path / 'state.npz', second)
    found = run(second, 7)
    ends = [{k: v for k, v in seen.items() if k != 'train/seconds'} for seen in expected[6:]]
    for seen, end in zip(found, ends, strict=True):
        assert {
            k: pytest.approx(v, rel=max(tolerance(), 1e-12)) for k, v in seen.items() if k != 'train/seconds'
        } == end
    for a, b in zip(weights(unbroken), weights(second), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance(), atol=tolerance())
    assert first.get_optimizer('main').t == 6
    second.serialize(chainer.serializers.DictionarySerializer())
    assert second.get_optimizer('main').t == 13


def test_a_checkpoint_of_a_cpu_can_be_gone_on_with(tmp_path):
    with runtimes.using(None):
        cpu = make(updater=Updater)
        run(cpu, 4)
        chainer.serializers.save_npz(tmp_path / 'state.npz', cpu)
        expected = losses(cpu, 4)
    gpu = make()
    chainer.serializers.load_npz(tmp_path / 'state.npz', gpu)
    np.testing.assert_allclose(losses(gpu, 4), expected, rtol=1e-3)


@pytest.mark.parametrize('dtype', [None, HALF], ids=str)
def test_evaluation(dtype):
    """Of a trained network, whose weights' copies are made anew; the last batch is smaller."""
    updater = make(dtype=dtype)
    run(updater, 4)
    model = updater.get_optimizer('main').target
    model.out.b.array[0] += 0.5  # behind the updater's back
    view, device = TestView(data(29), SIZES), target()
    done = []
    with chainer.using_config('compute_dtype', dtype):
        found = evaluate(model, view, 29, N_CLASS, 8, device, done.append)
    with runtimes.using(None) if device.xp is np else nullcontext(), chainer.using_config('engine', 'plain'):
        expected = evaluate(model, view, 29, N_CLASS, 8, device)
    assert done == [8, 8, 8, 5]
    assert found.loss == pytest.approx(expected.loss, rel=1e-5 if dtype is None else 2e-2)
    assert found.confusion.sum() == 29
    assert found.top5 is expected.top5 is None  # of four classes
    if dtype is None:
        np.testing.assert_array_equal(found.confusion, expected.confusion)
        assert_same_mistakes(found.mistakes, expected.mistakes)


def test_evaluation_counts_the_top_five():
    class Wide(chainer.Chain):
        def __init__(self):
            super().__init__()
            np.random.seed(0)
            with self.init_scope():
                self.out = L.Linear(3, 8)

        def forward(self, x):
            return self.out(F.mean(x, axis=(2, 3)))

    model, view, device = Wide(), TestView(data(29), SIZES), target()
    model.to_device(device)
    found = evaluate(model, view, 29, 8, 8, device)
    with runtimes.using(None) if device.xp is np else nullcontext(), chainer.using_config('engine', 'plain'):
        expected = evaluate(model, view, 29, 8, 8, device)
    assert found.top5 == expected.top5 and 0 < found.top5 < 1
    assert_same_mistakes(found.mistakes, expected.mistakes)


def assert_same_mistakes(found, expected):
    assert [mistake[:2] for mistake in found] == [mistake[:2] for mistake in expected] != []
    np.testing.assert_allclose([m.probability for m in found], [m.probability for m in expected], rtol=1e-4)


def test_no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        run(make(), 5)


@pytest.mark.usefixtures('no_rendering')
def test_a_whole_run_and_its_continuation(tmp_path):
    """`trainer.train` with its records, evaluation and checkpoints; stopped after two epochs and gone on with."""
    images, labels = data(40)
    split = Split(images, labels)
    whole = Data('noise', split, Split(images[:20], labels[:20]), tuple('abcd'), 'random numbers', False)

    def go(folder, **flags):
        np.random.seed(1)
        config = Config(size=12, batch=8, lr=0.05, gpu=-1 if target().xp is np else 0, save_path=str(folder), **flags)
        model = Net()
        outcome = trainer.train(model, whole, config)
        entries = [json.loads(line) for line in (outcome.folder / 'log.jsonl').read_text().splitlines()]
        return entries, [to_cpu(p.array) for p in model.params()], outcome

    kept = 'train_loss', 'train_accuracy', 'test_loss', 'test_accuracy', 'lr'
    unbroken, expected, outcome = go(tmp_path / 'a', epoch=4, milestones=(2,))
    go(tmp_path / 'b', epoch=2, milestones=(2,))
    resumed, found, _ = go(tmp_path / 'b', epoch=4, milestones=(2,), resume='auto')
    assert [entry['epoch'] for entry in resumed] == [1, 2, 3, 4]
    for a, b in zip(resumed, unbroken, strict=True):
        assert [a[k] for k in kept] == pytest.approx([b[k] for k in kept], rel=max(tolerance(), 1e-12))
        assert a['images_per_s'] > 0
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance(), atol=tolerance())
    assert yaml.safe_load((outcome.folder / 'config.yaml').read_text())['precision'] in ('float32', 'fp16')


@pytest.mark.usefixtures('no_rendering')
def test_weights_of_the_best_epoch_are_read_into_arrays_that_take_them(tmp_path, monkeypatch):
    """A file cannot be read into CuPy's arrays that are not contiguous, as those of the arena are."""
    are_contiguous = []

    def watched(path, model, ranks):
        are_contiguous.extend(p.array.flags.c_contiguous for p in model.params())
        return weights_in_place(path, model, ranks)

    monkeypatch.setattr(testing, 'weights_in_place', watched)
    images, labels = data(40)
    noise = Data(
        'noise', Split(images, labels), Split(images[:20], labels[:20]), tuple('abcd'), 'random numbers', False
    )
    gpu = -1 if target().xp is np else 0
    config = Config(size=12, batch=8, lr=0.05, epoch=2, gpu=gpu, save_path=str(tmp_path), validation='8')
    assert trainer.train(Net(), noise, config).summary['test']['epoch'] in (1, 2)
    assert are_contiguous and all(are_contiguous)


def test_an_evaluation_is_kept_for_its_view_and_model_alone():
    updater = make()
    run(updater, 3)
    model, device = updater.get_optimizer('main').target, target()
    one, other = TestView(data(16), SIZES), TestView(tuple(a[::-1][:16].copy() for a in data(30)), SIZES)
    first = evaluate(model, one, 16, N_CLASS, 8, device)
    kept = one.evaluation[2]
    assert evaluate(model, one, 16, N_CLASS, 8, device).loss == first.loss and one.evaluation[2] is kept
    assert evaluate(model, other, 16, N_CLASS, 8, device).loss != first.loss
    changed = make(seed=8).get_optimizer('main').target
    assert evaluate(changed, one, 16, N_CLASS, 8, device).loss != first.loss and one.evaluation[2] is not kept


def test_any_converter_can_be_evaluated():
    model = make().get_optimizer('main').target
    view, device = TestView(data(16), SIZES), target()
    found = evaluate(model, lambda index, device: view(index, device), 16, N_CLASS, 8, device)
    assert found.loss == pytest.approx(evaluate(model, view, 16, N_CLASS, 8, device).loss, rel=1e-4)
