"""Batch normalisation with a rectifier in the same pass, and local response normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from trainer.engine.cuda.convert import as_map
from trainer.engine.cuda.kernel import FLOAT32, launch, vector_of
from trainer.engine.cuda.memory import N_COUNTER, counters, empty, empty_map
from trainer.engine.cuda.runtime import runtime
from trainer.engine.errors import EngineError
from trainer.engine.maps import misalignments, pixel_stride

N_THREAD_OF_SUM, N_SUM = 512, 2  # as in common.cuh
MAX_CHANNEL = 2048  # as in response.cu


SHARES_STATISTICS = True  # `batch_normalization` takes those that are known
ADDS_EARLIER = True  # `batch_normalization_backward` adds gradients that there were before


class Running(NamedTuple):
    """Statistics that move along with those of the batches: running = decay * running + (1 - decay) * batch's."""

    mean: Any  # (C,) float32
    variance: Any
    decay: float


class BatchStatistics(NamedTuple):
    """What the backward pass of a batch normalisation needs beside x and gamma."""

    mean: Any  # (C,) float32
    variance: Any  # (C,) float32, biased
    beta: Any  # (C,), for what was rectified away
    relu: bool


class _Shape(NamedTuple):
    """How the kernels that walk down the rows of a map are launched."""

    n_vector: int
    grid: tuple[int, int]
    block: tuple[int, int]

    @classmethod
    def of(cls, dtype: Any, n_column: int, n_row: int, *numbers: int, sums: bool = True) -> _Shape:
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

    def chunks(self, n: int) -> _Shape:
        return self._replace(grid=(self.grid[0], n))


class Parts:
    """One map, or two side by side, as the kernels take them."""

    def __init__(self, maps: Sequence[Any]) -> None:
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
        """What has to divide for packs to be read."""
        return [self.n_first, *self.strides, *misalignments(*self.maps)]

    @property
    def arguments(self) -> list[Any]:
        """Pointers, strides, columns of the first, all columns, rows."""
        return [*_padded(self.maps, None), *_padded(self.strides, 0), self.n_first, self.n_column, self.n_row]


def _padded(values: Sequence[Any], filler: Any) -> list[Any]:
    return [*values, filler][:2]


def batch_normalization(
    xs: Sequence[Any],
    gamma: Any,
    beta: Any,
    eps: float,
    relu: bool,
    running: Running | None = None,
    known: tuple[Any, Any] | None = None,
) -> tuple[list[Any], BatchStatistics]:
    """y = gamma (x - mean) / sqrt(variance + eps) + beta, [rectified], over the batch, the rows and the columns.

    Args:
        xs: a map, or two side by side; y is one map of all channels.
        running: moved along, in place.
        known: mean and variance of xs, if somebody has computed them.
    """
    x = Parts(xs)
    mean, variance = known or _compute_statistics(x)
    y = empty_map(x.shape, x.dtype)
    _normalize(x, mean, variance, gamma, beta, eps, relu, y, running)
    return [y], BatchStatistics(mean, variance, beta, relu)


def _compute_statistics(x: Parts) -> tuple[Any, Any]:
    mean, variance = empty((x.n_column,), FLOAT32), empty((x.n_column,), FLOAT32)
    shape = _Shape.of(x.dtype, x.n_column, x.n_row, *x.numbers)
    partial = empty((shape.grid[1] * N_SUM * x.n_column,), FLOAT32)
    arguments = [*x.arguments, partial, counters(), mean, variance]
    launch('normalization', 'statistics', shape.grid, shape.block, arguments, x.dtype, shape.n_vector)
    return mean, variance


def _normalize(
    x: Parts, mean: Any, variance: Any, gamma: Any, beta: Any, eps: float, relu: bool, y: Any, running: Running | None
) -> None:
    shape = _Shape.of(x.dtype, x.n_column, x.n_row, *x.numbers, sums=False)
    arguments = [*x.arguments, mean, variance, gamma, beta, eps, relu, y, x.n_column]
    arguments += [None, None, 0.0] if running is None else running
    launch('normalization', 'normalize', shape.grid, shape.block, arguments, x.dtype, shape.n_vector)


def fixed_batch_normalization(
    xs: Sequence[Any], gamma: Any, beta: Any, mean: Any, variance: Any, eps: float, relu: bool
) -> list[Any]:
    """The same with statistics that are given."""
    x = Parts(xs)
    y = empty_map(x.shape, x.dtype)
    _normalize(x, mean, variance, gamma, beta, eps, relu, y, None)
    return [y]


