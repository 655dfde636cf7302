"""Pruning and quantising by their definitions; what is zero stays zero, what is equal stays equal."""

import chainer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import trainer
import trainer.links as L
from squeeze_net import NETWORKS
from squeeze_net.compression.fold import absorb_scales, fold_link, fold_model
from squeeze_net.compression.plan import Plan, read_plan
from squeeze_net.compression.prune import (
    Pruning,
    by_sensitivity,
    by_table,
    by_threshold,
    gradual,
    mask_of,
    scan_sensitivity,
    scores_of,
    weights_of,
)
from squeeze_net.compression.quantise import TiedWeights, cluster, nearest, quantise, quantise_model, to_e5m4
from trainer import Config, engine
from trainer.step.optimizer import Muon, make_optimizer


@pytest.fixture
def model():
    np.random.seed(0)
    return NETWORKS['squeezenet_v1.1_bn'](5, 40)


def density(model):
    return {name: float((p.array != 0).mean()) for name, p in weights_of(model).items()}


def train(model, hook, n, precision='float32', optimizer='momentum'):
    """Some updates on noise, with momentum and decay."""
    config = Config(precision=precision, weight_decay=1e-2, optimizer=optimizer)
    with config.using_precision():
        optimizer = make_optimizer(config.optimizer, config.rate, config.momentum).setup(model)
        if isinstance(optimizer, Muon):
            optimizer.choose(n_class=5)
        optimizer.add_hook(hook)
        optimizer.add_hook(chainer.optimizer_hooks.WeightDecay(1e-2))
        optimizer.lr = 0.01
        rng = np.random.default_rng(1)
        for _ in range(n):
            x = rng.normal(size=(4, 3, 40, 40)).astype(np.float32)
            model.cleargrads()
            trainer.functions.softmax_cross_entropy(model(x), rng.integers(0, 5, 4).astype(np.int32)).backward()
            optimizer.update()
            yield optimizer


# ---- pruning ----


@settings(deadline=None)
@given(st.integers(1, 400), st.floats(0, 0.999), st.integers(0, 2**32 - 1))
def test_masks_leave_out_the_smallest(n, sparsity, seed):
    weights = np.random.default_rng(seed).normal(size=n).astype(np.float32)
    mask = mask_of(weights, sparsity)
    assert (~mask).sum() == round(sparsity * n)
    if 0 < mask.sum() < n:
        assert np.abs(weights[~mask]).max() <= np.abs(weights[mask]).min()


def test_tables_of_sparsity(model):
    table = by_table(model, {'*': 0.5, 'fire*/expand3x3': 0.8, 'conv1': 0})
    assert table['fire4/squeeze1x1/W'] == 0.5 and table['fire4/expand3x3/W'] == 0.8 and table['conv1/W'] == 0
    for wrong, message in (({'fc': 0.5}, "'fc' matches no weights"), ({'*': 1}, 'expected a number of at least 0')):
        with pytest.raises(trainer.InputError, match=message):
            by_table(model, wrong)


def test_one_threshold_for_all(model):
    parameters = weights_of(model)
    parameters['fire9/squeeze1x1/W'].array[...] *= np.random.default_rng(0).random((64, 512, 1, 1)) ** 4
    found = by_threshold(model, 0.7)
    n = sum(p.size for p in parameters.values())
    assert sum(found[name] * p.size for name, p in parameters.items()) / n == pytest.approx(0.7, abs=1e-4)
    assert found['fire9/squeeze1x1/W'] > found['fire8/squeeze1x1/W'] + 0.1  # of many small ones
    assert found['fire2/expand1x1/W'] < 0.3 < 0.7 < found['fire9/expand3x3/W']  # 1,024 weights; 147,456
    for p in parameters.values():
        p.array *= 10.0 ** np.random.default_rng(p.size).integers(-3, 4)
    assert by_threshold(model, 0.7) == pytest.approx(found, abs=1e-3)


def test_scores_are_the_papers():
    weights = np.array([[0, -2], [1, 2]], np.float32)
    np.testing.assert_allclose(scores_of(weights), [0, 1 / 9, 4 / 8, 1])
    np.testing.assert_array_equal(scores_of(np.zeros(3, np.float32)), 0)


