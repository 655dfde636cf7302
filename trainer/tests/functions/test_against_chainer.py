"""Every function against plain Chainer in float64: outputs, gradients, gradients of gradients, in both precisions."""

import os
import subprocess
import sys

import chainer
import chainer.functions as C
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_dtypes import bfloat16

import trainer.functions as F
from trainer import engine

pytestmark = pytest.mark.skipif(not engine.is_available(), reason='oneDNN is not installed')

TOLERANCE = {np.dtype(np.float32): 1e-4, np.dtype(bfloat16): 2e-2}
PRECISIONS = pytest.mark.parametrize(
    'dtype', [np.dtype(np.float32), pytest.param(np.dtype(bfloat16), marks=pytest.mark.bfloat16)], ids=str
)
SOME = settings(max_examples=40, deadline=None)


def difference(got, expected):
    """Largest difference, as a part of the largest value."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape
    finite = np.isfinite(expected)  # Chainer's maximum of a window without an element is -inf
    np.testing.assert_array_equal(got[~finite], expected[~finite])
    got, expected = np.where(finite, got, 0), np.where(finite, expected, 0)
    # What cancels to nearly nothing is as exact as its terms, which are of the order of 1.
    return np.abs(got - expected).max() / max(np.abs(expected).max(), 0.5)


def compute(function, arrays, gy, dtype, n_map):
    """Output and gradients of function(*variables); the first n_map arrays are maps of `dtype`, the rest not."""
    variables = [
        chainer.Variable(a.astype(dtype if i < n_map or dtype == np.float64 else np.float32))
        for i, a in enumerate(arrays)
    ]
    with chainer.using_config('engine', 'plain' if dtype == np.float64 else 'fused'):
        y = function(*variables)
        y = y.joined() if isinstance(y, F.SideBySide) else y
        y.grad = gy.astype(y.dtype)
        y.backward()
    return [y.array, *(v.grad for v in variables)]


def check(function, arrays, dtype, n_map=1, seed=0, channels_last=False):
    """Compare with float64 on the same numbers, which bfloat16 can hold exactly."""
    arrays = [a.astype(bfloat16).astype(np.float64) for a in arrays]
    if channels_last:
        arrays[0] = np.ascontiguousarray(arrays[0].transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    with chainer.using_config('engine', 'plain'):
        shape = compute_shape(function, arrays)
    gy = np.random.default_rng([seed, 1, 2]).standard_normal(shape).astype(bfloat16).astype(np.float64)
    expected = compute(function, arrays, gy, np.float64, n_map)
    with no_warnings():
        got = compute(function, arrays, gy, dtype, n_map)
    for i, (g, e) in enumerate(zip(got, expected, strict=True)):
        assert difference(g, e) < TOLERANCE[dtype], 'output' if i == 0 else f'gradient {i - 1}'


def compute_shape(function, arrays):
    y = function(*(chainer.Variable(a) for a in arrays))
    return y.shape


class no_warnings:
    def __enter__(self):
        import warnings

        self.context = warnings.catch_warnings()
        self.context.__enter__()
        engine.warn_once.cache_clear()
        warnings.simplefilter('error', engine.EngineWarning)

    def __exit__(self, *error):
        self.context.__exit__(*error)


def maps(draw, n=None, channels=None, least=1):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n = draw(st.integers(1, 4)) if n is None else n
    c = draw(st.integers(1, 37)) if channels is None else channels
    h, w = draw(st.integers(least, 13)), draw(st.integers(least, 13))
    return rng, rng.standard_normal((n, c, h, w))


@PRECISIONS
@SOME
@given(st.data())
def test_convolution_2d(dtype, data):
    k, pad, stride = (data.draw(st.integers(*bounds)) for bounds in ((1, 5), (0, 2), (1, 3)))
    groups, dilate = data.draw(st.sampled_from([1, 1, 1, 2, 3])), data.draw(st.sampled_from([1, 1, 2]))
    rng, x = maps(data.draw, channels=groups * data.draw(st.integers(1, 20)), least=dilate * (k - 1) + 1)
    n_out = groups * data.draw(st.integers(1, 20))
    W = rng.standard_normal((n_out, x.shape[1] // groups, k, k))
    b = [rng.standard_normal(n_out)] if data.draw(st.booleans()) else []
    check(
        lambda *v: F.convolution_2d(*v, stride=stride, pad=pad, dilate=dilate, groups=groups),
        [x, W, *b],
        dtype,
        channels_last=data.draw(st.booleans()),
    )


@PRECISIONS
@SOME
@given(st.data())
def test_convolution_of_maps_side_by_side_with_a_sum(dtype, data):
    k = data.draw(st.sampled_from([1, 3]))
    rng, x1 = maps(data.draw, least=k)
    n, _, h, w = x1.shape
    x2 = rng.standard_normal((n, data.draw(st.integers(1, 20)), h, w))
    n_out = data.draw(st.integers(1, 20))
    pad = data.draw(st.integers(0, k + 1))  # so wide that windows see nothing but padding
    add = rng.standard_normal((n, n_out, h + 2 * pad - k + 1, w + 2 * pad - k + 1))
    W = rng.standard_normal((n_out, x1.shape[1] + x2.shape[1], k, k))
    check(
        lambda x1, x2, add, W, b: F.convolution_2d(F.side_by_side([x1, x2]), W, b, pad=pad, add=add),
        [x1, x2, add, W, rng.standard_normal(n_out)],
        dtype,
        n_map=3,
    )


@PRECISIONS
@pytest.mark.parametrize('sizes', [((5, 16), (5, 16)), ((5, 16), (21,)), ((21,), (5, 16)), ((5, 16), (16, 5))])
def test_sums_of_maps_side_by_side(dtype, sizes):
    rng = np.random.default_rng(0)
    n_first = len(sizes[0])

    def function(*xs):
        x, other = (F.side_by_side(part) if len(part) > 1 else part[0] for part in (xs[:n_first], xs[n_first:]))
        return F.concat([F.add(x, other)])

    check(function, [rng.standard_normal((2, c, 4, 3)) for part in sizes for c in part], dtype, n_map=4)


def away_from_zero(x):
    """No value that rounding takes across the kink of a rectifier."""
    return np.where(np.abs(x) < 0.2, 0.5, x)


@PRECISIONS
@pytest.mark.parametrize('relu', [False, True])
@SOME
@given(st.data())
def test_batch_normalization(dtype, relu, data):
    rng, x = maps(data.draw, n=3, least=3)
    c = x.shape[1]
    gamma, beta = rng.uniform(0.5, 2, c), rng.choice([-1, 1], c) * 6.0  # far from the kink, on either side
    check(lambda *v: F.batch_normalization(*v, relu=relu), [x, gamma, beta], dtype)


@PRECISIONS
def test_batch_normalization_of_maps_side_by_side(dtype):
    rng = np.random.default_rng(0)
    xs = [rng.standard_normal((3, c, 5, 4)) for c in (5, 16)]

    def function(x1, x2, gamma, beta):
        return F.batch_normalization(F.side_by_side([x1, x2]), gamma, beta)

    check(function, [*xs, rng.uniform(0.5, 2, 21), rng.standard_normal(21)], dtype, n_map=2)


def test_batch_normalization_rectifies_exactly_what_is_negative():
    x = np.random.default_rng(0).standard_normal((4, 16, 6, 6)).astype(np.float32)
    gamma, beta = np.ones(16, np.float32), np.zeros(16, np.float32)
    np.testing.assert_array_equal(
        F.batch_normalization(x, gamma, beta, relu=True).array,
        np.maximum(F.batch_normalization(x, gamma, beta).array, 0),
    )


@PRECISIONS
def test_batch_normalization_of_rows(dtype):
    rng = np.random.default_rng(0)
    check(
        F.batch_normalization, [rng.standard_normal((32, 21)), rng.uniform(0.5, 2, 21), rng.standard_normal(21)], dtype
    )


def test_running_statistics_are_chainers():
    x = np.random.default_rng(0).standard_normal((3, 20, 5, 4)).astype(np.float32)
    statistics = []
    for library, value in ((F, x), (C, x)):
        mean, var = np.full(20, 0.5, np.float32), np.full(20, 2, np.float32)
        library.batch_normalization(
            value, np.ones(20, np.float32), np.ones(20, np.float32), running_mean=mean, running_var=var, decay=0.8
        )
        statistics.append((mean, var))
    np.testing.assert_allclose(statistics[0], statistics[1], rtol=1e-5)


@PRECISIONS
@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('shape', [(3, 21, 5, 4), (5, 21)])
def test_fixed_batch_normalization(dtype, relu, shape):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype(bfloat16)
    gamma, beta, mean, var = (rng.uniform(0.5, 2, 21).astype(np.float32) for _ in range(4))
    with chainer.no_backprop_mode():
        y = F.fixed_batch_normalization(x.astype(dtype), gamma, beta, mean, var, relu=relu)
        expected = C.fixed_batch_normalization(*(a.astype(np.float64) for a in (x, gamma, beta, mean, var)))
    expected = np.maximum(expected.array, 0) if relu else expected.array
    assert difference(y.array, expected) < TOLERANCE[dtype]


@PRECISIONS
@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('parts', [[21], [8, 13]])
def test_fixed_batch_normalization_passes_the_gradient_of_what_is_below(dtype, relu, parts):
    """Of frozen parameters; the other gradients are Chainer's."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 21, 5, 4)).astype(dtype)
    vectors = [rng.uniform(0.5, 2, 21).astype(np.float32) for _ in range(4)]
    gy = rng.standard_normal(x.shape).astype(dtype)
    ends = np.cumsum(parts).tolist()
    xs = [chainer.Variable(x[:, end - n : end].copy()) for n, end in zip(parts, ends, strict=True)]
    y = F.fixed_batch_normalization(F.side_by_side(xs) if len(xs) > 1 else xs[0], *vectors, relu=relu)
    outputs = y if isinstance(y, F.SideBySide) else [y]
    assert all(type(part.creator_node).__module__.startswith('trainer') for part in outputs)
    gxs = chainer.grad(outputs, xs, [chainer.Variable(g.copy()) for g in np.split(gy, ends[:-1], axis=1)])
    reference = chainer.Variable(x.astype(np.float64))
    expected = C.fixed_batch_normalization(reference, *(v.astype(np.float64) for v in vectors))
    expected = C.relu(expected) if relu else expected
    C.sum(expected * gy.astype(np.float64)).backward()
    assert difference(np.concatenate([gx.array for gx in gxs], axis=1), reference.grad) < TOLERANCE[dtype]


