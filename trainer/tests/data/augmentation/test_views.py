import pickle
from typing import NamedTuple

import chainer
import numpy as np
import pytest

from trainer.data import rng
from trainer.data.augmentation import Sizes, TestView, TrainView, draw_test, draw_train, normalise, take, views, warp
from trainer.errors import InputError

N = 23
SIZES = Sizes.of(32)


class Batch(NamedTuple):
    epoch: np.ndarray
    index: np.ndarray


def of_epoch(epoch, index):
    return Batch(np.full(len(index), epoch), np.array(index))


@pytest.fixture
def split():
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (N, 3, 20, 24), np.uint8), generator.integers(0, 10, N, np.int32)


def expected_view(split, seed, epoch, i):
    """Image i of an epoch, from the parts."""
    draws = take(draw_train(rng.generator(seed, epoch, rng.AUGMENTATION), N, SIZES), slice(i, i + 1))
    return normalise(warp(split[0][i : i + 1], draws, SIZES.crop))[0]


def test_training_batch_shows_what_its_epoch_drew(split):
    x, t = TrainView(split, SIZES, seed=7)(of_epoch(2, [5, 0, 22]), chainer.get_device('@numpy'))
    assert x.shape == (3, 3, 32, 32) and x.dtype == np.float32
    assert t.tolist() == split[1][[5, 0, 22]].tolist() and t.dtype == np.int32
    for row, i in zip(x, [5, 0, 22], strict=True):
        assert np.array_equal(row, expected_view(split, 7, 2, i))


def test_batch_may_span_epochs(split):
    batch = Batch(np.array([3, 3, 4, 4, 3, 5]), np.array([1, 2, 2, 9, 0, 22]))
    x, t = TrainView(split, SIZES, seed=7)(batch)
    assert t.tolist() == split[1][batch.index].tolist()
    for row, epoch, i in zip(x, *batch, strict=True):
        assert np.array_equal(row, expected_view(split, 7, int(epoch), int(i)))


def test_views_do_not_depend_on_what_was_asked_before(split):
    busy, fresh = TrainView(split, SIZES, seed=1), TrainView(split, SIZES, seed=1)
    for epoch in [0, 9, 3, 4, 9]:
        busy(of_epoch(epoch, [0, 1]))
    assert np.array_equal(busy(of_epoch(0, [3]))[0], fresh(of_epoch(0, [3]))[0])


def test_epochs_and_seeds_differ(split):
    def all_of(seed, epoch):
        return TrainView(split, SIZES, seed)(of_epoch(epoch, range(N)))[0]

    assert not np.array_equal(all_of(0, 0), all_of(0, 1))
    assert not np.array_equal(all_of(0, 0), all_of(1, 0))
    assert np.array_equal(all_of(0, 1), all_of(0, 1))


def test_an_epoch_is_drawn_once(split, monkeypatch):
    drawn = []

    def count(generator, n, sizes):
        drawn.append(n)
        return draw_train(generator, n, sizes)

    monkeypatch.setattr(views, 'draw_train', count)
    view = TrainView(split, SIZES, seed=0)
    for batch in [of_epoch(0, [0, 1]), of_epoch(0, [2]), Batch(np.array([0, 1]), np.array([3, 4])), of_epoch(1, [5])]:
        view(batch)
    assert drawn == [N, N]


def test_test_batch_is_bilinear_and_whole(split):
    sizes = Sizes.of(122)
    x, t = TestView(split, sizes)(np.array([4, 4, 1]), chainer.get_device('@numpy'))
    expected = normalise(warp(split[0][[4, 4, 1]], draw_test(3, sizes), 128))
    assert x.shape == (3, 3, 128, 128) and np.array_equal(x, expected)
    assert t.tolist() == split[1][[4, 4, 1]].tolist()


def test_network_of_fixed_size_is_shown_the_centre(split):
    index = np.arange(5)
    whole, _ = TestView(split, Sizes.of(122))(index)
    centre, _ = TestView(split, Sizes.of(122, fixed_size=True))(index)
    assert centre.shape == (5, 3, 122, 122)
    np.testing.assert_allclose(centre, normalise(whole[:, :, 3:125, 3:125]), atol=1e-4)  # scaled by its own deviation


@pytest.mark.parametrize('n', [1, 2, 23, 50])
def test_any_batch_size(split, n):
    index = np.arange(n) % N
    assert TrainView(split, SIZES, seed=0)(of_epoch(0, index))[0].shape == (n, 3, 32, 32)
    assert TestView(split, SIZES)(index)[0].shape == (n, 3, 32, 32)


