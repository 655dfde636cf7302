"""Chainer converters from a batch of indices to pictures of a source that does not fit in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from chainer.backend import Device

from trainer.data.augmentation.schemes import SCHEME_OF, TrainCut
from trainer.data.decode import N_BATCHES_AHEAD, CentreCut, Loader, Unreadable, describe_decoding
from trainer.data.order import EpochIterator
from trainer.data.pictures import Gather, Share, View
from trainer.data.preprocessing import Preprocessing
from trainer.data.sources.source import Source
from trainer.engine.maps import Array


class _StreamView(View):
    """Has images decoded and cut by processes, some batches ahead where it knows what comes next.

    Colours become the network's numbers on the device, a batch at a time.
    """

    def __init__(
        self, source: Source, preprocessing: Preprocessing, cut: Any, workers: int | None, unreadable: str, train: bool
    ) -> None:
        super().__init__(preprocessing)
        self._source, self._cut = source, cut
        self._workers, self._policy, self._replaces = workers, unreadable, train
        self._loader: Loader | None = None
        self._lock = threading.Lock()  # the main thread makes and closes what another one reads with
        self._n_batch = 0  # rows of the batches to come, if known
        self._upcoming: Iterator[tuple[int, int]] = iter(())  # (epoch, image) after those asked for
        self._n_reported = 0
        self._is_closed = False

    @property
    def unreadable(self) -> list[Unreadable]:
        """Images that could not be read so far, by index."""
        faults = {} if self._loader is None else dict(self._loader.unreadable)
        return [fault for _, fault in sorted(faults.items())]

    def new_faults(self, name: str, gather: Gather) -> str | None:
        by_index = {fault.index: fault for of_process in gather(self.unreadable) for fault in of_process}
        faults = [fault for _, fault in sorted(by_index.items())]
        if len(faults) == self._n_reported:
            return None
        self._n_reported = len(faults)
        first = '; '.join(map(str, faults[:3])) + ('; ...' if len(faults) > 3 else '')
        fate = 'replaced by the next ones' if self._replaces else 'left out'
        return f'{len(faults):,} of {len(self._source):,} {name} images could not be read and were {fate}: {first}'

    def close(self) -> None:
        """End the processes."""
        self._is_closed = True
        if self._loader is not None:
            self._loader.close()

    def _after(self, epoch: int, index: int) -> Iterator[tuple[int, int]]:
        """What will be asked for after an image; a guess costs time when wrong, nothing else."""
        raise NotImplementedError

    def _look(self, epoch: np.ndarray, index: np.ndarray, device: Device) -> tuple[Array, Array]:
        with self._lock:
            pixels, images = self._pixels(list(zip(epoch.tolist(), index.tolist(), strict=True)))
        return device.send(pixels), device.send(self._source.labels[images])

    def _pixels(self, rows: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
        loader = self._loader_for(len(rows))
        n_asked = min(len(rows), loader.n_asked)
        if [loader.asked(i) for i in range(n_asked)] != rows[:n_asked]:
            loader.drop()
            n_asked = 0
        for epoch, index in rows[n_asked:]:
            loader.ask(epoch, index)
        if n_asked < len(rows):
            self._upcoming = self._after(*rows[-1])
        self._ask_ahead(loader)
        taken = loader.take(len(rows))
        self._ask_ahead(loader)
        return taken

    def _ask_ahead(self, loader: Loader) -> None:
        while loader.n_asked < loader.n_row and (row := next(self._upcoming, None)) is not None:
            loader.ask(*row)

    def _loader_for(self, n: int) -> Loader:
        n_row = (1 + N_BATCHES_AHEAD) * max(n, self._n_batch)
        if self._loader is None or self._loader.n_row < n:
            unreadable = {}
            if self._loader is not None:
                unreadable = self._loader.unreadable
                self._loader.close()
            self._loader = Loader(self._source, self._cut, n_row, self._workers, self._policy, self._replaces)
            self._loader.unreadable = unreadable
            self._upcoming = iter(())
            if self._is_closed:
                self._loader.close()
        return self._loader


class StreamTrainView(_StreamView):
    """Training batches of a source: each image cut anew in every epoch, as its scheme draws it.

    What image i becomes in an epoch depends on (seed, epoch, i) alone.

    Args:
        source: of encoded images.
        preprocessing: size of the pictures, and what their colours become.
        seed: 0 .. 2**64 - 1.
        workers: processes that decode; 0 for none, None for as many as cores.
        unreadable: 'fail', or 'skip' to take the next image that can be read instead.
    """

    def __init__(
        self,
        source: Source,
        preprocessing: Preprocessing,
        seed: int,
        workers: int | None = None,
        unreadable: str = 'fail',
    ) -> None:
        cut = TrainCut(preprocessing, SCHEME_OF[preprocessing.name], seed)
        super().__init__(source, preprocessing, cut, workers, unreadable, train=True)
        self._order: EpochIterator | None = None
        self._share = range(0)

    def decode_ahead(self, iterator: EpochIterator, share: Share, is_in_order: bool = True) -> None:
        if is_in_order:
            self._share = share(iterator.batch)
            self._order = EpochIterator(iterator.n, iterator.batch, iterator.seed)  # our own: we are in another thread
            self._n_batch = len(self._share)
        print(describe_decoding(self._workers))

    def _after(self, epoch: int, index: int) -> Iterator[tuple[int, int]]:
        if self._order is None:
            return
        position = int(np.argmax(self._order.order_of(epoch) == index)) + 1
        place = self._share[-1] + 1  # in the batch: what was asked for last was the last of our share
        while True:
            for image in self._order.order_of(epoch)[position:]:
                if place % self._order.batch in self._share:
                    yield epoch, int(image)
                place += 1
            epoch, position = epoch + 1, 0


class StreamTestView(_StreamView):
    """Test batches of a source, as `Preprocessing.cut` cuts them from the exactly decoded image.

    Args:
        source: of encoded images.
        preprocessing: what to cut, and what colours become.
        workers: processes that decode; 0 for none, None for as many as cores.
        unreadable: 'fail', or 'skip' to leave out what cannot be read: batches are then smaller, or empty.
    """

    __test__ = False  # pytest: not a test

    def __init__(
        self, source: Source, preprocessing: Preprocessing, workers: int | None = None, unreadable: str = 'fail'
    ) -> None:
        super().__init__(source, preprocessing, CentreCut(preprocessing), workers, unreadable, train=False)
        self._step = 1

    def decode_ahead(self, iterator: EpochIterator, share: Share, is_in_order: bool = True) -> None:
        self._step = share(len(self._source)).step

    def _after(self, epoch: int, index: int) -> Iterator[tuple[int, int]]:
        yield from ((0, image) for image in range(index + self._step, len(self._source), self._step))
