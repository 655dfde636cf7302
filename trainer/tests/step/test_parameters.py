"""Frozen parameters and rates by pattern, against Chainer's own update rules."""

import chainer
import numpy as np
import pytest
from chainer import functions as CF

import trainer.functions as F
import trainer.links as L
from trainer import InputError, engine
from trainer.step.optimizer import MomentumSGD, NesterovAG, make_optimizer
from trainer.step.parameters import freeze, is_match, multiply_rates, read_multipliers


class Block(chainer.Chain):
    def __init__(self, n_in, n_out):
        super().__init__()
        with self.init_scope():
            self.bn = L.BatchNormalization(n_in)
            self.conv = L.Convolution2D(n_in, n_out, 3, pad=1)

    def forward(self, x):
        return self.conv(self.bn(x, relu=True))


class Net(chainer.Chain):
    def __init__(self):
        super().__init__()
        np.random.seed(0)
        with self.init_scope():
            self.conv1 = L.Convolution2D(3, 5, 3)
            self.fire2, self.fire3 = Block(5, 6), Block(6, 4)
            self.theirs = chainer.links.BatchNormalization(4)
            self.conv10 = L.Convolution2D(4, 3, 1)

    def forward(self, x):
        return CF.mean(self.conv10(self.theirs(self.fire3(self.fire2(self.conv1(x))))), axis=(2, 3))


def set_up(kind=MomentumSGD, decay=0.01):
    model = Net()
    optimizer = kind(lr=0.05, momentum=0.9).setup(model)
    optimizer.add_hook(chainer.optimizer_hooks.WeightDecay(decay))
    return model, optimizer


def train(model, optimizer, n=4):
    rng = np.random.default_rng(0)
    for _ in range(n):
        x, t = rng.standard_normal((6, 3, 8, 8)).astype(np.float32), rng.integers(0, 3, 6).astype(np.int32)
        model.cleargrads()
        F.softmax_cross_entropy(model(x), t).backward()
        optimizer.update()


def state(model):
    serializer = chainer.serializers.DictionarySerializer()
    serializer.save(model)
    return {name: np.array(value) for name, value in serializer.target.items()}


def names(model):
    return [path.strip('/') for path, _ in model.namedparams()]


@pytest.mark.parametrize(
    ('path', 'pattern', 'expected'),
    [
        ('conv1/W', 'conv1', True),
        ('conv10/W', 'conv1', False),
        ('conv10/W', 'conv1*', True),
        ('fire2/bn/gamma', 'fire[2-5]/*', True),
        ('fire6/bn/gamma', 'fire[2-5]/*', False),
        ('fire2', 'fire[2-5]/*', False),
        ('fire2/conv/b', '*/b', True),
        ('fire2/conv/b', 'fire2/conv', True),
    ],
)
def test_patterns(path, pattern, expected):
    assert is_match(path, pattern) == expected


def test_multipliers_are_read():
    assert read_multipliers(' conv10=10, fire9/*=0.5') == [('conv10', 10.0), ('fire9/*', 0.5)]
    assert read_multipliers(None) == []


@pytest.mark.parametrize('engine_name', ['fused', 'plain'])
@pytest.mark.parametrize('kind', [MomentumSGD, NesterovAG, chainer.optimizers.Adam])
def test_multipliers_equal_chainers_rules_with_own_rates_to_the_bit(kind, engine_name):
    """Chainer's rule of every parameter has the product as its own hyperparameter."""
    text, factors = 'conv10=10,fire*=0.5,fire3/conv/b=2', {'conv10': 10, 'fire2': 0.5, 'fire3': 0.5}
    theirs = {MomentumSGD: chainer.optimizers.MomentumSGD, NesterovAG: chainer.optimizers.NesterovAG}.get(kind, kind)
    results = []
    for optimizer_kind in (kind, theirs):
        model = Net()
        options = {'alpha': 0.01} if kind is chainer.optimizers.Adam else {'lr': 0.05, 'momentum': 0.9}
        optimizer = optimizer_kind(**options).setup(model)
        optimizer.add_hook(chainer.optimizer_hooks.WeightDecay(0.01))
        if optimizer_kind is kind and not results:
            multiply_rates(optimizer, text)
        else:
            rate = 'alpha' if kind is chainer.optimizers.Adam else 'lr'
            for path, parameter in model.namedparams():
                factor = 2 if path == '/fire3/conv/b' else factors.get(path.split('/')[1], 1)
                setattr(parameter.update_rule.hyperparam, rate, getattr(optimizer, rate) * factor)
        with chainer.using_config('engine', engine_name):
            train(model, optimizer)
        results.append(state(model))
    if kind is not chainer.optimizers.Adam and engine_name == 'fused' and engine.is_available():
        assert len({multiplier for _, _, multiplier in _segments_of(kind, text)}) == 4
    for name, value in results[0].items():
        np.testing.assert_array_equal(value, results[1][name], err_msg=name)


def _segments_of(kind, text):
    model, optimizer = set_up(kind)
    multiply_rates(optimizer, text)
    train(model, optimizer, 1)
    assert optimizer.arena is not None
    return optimizer._segments


