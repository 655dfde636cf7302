import chainer
import numpy as np

from trainer.data.order import EpochIterator
from trainer.step.updater import Parts


def test_peek_shows_the_next_batch_and_moves_nothing():
    iterator, unpeeked = EpochIterator(10, 4, seed=3), EpochIterator(10, 4, seed=3)
    for _ in range(7):
        seen = iterator.peek()
        assert (iterator.epoch, iterator.position, iterator.is_new_epoch, iterator.previous_epoch_detail) == (
            unpeeked.epoch,
            unpeeked.position,
            unpeeked.is_new_epoch,
            unpeeked.previous_epoch_detail,
        )
        got, expected = iterator.next(), unpeeked.next()
        for batch in (seen, got):
            np.testing.assert_array_equal(batch.index, expected.index)
            np.testing.assert_array_equal(batch.epoch, expected.epoch)


def test_a_part_prepared_ahead_is_the_one_that_is_asked_for():
    calls = []

    def convert(part, device):
        calls.append((part.index.tolist(), chainer.config.dtype))
        return part.index * 2, part.index

    iterator = EpochIterator(8, 4, seed=0)
    parts = Parts(convert, chainer.get_device('@numpy'))
    with chainer.using_config('dtype', np.dtype('float64')):
        first, second = iterator.next(), iterator.peek()
        np.testing.assert_array_equal(parts.take(first)[0], first.index * 2)
        parts.prepare(second)
        np.testing.assert_array_equal(parts.take(iterator.next())[0], second.index * 2)
        parts.prepare(second)
        other = iterator.next()  # e.g. after resuming elsewhere
        np.testing.assert_array_equal(parts.take(other)[0], other.index * 2)
    assert {dtype for _, dtype in calls} == {np.dtype('float64')}
    assert len(calls) == 4
