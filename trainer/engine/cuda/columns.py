"""Maps as matrices of pixels and channels, and the kernels that walk down their columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from trainer.engine.cuda.convert import as_map
from trainer.engine.cuda.kernel import FLOAT32, Argument, launch, vector_of
from trainer.engine.cuda.memory import N_COUNTER, counters, empty
from trainer.engine.cuda.runtime import runtime
from trainer.engine.errors import EngineError
from trainer.engine.maps import Array, DType, Map, misalignments, pixel_stride

N_THREAD_OF_SUM, N_SUM = 512, 2  # as in common.cuh


class Launch(NamedTuple):
    """How the kernels that walk down the rows of a map are launched.

    A map is a matrix of N * H * W rows (pixels) and C columns (channels). A block of threads takes a group of columns,
    n_lane * n_vector of them side by side so that its reads coalesce, and a chunk of the rows: thread row i of chunk k
    takes row k * thread rows + i, and from there on every (chunks * thread rows)th. grid is (groups, chunks), block
    (lanes, thread rows). Where there is more than one chunk, each writes its sums to `partial` (chunk, N_SUM, C); the
    block that comes last for a group, as `counters` tells, adds them up, always in the same order.
    """

    n_vector: int  # columns that a thread reads at once
    grid: tuple[int, int]
    block: tuple[int, int]

    @classmethod
    def of(cls, dtype: DType, n_column: int, n_row: int, *numbers: int, sums: bool = True) -> Launch:
        """For a map of `dtype`; `numbers` are as of `vector_of`, and `sums` says whether columns are summed."""
        n_vector = vector_of(dtype, n_column, *numbers)
        n_lane = min(8 if n_vector > 1 else 32, n_column // n_vector)
        n_thread_row = N_THREAD_OF_SUM // n_lane
        n_group = -(-n_column // (n_lane * n_vector))
        # Two blocks a multiprocessor in all, but none without a few rows for each of its threads; and where sums have
        # to be added up, not too many of them.
        n_block = (2 if sums else 8) * runtime().n_multiprocessor
        n_chunk = min(n_block // n_group, n_row // (4 * n_thread_row), 128 if sums else 65535)
        if n_group > N_COUNTER:
            raise EngineError(f'{n_column} channels are too many')
        return cls(n_vector, (n_group, max(n_chunk, 1)), (n_lane, n_thread_row))

    def chunks(self, n: int) -> Launch:
        """The same with `n` chunks."""
        return self._replace(grid=(self.grid[0], n))


class Columns:
    """One map, or two side by side, as the kernels take them."""

    def __init__(self, maps: Sequence[Array]) -> None:
        if len(maps) > 2:
            raise EngineError(f'{len(maps)} maps side by side, where two are the most')
        self.maps = [as_map(x) for x in maps]
        self.dtype = self.maps[0].dtype
        self.n_first = self.maps[0].shape[1]
        self.n_column = sum(x.shape[1] for x in maps)
        n, _, h, w = maps[0].shape
        self.n_row = n * h * w
        self.shape = n, self.n_column, h, w
        self.strides = [pixel_stride(x) for x in self.maps]

    @property
    def numbers(self) -> list[int]:
        """What must be divisible by `n_vector` for its reads to be aligned: a thread's columns are in one part."""
        return [self.n_first, *self.strides, *misalignments(*self.maps)]

    def launch(self, *numbers: int, sums: bool = True) -> Launch:
        """Of a kernel that walks down these maps and others, whose strides and misalignments are `numbers`."""
        return Launch.of(self.dtype, self.n_column, self.n_row, *self.numbers, *numbers, sums=sums)

    @property
    def arguments(self) -> list[Argument]:
        """Pointers, strides, columns of the first, all columns, rows."""
        return [*padded(self.maps, None), *padded(self.strides, 0), self.n_first, self.n_column, self.n_row]


def padded(values: Sequence[Any], filler: Any) -> list[Any]:
    """One value or two as two: kernels take a null pointer for a second part that is not there."""
    return [*values, filler][:2]


def partial_sums(launch: Launch, n_column: int) -> Array:
    """Scratch memory of a kernel that makes up to N_SUM sums of each column; it lives until the kernel is launched.

    It may be freed before the kernel runs: whoever gets the memory next uses it on the same stream, after it.
    """
    return empty((launch.grid[1] * N_SUM * n_column,), FLOAT32)


def column_sums(x: Array, sums: Array) -> Array:
    """The sum of each channel of a map, into `sums` (C,) float32."""
    columns = Columns([x])
    how = columns.launch()
    arguments = [
        columns.maps[0],
        columns.strides[0],
        columns.n_column,
        columns.n_row,
        partial_sums(how, columns.n_column),
        counters(),
        sums,
    ]
    launch('columns', 'column_sums', how.grid, how.block, arguments, x.dtype, how.n_vector)
    return sums


def global_average(x: Map) -> Array:
    """(N, C) float32, the mean over the rows and columns of a map."""
    n, c, h, w = x.shape
    columns = Columns([x])
    how = columns.launch().chunks(n)  # a chunk an image
    y = empty((n, c), FLOAT32)
    arguments = [columns.maps[0], columns.strides[0], c, h * w, y]
    launch('columns', 'global_average', how.grid, how.block, arguments, x.dtype, how.n_vector)
    return y
