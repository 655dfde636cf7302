"""Batches as a network sees them, made on the device from resident images and a table of what was drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.engine.cuda.kernel import Argument, launch
from trainer.engine.cuda.memory import empty
from trainer.engine.cuda.runtime import runtime
from trainer.engine.errors import EngineError
from trainer.engine.maps import Array, DType, Map

N_FIELD = 5  # of a row of the table: image, matrix, top, left, whether to mirror
N_VIEW_THREAD, N_TILE = 256, 8
MAX_CHANNEL = 4


class Taps:
    """Matrices of interpolation, of which every row holds few numbers that are not 0, without the zeros.

    Args:
        matrices: (n, highest, length) float32; row i of matrix m makes pixel i out of a line of the source.
    """

    def __init__(self, matrices: np.ndarray) -> None:
        _, self.highest, length = matrices.shape
        rows = matrices.reshape(-1, length)
        used = rows != 0
        first = np.where(used.any(1), used.argmax(1), 0)
        last = np.where(used.any(1), length - 1 - used[:, ::-1].argmax(1), 0)
        self.n_tap = int((last - first).max()) + 1
        first = np.minimum(first, length - self.n_tap)
        run = runtime()
        self.first = run.empty(first.shape, np.int32)
        run.upload(first.astype(np.int32), self.first)
        weights = np.take_along_axis(rows, first[:, None] + np.arange(self.n_tap), 1)
        self.weights = run.empty(weights.shape, np.float32)
        run.upload(np.ascontiguousarray(weights), self.weights)


class Colours:
    """The same for all pictures: (x - mean) / std, by channel.

    Args:
        mean, std: of each channel, 0..255, in the order of the network.
        is_reversed: whether that is not the order of the images (BGR of RGB).
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], is_reversed: bool) -> None:
        self.is_reversed = is_reversed
        self.values = runtime().empty((2, len(mean)), np.float32)
        runtime().upload(np.array([mean, std], np.float32), self.values)


class Augmentation:
    """Makes batches.

    Args:
        images: (M, C, H, W) uint8, on the device; C is 4 at most.
        labels: (M,) int32, on the device.
        rows, columns: `Taps` along either axis.
        size: of the pictures, px.
        n_row: room of the table, rows.
        colours: None gives each picture mean 0 and deviation 1.
    """

    def __init__(
        self,
        images: Array,
        labels: Array,
        rows: Taps,
        columns: Taps,
        size: int,
        n_row: int,
        colours: Colours | None = None,
    ) -> None:
        if images.shape[1] > MAX_CHANNEL:
            raise EngineError(f'images of {images.shape[1]} channels, where {MAX_CHANNEL} are the most')
        self.images, self.labels, self.size = images, labels, size
        self.rows, self.columns, self.colours = rows, columns, colours
        self.table = runtime().zeros((n_row, N_FIELD), np.int32)

    def write(self, start: int, table: np.ndarray) -> None:
        """Put rows (n, N_FIELD) int32 at `start`, counted from the first ever; the table is a ring."""
        n_row = len(self.table)
        if len(table) > n_row:
            raise ValueError(f'{len(table)} rows do not fit a table of {n_row}')
        start %= n_row
        n_first = min(len(table), n_row - start)
        runtime().upload(np.ascontiguousarray(table[:n_first]), self.table[start : start + n_first])
        if n_first < len(table):
            runtime().upload(np.ascontiguousarray(table[n_first:]), self.table[: len(table) - n_first])

    def batch(self, n: int, position: Array, dtype: DType) -> tuple[Map, Array]:
        """The pictures of n rows of the table and their labels.

        Args:
            position: (1,) int64 on the device: the first row.
        Returns:
            x: (n, C, size, size), a map, in the network's numbers.
            t: (n,) int32.
        """
        _, c, h, w = self.images.shape
        source: list[Argument] = [
            self.images,
            self.rows.first,
            self.rows.weights,
            self.columns.first,
            self.columns.weights,
        ]
        source += [c, h, w, self.rows.n_tap, self.columns.n_tap, self.rows.highest, self.size]
        source += [self.table, len(self.table), position]
        x, t = empty((n, self.size, self.size, c), dtype), empty((n,), np.int32)
        launched = (N_TILE, n), (N_VIEW_THREAD,)
        if self.colours is None:
            partial = empty((n, N_TILE, 2), np.float64)
            launch('augmentation', 'view_sums', *launched, [*source, partial])
            launch('augmentation', 'view', *launched, [*source, partial, self.labels, x, c, t], dtype)
        else:
            colours = [self.colours.values, int(self.colours.is_reversed)]
            launch('augmentation', 'view_coloured', *launched, [*source, *colours, self.labels, x, c, t], dtype)
        return x.transpose(0, 3, 1, 2), t
