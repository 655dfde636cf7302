"""Codes by rate and distortion: each column as brute force decides it, fewer bits and smaller errors than rounding."""

from pathlib import Path

import chainer
import numpy as np
import pytest

import trainer.functions as F
import trainer.links as L
from squeeze_net import weights
from squeeze_net.compression import calibrate
from squeeze_net.compression.fold import fold_link
from squeeze_net.compression.prune import weights_of
from squeeze_net.compression.quantise import codebook_of
from squeeze_net.compression.rate import BITS_PER_MB, Layer, assign, bits_of, factorise, quantise_by_rate
from squeeze_net.weights.formats.sqz import entropy
from squeeze_net.weights.formats.sqz.tensor import encode
from trainer.data import datasets
from trainer.data.augmentation import Sizes

TRAINED = Path(__file__).parents[3] / 'results/squeezenet_jpeg/weights_best.npz'
LAYERS = ['fire2/expand3x3/conv/W', 'fire5/squeeze1x1/conv/W']


def images(n, size=48):
    """Of drawn shapes, as the experiment's network expects them, in two batches."""
    data = datasets.load('shapes', limit=n, max_side=Sizes.of(size).side_max, preprocess='experiment')
    view = data.pictures(Sizes.of(size), 'experiment').train
    return [view(part, None)[0] for part in np.array_split(np.arange(n), 2)]


@pytest.fixture(scope='module')
def batches():
    return images(12)


@pytest.fixture
def model():
    return weights.load_model(TRAINED)[0]


@pytest.fixture(scope='module', params=LAYERS)
def layer(request, batches):
    """The weights (1, R, K) of a trained layer, its moments, and what its outputs count."""
    model, _ = weights.load_model(TRAINED)
    moments = calibrate.measure_inputs(model, request.param, lambda: batches)
    found = calibrate.survey(model, lambda: batches, 0)
    array = weights_of(model)[request.param].array
    return array.reshape(1, len(array), -1).astype(np.float64), moments, found.sensitivities[request.param]


def error_of(layer, quantised):
    array, moments, sensitivities = layer
    missing = (quantised - array)[0]
    return float(sensitivities @ ((missing @ moments.products[0]) * missing).sum(1)) / 2


def n_byte(quantised):
    return len(encode(quantised.astype(np.float32)).raw)


# ---- the solver ----


def test_each_column_is_decided_as_brute_force_does():
    rng = np.random.default_rng(0)
    n, curvature = 7, 0.4
    inputs = rng.normal(size=(n, 30)) * np.linspace(0.2, 2, n)[:, None]
    products = inputs @ inputs.T
    rows, values, costs = rng.normal(size=(5, n)), np.linspace(-2, 2, 6), rng.uniform(0, 20, (5, 6))
    hessian = products + curvature * np.eye(n)
    target = np.linalg.solve(hessian, products @ rows.T).T
    codes = assign(target, factorise(hessian), values, costs - curvature / 2 * values**2)

    def least(row, known):
        """Of the error and the quadratic cost of what is not known yet, over all that the latter could be."""
        k, free = len(known), n - len(known)
        right = products[k:] @ row - products[k:, :k] @ known
        rest = np.linalg.solve(hessian[k:, k:], right) if free else np.empty(0)
        missing = np.concatenate((known, rest)) - row
        return missing @ products @ missing / 2 + curvature / 2 * rest @ rest

    for row, cost, chosen in zip(rows, costs, codes, strict=True):
        known = np.empty(0)
        for code in chosen:
            totals = [least(row, np.append(known, value)) + cost[i] for i, value in enumerate(values)]
            assert code == np.argmin(totals)
            known = np.append(known, values[code])


def test_bits_are_those_of_the_coder():
    symbols = np.minimum(np.random.default_rng(0).geometric(0.4, 20_000) - 1, 11)
    counts = np.bincount(symbols, minlength=14)
    bits = bits_of(counts)
    out = entropy.Writer()
    entropy.write_symbols(out, symbols, 14)
    assert bits[symbols].sum() / 8 == pytest.approx(len(out.getvalue()), rel=0.01)
    assert (bits[12:] > bits[:12].max()).all()


def test_at_rate_0_a_fine_grid_holds_the_weights(layer):
    array, moments, sensitivities = layer
    values = np.linspace(array.min(), array.max(), 4001).astype(np.float32)
    quantised = values[Layer(array, moments, sensitivities, 0).codes(values)]
    assert np.abs(quantised - array).max() < 12 * (values[1] - values[0])
    assert error_of(layer, quantised) < 1e-5 * error_of(layer, 0)


