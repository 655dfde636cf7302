from itertools import combinations

import numpy as np
import pytest

from trainer import InputError
from trainer.data.datasets import load, make_shapes
from trainer.data.datasets.shapes import SHAPES


def test_sizes_and_order():
    data = make_shapes(seed=1, n_train=3, n_test=2)
    assert data.train.images.shape == (30, 3, 32, 32)
    assert data.test.images.shape == (20, 3, 32, 32)
    assert data.train.labels.tolist() == [*range(10)] * 3
    assert data.n_class == len(set(data.classes)) == 10
    assert not data.is_jpeg


def test_a_seed_gives_one_set():
    first, again, other = make_shapes(1, 4, 2), make_shapes(1, 4, 2), make_shapes(2, 4, 2)
    np.testing.assert_array_equal(first.train.images, again.train.images)
    np.testing.assert_array_equal(first.test.images, again.test.images)
    assert not np.array_equal(first.train.images, other.train.images)


@pytest.mark.parametrize('seed', [0, 1, 2**64 - 1])
def test_no_two_images_share_their_draws(seed):
    """The mean colour is nearly the background's, so that equal draws would show as equal colours."""
    data = make_shapes(seed, n_train=8, n_test=8)
    images = np.concatenate([data.train.images, data.test.images])
    colours = images.mean(axis=(2, 3))
    distance = np.abs(colours[:, None] - colours).max(axis=2) + 255 * np.eye(len(images))
    assert (distance < 1).sum() < 10  # by chance, a pair or two


def test_more_images_begin_with_the_same_ones():
    many, few = make_shapes(3, 6, 4), make_shapes(3, 2, 1)
    np.testing.assert_array_equal(many.train.images[:20], few.train.images)
    np.testing.assert_array_equal(many.test.images[:10], few.test.images)
    np.testing.assert_array_equal(load('shapes', limit=3).train.images, make_shapes(n_train=3).train.images)


def masks(field, n_turns=72):
    """(n_turns, 64, 64) bool: the inside of a shape at every rotation."""
    y, x = np.mgrid[-1.2:1.2:64j, -1.2:1.2:64j]
    turn = 2 * np.pi * np.arange(n_turns)[:, None, None] / n_turns
    return field(np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x) < 0


def overlap(a, b):
    return (a & b).sum(axis=(1, 2)) / (a | b).sum(axis=(1, 2))


@pytest.mark.parametrize('name', SHAPES)
def test_a_mirrored_shape_is_a_turned_one(name):
    turned = masks(SHAPES[name])
    assert overlap(turned, turned[0, :, ::-1]).max() > 0.95


def test_no_shape_is_another_one_turned():
    for a, b in combinations(SHAPES, 2):
        assert overlap(masks(SHAPES[a]), masks(SHAPES[b], n_turns=1)).max() < 0.9, (a, b)


def test_a_folder_has_no_place(tmp_path):
    with pytest.raises(InputError, match=r'shapes is drawn'):
        load('shapes', tmp_path)
