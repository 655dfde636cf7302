"""Maps in whatever layout memory holds them, side by side, in either precision: the numbers do not depend on it."""

import warnings

import chainer
import chainer.functions as C
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_dtypes import bfloat16

import trainer.functions as F
from trainer import engine
from trainer.functions.node import to_float32

pytestmark = pytest.mark.skipif(not engine.is_available(), reason='oneDNN is not installed')

SOME = settings(max_examples=20, deadline=None)
TOLERANCE = {'float32': 1e-4, 'bfloat16': 2e-2}
DTYPES = {'float32': np.dtype(np.float32), 'bfloat16': np.dtype(bfloat16)}
PRECISIONS = pytest.mark.parametrize('precision', ['float32', pytest.param('bfloat16', marks=pytest.mark.bfloat16)])


def channels_last(x):
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def slice_of_channels(x):
    n, c, h, w = x.shape
    wide = channels_last(np.zeros((n, c + 3, h, w), x.dtype))
    wide[:, 2 : 2 + c] = x
    return wide[:, 2 : 2 + c]


def every_second(x):
    n, c, h, w = x.shape
    wide = np.zeros((n, 2 * c, h, 2 * w), x.dtype)
    wide[:, ::2, :, ::2] = x
    return wide[:, ::2, :, ::2]


# The same numbers, (N, C, H, W), in memory in another order or with gaps.
LAYOUTS = {
    'C order': np.ascontiguousarray,
    'channels last': channels_last,
    'slice of channels': slice_of_channels,
    'slice of images': lambda x: np.concatenate([x, x])[len(x) :],
    'every second': every_second,
    'reversed rows': lambda x: np.ascontiguousarray(x[:, :, ::-1])[:, :, ::-1],
    'reversed channels last': lambda x: channels_last(x[:, ::-1, :, ::-1])[:, ::-1, :, ::-1],
    'transposed': lambda x: np.ascontiguousarray(x.T).T,
}

# Function of maps (N, C, H, W) and parameters -> the parameters' shapes from (C,); without maxima or kinks.
FUNCTIONS = {
    'convolution_2d 3x3': (lambda x, W, b: F.convolution_2d(x, W, b, pad=1), lambda c: [(7, c, 3, 3), (7,)]),
    'convolution_2d 1x1': (F.convolution_2d, lambda c: [(19, c, 1, 1)]),
    'convolution_2d 1x1 with a bias': (F.convolution_2d, lambda c: [(19, c, 1, 1), (19,)]),
    'convolution_2d strided': (
        lambda x, W: F.convolution_2d(x, W, stride=(2, 1), pad=(1, 2)),
        lambda c: [(5, c, 2, 3)],
    ),
    'convolution_2d of each channel': (lambda x, W: depthwise(x, W), lambda c: [(c, 1, 3, 3)]),
    'average_pooling_2d': (lambda x: F.average_pooling_2d(x, 2, 1, 1), lambda c: []),
    'mean': (lambda x: F.mean(x, (2, 3)), lambda c: []),
    'concat': (lambda x: F.concat([x, x]), lambda c: []),
    'add': (lambda x: F.add(x, x), lambda c: []),
    'split': (lambda x: F.split(x, [x.shape[1]])[0], lambda c: []),
    'local_response_normalization': (
        lambda x: F.local_response_normalization(x, n=5, k=2, alpha=1e-2),
        lambda c: [],
    ),
    'dropout': (lambda x: keyed_dropout(x), lambda c: []),
}


def depthwise(x, W):
    return F.convolution_2d(x, W, pad=1, groups=x.shape[1])


def keyed_dropout(x):
    with chainer.using_config('dropout_key', F.DropoutKey(1, 2)):
        return F.dropout(x, 0.3)


def rounded(x):
    """As bfloat16 holds it, so that a reference gets the same numbers."""
    return x.astype(bfloat16).astype(np.float64)


