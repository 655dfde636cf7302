"""The GPU engine's functions against Chainer in float64: on a GPU, and with the kernels run on the CPU instead."""

import warnings

import chainer
import ml_dtypes
import numpy as np
import pytest
from cuda_on_cpu import CPURuntime, has_compiler

import trainer.functions as F
from trainer import device, engine
from trainer.data.augmentation import Sizes, TestView, TrainView
from trainer.data.order import Batch, EpochIterator
from trainer.data.preprocessing import PREPROCESSINGS
from trainer.engine.cuda import kernel
from trainer.engine.cuda import loss as losses
from trainer.engine.cuda import optimizer as optimizers
from trainer.engine.cuda import runtime as runtimes
from trainer.engine.errors import EngineWarning
from trainer.step.evaluate import true_ranks

needs_compiler = pytest.mark.skipif(not has_compiler(), reason='no g++ to compile the kernels for the CPU')

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
TOLERANCE = {np.dtype('float32'): 2e-5, np.dtype('float16'): 4e-3, BFLOAT16: 3e-2}
DTYPES = list(TOLERANCE)


@pytest.fixture(params=[pytest.param('cpu', marks=needs_compiler), pytest.param('gpu', marks=pytest.mark.gpu)])
def gpu(request):
    """A runtime in use: its kernels run on the CPU, or where they belong."""
    if request.param == 'gpu':
        device.open_device(0)
        yield runtimes.runtime()
    else:
        with runtimes.using(CPURuntime()):
            yield runtimes.runtime()


@pytest.fixture
def imitation():
    """What only the runtime on the CPU can show."""
    if not has_compiler():
        pytest.skip('no g++ to compile the kernels for the CPU')
    with runtimes.using(CPURuntime()):
        yield runtimes.runtime()


def send(x):
    """To the device."""
    return runtimes.runtime().xp.asarray(x)


def host(x):
    return chainer.backends.cuda.to_cpu(x)


def normal(*shape, seed=0, shift=0.0):
    return np.random.default_rng([seed, *shape]).normal(shift, 1, shape).astype(np.float32)


X = normal(3, 16, 7, 5, shift=0.5)
ODD = normal(3, 5, 7, 5, seed=1)  # channels that fill no pack
VECTOR = {'gamma': normal(16, seed=2, shift=1), 'beta': normal(16, seed=3)}
W = normal(24, 16, 3, 3, seed=4)
BIAS = normal(24, seed=5, shift=3)


def batch_normalization(relu, **options):
    return lambda x, gamma, beta: F.batch_normalization(x, gamma, beta, relu=relu, **options)


def frozen_batch_normalization(relu):
    """With parameters and statistics that need no gradient."""
    vectors = [normal(16, seed=s, shift=1) for s in (2, 3, 4)] + [normal(16, seed=5) ** 2 + 1]

    def function(x):
        array = x.array if isinstance(x, chainer.Variable) else x[0].array
        xp, dtype = chainer.backend.get_array_module(array), np.promote_types(array.dtype, np.float32)
        return F.fixed_batch_normalization(x, *(xp.asarray(v.astype(dtype)) for v in vectors), relu=relu)

    return function


def beside(*slices):
    """x as maps side by side."""
    return lambda x: F.side_by_side([x[:, s] for s in slices])