def without_ties(rng, shape):
    """Distinct values that bfloat16 holds exactly, as long as there are fewer than 256 in a plane."""
    planes = np.stack([rng.permutation(shape[2] * shape[3]) for _ in range(shape[0] * shape[1])])
    return planes.reshape(shape) - 80.0


@PRECISIONS
@SOME
@given(st.data())
def test_max_pooling_2d(dtype, data):
    k, stride = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    pad = data.draw(st.integers(0, k - 1))
    rng, x = maps(data.draw, least=k)
    x = without_ties(rng, x.shape)
    cover_all, channels_last = data.draw(st.booleans()), data.draw(st.booleans())
    check(lambda x: F.max_pooling_2d(x, k, stride, pad, cover_all), [x], dtype, channels_last=channels_last)


@PRECISIONS
@SOME
@given(st.data())
def test_average_pooling_2d(dtype, data):
    k, stride = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    pad = data.draw(st.integers(0, k - 1))
    _, x = maps(data.draw, least=k)
    check(lambda x: F.average_pooling_2d(x, k, stride, pad), [x], dtype)


@PRECISIONS
@SOME
@given(st.data())
def test_elementwise_and_concatenation(dtype, data):
    rng, x = maps(data.draw)
    n, c, h, w = x.shape
    other, third = rng.standard_normal(x.shape), rng.standard_normal((n, 7, h, w))
    check(F.relu, [away_from_zero(x)], dtype)
    check(F.relu, [away_from_zero(x[:, :, 0, 0])], dtype)
    check(F.add, [x, other], dtype, n_map=2)
    check(lambda x, third: F.concat([x, third]), [x, third], dtype, n_map=2, channels_last=data.draw(st.booleans()))
    check(lambda x: F.mean(x, (2, 3)), [x], dtype)
    if c > 1:
        check(lambda x: F.concat(F.split(x, [1, c - 1])[::-1]), [x], dtype)