def close(got, expected, precision):
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape
    # What cancels to nearly nothing is as exact as its terms, which are of the order of 1.
    assert np.abs(got - expected).max() <= TOLERANCE[precision] * max(np.abs(expected).max(), 0.1)


def compare(function, maps, parameters, precision, layout='C order', gy_layout='C order', exact=()):
    """Outputs and gradients against those of float64, Chainer's; of float32 parameters and maps of the precision."""
    maps = [rounded(x) for x in maps]
    reference = [chainer.Variable(a) for a in (*maps, *parameters)]
    y = function(*reference)
    gy = rounded(np.random.default_rng([1, 2]).standard_normal(y.shape))
    y.grad = gy
    y.backward()
    dtype = DTYPES[precision]
    variables = [chainer.Variable(LAYOUTS[layout](x.astype(dtype))) for x in maps]
    variables += [chainer.Variable(a.astype(np.float32)) for a in parameters]
    got = function(*variables)
    gy = gy.astype(got.dtype)
    got.grad = LAYOUTS[gy_layout](gy) if gy.ndim == 4 else gy
    got.backward()
    close(got.array, y.array, precision)
    for v, e in zip(variables, reference, strict=True):
        assert v.grad.dtype == v.dtype
        close(v.grad, e.grad, precision)


@pytest.fixture
def all_served():
    """Fail where something goes to plain Chainer."""
    engine.warn_once.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter('error', engine.EngineWarning)
        yield
    engine.warn_once.cache_clear()


