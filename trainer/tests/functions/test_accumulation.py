"""Gradients that add up: maps and parameters used several times, gradients that are shared, and the arena."""

import chainer
import chainer.functions as C
import numpy as np
import pytest

import trainer.functions as F
from trainer import engine
from trainer.engine import arena
from trainer.engine.onednn import operation

pytestmark = pytest.mark.skipif(not engine.is_available(), reason='oneDNN is not installed')

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _as_in_an_updater():
    with chainer.using_config('fills_arena', True):
        yield


def make(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def as_channels_last(x):
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def differentiate(function, arrays, dtype=np.float64, n_backward=1):
    """Gradients of function(*variables), a scalar; in float64 they are plain Chainer's."""
    variables = [chainer.Variable(a.astype(dtype)) for a in arrays]
    for _ in range(n_backward):
        function(*variables).backward()
    return [v.grad for v in variables]


def check(function, *arrays, n_backward=1):
    expected = differentiate(function, arrays, np.float64, n_backward)
    for i, (g, e) in enumerate(zip(differentiate(function, arrays, np.float32, n_backward), expected, strict=True)):
        assert np.abs(g - e).max() < 1e-4 * np.abs(e).max(), f'gradient {i}'


def total(y):
    return C.sum(C.sin(y))


MAPS = make(2, 4, 5, 5), make(2, 4, 5, 5)
POINTWISE, WINDOW, WIDE = make(4, 4, 1, 1) / 2, make(4, 4, 3, 3) / 6, make(4, 8, 1, 1) / 3

TWICE = {
    'add': (lambda x: total(F.add(x, x)), MAPS[0]),
    'concat': (lambda x: total(F.concat([x, x, x])), MAPS[0]),
    'convolution and its sum': (lambda x, W: total(F.convolution_2d(x, W, add=x)), MAPS[0], POINTWISE),
    'maps side by side': (
        lambda x, W: total(F.convolution_2d(F.side_by_side([x, x]), W, add=x)),
        MAPS[0],
        WIDE,
    ),
    'scale and shift': (lambda x, g: total(F.batch_normalization(x, g, g)), MAPS[0], make(4)),
    'weights of convolutions': (
        lambda x, W: total(F.convolution_2d(F.relu(F.convolution_2d(x, W, pad=1)), W, pad=1)),
        MAPS[0],
        WINDOW,
    ),
    'weights and bias of layers': (
        lambda x, W, b: total(F.linear(F.linear(x, W, b), W, b)),
        make(3, 4),
        make(4, 4),
        make(4),
    ),
    'a map in several functions': (
        lambda x, W: (
            total(
                F.concat(
                    [F.relu(x), F.max_pooling_2d(x, 3, 1, 1), F.average_pooling_2d(x, 3, 1, 1), F.convolution_2d(x, W)]
                )
            )
            + total(F.local_response_normalization(x))
            + total(F.mean(x, (2, 3)))
            + total(x)
        ),
        MAPS[0],
        POINTWISE,
    ),
}


@pytest.mark.parametrize('name', TWICE)
def test_gradients_of_what_is_used_twice_add_up(name):
    function, *arrays = TWICE[name]
    check(function, *arrays)


@pytest.mark.parametrize('name', TWICE)
def test_gradients_of_two_backward_passes_add_up(name):
    function, *arrays = TWICE[name]
    check(function, *arrays, n_backward=2)


def test_a_term_of_a_sum_that_has_a_gradient_already_leaves_that_of_the_other_alone():
    def function(a, b, W):
        h = F.relu(a)
        y = F.add(h, b)
        return total(F.add(F.convolution_2d(y, W), h))  # h has a gradient before the first sum's is computed

    check(function, *MAPS, POINTWISE)


def test_the_terms_of_a_sum_get_their_own_gradients_when_backward_runs_twice():
    check(lambda a, b: total(F.add(a, b)), *MAPS, n_backward=2)


def with_a_gradient_first(function):
    """The scalar function(h, b), where h = relu(a) has a gradient before those of function's own are computed."""

    def with_two(a, b, *rest):
        h = F.relu(a)
        late = C.sin(C.sin(C.sin(C.sin(C.sin(C.sin(C.sin(b)))))))
        return function(h, F.relu(b), *rest) + C.sum(h * late)

    return with_two


def test_what_a_convolution_adds_and_has_a_gradient_already_leaves_shared_ones_alone():
    def function(h, b, third, W):
        return total(F.relu(F.add(F.convolution_2d(b, W, add=h), F.relu(third))))  # both terms get one array

    check(with_a_gradient_first(function), *MAPS, make(2, 4, 5, 5), POINTWISE)


def test_a_concatenation_of_one_image_leaves_shared_gradients_alone():
    third, weights = make(1, 8, 5, 5), make(1, 8, 5, 5)

    def function(h, b, third):
        y = F.add(F.concat([h, b]), F.relu(third))
        return C.sum(y * weights)  # in C order, a slice of one image's gradient has no gaps

    check(with_a_gradient_first(function), make(1, 4, 5, 5), make(1, 4, 5, 5), third)


def test_a_gradient_that_the_caller_has_set_stays_as_it_was():
    x, other = (chainer.Variable(a) for a in MAPS)
    x.grad = np.ones_like(x.array)
    y = F.add(x, other)
    y.grad = as_channels_last(make(2, 4, 5, 5))
    before = y.grad.copy()
    y.backward(retain_grad=True)
    np.testing.assert_array_equal(y.grad, before)


# ---- the arena ----


def in_an_arena(*arrays):
    parameters = [chainer.Parameter(a.copy()) for a in arrays]
    flat = arena.Arena([p.array for p in parameters])
    for parameter, view in zip(parameters, flat.parameters, strict=True):
        parameter.array = view
    return flat, parameters


LAYERS = {
    'convolution_2d': (lambda x, W, b: F.convolution_2d(x, W, b, pad=1), [make(6, 4, 3, 3), make(6)]),
    'convolution_2d of pixels': (lambda x, W, b: F.convolution_2d(x, W, b), [make(6, 4, 1, 1), make(6)]),
    'convolution_2d in groups': (lambda x, W: F.convolution_2d(x, W, groups=2), [make(6, 2, 3, 3)]),
    'convolution_2d side by side': (
        lambda x, W, b: F.convolution_2d(F.side_by_side([x, F.relu(x)]), W, b, pad=1),
        [make(6, 8, 3, 3), make(6)],
    ),
    'batch_normalization': (lambda x, g, b: F.batch_normalization(x, g, b, relu=True), [make(4), make(4)]),
    'batch_normalization side by side': (
        lambda x, g, b, W: F.convolution_2d(F.batch_normalization(F.side_by_side([x, F.relu(x)]), g, b), W),
        [make(8), make(8), make(6, 8, 1, 1)],
    ),
    'linear': (lambda x, W, b: F.linear(x, W, b), [make(7, 100), make(7)]),
}


@pytest.mark.parametrize('name', LAYERS)
def test_gradients_are_written_into_the_arena_and_add_up_there(name):
    layer, arrays = LAYERS[name]
    expected = differentiate(lambda x, *parameters: total(layer(x, *parameters)), [MAPS[0], *arrays])[1:]
    flat, parameters = in_an_arena(*arrays)
    for n in (1, 2, 3):
        total(layer(MAPS[0], *parameters)).backward()
        for parameter, place, e in zip(parameters, flat.gradients, expected, strict=True):
            assert parameter.grad is place
            assert np.abs(place - n * e).max() < 1e-4 * np.abs(n * e).max()
    for parameter in parameters:
        parameter.cleargrad()
    total(layer(MAPS[0], *parameters)).backward()  # cleared gradients start anew
    for parameter, place, e in zip(parameters, flat.gradients, expected, strict=True):
        assert parameter.grad is place
        assert np.abs(place - e).max() < 1e-4 * np.abs(e).max()


@pytest.mark.parametrize('name', LAYERS)
def test_nothing_is_written_beside_a_gradients_place(name):
    layer, arrays = LAYERS[name]
    guards = [np.zeros(16, np.float32)] * (len(arrays) + 1)
    mixed = [a for pair in zip(guards, [*arrays, None], strict=True) for a in pair if a is not None]
    flat, parameters = in_an_arena(*mixed)
    flat.gradient[...] = 7
    total(layer(MAPS[0], *parameters[1::2])).backward()
    for place in flat.gradients[1::2]:
        place[...] = 7
    assert (flat.gradient == 7).all()


def test_a_parameter_used_by_two_layers_adds_up_in_the_arena():
    arrays = [POINTWISE, make(4)]

    def function(x, W, b):
        return total(F.convolution_2d(F.relu(F.convolution_2d(x, W, b)), W, b))

    expected = differentiate(function, [MAPS[0], *arrays])[1:]
    flat, parameters = in_an_arena(*arrays)
    function(MAPS[0], *parameters).backward()
    for parameter, place, e in zip(parameters, flat.gradients, expected, strict=True):
        assert parameter.grad is place
        assert np.abs(place - e).max() < 1e-4 * np.abs(e).max()


def test_a_gradient_from_elsewhere_is_added_to_and_not_overwritten():
    _, (W,) = in_an_arena(POINTWISE)
    total(F.convolution_2d(MAPS[0], W)).backward()
    once = W.grad.copy()
    W.grad = np.ones_like(once)  # e.g. of a penalty
    total(F.convolution_2d(MAPS[0], W)).backward()
    np.testing.assert_allclose(W.grad, 1 + once, rtol=1e-5, atol=1e-6)


def test_chainer_grad_leaves_the_accumulated_gradient_alone():
    _, (W,) = in_an_arena(POINTWISE)
    total(F.convolution_2d(MAPS[0], W)).backward()
    before = W.grad.copy()
    chainer.grad([total(2 * F.convolution_2d(MAPS[0], W))], [W])
    np.testing.assert_array_equal(W.grad, before)


def test_chainer_grad_returns_arrays_of_its_own():
    _, (W,) = in_an_arena(POINTWISE)
    functions = [lambda W, x=x: total(F.convolution_2d(x, W)) for x in MAPS]
    with chainer.using_config('fills_arena', False):  # as outside of an updater
        gradients = [chainer.grad([function(W)], [W])[0].array for function in functions]
    for gradient, function in zip(gradients, functions, strict=True):
        (expected,) = differentiate(function, [POINTWISE])
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4)