@PRECISIONS
@SOME
@given(st.data())
def test_linear(dtype, data):
    rng, x = maps(data.draw)
    n_in, n_out = x[0].size, data.draw(st.integers(1, 40))
    W, b = rng.standard_normal((n_out, n_in)), rng.standard_normal(n_out)
    check(F.linear, [x, W, b], dtype, channels_last=data.draw(st.booleans()))
    check(F.linear, [x.reshape(len(x), -1), W], dtype)


@PRECISIONS
@pytest.mark.parametrize('shape', [(2, 96, 5, 4), (1, 16, 3, 3), (2, 21, 4, 5)])
def test_local_response_normalization(dtype, shape):
    x = np.random.default_rng(0).standard_normal(shape) * 3
    check(lambda x: F.local_response_normalization(x, n=5, k=2, alpha=1e-2), [x], dtype)


@pytest.mark.parametrize('beta', [0.5, 1])
def test_local_response_normalization_of_another_power(beta):
    x = np.random.default_rng(0).standard_normal((2, 21, 4, 5)) * 3
    check(lambda x: F.local_response_normalization(x, n=5, k=2, alpha=1e-2, beta=beta), [x], np.dtype(np.float32))


def test_vectors_with_gaps():
    rng = np.random.default_rng(0)
    x, W, table = rng.standard_normal((3, 5, 4, 4)), rng.standard_normal((6, 5, 1, 1)), rng.uniform(1, 2, (6, 4))
    check(lambda x, W, table: F.convolution_2d(x, W, table[:, 1]), [x, W, table], np.dtype(np.float32))
    check(lambda x, W, table: F.linear(x[:, :, 0, 0], W[:, :, 0, 0], table[:, 1]), [x, W, table], np.dtype(np.float32))
    check(lambda x, table: F.batch_normalization(x, table[:5, 0], table[:5, 1]), [x, table], np.dtype(np.float32))
    arrays = [x.astype(np.float32), *(column for column in table[:5].astype(np.float32).T)]
    expected = C.fixed_batch_normalization(*arrays).array
    np.testing.assert_allclose(F.fixed_batch_normalization(*arrays).array, expected, rtol=1e-4, atol=1e-5)


