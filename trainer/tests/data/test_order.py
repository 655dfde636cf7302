import numpy as np
import pytest

from trainer import InputError
from trainer.data.order import EpochIterator


def test_every_image_once_an_epoch_in_a_new_order():
    iterator = EpochIterator(10, 4, seed=1)
    rows = [iterator.next() for _ in range(15)]
    assert all(len(row.index) == 4 for row in rows)
    epochs = np.concatenate([row.epoch for row in rows])
    images = np.concatenate([row.index for row in rows])
    orders = [images[epochs == epoch].tolist() for epoch in range(6)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len(set(map(tuple, orders))) == 6


def test_epoch_ends_where_its_last_image_is_taken():
    iterator = EpochIterator(10, 4, seed=1)
    ends = []
    for _ in range(5):
        iterator.next()
        ends.append((iterator.is_new_epoch, iterator.epoch, iterator.position))
    assert ends == [(False, 0, 4), (False, 0, 8), (True, 1, 2), (False, 1, 6), (True, 2, 0)]
    assert iterator.epoch_detail == 2.0


def test_order_is_a_function_of_seed_and_epoch():
    late = EpochIterator(10, 5, seed=1, epoch=3)
    early = EpochIterator(10, 5, seed=1)
    for _ in range(6):
        early.next()
    np.testing.assert_array_equal(early.next().index, late.next().index)
    assert (EpochIterator(100, 5, seed=2).next().index != EpochIterator(100, 5, seed=3).next().index).any()


def test_batch_of_all_images_and_a_batch_too_large():
    iterator = EpochIterator(4, 4, seed=0)
    assert [(sorted(iterator.next().index), iterator.epoch) for _ in range(2)] == [
        ([0, 1, 2, 3], 1),
        ([0, 1, 2, 3], 2),
    ]
    with pytest.raises(InputError, match=r'batch of 5 .* there are 4'):
        EpochIterator(4, 5, seed=0)