# name -> function of variables, inputs.  Inputs of up to two dimensions stay float32, as parameters are.
CASES = {
    'convolution': (lambda x, W, b: F.convolution_2d(x, W, b, pad=1), [X, W, BIAS]),
    'convolution strided': (lambda x, W: F.convolution_2d(x, W, stride=2, pad=(1, 0)), [X, W]),
    'convolution dilated': (lambda x, W: F.convolution_2d(x, W, pad=2, dilate=2), [X, W]),
    'convolution in groups': (lambda x, W, b: F.convolution_2d(x, W, b, pad=1, groups=2), [X, W[:, :8], BIAS]),
    'convolution of odd channels': (lambda x, W: F.convolution_2d(x, W, pad=1), [ODD, normal(3, 5, 3, 3)]),
    'convolution and a sum': (
        lambda x, W, b, r: F.convolution_2d(x, W, b, pad=1, add=r),
        [X, W, BIAS, normal(3, 24, 7, 5, seed=6)],
    ),
    'convolution side by side': (
        lambda x, W: F.convolution_2d(beside(slice(8), slice(8, None))(x), W, pad=1),
        [X, W],
    ),
    'batch normalisation': (batch_normalization(False), [X, *VECTOR.values()]),
    'batch normalisation, rectified': (batch_normalization(True), [X, *VECTOR.values()]),
    'batch normalisation of vectors': (batch_normalization(True), [normal(9, 16), *VECTOR.values()]),
    'batch normalisation of odd channels': (batch_normalization(True), [ODD, normal(5), normal(5, seed=1)]),
    'batch normalisation side by side': (
        lambda x, g, b: batch_normalization(True)(beside(slice(8), slice(8, None))(x), g, b),
        [X, *VECTOR.values()],
    ),
    'batch normalisation twice, and a sum': (
        lambda x, g, b: batch_normalization(True)(x, g, b) + F.add(batch_normalization(False)(x, b, g), x),
        [X, *VECTOR.values()],
    ),
    'batch normalisation, frozen': (frozen_batch_normalization(True), [X]),
    'batch normalisation, frozen, side by side': (
        lambda x: frozen_batch_normalization(True)(beside(slice(8), slice(8, None))(x)),
        [X],
    ),
    'max pooling': (lambda x: F.max_pooling_2d(x, 3, stride=2, pad=1), [X]),
    'max pooling of odd channels': (lambda x: F.max_pooling_2d(x, 2, cover_all=True), [ODD]),
    'max pooling side by side': (
        lambda x: F.max_pooling_2d(beside(slice(8), slice(8, None))(x), 3, stride=2),
        [X],
    ),
    'average pooling': (lambda x: F.average_pooling_2d(x, 3, stride=2, pad=1), [X]),
    'global average pooling': (lambda x: F.mean(x, axis=(2, 3)), [X]),
    'global average pooling of odd channels': (lambda x: F.mean(x, axis=(2, 3)), [ODD]),
    'rectifier': (F.relu, [X]),
    'rectifier of rows': (F.relu, [normal(5, 7)]),
    'sum': (lambda x, y: F.add(x, y), [X, normal(*X.shape, seed=9)]),
    'sum of one thing twice': (lambda x: F.add(x, x), [X]),
    'concatenation': (lambda x, y: F.concat([x, y]), [X, ODD]),
    'fully connected': (F.linear, [X, normal(11, 16 * 35), normal(11)]),
    'response normalisation': (lambda x: F.local_response_normalization(x, alpha=0.3), [X]),
    'response normalisation, wide': (lambda x: F.local_response_normalization(x, n=9, k=1, alpha=0.3), [ODD]),
    'cross entropy': (
        lambda x: F.softmax_cross_entropy(x, x.xp.array([0, 6, -1, 3, 3], np.int32)),
        [normal(5, 7)],
    ),
    'cross entropy, smoothed': (
        lambda x: F.softmax_cross_entropy(x, x.xp.array([0, 6, -1, 3, 3], np.int32), smoothing=0.1),
        [normal(5, 7, shift=20)],
    ),
    'cross entropy of many classes, smoothed': (
        lambda x: F.softmax_cross_entropy(x, x.xp.arange(5, dtype=np.int32) * 50, smoothing=0.6),
        [normal(5, 300)],
    ),
    'cross entropy, weighted': (
        lambda x: F.softmax_cross_entropy(
            x, x.xp.array([0, 6, -1, 3, 3], np.int32), class_weight=x.xp.arange(7, dtype=np.float32) / 2
        ),
        [normal(5, 7)],
    ),
    'cross entropy, weighted and smoothed': (
        lambda x: F.softmax_cross_entropy(
            x,
            x.xp.array([0, 6, -1, 3, 3], np.int32),
            smoothing=0.1,
            class_weight=x.xp.arange(1, 8, dtype=np.float32),
        ),
        [normal(5, 7)],
    ),
}


