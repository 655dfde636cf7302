"""Pictures out of a source of encoded images: decoded and cut in parallel, in a given order, some batches ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trainer.data.images import decode, describe_decoder
from trainer.data.sources.source import Source
from trainer.data.workers import UNREADABLE, Cut, Job, Serial, Workers, default_workers
from trainer.errors import InputError

if TYPE_CHECKING:
    from trainer.data.preprocessing import Preprocessing

POLICIES = ('fail', 'skip')
N_BATCHES_AHEAD = 2
MAX_IN_FLIGHT = 1024  # jobs in the pipes, which hold 2048; replies are read as they come
PENDING, LEFT_OUT = -1, -2  # instead of the number of an image
MAX_REPLACEMENTS = 1000  # unreadable images in a row after which a source is given up


def describe_decoding(workers: int | None) -> str:
    """One line: how many processes decode, with what, and how exactly."""
    n = default_workers() if workers is None else workers
    who = f'{n} process{"" if n == 1 else "es"}' if n else 'this process'
    return f'decoding in {who} with {describe_decoder()}; for training, large JPEGs at a part of their size'


class CentreCut:
    """What a test sees of an image: `Preprocessing.cut`, of the image at its full size."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self._preprocessing = preprocessing
        self.size = preprocessing.crop

    def __call__(self, raw: bytes, epoch: int, index: int) -> np.ndarray:
        """(crop, crop, 3) uint8, RGB, of the encoded image; the same in every epoch."""
        return self._preprocessing.cut(decode(raw))


@dataclass(frozen=True)
class Unreadable:
    """An image that was left out."""

    index: int
    name: str
    reason: str

    def __str__(self) -> str:
        return self.reason if self.name in self.reason else f'{self.name} ({self.reason})'


