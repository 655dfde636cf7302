"""Batches made by the GPU engine's kernels: images and an epoch's draws lie on the device, in the order of use."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from trainer.data.augmentation.draw import Draws, take
from trainer.data.augmentation.warp import matrix_of, weight_table
from trainer.data.preprocessing import Preprocessing
from trainer.engine.maps import Array


class ResidentView:
    """The stream of epochs, row after row: row r is the r mod M-th of epoch r // M.

    Args:
        split: images (M, C, H, W) uint8 and labels (M,) int32, on the device.
        draws: epoch -> what is drawn for each image, on the CPU.
        order: epoch -> the images in the order of their rows, (M,) int64.
        size: of the pictures, px.
        sides: smallest and largest that is drawn, px.
        colours: how pixels become numbers.
    """

    _EPOCHS_KEPT = 2  # a batch may begin in one epoch and end in the next

    def __init__(
        self,
        split: tuple[Array, Array],
        draws: Callable[[int], Draws],
        order: Callable[[int], np.ndarray],
        size: int,
        sides: tuple[int, int],
        colours: Preprocessing,
    ) -> None:
        from trainer.engine.cuda.augmentation import Augmentation, Colours, Taps

        images, labels = split
        self.n = len(labels)
        self._draws, self._order, self._sides = draws, order, sides
        rows, columns = (Taps(weight_table(length, sides)) for length in images.shape[2:])
        fixed = None if colours.mean is None else Colours(colours.mean, colours.std, colours.order == 'BGR')
        self._augmentation = Augmentation(images, labels, rows, columns, size, self._EPOCHS_KEPT * self.n, fixed)
        self._written: list[int] = []  # epochs

    def prepare(self, start: int, stop: int) -> None:
        """Have rows start .. stop - 1 on the device: once an epoch, this uploads its table."""
        for epoch in range(start // self.n, (stop - 1) // self.n + 1):
            if epoch not in self._written:
                self._augmentation.write(epoch * self.n, self._table(epoch))
                self._written = [*self._written, epoch][-self._EPOCHS_KEPT :]

    def _table(self, epoch: int) -> np.ndarray:
        order = self._order(epoch)
        draws = take(self._draws(epoch), order)
        columns = order, matrix_of(draws, self._sides), draws.top, draws.left, draws.flip
        return np.stack([column.astype(np.int32) for column in columns], axis=1)

    def batch(self, n: int, position: Array, dtype: np.dtype) -> tuple[Array, Array]:
        """Rows from `position`, (1,) int64 on the device, on, as kernels read them when they run.

        Returns:
            x: (n, C, size, size), a map of `dtype`, in the network's numbers.
            t: (n,) int32.
        """
        return self._augmentation.batch(n, position, dtype)
