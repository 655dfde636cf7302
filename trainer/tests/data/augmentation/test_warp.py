import chainer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trainer.data.augmentation import (
    BICUBIC,
    BILINEAR,
    NEAREST,
    Draws,
    Sizes,
    draw_test,
    draw_train,
    normalise,
    resize_weights,
    take,
    warp,
)

KERNELS = [NEAREST, BILINEAR, BICUBIC]
RESAMPLING = [Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC]


def noise(rng, *shape):
    return rng.integers(0, 256, shape, np.uint8)


def black_and_white(rng, *shape):
    return rng.integers(0, 2, shape, np.uint8) * 255


def checkerboard(rng, N, C, H, W):
    return np.broadcast_to((np.add.outer(np.arange(H), np.arange(W)) % 2 * 255).astype(np.uint8), (N, C, H, W))


def whole(side, kernel, n=1, flip=False):
    """Draws that resize and do not crop."""
    zeros = np.zeros(n, np.int32)
    return Draws(zeros + side, zeros, zeros, np.full(n, kernel, np.int8), np.full(n, flip))


def resize_by_pillow(image, side, kernel):
    pixels = Image.fromarray(image.transpose(1, 2, 0)).resize((side, side), RESAMPLING[kernel])
    return np.asarray(pixels).transpose(2, 0, 1).astype(int)


def warp_slowly(image, side, top, left, kernel, flip, size):
    """One image, pixel by pixel, straight from the formula, in float64."""

    def k(t):
        t = abs(t)
        if kernel == BILINEAR:
            return max(1 - t, 0)
        if t < 1:
            return 1.5 * t**3 - 2.5 * t**2 + 1
        return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0

    def resample(values, i):
        ratio = len(values) / side
        centre = (i + 0.5) * ratio
        if kernel == NEAREST:
            return values[int(centre)]
        weights = [k((j + 0.5 - centre) / max(ratio, 1)) for j in range(len(values))]
        value = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
        return min(max(value, 0), 255)

    y = np.empty((len(image), size, size))
    for c, channel in enumerate(image.astype(float)):
        for column in range(size):
            j = left + (size - 1 - column if flip else column)
            narrowed = [resample(row, j) for row in channel]
            y[c, :, column] = [resample(narrowed, top + i) for i in range(size)]
    return y


@pytest.mark.parametrize('make', [noise, black_and_white, checkerboard])
@pytest.mark.parametrize('kernel', KERNELS)
def test_agrees_with_pillow_to_one_grey_level_at_every_side(kernel, make):
    images = make(np.random.default_rng(0), 4, 3, 32, 32)
    for side in range(124, 133):
        y = warp(images, whole(side, kernel, n=4), side)
        pillow = np.array([resize_by_pillow(image, side, kernel) for image in images])
        assert np.abs(np.rint(y) - pillow).max() <= (0 if kernel == NEAREST else 1)
        assert np.abs(y - pillow).mean() < 0.5


@pytest.mark.parametrize('shape', [(150, 150), (375, 500), (33, 8), (1, 1), (2, 300)])
@pytest.mark.parametrize('side', [8, 35, 128, 301])
@pytest.mark.parametrize('kernel', KERNELS)
def test_agrees_with_pillow_up_and_down_and_oblong(kernel, side, shape):
    images = black_and_white(np.random.default_rng(side), 1, 3, *shape)
    y = warp(images, whole(side, kernel), side)
    difference = np.abs(np.rint(y[0]) - resize_by_pillow(images[0], side, kernel))
    assert difference.max() <= (0 if kernel == NEAREST else 1)


def test_nearest_settles_ties_as_pillow_does():
    for length in range(1, 80):
        pixels = np.arange(length, dtype=np.int32)[None]
        for side in [*range(1, 140, 3), *range(124, 133)]:
            pillow = np.asarray(Image.fromarray(pixels).resize((side, 1), Image.Resampling.NEAREST))[0]
            assert np.array_equal(resize_weights(NEAREST, length, side).argmax(1), pillow), (length, side)


@pytest.mark.parametrize('kernel', KERNELS)
def test_equals_the_formula_evaluated_slowly(kernel):
    rng = np.random.default_rng(1)
    images = noise(rng, 4, 2, 9, 7)
    draws = Draws(
        side=np.array([11, 13, 6, 20], np.int32),
        top=np.array([0, 7, 0, 3], np.int32),
        left=np.array([5, 2, 0, 14], np.int32),
        kernel=np.full(4, kernel, np.int8),
        flip=np.array([False, True, True, False]),
    )
    y = warp(images, draws, 6)
    for n in range(4):
        expected = warp_slowly(images[n], *(column[n] for column in draws), 6)
        np.testing.assert_allclose(y[n], expected, rtol=0, atol=1e-3)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    N=st.integers(1, 5),
    H=st.integers(1, 40),
    W=st.integers(1, 40),
    size=st.integers(8, 40),
)
def test_shape_type_and_range_hold_for_any_shape(seed, N, H, W, size):
    rng = np.random.default_rng(seed)
    sizes = Sizes.of(size)
    y = warp(black_and_white(rng, N, 3, H, W), draw_train(rng, N, sizes), size, (sizes.side_min, sizes.side_max))
    assert y.shape == (N, 3, size, size) and y.dtype == np.float32
    assert y.min() >= 0 and y.max() <= 255
    x = normalise(y)
    assert x.shape == y.shape and x.dtype == np.float32 and np.isfinite(x).all()


@pytest.fixture
def batch():
    rng = np.random.default_rng(2)
    return noise(rng, 37, 3, 32, 32), draw_train(rng, 37, Sizes.of(122))