class Loader:
    """Rows of pixels by (epoch, image), asked for in advance and given back in that order.

    What comes out depends on what was asked for alone, not on the number of processes.

    Args:
        source: of the images.
        cut: the picture of an encoded image, as for `trainer.data.workers.Serial`.
        n_row: rows that may be asked for in advance; each takes 3 * size**2 bytes.
        workers: processes that decode; 0 decodes in this one, when rows are taken; None for `default_workers()`.
        unreadable: what becomes of images that cannot be read or decoded: 'fail' raises an error, 'skip' notes them.
        replaces: whether the next readable image of the source takes the place of a skipped one.
    Raises:
        InputError: at construction, for another policy than 'fail' and 'skip', or a system without processes.
    """

    def __init__(
        self, source: Source, cut: Cut, n_row: int, workers: int | None, unreadable: str, replaces: bool
    ) -> None:
        if unreadable not in POLICIES:
            raise InputError(f'--unreadable is {unreadable!r}, expected one of {", ".join(POLICIES)}')
        self.source, self._unreadable, self._replaces = source, unreadable, replaces
        self.n_row = n_row
        workers = default_workers() if workers is None else workers
        self._workers = Workers(source, cut, n_row, workers) if workers else Serial(source, cut, n_row)
        self._asked: list[tuple[int, int]] = [(0, 0)] * n_row  # (epoch, image) of a row
        self._image = np.zeros(n_row, np.int64)  # what is in a row; PENDING before it is there, or LEFT_OUT
        self._first, self._n = 0, 0  # the rows asked for, in a ring: the first of them, and how many
        self._waiting: deque[Job] = deque()  # jobs for which the pipes have no room
        self._n_in_flight = 0
        self.unreadable: dict[int, Unreadable] = {}  # by index

    @property
    def n_asked(self) -> int:
        """Rows asked for and not yet taken."""
        return self._n

    def ask(self, epoch: int, index: int) -> None:
        """Have image `index` as `epoch` shows it decoded; at most `n_row` at a time."""
        assert self._n < self.n_row
        row = (self._first + self._n) % self.n_row
        self._n += 1
        self._asked[row] = epoch, index
        self._image[row] = PENDING
        self._send(Job(row, epoch, index, index))

    def asked(self, i: int) -> tuple[int, int]:
        """(epoch, image) of the i-th row not yet taken."""
        return self._asked[(self._first + i) % self.n_row]

    def take(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """The first `n` rows asked for.

        Returns:
            x: (m, 3, size, size) uint8, RGB; m is n, or less where images were left out.
            index: (m,) int64; the image in each row.
        Raises:
            InputError: an image is unreadable, or with `replaces` too many in a row are.
            TrainingError: a worker has died.
        """
        rows = (self._first + np.arange(n)) % self.n_row
        for row in rows:
            while self._image[row] == PENDING:
                self._receive()
        self._first, self._n = (self._first + n) % self.n_row, self._n - n
        rows = rows[self._image[rows] >= 0]
        return self._workers.pixels[rows], self._image[rows].copy()

    def drop(self) -> None:
        """Forget what was asked for, once what is being decoded is there."""
        self._waiting.clear()
        self._n_in_flight -= self._workers.forget()
        while self._n_in_flight:
            self._receive()
        self._n = 0

    def _receive(self) -> None:
        reply = self._workers.receive()
        self._n_in_flight -= 1
        if self._waiting:
            self._send(self._waiting.popleft())
        if reply.outcome != UNREADABLE:
            self._image[reply.row] = reply.image
            return
        fault = Unreadable(reply.image, self.source.name(reply.image), reply.text)
        if self._unreadable == 'fail':
            raise InputError(f'{fault} is unreadable; --unreadable skip goes on without it')
        self.unreadable[reply.image] = fault
        if not self._replaces:
            self._image[reply.row] = LEFT_OUT
            return
        epoch, index = self._asked[reply.row]
        n = len(self.source)
        n_tried = (reply.image - index) % n + 1
        if n_tried >= min(n, MAX_REPLACEMENTS):
            raise InputError(f'{n_tried} images in a row are unreadable, the last of them {fault}')
        self._send(Job(reply.row, epoch, index, (reply.image + 1) % n))

    def _send(self, job: Job) -> None:
        if self._n_in_flight < MAX_IN_FLIGHT:
            self._n_in_flight += 1
            self._workers.send(job)
        else:
            self._waiting.append(job)

    def close(self) -> None:
        """End the processes."""
        self._workers.close()


class Batches(Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]):
    """What `batches` returns; close it, or use it as a context, where it is not read to its end.

    Attributes:
        skipped: the images left out so far, by index.
    """

    def __init__(
        self, source: Source, cut: Cut, indexes: Iterable[int], batch: int, workers: int | None, unreadable: str
    ) -> None:
        n_row = batch * (1 + N_BATCHES_AHEAD)
        self._loader = Loader(source, cut, n_row, workers, unreadable, replaces=False)
        self._indexes, self._batch, self._labels = iter(indexes), batch, source.labels
        self._is_closed = False

    def __next__(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        while not self._is_closed:
            self._ask()
            n = min(self._batch, self._loader.n_asked)
            if n == 0:
                break
            try:
                x, index = self._loader.take(n)
            except BaseException:
                self.close()
                raise
            self._ask()  # before the caller computes
            if len(index):
                return x, self._labels[index], index
        self.close()
        raise StopIteration

    def _ask(self) -> None:
        while self._loader.n_asked < self._loader.n_row:
            index = next(self._indexes, None)
            if index is None:
                return
            self._loader.ask(0, int(index))

    @property
    def skipped(self) -> list[Unreadable]:
        return [fault for _, fault in sorted(self._loader.unreadable.items())]

    def close(self) -> None:
        """End the processes; again, it does nothing."""
        self._is_closed = True
        self._loader.close()

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def batches(
    source: Source,
    preprocessing: Preprocessing,
    batch: int,
    workers: int | None = None,
    unreadable: str = 'fail',
    indexes: Iterable[int] | None = None,
) -> Batches:
    """Every image of a source once, in its order, as `preprocessing.cut` cuts it from the exactly decoded image.

    Args:
        source: of encoded images.
        preprocessing: what to cut.
        batch: images a batch; the last may have fewer, and any from which images were left out.
        workers: processes that decode, some batches ahead; 0 for none, None for as many as cores.
        unreadable: 'fail', or 'skip' to leave out what cannot be read, which `skipped` of the result then lists.
        indexes: the images, in the order wanted; None for all.
    Yields:
        x: (B, 3, crop, crop) uint8, RGB; `preprocessing.colours` makes the network's numbers of it.
        labels: (B,) int32.
        index: (B,) int64; the images.
    Raises:
        InputError: an image that cannot be read, with 'fail'; names it.
        TrainingError: a process that decodes has died.
    """
    if batch < 1:
        raise InputError(f'a batch of {batch} images, expected at least 1')
    wanted = range(len(source)) if indexes is None else indexes
    return Batches(source, CentreCut(preprocessing), wanted, batch, workers, unreadable)