def gradients(function, arrays, gy_seed=7):
    xs = [chainer.Variable(a if runtimes.current() is None else send(a)) for a in arrays]
    y = function(*xs)
    y = y.joined() if isinstance(y, F.SideBySide) else y
    gy = normal(*y.shape, seed=gy_seed) if y.shape else np.ones((), np.float32)
    y.grad = y.xp.asarray(gy.astype(y.dtype))
    y.backward()
    return [host(y.array), *(host(x.grad) for x in xs)]


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('name', CASES)
def test_functions_and_gradients(name, dtype, gpu):
    function, arrays = CASES[name]
    is_map = [a.ndim == 4 and a is not W and a.shape[2:] != (3, 3) for a in arrays]
    is_map[0] = True
    rounded = [a.astype(dtype) if m else a for a, m in zip(arrays, is_map, strict=True)]
    before = getattr(gpu, 'n_launch', -1)
    with chainer.using_config('compute_dtype', None if dtype == np.float32 else dtype), warnings.catch_warnings():
        warnings.simplefilter('error', EngineWarning)
        found = gradients(function, rounded)
    assert getattr(gpu, 'n_launch', 0) > before, 'Chainer computed it'
    with runtimes.using(None), chainer.using_config('engine', 'plain'):
        expected = gradients(function, [a.astype(np.float64) for a in rounded])
    for y, reference in zip(found, expected, strict=True):
        error = np.linalg.norm(y.astype(float) - reference) / np.linalg.norm(reference)
        assert error < TOLERANCE[dtype] * (2 if name.startswith('batch') else 1)


@pytest.mark.parametrize('name', CASES)
def test_the_order_of_threads_does_not_matter(name, imitation):
    function, arrays = CASES[name]
    results = []
    for imitation.order in range(4):
        results.append(gradients(function, arrays))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('shape', [(2, 64, 9, 9), (2, 3, 1, 1), (5, 1000, 2, 1), (70, 48, 3, 3)])
def test_normalisation_of_many_shapes(shape, dtype, gpu):
    """Groups of channels that are not full, one row, many chunks of rows; a mean large beside the deviation."""
    x = normal(*shape, shift=100).astype(dtype)
    gamma, beta = normal(shape[1], seed=1), normal(shape[1], seed=2)
    mean, var = send(np.zeros_like(gamma)), send(np.ones_like(gamma))
    running = {'running_mean': mean, 'running_var': var}
    y = host(F.batch_normalization(send(x), send(gamma), send(beta), **running, relu=True).array)
    mean, var = host(mean), host(var)
    wide = x.astype(float)
    m, v = wide.mean((0, 2, 3)), wide.var((0, 2, 3))
    expected = np.maximum((wide - m[:, None, None]) / np.sqrt(v + 2e-5)[:, None, None], -np.inf)
    expected = np.maximum(expected * gamma[:, None, None] + beta[:, None, None], 0)
    assert np.linalg.norm(y.astype(float) - expected) / np.linalg.norm(expected) < 2 * TOLERANCE[np.dtype(dtype)]
    n = x.size // shape[1]
    np.testing.assert_allclose(mean, 0.1 * m, rtol=1e-5)
    np.testing.assert_allclose(var, 0.9 + 0.1 * v * n / (n - 1), rtol=1e-4)


def test_nan_stays_nan(gpu):
    x = X.copy()
    x[0, 3, 2, 2] = np.nan
    x = send(x)
    assert np.isnan(host(F.relu(x).array)[0, 3, 2, 2])
    assert np.isnan(host(F.max_pooling_2d(x, 3, stride=2, pad=1).array)[0, 3]).any()
    assert np.isnan(host(F.batch_normalization(x, *map(send, VECTOR.values()), relu=True).array)[:, 3]).all()