def test_an_image_does_not_depend_on_the_rest_of_its_batch(batch):
    images, draws = batch
    together = normalise(warp(images, draws, 122))
    for rows in [slice(0, 1), slice(5, 8), slice(36, 37)]:
        assert np.array_equal(normalise(warp(images[rows], take(draws, rows), 122)), together[rows])


def test_flip_mirrors(batch):
    images, draws = batch
    y = warp(images, draws, 122)
    mirrored = warp(images, draws._replace(flip=~draws.flip), 122)[..., ::-1]
    # A product of matrices may add in another order in its last columns than in its first.
    np.testing.assert_allclose(mirrored, y, rtol=0, atol=1e-4)
    assert np.array_equal(mirrored[draws.kernel == NEAREST], y[draws.kernel == NEAREST])


def test_crop_is_a_part_of_the_whole(batch):
    images, draws = batch
    y = warp(images, draws._replace(flip=np.zeros(37, bool)), 122)
    for n in range(37):
        side, top, left = (int(column[n]) for column in draws[:3])
        resized = warp(images[n : n + 1], whole(side, draws.kernel[n]), side)[0]
        np.testing.assert_allclose(y[n], resized[:, top : top + 122, left : left + 122], rtol=0, atol=1e-3)


def test_sides_given_or_looked_up_make_no_difference(batch):
    images, draws = batch
    assert np.array_equal(warp(images, draws, 122), warp(images, draws, 122, (124, 132)))
    assert np.array_equal(warp(images, draws, 122), warp(images, draws, 122, (100, 140)))


def test_float_images_are_taken_as_they_are(batch):
    images, draws = batch
    assert np.array_equal(warp(images.astype(np.float32), draws, 122), warp(images, draws, 122))


def test_leaves_its_arguments_alone(batch):
    images, draws = batch
    images_before, y = images.astype(np.float32), warp(images, draws, 122)
    float_images, y_before = images_before.copy(), y.copy()
    warp(float_images, draws, 122)
    normalise(y)
    assert np.array_equal(float_images, images_before) and np.array_equal(y, y_before)


def test_small_test_view_is_the_image_itself():
    images = noise(np.random.default_rng(3), 2, 3, 32, 32)
    assert np.array_equal(warp(images, draw_test(2, Sizes.of(32)), 32), images.astype(np.float32))


@pytest.mark.parametrize(
    ('column', 'value'), [('top', 11), ('left', 11), ('top', -1), ('left', -1), ('side', 121), ('side', 133)]
)
def test_crop_outside_the_image_is_named(batch, column, value):
    images, draws = batch
    draws = draws._replace(side=np.full(37, 132, np.int32))
    getattr(draws, column)[5] = value
    with pytest.raises(ValueError, match=r'image 5: crop 122 px at top .* 124 \.\. 132'):
        warp(images, draws, 122, (124, 132))


@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize(('length', 'side'), [(32, 124), (32, 132), (500, 128), (1, 9), (9, 1)])
def test_weights_sum_to_one(kernel, length, side):
    weights = resize_weights(kernel, length, side)
    assert weights.shape == (side, length) and weights.dtype == np.float32
    np.testing.assert_allclose(weights.sum(1), 1, rtol=0, atol=1e-6)


@pytest.mark.parametrize('kernel', [BILINEAR, BICUBIC])
def test_weights_are_symmetric(kernel):
    weights = resize_weights(kernel, 32, 127)
    np.testing.assert_allclose(weights, weights[::-1, ::-1], rtol=0, atol=1e-6)


def test_normalised_images_have_mean_0_and_standard_deviation_1():
    rng = np.random.default_rng(4)
    dark = noise(rng, 1, 3, 122, 122) // 64
    bright = 255 - dark
    x = normalise(np.concatenate([dark, bright, noise(rng, 3, 3, 122, 122)]).astype(np.float32)).astype(float)
    np.testing.assert_allclose(x.mean((1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(x.std((1, 2, 3)), 1, atol=1e-5)


def test_normalises_over_all_channels_at_once():
    x = noise(np.random.default_rng(5), 2, 3, 8, 8).astype(np.float32)
    expected = [(image - image.mean()) / image.std() for image in x.astype(float)]
    np.testing.assert_allclose(normalise(x), expected, atol=1e-5)


@pytest.mark.parametrize('level', [0, 1, 77, 255])
@pytest.mark.parametrize('kernel', KERNELS)
def test_image_of_one_colour_becomes_zero(kernel, level):
    y = warp(np.full((1, 3, 32, 32), level, np.uint8), whole(128, kernel), 128)
    np.testing.assert_allclose(y, level, atol=1e-4)
    np.testing.assert_allclose(normalise(y), 0, atol=0.02)


def test_flattest_image_that_is_not_flat_is_normalised_like_any_other():
    x = np.full((1, 3, 32, 32), 100, np.float32)
    x[0, 0, 0, 0] += 1
    assert normalise(x).std() == pytest.approx(1, abs=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize('size', [32, 122])
def test_gpu_shows_the_same_pictures(size):
    rng = np.random.default_rng(6)
    sizes = Sizes.of(size)
    images, draws = noise(rng, 33, 3, 32, 40), draw_train(rng, 33, sizes)
    device = chainer.get_device('@cupy:0')
    device.use()
    images_gpu, draws_gpu = device.send(images), Draws(*device.send(tuple(draws)))
    for sides in None, (sizes.side_min, sizes.side_max):
        y_gpu = warp(images_gpu, draws_gpu, size, sides)
        assert isinstance(y_gpu, device.xp.ndarray) and y_gpu.dtype == np.float32
        y = warp(images, draws, size)
        np.testing.assert_allclose(y_gpu.get(), y, rtol=0, atol=1e-2)
        np.testing.assert_allclose(normalise(y_gpu).get(), normalise(y), rtol=0, atol=1e-3)
