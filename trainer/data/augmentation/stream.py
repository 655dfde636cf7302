"""Chainer converters from a batch of indices to pictures of a source that does not fit in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import chainer
import numpy as np

from trainer.data.augmentation.schemes import SCHEME_OF, TrainCut
from trainer.data.decode import N_BATCHES_AHEAD, CentreCut, Loader, Unreadable
from trainer.data.order import EpochIterator
from trainer.data.preprocessing import Preprocessing
from trainer.data.sources.source import Source
from trainer.parallel.ranks import ALONE, Alone


class _StreamView(chainer.dataset.Converter):
    """Has images decoded and cut by processes, some batches ahead where it knows what comes next.

    Colours become the network's numbers on the device, a batch at a time.
    """

    def __init__(
        self, source: Source, preprocessing: Preprocessing, cut: Any, workers: int | None, unreadable: str, train: bool
    ) -> None:
        self._source, self._preprocessing, self._cut = source, preprocessing, cut
        self._workers, self._policy, self._replaces = workers, unreadable, train
        self._loader: Loader | None = None
        self._lock = threading.Lock()  # the main thread makes and closes what another one reads with
        self._n_batch = 0  # rows of the batches to come, if known
        self._upcoming: Iterator[tuple[int, int]] = iter(())  # (epoch, image) after those asked for
        self._n_told = 0
        self._is_closed = False

    @property
    def unreadable(self) -> list[Unreadable]:
        """Images that could not be read so far, by index."""
        found = {} if self._loader is None else dict(self._loader.unreadable)
        return [fault for _, fault in sorted(found.items())]

    def news(self, what: str, ranks: Alone = ALONE) -> str | None:
        """One line about the images that could not be read, by any rank, if there are more than at the last call."""
        by_index = {fault.index: fault for faults in ranks.gather(self.unreadable) for fault in faults}
        found = [fault for _, fault in sorted(by_index.items())]
        if len(found) == self._n_told:
            return None
        self._n_told = len(found)
        first = '; '.join(map(str, found[:3])) + ('; ...' if len(found) > 3 else '')
        fate = 'replaced by the next ones' if self._replaces else 'left out'
        return f'{len(found):,} of {len(self._source):,} {what} images could not be read and were {fate}: {first}'

    def close(self) -> None:
        """End the processes."""
        self._is_closed = True
        if self._loader is not None:
            self._loader.close()

    def _after(self, epoch: int, index: int) -> Iterator[tuple[int, int]]:
        """What will be asked for after an image; a guess costs time when wrong, nothing else."""
        raise NotImplementedError

    def _look(self, rows: list[tuple[int, int]], device: chainer.backend.Device | None) -> tuple[Any, Any]:
        device = device or chainer.get_device('@numpy')
        with self._lock:
            pixels, index = self._pixels(rows)
        with chainer.using_device(device):
            x = self._preprocessing.colours(device.send(pixels))
            t = device.send(self._source.labels[index])
            return x.astype(chainer.get_dtype(map_mixed16=np.float16), copy=False), t

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
        found = loader.take(len(rows))
        self._ask_ahead(loader)
        return found

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
        scheme: one of `trainer.augmentation.schemes.SCHEMES`; None for that of the preprocessing.
        workers: processes that decode; 0 for none, None for as many as cores.
        unreadable: 'fail', or 'skip' to take the next image that can be read instead.
    """

    def __init__(
        self,
        source: Source,
        preprocessing: Preprocessing,
        seed: int,
        scheme: str | None = None,
        workers: int | None = None,
        unreadable: str = 'fail',
    ) -> None:
        cut = TrainCut(preprocessing, scheme or SCHEME_OF.get(preprocessing.name, 'random-crop'), seed)
        super().__init__(source, preprocessing, cut, workers, unreadable, train=True)
        self._order: EpochIterator | None = None
        self._share = range(0)

    def expect(self, iterator: EpochIterator, ranks: Alone = ALONE) -> None:
        """Decode ahead what this iterator will ask for, of which this process has a share."""
        self._share = ranks.share(iterator.batch)
        self._order = EpochIterator(iterator.n, iterator.batch, iterator.seed)  # our own: we are in another thread
        self._n_batch = len(self._share)

    def __call__(self, batch: Any, device: chainer.backend.Device | None = None) -> tuple[Any, Any]:
        """Look at a batch.

        Args:
            batch: `epoch` and `index`, (B,) int64: the epochs completed before a row's own, and its image.
            device: where to; None is the CPU.
        Returns:
            x: (B, 3, crop, crop) of `chainer.config.dtype` (float16 for mixed16), the network's numbers.
            t: (B,), the labels.
        Raises:
            InputError: an image that cannot be read.
            TrainingError: a process that decodes has died.
        """
        return self._look(list(zip(batch.epoch.tolist(), batch.index.tolist(), strict=True)), device)

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

    __test__ = False  # not a test, whatever pytest makes of the name

    def __init__(
        self, source: Source, preprocessing: Preprocessing, workers: int | None = None, unreadable: str = 'fail'
    ) -> None:
        super().__init__(source, preprocessing, CentreCut(preprocessing), workers, unreadable, train=False)
        self._step = 1

    def __call__(self, batch: Any, device: chainer.backend.Device | None = None) -> tuple[Any, Any]:
        """Look at a batch.

        Args:
            batch: (B,) int64, the images.
            device: where to; None is the CPU.
        Returns:
            x: (M, 3, crop, crop) of `chainer.config.dtype` (float16 for mixed16); M is B but for what was left out.
            t: (M,), the labels.
        Raises:
            InputError: an image that cannot be read.
            TrainingError: a process that decodes has died.
        """
        return self._look([(0, int(index)) for index in batch], device)

    def expect(self, ranks: Alone) -> None:
        """Decode ahead the share of this process."""
        self._step = ranks.size

    def _after(self, epoch: int, index: int) -> Iterator[tuple[int, int]]:
        yield from ((0, image) for image in range(index + self._step, len(self._source), self._step))