def test_dropout_masks_are_those_of_the_cpu(gpu):
    x = send(np.ones((5, 24, 3, 3), np.float32))
    for view in (x, F.side_by_side([chainer.Variable(x[:, :8]), chainer.Variable(x[:, 8:])]), x[:, :, 0, 0], x[:, :7]):
        with chainer.using_config('dropout_key', F.DropoutKey(3, 4, first_row=2, row_step=3)):
            y = F.dropout(F.dropout(view, 0.25), 0.5)
            y = y.joined() if isinstance(y, F.SideBySide) else y
        key = F.DropoutKey(3, 4, first_row=2, row_step=3)
        kept = key.draw(y.shape, 0.25) * key.draw(y.shape, 0.5)
        np.testing.assert_allclose(host(y.array), kept / 0.75 / 0.5, rtol=1e-6)


def test_dropout_passes_gradients_where_it_passed_values(gpu):
    x = chainer.Variable(send(normal(4, 16, 3, 3)))
    with chainer.using_config('dropout_key', F.DropoutKey(1, 2)):
        y = F.dropout(x, 0.5)
    y.grad = y.xp.ones(y.shape, np.float32)
    y.backward()
    np.testing.assert_array_equal(host(x.grad), np.where(host(y.array) != 0, np.float32(2), 0))