def test_views_of_a_parameter_add_up():
    def function(W):
        first, second = F.convolution_2d(MAPS[0], W[:]), F.convolution_2d(MAPS[1], W[:])
        return total(first) + total(second) + total(F.convolution_2d(MAPS[0], W))

    (expected,) = differentiate(function, [POINTWISE])
    _, (W,) = in_an_arena(POINTWISE)
    function(W).backward()
    np.testing.assert_allclose(W.grad, expected, rtol=1e-4, atol=1e-4)


def test_arrays_that_are_not_in_an_arena_have_no_place():
    flat, _ = in_an_arena(POINTWISE, WINDOW)
    assert arena.place_of(POINTWISE) is None
    assert arena.place_of(flat.parameters[0].reshape(4, 4)) is None  # the place has the parameter's shape
    assert arena.place_of(flat.parameters[1]) is flat.gradients[1]


def test_an_arena_holds_the_values_aligned_and_apart():
    arrays = [make(5), make(3, 7), make(16), make(1)]
    flat = arena.Arena(arrays)
    for view, array, gradient in zip(flat.parameters, arrays, flat.gradients, strict=True):
        np.testing.assert_array_equal(view, array)
        assert view.__array_interface__['data'][0] % 64 == gradient.__array_interface__['data'][0] % 64 == 0
        assert gradient.shape == array.shape
        assert not gradient.any()
        view[...] = 9
    assert (flat.data == 9).sum() == sum(a.size for a in arrays)