def test_the_gradual_schedule():
    steps = [gradual(0.8, i / 10) for i in range(11)]
    assert steps[0] == 0 and steps[-1] == 0.8 and gradual(0.8, 2) == 0.8
    assert np.all(np.diff(steps) > 0) and np.all(np.diff(steps, 2) < 0)


@pytest.mark.parametrize('optimizer', ['momentum', 'muon'])
@pytest.mark.parametrize('engine', ['plain', 'fused'])
def test_what_is_pruned_stays_zero_and_the_rest_learns(model, engine, optimizer):
    with chainer.using_config('engine', engine):
        sparsities = by_table(model, {'*': 0.6, 'conv1': 0.2})
        before = {name: p.array.copy() for name, p in weights_of(model).items()}
        zeros = {}
        for i, _ in enumerate(train(model, Pruning(sparsities, n_iteration=6, every=2), 12, optimizer=optimizer)):
            for name, p in weights_of(model).items():
                now = p.array == 0
                assert not (zeros.get(name, now) & ~now).any(), (i, name)
                zeros[name] = now
        for name, share in density(model).items():
            assert share == pytest.approx(1 - sparsities[name], abs=2 / before[name].size)
            kept = ~zeros[name]
            assert (weights_of(model)[name].array[kept] != before[name][kept]).mean() > 0.9


def test_the_scan_leaves_the_model_as_it_was(model):
    names = list(weights_of(model))
    before = {name: p.array.copy() for name, p in weights_of(model).items()}

    def accuracy():  # falls with the zeros of conv1, and with no others
        return 0.9 - float((model.conv1.W.array == 0).mean())

    scan = {'fire2/expand1x1/W': {0.2: 0.5}}  # from an earlier call, which was stopped
    assert list(scan_sensitivity(model, accuracy, 0.9, scan, sparsities=(0.2, 0.4, 0.6))) == names
    assert scan.pop('fire2/expand1x1/W') == {0.2: 0.5}
    assert set(scan) == set(names) - {'fire2/expand1x1/W'} and scan['conv1/W'][0.2] == pytest.approx(0.7, abs=0.01)
    assert list(scan['conv1/W']) == [0.2, 0.4, 0.6] or 0.6 not in scan['conv1/W']  # given up below half
    chosen = by_sensitivity(scan, 0.9, drop=0.25)
    assert chosen['conv1/W'] == 0.2 and chosen['fire5/expand1x1/W'] == 0.6
    for name, p in weights_of(model).items():
        np.testing.assert_array_equal(p.array, before[name])


# ---- quantising ----


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 500), st.integers(1, 40), st.sampled_from(['linear', 'density', 'random']), st.integers(0, 99))
def test_centroids_are_the_means_of_what_is_nearest(n, k, initialisation, seed):
    values = np.random.default_rng(seed).normal(size=n).astype(np.float32)
    centroids = cluster(values, k, initialisation, seed)
    assert 1 <= centroids.size <= k and (np.diff(centroids) > 0).all()
    codes = nearest(values, centroids)
    distance = np.abs(values[:, None] - centroids[None].astype(np.float64))
    np.testing.assert_allclose(np.take_along_axis(distance, codes[:, None], 1)[:, 0], distance.min(1), atol=1e-6)
    if n <= k:
        np.testing.assert_array_equal(np.sort(values), centroids[nearest(np.sort(values), centroids)])


def test_linear_keeps_the_large_weights():
    """The paper's reason for it (section 3.2): density puts its centroids where the many small ones are."""
    values = np.random.default_rng(0).standard_t(4, 5000).astype(np.float32)
    largest = np.abs(values).max()
    assert np.abs(cluster(values, 16, 'linear')).max() > 0.7 * largest
    with_density = cluster(values, 16, 'density')
    assert np.abs(with_density).max() <= np.abs(cluster(values, 16, 'linear')).max()


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 8), st.floats(0, 1), st.integers(0, 99))
def test_quantised_weights(bits, sparsity, seed):
    rng = np.random.default_rng(seed)
    weights = (rng.normal(size=(20, 30)) * (rng.random((20, 30)) >= sparsity)).astype(np.float32)
    quantised = quantise(weights, bits)
    assert np.unique(quantised).size <= 2**bits
    assert not quantised[weights == 0].any()
    error = np.abs(quantised - weights).max()
    assert error <= np.ptp(weights) / max(2 ** (bits - 1) - 1, 1) + 1e-6