@pytest.mark.parametrize('engine_name', ['fused', 'plain'])
def test_what_is_frozen_stays_and_the_rest_learns_as_without(engine_name):
    """Against a network whose frozen part is computed apart, in test mode."""
    with chainer.using_config('engine', engine_name):
        model, optimizer = set_up()
        frozen = freeze(model, 'conv1,fire2')
        before = state(model)
        train(model, optimizer)
        after = state(model)
        assert sorted(frozen) == sorted(n for n in names(model) if n.startswith(('conv1/', 'fire2/')))
        for name, value in after.items():
            is_frozen = name.startswith(('conv1/', 'fire2/'))
            assert name.endswith('/N') or np.array_equal(value, before[name]) == is_frozen, name
        apart, other = set_up()
        lower = Net()

        class Upper(chainer.Chain):
            def forward(self, x):
                with chainer.using_config('train', False), chainer.no_backprop_mode():
                    h = lower.fire2(lower.conv1(x)).array
                return CF.mean(apart.conv10(apart.theirs(apart.fire3(h))), axis=(2, 3))

        upper = Upper()
        with upper.init_scope():
            upper.fire3, upper.theirs, upper.conv10 = apart.fire3, apart.theirs, apart.conv10
        other = MomentumSGD(lr=0.05, momentum=0.9).setup(upper)
        other.add_hook(chainer.optimizer_hooks.WeightDecay(0.01))
        train(upper, other)
    for name, value in state(upper).items():
        np.testing.assert_allclose(after[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.skipif(not engine.is_available(), reason='oneDNN is not installed')
def test_frozen_parameters_stay_outside_the_flat_update():
    model, optimizer = set_up()
    freeze(model, 'conv1,fire2')
    train(model, optimizer)
    assert optimizer.arena is not None
    assert not np.shares_memory(model.conv1.W.array, optimizer.arena.data)
    assert np.shares_memory(model.conv10.W.array, optimizer.arena.data)
    assert model.conv1.W.update_rule.t == 0 and model.conv10.W.update_rule.t == 4


@pytest.mark.skipif(not engine.is_available(), reason='oneDNN is not installed')
def test_nothing_is_computed_backward_below_what_learns():
    model, _ = set_up()
    freeze(model, 'conv1,fire2')
    h = model.fire2(model.conv1(np.zeros((2, 3, 8, 8), np.float32)))
    assert h.creator_node is None and not h.requires_grad
    assert model.fire3(h).creator_node is not None


def test_frozen_layers_above_learning_ones_pass_gradients_on():
    model, optimizer = set_up()
    freeze(model, 'fire3,theirs,conv10')
    before = state(model)
    train(model, optimizer)
    after = state(model)
    for name, value in after.items():
        is_frozen = name.startswith(('fire3/', 'theirs/', 'conv10/'))
        assert name.endswith('/N') or np.array_equal(value, before[name]) == is_frozen, name


@pytest.mark.parametrize('pattern', ['theirs', 'theirs/*', 'fire2/bn,theirs/gamma,theirs/beta'])
def test_frozen_batch_normalisation_runs_in_test_mode(pattern):
    model, _ = set_up()
    freeze(model, pattern)
    x = np.random.default_rng(0).normal(3, 2, (5, 4, 6, 6)).astype(np.float32)
    found = model.theirs(x).array
    assert chainer.config.train
    with chainer.using_config('train', False):
        np.testing.assert_array_equal(found, model.theirs(x).array)
    np.testing.assert_array_equal(model.theirs.avg_mean, 0)


def test_what_an_earlier_run_froze_learns_in_the_next_one():
    model, _ = set_up()
    model.fire3.bn.is_fixed = True  # by the network itself
    freeze(model, 'conv1,fire2,fire3/bn,theirs')
    before = state(model)
    optimizer = MomentumSGD(lr=0.05, momentum=0.9).setup(model)
    freeze(model, 'fire3/conv')
    assert model.fire3.bn.is_fixed and not model.fire2.bn.is_fixed
    train(model, optimizer)
    after = state(model)
    for name in before:
        # Statistics that are fixed stay, and normalisation takes the biases before it out.
        if not name.startswith('fire3/bn/avg') and not name.endswith(('/N', 'conv/b', 'conv1/b')):
            assert np.array_equal(after[name], before[name]) == (name == 'fire3/conv/W'), name


def test_patterns_that_match_nothing_are_refused_with_close_names():
    model, optimizer = set_up()
    with pytest.raises(InputError, match=r"--freeze: 'fire22' matches no link or parameter; close are .*fire2"):
        freeze(model, 'conv1,fire22')
    with pytest.raises(InputError, match=r"--lr_multiplier: 'zzz' matches .*; there are .*conv1"):
        multiply_rates(optimizer, 'zzz=3')
    with pytest.raises(InputError, match=r'--freeze \* leaves no parameter to train'):
        freeze(model, '*')
    assert model.conv1.W.update_rule.enabled


def test_a_frozen_run_is_saved_and_loaded(tmp_path):
    model, optimizer = set_up()
    freeze(model, 'conv1,fire2')
    train(model, optimizer, 3)
    chainer.serializers.save_npz(tmp_path / 'optimizer.npz', optimizer)
    chainer.serializers.save_npz(tmp_path / 'model.npz', model)
    train(model, optimizer, 2)
    other, second = set_up()
    freeze(other, 'conv1,fire2')
    chainer.serializers.load_npz(tmp_path / 'optimizer.npz', second)
    chainer.serializers.load_npz(tmp_path / 'model.npz', other)
    train(other, second, 2)
    for name, value in state(model).items():
        np.testing.assert_array_equal(state(other)[name], value, err_msg=name)


def test_make_optimizer_takes_multipliers():
    model = Net()
    optimizer = make_optimizer('adam', lr=0.1).setup(model)
    multiply_rates(optimizer, 'conv10=10')
    assert model.conv10.W.update_rule.hyperparam.alpha == 1.0