def test_a_higher_rate_takes_fewer_bytes_and_errs_more(layer):
    sizes, errors = [], []
    for rate in (0, 0.01, 0.04, 0.16, 0.64):
        one = Layer(*layer, rate / BITS_PER_MB)
        values = one.grid()
        assert values.size <= 255 and 0 in values
        quantised = values[one.codes(values)]
        sizes.append(n_byte(quantised))
        errors.append(error_of(layer, quantised))
    assert sizes == sorted(sizes, reverse=True) and errors == sorted(errors) and sizes[-1] < 0.5 * sizes[0]


def test_on_one_grid_a_higher_rate_takes_fewer_bytes(layer):
    values = Layer(*layer, 0.05 / BITS_PER_MB).grid(0.5)
    sizes = []
    for rate in (0, 0.02, 0.05, 0.1, 0.2):
        one = Layer(*layer, rate / BITS_PER_MB)
        sizes.append(n_byte(values[one.codes(values)]))
    assert sizes == sorted(sizes, reverse=True)


def test_smaller_errors_than_rounding_takes_for_the_same_bytes(layer):
    array, *_ = layer
    one = Layer(*layer, 0.1 / BITS_PER_MB)
    values = one.grid()
    quantised = values[one.codes(values)]
    for step in (values[1] - values[0]) * 1.05 ** np.arange(-10, 40):
        rounded = step * np.round(array / step)
        if n_byte(rounded) <= n_byte(quantised):
            break
    finer = step / 1.05 * np.round(array / step * 1.05)
    assert n_byte(finer) > n_byte(quantised)
    assert error_of(layer, quantised) < 0.7 * error_of(layer, finer)


def test_codebooks_that_are_given(layer):
    array, *_ = layer
    values = codebook_of(array.astype(np.float32), 4)
    assert values.size <= 16 and 0 in values
    sizes = [n_byte(values[Layer(*layer, rate / BITS_PER_MB).codes(values)]) for rate in (0, 0.2)]
    assert sizes[1] < sizes[0]


def test_layers_without_inputs_or_weights():
    empty = calibrate.Moments(np.zeros((1, 4, 4)), np.zeros((1, 4)))
    for array in np.zeros((1, 3, 4)), np.arange(-6.0, 6).reshape(1, 3, 4):
        for rate in (0, 1e-8):
            one = Layer(array, empty, np.zeros(3), rate)
            values = one.grid()
            quantised = values[one.codes(values)]
            assert np.isfinite(quantised).all() and np.abs(quantised).max() <= np.abs(array).max() + 0.1


def test_moments_that_rounding_has_made_negative():
    """A direction in which inputs hardly vary, beside others where they do."""
    products = np.diag([1.0, 1.0, -0.02, 1e-9])[None]
    array = np.random.default_rng(0).normal(size=(1, 3, 4))
    for moments in products, products.diagonal(axis1=1, axis2=2):
        one = Layer(array, calibrate.Moments(moments, np.zeros((1, 4))), np.ones(3), 1e-3)
        values = one.grid()
        quantised = values[one.codes(values)]
        assert np.abs(quantised - array)[:, :, :2].max() < 3 * np.diff(values).max()


# ---- what is measured ----