@PRECISIONS
@pytest.mark.parametrize('shape', [(3, 21, 5, 4), (3, 50)])
def test_dropout_masks_alike_in_every_precision(dtype, shape):
    x = np.random.default_rng(0).standard_normal(shape)

    def function(x):
        with chainer.using_config('dropout_key', F.DropoutKey(1, 2)):
            return F.dropout(x, 0.3)

    check(function, [x], dtype)


def test_dropout_of_maps_side_by_side_masks_as_of_the_whole():
    x = np.random.default_rng(0).standard_normal((2, 12, 4, 4)).astype(np.float32)
    with chainer.using_config('dropout_key', F.DropoutKey(1, 2)):
        whole = F.dropout(x, 0.5)
    with chainer.using_config('dropout_key', F.DropoutKey(1, 2)):
        halves = F.dropout(F.side_by_side(F.split(x, [4, 8])), 0.5)
    np.testing.assert_array_equal(whole.array, halves.array)


@PRECISIONS
def test_loss_and_accuracy_of_logits_in_either_precision(dtype):
    y = np.random.default_rng(0).standard_normal((6, 5)).astype(bfloat16)
    t = np.arange(6, dtype=np.int32) % 5
    logits = chainer.Variable(y.astype(dtype))
    loss = F.softmax_cross_entropy(logits, t)
    loss.backward()
    expected = C.softmax_cross_entropy(chainer.Variable(y.astype(np.float64)), t)
    assert loss.dtype == np.float32
    assert loss.array == pytest.approx(float(expected.array), rel=1e-5)
    assert logits.grad.dtype == dtype
    assert F.accuracy(logits, t).array == C.accuracy(y.astype(np.float32), t).array


@PRECISIONS
@pytest.mark.parametrize('smoothing', [0.0, 0.2])
def test_weighted_loss_is_the_mean_over_the_rows(dtype, smoothing):
    y = np.random.default_rng(0).standard_normal((6, 5)).astype(bfloat16)
    t, weights = np.array([0, 1, 1, 4, -1, 3], np.int32), np.array([0.5, 2, 1, 3, 1], np.float32)
    logits = chainer.Variable(y.astype(dtype))
    loss = F.softmax_cross_entropy(logits, t, smoothing=smoothing, class_weight=weights)
    loss.backward()
    y = y.astype(np.float64)
    log_p = y - np.log(np.exp(y).sum(axis=1, keepdims=True))
    target = (1 - smoothing) * np.eye(5)[t] + smoothing / 5
    row = np.where(t >= 0, weights[t], 0)[:, None] / 5  # five rows count
    assert loss.array == pytest.approx(-(row * target * log_p).sum(), rel=1e-5)
    expected = row * (np.exp(log_p) - target)
    np.testing.assert_allclose(logits.grad.astype(np.float64), expected, rtol=TOLERANCE[dtype], atol=1e-3)