# ---- the same bits, the same memory ----


def network(x, W1, gamma, beta, W2, W3):
    h = F.batch_normalization(F.convolution_2d(x, W1, stride=2, pad=1), gamma, beta, relu=True)
    h = F.max_pooling_2d(h, 3, 2)
    h = F.side_by_side([F.relu(F.convolution_2d(h, W2, pad=1)), h])
    with chainer.using_config('dropout_key', F.DropoutKey(1, 2)):
        h = F.dropout(h, 0.5)
    return F.mean(F.convolution_2d(h, W3), (2, 3))


WEIGHTS = make(12, 3, 3, 3), np.ones(12, np.float32), np.zeros(12, np.float32), make(20, 12, 3, 3), make(5, 32, 1, 1)
IMAGES = make(4, 3, 32, 32)


@pytest.mark.parametrize('compute_dtype', [None, pytest.param('bfloat16', marks=pytest.mark.bfloat16)])
def test_forward_and_backward_repeat_to_the_bit(compute_dtype):
    import ml_dtypes

    with chainer.using_config('compute_dtype', compute_dtype and ml_dtypes.bfloat16):
        one, other = (
            differentiate(lambda x, *W: total(network(x, *W)), [IMAGES, *WEIGHTS], np.float32) for _ in range(2)
        )
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


def test_repeated_iterations_need_no_more_memory():
    _, parameters = in_an_arena(*WEIGHTS)

    def step():
        for parameter in parameters:
            parameter.cleargrad()
        total(network(IMAGES, *parameters)).backward()

    step()
    step()
    peak = operation.BUFFERS.peak
    for _ in range(10):
        step()
    assert operation.BUFFERS.peak == peak