def test_small_variances_beside_large_means():
    rng = np.random.default_rng(0)
    chain = chainer.Sequential(L.Convolution2D(3, 2, ksize=1))
    x = rng.normal(0, (1, 1e-3, 0), (40, 9, 9, 3)).transpose(0, 3, 1, 2) + np.reshape([0, 3000, 500], (3, 1, 1))
    x = x.astype(np.float32)
    found = calibrate.measure_inputs(chain, '0/W', lambda: [x[:20], x[20:]])
    columns = x.astype(np.float64).transpose(1, 0, 2, 3).reshape(3, -1)
    np.testing.assert_allclose(found.products[0], 81 * np.cov(columns, bias=True), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.means[0], columns.mean(1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('nobias', [False, True])
@pytest.mark.parametrize(
    'window',
    [{'ksize': 7, 'stride': 2, 'pad': 2}, {'ksize': 1}, {'ksize': 3, 'pad': 1, 'groups': 2}, {'ksize': 3, 'dilate': 2}],
)
def test_moments_say_what_outputs_a_convolution_has(window, nobias, monkeypatch):
    rng = np.random.default_rng(0)
    chain = chainer.Sequential(L.Convolution2D(4, 6, nobias=nobias, **window))
    x = (rng.normal(size=(5, 4, 9, 9)) + 0.5).astype(np.float32)
    y = chain(x).array.astype(np.float64)
    moments = calibrate.measure_inputs(chain, '0/W', lambda: [x[:3], x[3:]])
    rows = chain[0].W.array.reshape(len(moments.products), -1, moments.n_input).astype(np.float64)
    means = (rows @ moments.means[..., None]).reshape(-1)
    np.testing.assert_allclose(means, y.mean((0, 2, 3)), atol=1e-5)
    squares = ((rows @ moments.products) * rows).sum(2).reshape(-1)
    expected = y - (0 if nobias else y.mean((0, 2, 3))[None, :, None, None])
    np.testing.assert_allclose(squares, np.square(expected).sum((2, 3)).mean(0), rtol=1e-4)
    monkeypatch.setattr(calibrate, 'MAX_INPUTS', 1)
    diagonal = calibrate.measure_inputs(chain, '0/W', lambda: [x[:3], x[3:]]).products
    np.testing.assert_allclose(diagonal, np.diagonal(moments.products, axis1=1, axis2=2), rtol=1e-4)


def test_the_loss_depends_on_logits_as_the_softmax_says():
    rng = np.random.default_rng(0)
    chain = chainer.Sequential(L.Linear(3, 4), F.relu, L.Linear(4, 3))
    x = rng.normal(size=(4000, 3)).astype(np.float32)
    found = calibrate.survey(chain, lambda: [x[:1500], x[1500:]], seed=0)
    assert found.order == ['0/W', '1/W']
    share = chainer.functions.softmax(chain(x)).array
    np.testing.assert_allclose(found.sensitivities['1/W'], (share * (1 - share)).mean(0), rtol=0.1)


# ---- a network ----


@pytest.mark.long
def test_a_network_computes_more_nearly_the_same_than_one_that_was_rounded(model, batches):
    x = np.concatenate(batches)
    whole = {name: p.array.copy() for name, p in weights_of(model).items()}
    rounded, _ = weights.load_model(TRAINED)
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        before = model(x).array
        done = []
        quantise_by_rate(model, lambda: batches, 0.01, done=done.append)
        error = np.square(model(x).array - before).mean()
        n = sum(n_byte(p.array) for p in weights_of(model).values())
        for step in np.arange(0.3, 3, 0.1):  # in standard deviations; the last one that takes more bytes
            steps = {name: step * array.std() for name, array in whole.items()}
            if sum(n_byte(steps[name] * np.round(array / steps[name])) for name, array in whole.items()) < n:
                break
            for name, p in weights_of(rounded).items():
                p.array[...] = steps[name] * np.round(whole[name] / steps[name])
        assert error < 0.7 * np.square(rounded(x).array - before).mean()
    assert sorted(done) == sorted(weights_of(model)) and done[0] == 'conv1/W'
    assert n < 0.2 * 4 * 730_000
    for p in weights_of(model).values():
        values = np.unique(p.array)
        step = np.diff(values).min()
        np.testing.assert_allclose(values / step, np.round(values / step), atol=0.01)


def test_absorbed_scales_are_gone_from_the_archive():
    np.random.seed(0)
    rng = np.random.default_rng(0)
    chain = chainer.Sequential(L.Convolution2D(3, 8, 3), L.BNReLUConv(8, 6, 3, pad=1), L.BNReLUConv(6, 4, 1))
    x = rng.normal(size=(8, 3, 9, 9)).astype(np.float32)
    for link in (chain[1].bn, chain[2].bn):
        link.gamma.array[...] = rng.uniform(-2, 2, link.gamma.shape)
        link.beta.array[...] = rng.normal(size=link.beta.shape)
    with chainer.using_config('train', False):
        before = chain(x).array
        quantise_by_rate(chain, lambda: [x], 0, absorb=True)
        after = chain(x).array
    assert np.abs(after - before).max() < 0.1 * np.abs(before).max()
    for link in (chain[1].bn, chain[2].bn):
        fold_link(link)
        np.testing.assert_array_equal(np.abs(link.gamma.array.astype(np.float16)), 1)


def test_layers_of_many_inputs_count_each_for_itself(monkeypatch):
    monkeypatch.setattr(calibrate, 'MAX_INPUTS', 8)
    np.random.seed(0)
    chain = chainer.Sequential(L.Convolution2D(4, 6, 3, groups=2), F.relu, L.Linear(6 * 4, 5))
    x = np.random.default_rng(0).normal(size=(8, 4, 4, 4)).astype(np.float32)
    before = {name: p.array.copy() for name, p in weights_of(chain).items()}
    quantise_by_rate(chain, lambda: [x], 0)
    for name, p in weights_of(chain).items():
        assert np.unique(p.array).size <= 255
        assert np.abs(p.array - before[name]).max() <= 0.51 * np.abs(before[name]).max() / 127