def batch_normalization_backward(
    xs: Sequence[Any],
    gamma: Any,
    statistics: BatchStatistics,
    gys: Sequence[Any],
    eps: float,
    ggamma: Any,
    gbeta: Any,
    earlier: Sequence[Any] | None = None,
) -> list[Any]:
    """The gradients of xs; those of gamma and beta go into `ggamma` and `gbeta`.

    Args:
        gys: of the one map y.
        earlier: what is added to the gradient of each x, or None.
    """
    x, (gy,) = Parts(xs), (as_map(g) for g in gys)
    gxs = Parts([empty_map(part.shape, part.dtype) for part in x.maps])
    before = [None if e is None else as_map(e, x.dtype) for e in earlier or [None] * len(xs)]
    numbers = [*x.numbers, pixel_stride(gy), *misalignments(gy)]
    numbers += [n for e in before if e is not None for n in (pixel_stride(e), *misalignments(e))]
    shape = _Shape.of(x.dtype, x.n_column, x.n_row, *numbers)
    partial = empty((shape.grid[1] * N_SUM * x.n_column,), FLOAT32)
    common = [*x.arguments, statistics.mean, statistics.variance, gamma, statistics.beta, eps, statistics.relu]
    common += [gy, pixel_stride(gy)]
    arguments = [*common, partial, counters(), ggamma, gbeta]
    launch('normalization', 'gradient_sums', shape.grid, shape.block, arguments, x.dtype, shape.n_vector)
    strides = [0 if e is None else pixel_stride(e) for e in before]
    arguments = [*common, ggamma, gbeta, *_padded(gxs.maps, None), *_padded(gxs.strides, 0)]
    arguments += [*_padded(before, None), *_padded(strides, 0)]
    shape = _Shape.of(x.dtype, x.n_column, x.n_row, *numbers, sums=False)
    launch('normalization', 'gradient', shape.grid, shape.block, arguments, x.dtype, shape.n_vector)
    return gxs.maps


def column_sums(x: Any, sums: Any) -> Any:
    """The sum of each channel of a map, into `sums` (C,) float32."""
    x = Parts([x])
    shape = _Shape.of(x.dtype, x.n_column, x.n_row, *x.numbers)
    partial = empty((shape.grid[1] * N_SUM * x.n_column,), FLOAT32)
    arguments = [x.maps[0], x.strides[0], x.n_column, x.n_row, partial, counters(), sums]
    launch('columns', 'column_sums', shape.grid, shape.block, arguments, x.dtype, shape.n_vector)
    return sums


def global_average(x: Any) -> Any:
    """(N, C) float32, the mean over the rows and columns of a map."""
    n, c, h, w = x.shape
    parts = Parts([x])
    shape = _Shape.of(x.dtype, c, parts.n_row, *parts.numbers).chunks(n)
    y = empty((n, c), FLOAT32)
    arguments = [parts.maps[0], parts.strides[0], c, h * w, y]
    launch('columns', 'global_average', shape.grid, shape.block, arguments, x.dtype, shape.n_vector)
    return y


class ResponseWindow(NamedTuple):
    """Parameters of a local response normalisation: y = x / (k + alpha * sum of x^2 over n channels) ** beta."""

    n: int
    k: float
    alpha: float
    beta: float


def is_right(window: ResponseWindow, x: Any) -> bool:
    """Whether the kernels compute it."""
    return window.n % 2 == 1 and x.shape[1] <= MAX_CHANNEL


def local_response_normalization(x: Any, window: ResponseWindow, training: bool) -> tuple[Any, None]:
    """y, and nothing that the backward pass needs beside x."""
    x = as_map(x)
    y = empty_map(x.shape, x.dtype)
    _respond('response', [x, pixel_stride(x), y], x, window)
    return y, None


def local_response_normalization_backward(x: Any, workspace: None, gy: Any, window: ResponseWindow) -> Any:
    """The gradient of x."""
    x, gy = as_map(x), as_map(gy)
    gx = empty_map(x.shape, x.dtype)
    _respond('response_gradient', [x, pixel_stride(x), gy, pixel_stride(gy), gx], x, window)
    return gx


def _respond(name: str, arrays: list[Any], x: Any, window: ResponseWindow) -> None:
    n, c, h, w = x.shape
    n_thread = min(-(-c // 32) * 32, 256)
    arguments = [*arrays, c, n * h * w, window.n // 2, window.k, window.alpha, window.beta]
    launch('response', name, (min(n * h * w, 16 * runtime().n_multiprocessor),), (n_thread,), arguments, x.dtype)