def draw_map(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    n, c, h, w = (data.draw(st.integers(*bounds)) for bounds in ((1, 3), (1, 20), (3, 9), (3, 9)))
    return rng, rng.standard_normal((n, c, h, w))


def draw_layouts(data, name, precision):
    """Of the map and of the gradient; without gaps where what is refused cannot be Chainer's (see below)."""
    is_refused = precision == 'bfloat16' and name in ('relu', 'local_response_normalization')
    layouts = ['C order', 'channels last', 'reversed rows'] if is_refused else list(LAYOUTS)
    return data.draw(st.sampled_from(layouts)), data.draw(st.sampled_from(layouts))


@PRECISIONS
@pytest.mark.parametrize('name', FUNCTIONS)
@SOME
@given(data=st.data())
def test_no_layout_changes_the_numbers(name, precision, data):
    rng, x = draw_map(data)
    function, shapes = FUNCTIONS[name]
    parameters = [rng.standard_normal(shape) / np.sqrt(max(np.prod(shape[1:]), 1)) for shape in shapes(x.shape[1])]
    layout, gy_layout = draw_layouts(data, name, precision)
    compare(function, [x], parameters, precision, layout, gy_layout)


WITH_KINKS = {
    'relu': F.relu,
    'max_pooling_2d': lambda x: F.max_pooling_2d(x, 3, 2, 1),
    'max_pooling_2d inside': lambda x: F.max_pooling_2d(x, (2, 3), (1, 2), 0, cover_all=False),
}


@PRECISIONS
@pytest.mark.parametrize('name', WITH_KINKS)
@SOME
@given(data=st.data())
def test_no_layout_changes_what_is_the_largest(name, precision, data):
    rng, x = draw_map(data)
    n, c, h, w = x.shape
    x = np.stack([rng.permutation(h * w) - h * w // 2 + 0.5 for _ in range(n * c)]).reshape(x.shape)  # no ties
    layout, gy_layout = draw_layouts(data, name, precision)
    compare(WITH_KINKS[name], [x], [], precision, layout, gy_layout)


@PRECISIONS
@pytest.mark.parametrize('is_rectified', [False, True], ids=['', 'relu'])
@SOME
@given(data=st.data())
def test_no_layout_changes_a_batch_normalization(is_rectified, precision, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    c = data.draw(st.integers(1, 20))
    x = rng.standard_normal((4, c, *(data.draw(st.integers(3, 8)) for _ in range(2))))
    gamma, beta = rng.uniform(0.5, 1.5, c), rng.choice([-8.0, 8.0], c)  # no value near the kink
    beta[0] = 8
    layout, gy_layout = (data.draw(st.sampled_from(list(LAYOUTS))) for _ in range(2))
    compare(lambda *v: F.batch_normalization(*v, relu=is_rectified), [x], [gamma, beta], precision, layout, gy_layout)


@PRECISIONS
@pytest.mark.parametrize('layout', LAYOUTS)
def test_a_fully_connected_layer_takes_a_map_in_c_order_whatever_its_layout(layout, precision):
    rng = np.random.default_rng(0)
    x, W, b = rng.standard_normal((3, 5, 4, 3)), rng.standard_normal((7, 60)) / 8, rng.standard_normal(7)
    compare(F.linear, [x], [W, b], precision, layout)


@pytest.mark.parametrize('shape', [(), (3,), (2, 3, 4), (2, 3, 4, 3, 2)])
def test_relu_takes_any_number_of_dimensions(shape):
    x = chainer.Variable(np.asarray(np.random.default_rng(0).standard_normal(shape), np.float32))
    y = F.relu(x)
    C.sum(y * y).backward()
    np.testing.assert_array_equal(y.array, np.maximum(x.array, 0))
    np.testing.assert_allclose(x.grad, 2 * np.maximum(x.array, 0), rtol=1e-6)


def test_rows_in_any_layout_are_taken():
    x = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
    W = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)
    for rows in (x, np.asfortranarray(x), x[::-1], np.repeat(x, 2, 1)[:, ::2]):
        np.testing.assert_array_equal(F.relu(rows).array, np.maximum(rows, 0))
        np.testing.assert_allclose(F.linear(rows, W).array, rows @ W.T, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(F.linear(rows, np.asfortranarray(W)).array, rows @ W.T, rtol=1e-4, atol=1e-5)


BEHIND = {
    'relu': F.relu,
    'max_pooling_2d': lambda x: F.max_pooling_2d(x, 3, 2, 1),
    'average_pooling_2d': lambda x: F.average_pooling_2d(x, 3, 2, 1),
    'batch_normalization': lambda x: F.batch_normalization(x, np.ones(16, x.dtype), np.ones(16, x.dtype)),
    'local_response_normalization': F.local_response_normalization,
    'dropout': keyed_dropout,
    'convolution_2d': lambda x: F.convolution_2d(x, np.full((5, 16, 3, 3), 0.01, x.dtype)),
}


@pytest.mark.parametrize(
    ('name', 'gy_layout'),
    [(name, 'channels last') for name in BEHIND] + [(name, 'slice of channels') for name in BEHIND],
)
def test_gradients_behind_a_concatenation_are_the_engines(name, gy_layout, all_served):
    x = np.random.default_rng(0).permutation(2 * 16 * 36).reshape(2, 16, 6, 6) / 600 + 0.01
    compare(BEHIND[name], [x], [], 'float32', 'channels last', gy_layout)


@pytest.mark.filterwarnings('ignore::trainer.engine.errors.EngineWarning')
def test_a_concatenation_of_rectified_bfloat16_maps_can_be_differentiated():
    x = chainer.Variable(np.ones((2, 16, 4, 4), bfloat16))
    y = F.convolution_2d(F.concat([F.relu(x), x]), np.ones((1, 32, 1, 1), np.float32))
    C.sum(to_float32(y)).backward()
    np.testing.assert_array_equal(x.grad.astype(np.float32), 2)


@pytest.mark.parametrize(
    'name',
    [
        *('convolution_2d', 'max_pooling_2d', 'average_pooling_2d', 'dropout'),
        *('relu', 'batch_normalization'),
    ],
)
def test_a_slice_of_a_map_is_the_engines(name, all_served):
    x = np.random.default_rng(0).permutation(2 * 16 * 36).reshape(2, 16, 6, 6) / 600 + 0.01
    compare(BEHIND[name], [x], [], 'float32', 'slice of channels')


@pytest.mark.filterwarnings('ignore::trainer.engine.errors.EngineWarning')
def test_a_slice_of_a_bfloat16_map_is_rectified():
    x = slice_of_channels(np.random.default_rng(0).standard_normal((2, 1, 4, 4)).astype(bfloat16))
    np.testing.assert_array_equal(F.relu(x).array.astype(np.float32), np.maximum(x.astype(np.float32), 0))


# ---- side by side ----


def halves(x):
    return F.side_by_side([x[:, : x.shape[1] // 3], x[:, x.shape[1] // 3 :]])


def whole(y):
    return y.joined() if isinstance(y, F.SideBySide) else y


SIDE_BY_SIDE = {
    'max_pooling_2d': (lambda x: F.max_pooling_2d(x, 3, 2), []),
    'average_pooling_2d': (lambda x: F.average_pooling_2d(x, 2), []),
    'relu': (F.relu, []),
    'mean': (lambda x: F.mean(x, (2, 3)), []),
    'dropout': (keyed_dropout, []),
    'convolution_2d in groups': (lambda x, W: F.convolution_2d(x, W, groups=3), [(6, 7, 3, 3)]),
    'convolution_2d': (lambda x, W: F.convolution_2d(x, W, stride=2, pad=1), [(6, 21, 3, 3)]),
    'batch_normalization': (lambda x, g, b: F.batch_normalization(x, g * g + 1, b), [(21,), (21,)]),
    'a network': (
        lambda x, W, g, b: F.convolution_2d(F.batch_normalization(x, g * g + 1, b, relu=True), W, add=F.relu(x)),
        [(21, 21, 1, 1), (21,), (21,)],
    ),
}


@PRECISIONS
@pytest.mark.parametrize('name', SIDE_BY_SIDE)
def test_maps_side_by_side_are_their_concatenation(name, precision):
    rng = np.random.default_rng(0)
    n = 2 * 21 * 6 * 5
    x = (rng.permutation(n).reshape(2, 21, 6, 5) + 0.5) / n * 4 - 2  # no ties in float32
    function, shapes = SIDE_BY_SIDE[name]
    parameters = [(rng.standard_normal(s) / np.sqrt(max(np.prod(s[1:]), 1))).astype(np.float32) for s in shapes]
    results = []
    for arrange in (lambda x: x, halves):
        variables = [chainer.Variable(a.copy()) for a in (x.astype(np.float32), *parameters)]
        with chainer.using_config('compute_dtype', DTYPES[precision]):
            y = whole(function(arrange(variables[0]), *variables[1:]))
        C.sum(C.sin(to_float32(y))).backward()
        results.append([y.array.astype(np.float32), *(v.grad for v in variables)])
    for one, other in zip(*results, strict=True):
        close(other, one, precision)


def test_side_by_side_has_the_shape_of_the_concatenation_and_splits_without_a_copy():
    parts = [chainer.Variable(np.ones((2, c, 3, 4), np.float32)) for c in (5, 7)]
    x = F.side_by_side(parts)
    assert (x.shape, x.ndim, x.dtype) == ((2, 12, 3, 4), 4, np.float32)
    assert all(a is b for a, b in zip(F.split(x, [5, 7]), parts, strict=True))
    assert [y.shape for y in F.split(x, [6, 6])] == [(2, 6, 3, 4)] * 2
    np.testing.assert_array_equal(x.array, np.ones((2, 12, 3, 4)))
    with chainer.using_config('engine', 'plain'):
        assert isinstance(F.side_by_side(parts), chainer.Variable)


def test_a_part_that_the_loss_does_not_depend_on_has_no_gradient():
    rng = np.random.default_rng(0)
    xs = [chainer.Variable(rng.standard_normal((3, c, 4, 4)).astype(np.float32)) for c in (5, 7)]
    gamma, beta = (chainer.Variable(np.ones(12, np.float32)) for _ in range(2))
    y = F.batch_normalization(F.side_by_side(xs), gamma, beta)
    C.sum(y[1] * y[1] * y[1]).backward()
    assert xs[0].grad is None or not xs[0].grad.any()
    assert xs[1].grad.any()
    assert not gamma.grad[:5].any()
    assert not beta.grad[:5].any()
    assert gamma.grad[5:].all()
    assert beta.grad[5:].all()


# ---- precision ----


@pytest.mark.bfloat16
def test_a_compute_dtype_makes_the_maps_and_not_the_gradients_of_parameters():
    rng = np.random.default_rng(0)
    x, W, b = (
        chainer.Variable(rng.standard_normal(s).astype(np.float32)) for s in ((2, 3, 8, 8), (16, 3, 3, 3), (16,))
    )
    gamma, rows = (chainer.Variable(rng.standard_normal(s).astype(np.float32)) for s in ((16,), (5, 16)))
    with chainer.using_config('compute_dtype', bfloat16):
        h = F.convolution_2d(x, W, b)
        assert h.dtype == bfloat16
        h = F.max_pooling_2d(F.relu(F.batch_normalization(h, gamma, b)), 2)
        assert h.dtype == bfloat16
        h = F.mean(h, (2, 3))
        assert h.dtype == np.float32
        y = F.linear(h, rows)
        assert y.dtype == bfloat16
        loss = F.softmax_cross_entropy(y, np.array([1, 2], np.int32))
    assert loss.dtype == np.float32
    loss.backward()
    assert {v.grad.dtype for v in (x, W, b, gamma, rows)} == {np.dtype(np.float32)}


def test_a_batch_normalization_far_from_zero_keeps_its_digits():
    rng = np.random.default_rng(0)
    x, gy = 100 + rng.standard_normal((4, 16, 8, 8)), rng.standard_normal((4, 16, 8, 8))
    results = []
    for dtype in (np.float64, np.float32):
        v, one = chainer.Variable(x.astype(np.float32).astype(dtype)), np.ones(16, dtype)
        y = F.batch_normalization(v, one, one)
        y.grad = gy.astype(dtype)
        y.backward()
        results.append((y.array, v.grad))
    for expected, got in zip(*results, strict=True):
        close(got, expected, 'float32')


@pytest.mark.xfail(reason='most of oneDNN takes the maximum with a number that is not one for the number')
@pytest.mark.parametrize('name', ['relu', 'max_pooling_2d', 'batch_normalization'])
def test_what_is_not_a_number_stays_so(name):
    x = np.ones((1, 16, 6, 6), np.float32)
    x[0, 3, 2, 2] = np.nan
    one = np.ones(16, np.float32)
    function = WITH_KINKS.get(name, lambda x: F.batch_normalization(x, one, one, relu=True))
    assert np.isnan(function(x).array[0, 3]).any()


# ---- what is beyond the library ----


@pytest.mark.parametrize(
    'n',
    [
        3,
        5,
        1,
        7,
        9,
    ],
)
@pytest.mark.parametrize('window', [(2, 1e-4, 0.75), (1, 0.1, 1.0), (0.5, 0.1, 0.75)], ids=str)
def test_a_local_response_normalization_may_have_any_window(n, window):
    rng = np.random.default_rng(0)
    compare(
        lambda x: F.local_response_normalization(x, n, *window), [rng.standard_normal((2, 21, 4, 3))], [], 'float32'
    )


ONE = np.ones(16, np.float32)
MAP = np.ones((2, 16, 6, 6), np.float32)
BAD_ARGUMENTS = {
    'weights of other channels': lambda: F.convolution_2d(MAP, np.ones((4, 15, 1, 1), 'f')),
    'a bias of another length': lambda: F.convolution_2d(MAP, np.ones((4, 16, 1, 1), 'f'), np.ones(5, 'f')),
    'a kernel beyond the map': lambda: F.convolution_2d(MAP[:, :, :2], np.ones((4, 16, 3, 3), 'f')),
    'groups that do not divide': lambda: F.convolution_2d(MAP, np.ones((4, 5, 1, 1), 'f'), groups=3),
    'a sum of another shape': lambda: F.convolution_2d(MAP, np.ones((4, 16, 1, 1), 'f'), add=MAP),
    'a scale of another length': lambda: F.batch_normalization(MAP, ONE[:3], ONE[:3]),
    'a layer of other inputs': lambda: F.linear(MAP[:, :, 0, 0], np.ones((4, 15), 'f')),
    "a layer's bias of another length": lambda: F.linear(MAP[:, :, 0, 0], np.ones((4, 16), 'f'), np.ones(5, 'f')),
    'a pooling of rows': lambda: F.max_pooling_2d(MAP[:, :, 0, 0], 2),
    'a sum of maps of two shapes': lambda: F.add(MAP, MAP[:, :, :, 1:]),
    'a concatenation of maps of two sizes': lambda: F.concat([MAP, MAP[:, :, 1:]]),
    'whole numbers': lambda: F.convolution_2d(MAP.astype(int), np.ones((4, 16, 1, 1), 'f')),
}
NOT_REFUSED = {
    'an unknown option': lambda: F.convolution_2d(MAP, np.ones((4, 16, 1, 1), 'f'), unknown=1),
    'fixed statistics of another length': lambda: fixed(ONE[:3], ONE[:3]),
    'maps of two sizes side by side': lambda: F.convolution_2d(
        F.side_by_side([MAP, MAP[:, :, 3:]]), np.ones((4, 32, 1, 1), 'f')
    ),
    'maps of two batches side by side': lambda: F.batch_normalization(
        F.side_by_side([MAP, MAP[:1]]), np.ones(32, 'f'), np.ones(32, 'f')
    ),
}


def fixed(mean, var):
    with chainer.no_backprop_mode():
        return F.fixed_batch_normalization(MAP, ONE, ONE, mean, var)


@pytest.mark.parametrize(
    'name',
    [*BAD_ARGUMENTS, *NOT_REFUSED],
)
def test_bad_arguments_get_chainers_errors(name):
    with pytest.raises((chainer.utils.type_check.InvalidType, TypeError, ValueError, AssertionError)):
        (BAD_ARGUMENTS | NOT_REFUSED)[name]()


MIXED = {
    'what a convolution adds': lambda a, low: F.convolution_2d(a, np.ones((16, 16, 1, 1), 'f') / 16, add=low(a)),
    'what is added to bfloat16': lambda a, low: F.convolution_2d(low(a), np.ones((16, 16, 1, 1), 'f') / 16, add=a),
    'one of two maps side by side': lambda a, low: F.convolution_2d(
        F.side_by_side([a, low(a)]), np.ones((16, 32, 1, 1), 'f') / 32
    ),
    'a bias': lambda a, low: F.convolution_2d(a, np.ones((16, 16, 1, 1), 'f') / 16, low(a)[0, :, 0, 0].copy()),
    "a layer's bias": lambda a, low: F.linear(a[:, :, 0, 0], np.ones((16, 16), 'f') / 16, low(a)[0, :, 0, 0].copy()),
}


@pytest.mark.parametrize('name', MIXED)
def test_precisions_that_do_not_agree_are_refused_or_computed(name):
    a = np.random.default_rng(0).standard_normal((2, 16, 6, 6)).astype(np.float32)
    try:
        got = MIXED[name](a, lambda x: x.astype(bfloat16)).array
    except (chainer.utils.type_check.InvalidType, TypeError):
        return
    close(got, MIXED[name](a, lambda x: x).array, 'bfloat16')