def test_a_refused_fusion_is_computed_in_two_steps(imitation):
    with runtimes.using(CPURuntime(refused=lambda p: p.bias or p.add is not None)):
        two = gradients(*CASES['convolution and a sum'])
    for a, b in zip(gradients(*CASES['convolution and a sum']), two, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@needs_compiler
def test_a_refused_convolution_goes_to_chainer():
    with runtimes.using(CPURuntime(refused=lambda p: True)), pytest.warns(Warning, match='Chainer'):
        found = gradients(*CASES['convolution dilated'])
    with chainer.using_config('engine', 'plain'):
        expected = gradients(*CASES['convolution dilated'])
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_gradients_in_the_precision_of_the_maps_where_float32_is_refused(imitation):
    def refused(p):
        return p.kind == 'backward_weights' and p.w.dtype == 'float32'

    function, arrays = CASES['convolution']
    half = [arrays[0].astype(np.float16), *arrays[1:]]
    with runtimes.using(CPURuntime(refused=refused)):
        found = gradients(function, half)
    for a, b in zip(found, gradients(function, half), strict=True):
        assert a.dtype == b.dtype
        assert np.linalg.norm(a.astype(float) - b) / np.linalg.norm(b.astype(float)) < 2e-3


def test_gradients_of_gradients_are_chainers(gpu):
    x = chainer.Variable(send(X))
    y = chainer.functions.sum
    (gx,) = chainer.grad([y(F.relu(F.convolution_2d(x, send(W))) ** 2)], [x], enable_double_backprop=True)
    (ggx,) = chainer.grad([y(gx**2)], [x])
    with runtimes.using(None), chainer.using_config('engine', 'plain'):
        x = chainer.Variable(X.astype(float))
        (gx,) = chainer.grad([y(F.relu(F.convolution_2d(x, W.astype(float))) ** 2)], [x], enable_double_backprop=True)
        (expected,) = chainer.grad([y(gx**2)], [x])
    assert np.linalg.norm(host(ggx.array) - expected.array) / np.linalg.norm(expected.array) < 1e-4


@pytest.mark.parametrize('name', ['momentum', 'nesterov'])
@pytest.mark.parametrize('scale', [1.0, 1024.0])
def test_the_update_is_chainers(name, scale, gpu):
    p, g, v = normal(1000), normal(1000, seed=1), normal(1000, seed=2)
    ours, momenta, copies = send(p.copy()), send(v.copy()), send(np.zeros(1000, np.float16))
    state = optimizers.State(lr=0.1, scale=scale)
    optimizers.check_finite(send(g * np.float32(scale)), state)
    optimizers.update(ours, send(g * np.float32(scale)), momenta, state, 0.9, 1e-2, name == 'nesterov', copies)
    ours, momenta, copies = map(host, (ours, momenta, copies))
    g = g + 1e-2 * p
    v = 0.9 * v - 0.1 * g
    p = p + (0.81 * v - 1.9 * 0.1 * g if name == 'nesterov' else v)
    np.testing.assert_allclose(ours, p, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(momenta, v, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(copies, ours.astype(np.float16))


@pytest.mark.parametrize('name', ['momentum', 'nesterov'])
def test_an_update_at_several_rates_is_that_of_each(name, gpu):
    multipliers = np.array([1, 0, 2.5, 1, 10], np.float32)
    n = 16 * len(multipliers)
    found = [send(normal(n)), send(normal(n, seed=2))]
    gradient, is_nesterov = send(normal(n, seed=1)), name == 'nesterov'
    state = optimizers.State(lr=0.1)
    optimizers.update(found[0], gradient, found[1], state, 0.9, 1e-2, is_nesterov, multipliers=send(multipliers))
    for k, multiplier in enumerate(multipliers):
        part = slice(16 * k, 16 * k + 16)
        expected = [send(normal(n)[part].copy()), send(normal(n, seed=2)[part].copy())]
        state = optimizers.State(lr=np.float32(0.1) * multiplier)
        optimizers.update(expected[0], gradient[part], expected[1], state, 0.9, 1e-2, is_nesterov)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(host(a)[part], host(b))


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize(('n', 'n_class', 'has_ties'), [(300, 10, False), (7, 1000, False), (200, 6, True)])
def test_what_is_counted_is_numpys(n, n_class, has_ties, dtype, gpu):
    x = normal(n, n_class)
    x = (np.round(x) if has_ties else x).astype(dtype)
    t = np.random.default_rng(1).integers(0, n_class, n).astype(np.int32)
    run = runtimes.runtime()
    sums, confusion = run.zeros((3,), np.float64), run.zeros((n_class, n_class), np.uint64)
    n_top5 = run.zeros((1,), np.uint64)
    predicted, wrong = run.zeros((n + 3,), np.int32), run.zeros((n + 3,), np.float32)
    answers = send(np.full(1, 3, np.int64)), predicted, wrong
    for share in (1.0, 0.25):
        losses.tally(send(x), send(t), send(np.full(1, 2, np.float32)), sums, confusion, n_top5, share, answers)
    is_right = x.argmax(axis=1) == t
    np.testing.assert_allclose(host(sums), [1.25 * 2 * n, 1.25 * is_right.sum(), 1.25 * n])
    assert np.trace(host(confusion)) == 2 * is_right.sum() and host(confusion).sum() == 2 * n
    first_five = np.argsort(-x.astype(float), axis=1, kind='stable')[:, :5]
    assert int(host(n_top5)[0]) == 2 * (first_five == t[:, None]).sum()
    assert (true_ranks(x, t) < 5).sum() == (first_five == t[:, None]).sum()
    np.testing.assert_array_equal(host(predicted)[3:], x.argmax(axis=1))
    probability = np.exp(x.astype(float)) / np.exp(x.astype(float)).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(host(wrong)[3:], np.where(is_right, 0, probability.max(axis=1)), rtol=1e-5)
    assert not host(predicted)[:3].any() and not host(wrong)[:3].any()


@pytest.mark.parametrize('fault', [np.inf, -np.inf, np.nan])
def test_an_overflow_skips_the_update_and_halves_the_scale(fault, gpu):
    p, g, v = normal(1000), normal(1000, seed=1), normal(1000, seed=2)
    before = p.copy(), v.copy()
    g[777] = fault
    p, g, v = map(send, (p, g, v))
    state = optimizers.State(lr=0.1, scale=1024, growth_interval=2)
    for expected_scale, gradient in [(512, g), (512, p * 0), (1024, p * 0), (1024, p * 0)]:
        optimizers.check_finite(gradient, state)
        if gradient is g:
            optimizers.update(p, gradient, v, state, 0.9, 0, False)
        optimizers.advance(state, 8)
        assert state.read()['scale'] == expected_scale
    np.testing.assert_array_equal(host(p), before[0])
    np.testing.assert_array_equal(host(v), before[1])
    assert state.read()['n_skipped'] == 1 and state.read()['iteration'] == 4 and state.read()['position'] == 32


def target(run):
    """The runtime's device, to Chainer."""
    return chainer.get_device('@numpy' if run.xp is np else '@cupy:0')


@pytest.mark.parametrize('size', [32, 122])
def test_pictures_are_those_of_the_cpu(size, gpu):
    rng = np.random.default_rng(0)
    split = rng.integers(0, 256, (12, 3, 32, 32), np.uint8), rng.integers(0, 10, 12, np.int32)
    split[0][3] = 200  # flat
    order = EpochIterator(12, 5, seed=4)
    view = TrainView(split, Sizes.of(size), seed=4)
    resident = TrainView(split, Sizes.of(size), seed=4).resident(target(gpu), order.order_of)
    for start in range(0, 30, 5):  # over the ends of epochs
        batch = order.next()
        resident.prepare(start, start + 5)
        x, t = map(host, resident.batch(5, send(np.array([start], np.int64)), np.float32))
        expected, labels = view(batch)
        is_flat = batch.index == 3  # there, all is rounding
        np.testing.assert_allclose(x[~is_flat], expected[~is_flat], atol=2e-4)
        assert np.abs(x[is_flat]).max(initial=0) < 0.01
        np.testing.assert_array_equal(t, labels)
    resident = TestView(split, Sizes.of(size)).resident(target(gpu), lambda epoch: np.arange(12))
    resident.prepare(0, 12)
    x, _ = resident.batch(12, send(np.zeros(1, np.int64)), np.float16)
    expected, _ = TestView(split, Sizes.of(size))(np.arange(12))
    np.testing.assert_allclose(host(x).astype(float), expected, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize('name', ['caffe', 'torchvision'])
def test_pictures_in_the_colours_of_published_weights(name, gpu):
    rng = np.random.default_rng(0)
    split = rng.integers(0, 256, (4, 3, 32, 32), np.uint8), np.arange(4, dtype=np.int32)
    view = TrainView(split, Sizes.of(40), seed=4, colours=PREPROCESSINGS[name])
    expected, labels = view(Batch(np.zeros(4, np.int64), np.arange(4)))
    resident = view.resident(target(gpu), lambda epoch: np.arange(4))
    resident.prepare(0, 4)
    x, t = map(host, resident.batch(4, send(np.zeros(1, np.int64)), np.float32))
    np.testing.assert_allclose(x, expected, atol=2e-4)
    np.testing.assert_array_equal(t, labels)


def test_pictures_are_made_smaller_too(gpu):
    rng = np.random.default_rng(0)
    split = rng.integers(0, 256, (3, 3, 40, 50), np.uint8), np.zeros(3, np.int32)
    resident = TrainView(split, Sizes.of(28), seed=1).resident(target(gpu), lambda epoch: np.arange(3))
    resident.prepare(0, 3)
    x, _ = resident.batch(3, send(np.zeros(1, np.int64)), np.float32)
    expected, _ = TrainView(split, Sizes.of(28), seed=1)(Batch(np.zeros(3, np.int64), np.arange(3)))
    np.testing.assert_allclose(host(x), expected, atol=2e-4)


def test_arguments_are_checked_against_the_signature(imitation):
    with pytest.raises(TypeError, match='takes 2 arguments, not 1'):
        kernel.launch('optimizer', 'advance', (1,), (1,), [np.zeros(40, np.uint8)])


def test_arrays_of_numpy_go_to_the_cpu_without_a_gpu():
    assert engine.of(X) is engine.onednn
    assert engine.of([1]) is None