# ---- gradients of gradients go to Chainer ----

RNG = np.random.default_rng(0)
X, W3, B = (RNG.standard_normal(shape).astype(np.float32) for shape in ((2, 4, 5, 5), (6, 4, 3, 3), (6,)))
ADD = RNG.standard_normal((2, 6, 5, 5)).astype(np.float32)
GAMMA, BETA = RNG.uniform(0.5, 2, 4).astype(np.float32), RNG.standard_normal(4).astype(np.float32)
TWICE = {
    'convolution_2d': (lambda L, x, W, b: L.convolution_2d(x, W, b, pad=1), (X, W3, B)),
    'batch_normalization': (lambda L, *v: L.batch_normalization(*v), (X, GAMMA, BETA)),
    'max_pooling_2d': (lambda L, x: L.max_pooling_2d(x, 3, 2, 1), (X,)),
    'average_pooling_2d': (lambda L, x: L.average_pooling_2d(x, 2), (X,)),
    'relu': (lambda L, x: L.relu(x), (X,)),
    'add': (lambda L, x, y: L.add(x, y), (X, X[::-1].copy())),
    'concat': (lambda L, x, y: L.concat([x, y]), (X, X[::-1].copy())),
    'linear': (lambda L, x, W: L.linear(x, W), (X[:, :, 0, 0], W3[:, :, 0, 0].copy())),
    'mean': (lambda L, x: L.mean(x, axis=(2, 3)), (X,)),
    'local_response_normalization': (lambda L, x: L.local_response_normalization(x), (X,)),
}


@pytest.mark.parametrize('name', TWICE)
def test_gradients_of_gradients_are_chainers(name):
    function, arrays = TWICE[name]
    results = []
    for library in (C, F):
        variables = [chainer.Variable(a.copy()) for a in arrays]
        try:
            y = C.sin(function(library, *variables))  # a gradient that depends on the output
            grads = chainer.grad([y], variables, enable_double_backprop=True)
            second = chainer.grad([sum(C.sum(g * g) for g in grads)], variables)
        except (NotImplementedError, AttributeError, TypeError):
            if library is C:
                pytest.skip('Chainer itself has none')
            raise
        results.append([y.array, *(g.array for g in grads), *(g.array for g in second)])
    for chainers, ours in zip(*results, strict=True):
        np.testing.assert_allclose(ours, chainers, rtol=1e-3, atol=1e-5 * max(10, np.abs(chainers).max()))


def test_gradient_of_a_gradient_of_a_convolution_with_a_sum():
    results = []
    for config, dtype in (('fused', np.float32), ('plain', np.float64)):
        with chainer.using_config('engine', config):
            x, W, add = (chainer.Variable(a.astype(dtype)) for a in (X, W3, ADD))
            y = C.sin(F.convolution_2d(x, W, pad=1, add=add))
            grads = chainer.grad([y], [x, W, add], enable_double_backprop=True)
            second = chainer.grad([sum(C.sum(g * g) for g in grads)], [x, W, add])
            results.append([g.array for g in (*grads, *second)])
    for ours, chainers in zip(*results, strict=True):
        # Terms of the order of 100 cancel, in an order that depends on the processor.
        assert difference(ours, chainers) < 1e-5


@pytest.mark.bfloat16
def test_rows_of_one_window_read_no_memory_that_nobody_has_written():
    """oneDNN's bfloat16 kernel of weight gradients does, where a row is shorter than the stride: a rare NaN."""
    code = (
        'import trainer, chainer, numpy as np, trainer.functions as F\n'
        'from ml_dtypes import bfloat16\n'
        'for channels in 1, 3, 16:\n'
        '    x = chainer.Variable(np.ones((2, channels, 1, 1), bfloat16))\n'
        '    W = chainer.Variable(np.ones((16, channels, 2, 2), np.float32))\n'
        '    y = F.convolution_2d(x, W, stride=2, pad=1)\n'
        '    y.grad = np.ones_like(y.array)\n'
        '    y.backward()\n'
        '    assert (W.grad[:, :, 1, 1] == 2).all() and W.grad.sum() == 2 * 16 * channels, W.grad\n'
    )
    poisoned = os.environ | {'MALLOC_PERTURB_': '1'}  # glibc fills what it hands out
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True, env=poisoned)