@pytest.mark.parametrize(
    ('setting', 'dtype'),
    [(np.float32, np.float32), (np.float64, np.float64), (np.float16, np.float16), (chainer.mixed16, np.float16)],
)
def test_images_have_the_type_of_the_configuration(split, setting, dtype):
    with chainer.using_config('dtype', setting):
        x, _ = TrainView(split, SIZES, seed=0)(of_epoch(0, [0, 1]))
        assert x.dtype == dtype
        assert TestView(split, SIZES)(np.arange(2))[0].dtype == dtype
    np.testing.assert_allclose(x, TrainView(split, SIZES, seed=0)(of_epoch(0, [0, 1]))[0], atol=2e-3)


@pytest.mark.parametrize('index', [N, -N - 1])
def test_image_that_is_not_there(split, index):
    with pytest.raises(IndexError, match=str(index)):
        TrainView(split, SIZES, seed=0)(of_epoch(0, [index]))
    with pytest.raises(IndexError, match=str(index)):
        TestView(split, SIZES)(np.array([index]))


def test_split_is_left_alone(split):
    images, labels = split[0].copy(), split[1].copy()
    TrainView(split, SIZES, seed=0)(of_epoch(0, range(N)))
    assert np.array_equal(images, split[0]) and np.array_equal(labels, split[1])


def test_views_are_converters_and_can_be_pickled(split):
    view = TrainView(split, SIZES, seed=0)
    assert isinstance(view, chainer.dataset.Converter)
    x, _ = view(of_epoch(1, [2]))
    assert np.array_equal(pickle.loads(pickle.dumps(view))(of_epoch(1, [2]))[0], x)


@pytest.mark.gpu
def test_views_follow_the_device(split):
    device = chainer.get_device('@cupy:0')
    batch = Batch(np.array([0, 0, 1]), np.array([20, 21, 0]))
    view = TrainView(split, SIZES, seed=0)
    x, _ = view(batch)
    x_gpu, t_gpu = view(batch, device)
    assert isinstance(x_gpu, device.xp.ndarray) and isinstance(t_gpu, device.xp.ndarray)
    np.testing.assert_allclose(x_gpu.get(), x, atol=1e-3)
    assert np.array_equal(view(batch)[0], x)


def test_a_batch_at_the_change_of_size_is_of_one_size():
    rng = np.random.default_rng(0)
    split = rng.integers(0, 256, (6, 3, 32, 32), np.uint8), np.arange(6, dtype=np.int32)
    growing = TrainView(split, Sizes.of(40, smaller=((24, 1),)), seed=3)
    small, large = (TrainView(split, Sizes.of(size), seed=3) for size in (24, 40))
    index = np.array([4, 5, 0, 1])
    for epochs, like in (([0, 0, 0, 0], small), ([0, 0, 1, 1], small), ([1, 1, 1, 1], large)):
        batch = Batch(np.array(epochs), index)
        np.testing.assert_array_equal(growing(batch)[0], like(batch)[0])


def test_padding_lets_crops_move_over_the_edge_at_the_same_scale(split):
    images, labels = split
    view = TrainView(split, Sizes.of(32, pad=5), seed=7)
    draws = view.draws(2)  # of 30 x 34 px where there were 20 x 24: sides of 32 to 36 px grow by half
    assert draws.side.min() >= 48 and draws.side.max() <= 54
    assert draws.top.min() < 5 and draws.top.max() > 13
    larger = np.pad(images, ((0, 0), (0, 0), (5, 5), (5, 5)), 'reflect')
    expected = normalise(warp(larger, draws, 32))
    x, t = view(of_epoch(2, list(range(N))), chainer.get_device('@numpy'))
    assert np.array_equal(x, expected) and np.array_equal(t, labels)


def test_padding_keeps_to_the_sizes_that_training_begins_with(split):
    sizes = Sizes.of(40, smaller=((24, 1),), pad=4)
    view = TrainView(split, sizes, seed=0)
    device = chainer.get_device('@numpy')
    assert [view(of_epoch(epoch, [0]), device)[0].shape[-1] for epoch in (0, 1)] == [24, 40]
    test = TestView(split, sizes)
    for view, crop in ((test, 40), (test.at(1), 40), (test.at(0), 24)):
        expected = TestView(split, Sizes.of(crop))(of_epoch(0, [0]), device)[0]
        assert np.array_equal(view(of_epoch(0, [0]), device)[0], expected)
    assert test.at(0) is test.at(0) and test.at(1) is test


def test_padding_needs_images_that_are_larger(split):
    with pytest.raises(InputError, match='--pad is 20; expected less than the 20 px'):
        TrainView(split, Sizes.of(32, pad=20), seed=0)
