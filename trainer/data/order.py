"""Which image comes when: every image once an epoch, in an order that is a pure function of (seed, epoch)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import chainer
import numpy as np

from trainer.data.rng import ORDER, generator
from trainer.errors import InputError


@dataclass(frozen=True)
class Batch:
    """The rows of a batch; it may span two epochs."""

    epoch: np.ndarray  # (B,) int64; epochs completed before the one that the row belongs to
    index: np.ndarray  # (B,) int64; the image

    def at(self, places: range) -> Batch:
        """Some of the rows."""
        rows = slice(places.start, places.stop, places.step)
        return Batch(self.epoch[rows], self.index[rows])


class EpochIterator(chainer.dataset.Iterator):
    """Batches of one size, cut from the endless stream of epochs.

    The last batch of an epoch runs over into the next one, as with `repeat=True` of Chainer's own iterators.

    Args:
        n: number of images.
        batch: images a batch, at most n.
        seed: of the orders.
        epoch: epochs to count as completed at the start.
    """

    def __init__(self, n: int, batch: int, seed: int, epoch: int = 0) -> None:
        if batch > n:
            raise InputError(
                f'a batch of {batch} needs at least as many training images; there are {n}: use -b {n} or less'
            )
        self.n, self.batch, self.seed = n, batch, seed
        self.epoch, self.position = epoch, 0
        self.previous_epoch_detail = float(epoch)
        self.is_new_epoch = False
        self._orders: dict[int, np.ndarray] = {}  # of the last epoch asked for and the one before

    def next(self) -> Batch:
        self.previous_epoch_detail = self.epoch_detail
        self.is_new_epoch = self.position + self.batch >= self.n
        tail = self.order_of(self.epoch)[self.position : self.position + self.batch]
        epoch = np.full(self.batch, self.epoch)
        self.position += self.batch
        if self.is_new_epoch:
            epoch[len(tail) :] += 1
            self.epoch, self.position = self.epoch + 1, self.position - self.n
            tail = np.concatenate((tail, self.order_of(self.epoch)[: self.position]))
        return Batch(epoch, tail)

    __next__ = next

    def peek(self) -> Batch:
        """What `next` will return; the iterator stays where it is."""
        state = self.epoch, self.position, self.previous_epoch_detail, self.is_new_epoch
        batch = self.next()
        self.epoch, self.position, self.previous_epoch_detail, self.is_new_epoch = state
        return batch

    def order_of(self, epoch: int) -> np.ndarray:
        """The images of an epoch in the order of their visit, (n,) int64."""
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = generator(self.seed, epoch, ORDER).permutation(self.n)
        return self._orders[epoch]

    @property
    def epoch_detail(self) -> float:
        return self.epoch + self.position / self.n

    def serialize(self, serializer: Any) -> None:
        self.epoch = serializer('epoch', self.epoch)
        self.position = serializer('position', self.position)
        self.previous_epoch_detail = serializer('previous_epoch_detail', self.previous_epoch_detail)
        self.is_new_epoch = serializer('is_new_epoch', self.is_new_epoch)