@settings(deadline=None, max_examples=100)
@given(hnp.arrays(np.float32, 5, elements=st.floats(-63488, 63488, width=32)))
def test_numbers_with_four_bits_of_mantissa(values):
    found = to_e5m4(values)
    normal = np.abs(values) >= 2**-14  # smaller ones lie as densely as float16's coarsest
    np.testing.assert_allclose(found[normal], values[normal], rtol=1 / 31)
    np.testing.assert_allclose(found[~normal], values[~normal], atol=2**-19)
    assert not (found.astype(np.float16).view(np.uint16) & 0x3F).any()
    assert to_e5m4(found).tobytes() == found.tobytes()


@pytest.mark.parametrize('engine', ['plain', 'fused'])
def test_equal_weights_stay_equal_and_learn_the_sum_of_their_gradients(model, engine):
    with chainer.using_config('engine', engine):
        for p in weights_of(model).values():
            p.array[...] *= mask_of(p.array, 0.5)
        quantise_model(model, dict.fromkeys(weights_of(model), 3))
        before = {name: p.array.copy() for name, p in weights_of(model).items()}
        for _ in train(model, TiedWeights(), 4):
            pass
        for name, p in weights_of(model).items():
            assert not p.array[before[name] == 0].any(), name
            for centroid in np.unique(before[name][before[name] != 0]):
                moved = p.array[before[name] == centroid]
                assert np.unique(moved).size == 1 and moved[0] != centroid, name


def test_gradients_are_summed_by_code():
    """Section 3.3: the gradient of the loss by a centroid is the sum of those of its weights."""
    link = chainer.Chain()
    with link.init_scope():
        link.W = chainer.Parameter(np.array([0.5, 0, 0.5, -1, -1, 0.5], np.float32))
    optimizer = chainer.optimizers.SGD().setup(chainer.Sequential(link))
    link.W.grad = 2 * link.W.array * np.arange(1, 7, dtype=np.float32)  # of the sum of i * W_i^2
    TiedWeights()(optimizer)
    a, b = 1.0 * (1 + 3 + 6), -2.0 * (4 + 5)
    np.testing.assert_allclose(link.W.grad, [a, 0, a, b, b, a])


# ---- folding ----


@pytest.mark.parametrize('network', ['squeezenet', 'squeezenet_v1.1_bn', 'vgg_bn', 'squeezenet_v1.0'])
def test_folded_networks_compute_the_same(network):
    np.random.seed(0)
    model = NETWORKS[network](6, 40)
    rng = np.random.default_rng(0)
    for link in model.links():
        if hasattr(link, 'avg_mean'):
            link.avg_mean[...] = rng.normal(size=link.avg_mean.shape)
            link.avg_var[...] = rng.uniform(0.5, 2, link.avg_var.shape)
            link.gamma.array[...] = rng.uniform(0.5, 2, link.gamma.shape)
            link.beta.array[...] = rng.normal(size=link.beta.shape)
    for name, p in model.namedparams():
        if name.endswith('/b'):
            p.array[...] = rng.normal(size=p.shape)
    x = rng.normal(size=(3, 3, 40, 40)).astype(np.float32)
    with chainer.using_config('train', False):
        before = model(x).array
        n_dead = fold_model(model, 40)
        after = model(x).array
    np.testing.assert_allclose(after, before, atol=2e-4 * np.abs(before).max())
    if engine.is_available():  # which finds the dead biases
        assert (n_dead > 0) == any(hasattr(link, 'avg_mean') for link in model.links())
        if network == 'squeezenet':  # those before the dropout, too; not that of conv10, which nothing follows
            assert n_dead == sum(name.endswith('/b') for name, _ in model.namedparams()) - 1
    for link in model.links():
        if hasattr(link, 'avg_mean'):
            assert not link.avg_mean.any() and np.unique(link.avg_var).size == 1


def test_weights_take_over_the_scales_before_them():
    np.random.seed(0)
    rng = np.random.default_rng(0)
    layer = L.BNReLUConv(5, 4, ksize=3, pad=1)
    layer.bn.avg_mean[...], layer.bn.avg_var[...] = rng.normal(size=5), rng.uniform(0.5, 2, 5)
    layer.bn.gamma.array[...], layer.bn.beta.array[...] = [0.5, -2, 1.5, 1e-4, 1], rng.normal(size=5)
    x = rng.normal(size=(3, 5, 6, 6)).astype(np.float32)
    with chainer.using_config('train', False):
        before = layer(x).array
        absorb_scales(layer)
        after = layer(x).array
    np.testing.assert_allclose(after, before, atol=1e-5 * np.abs(before).max())
    fold_link(layer.bn)
    np.testing.assert_array_equal(layer.bn.gamma.array.astype(np.float16)[[0, 1, 2, 4]], [1, -1, 1, 1])
    assert 0 < layer.bn.gamma.array[3] < 1e-3 and np.abs(layer.bn.beta.array).max() < 10


# ---- plans ----


def test_plans(model, tmp_path):
    plan = Plan(sparsity='*=0.5,conv1=0', bits='*=5,conv1=8')
    assert plan.sparsities(model)['conv1/W'] == 0 and plan.bits_of(model)['conv1/W'] == 8
    for bits in range(1, 9):
        assert set(Plan(bits=f'{bits}').bits_of(model).values()) == {bits}
    (tmp_path / 'plan.yaml').write_text('sparsity: 0.9\nbits: 4\nprune_epoch: 6\n')
    assert Plan(**read_plan(tmp_path / 'plan.yaml')) == Plan(sparsity='0.9', bits='4', prune_epoch=6)
    (tmp_path / 'plan.yaml').write_text('sparsity: {"*": 0.9, conv1: 0.5}\nprune_lr: 1e-2\n')
    assert Plan(**read_plan(tmp_path / 'plan.yaml')) == Plan(sparsity='*=0.9,conv1=0.5', prune_lr=0.01)


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda m, p: Plan(prune_epoch=-1), '--prune_epoch is -1'),
        (lambda m, p: Plan(initialisation='best'), "--initialisation is 'best'"),
        (lambda m, p: Plan(drop=float('nan')), '--drop is nan'),
        (lambda m, p: Plan(sparsity='all').sparsities(m), "--sparsity has 'all' where a number"),
        (lambda m, p: Plan(sparsity='=0.5').sparsities(m), 'is not `pattern=number`'),
        (lambda m, p: Plan(bits='9').bits_of(m), 'expected 1 .. 8'),
        (lambda m, p: Plan(bits='conv1=4').bits_of(m), 'fire2/.*gives|gives .* 0 bits'),
        (lambda m, p: Plan(bits='4.5').bits_of(m), 'gives conv1/W 4.5 bits'),
        (lambda m, p: Plan(bits='100').bits_of(m), 'gives conv1/W 100 bits'),
        (lambda m, p: read_plan(p / 'none.yaml'), r'none\.yaml cannot be read: it is missing'),
        (lambda m, p: read_plan(p / 'true.yaml'), "true.yaml: argument --prune_lr: .* 'True'"),
        (lambda m, p: read_plan(p / 'word.yaml'), "word.yaml: argument --prune_lr: .* 'fast'"),
        (lambda m, p: read_plan(p / 'date.yaml'), 'date.yaml is not YAML'),
        (lambda m, p: read_plan(p / 'odd.yaml'), "odd.yaml has the unknown key 'colour'"),
    ],
)
def test_plans_that_are_none(model, tmp_path, make, message):
    (tmp_path / 'odd.yaml').write_text('colour: 3\n')
    (tmp_path / 'true.yaml').write_text('prune_lr: true\n')
    (tmp_path / 'word.yaml').write_text('prune_lr: fast\n')
    (tmp_path / 'date.yaml').write_text('prune_epoch: 2020-99-99\n')
    with pytest.raises(trainer.InputError, match=message):
        make(model, tmp_path)
