"""Batch normalisation of maps, with a rectifier in the same pass over memory."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.engine.backend import BatchStatistics, Running
from trainer.engine.cuda.columns import Columns, padded, partial_sums
from trainer.engine.cuda.convert import as_map
from trainer.engine.cuda.kernel import FLOAT32, launch
from trainer.engine.cuda.memory import counters, empty, empty_map
from trainer.engine.maps import Array, Map, misalignments, pixel_stride

Vector = Array  # (C,) float32, of all parts


def forward(
    xs: Sequence[Map],
    gamma: Vector,
    beta: Vector,
    eps: float,
    relu: bool,
    running: Running | None = None,
    known: BatchStatistics | None = None,
) -> tuple[list[Map], BatchStatistics]:
    """y = gamma (x - mean) / sqrt(variance + eps) + beta, [rectified], over the batch, the rows and the columns.

    xs: a map, or two side by side; y is one map of all channels.
    """
    x = Columns(xs)
    mean, variance = _compute_statistics(x) if known is None else (known.mean, known.variance)
    y = _normalize(x, mean, variance, gamma, beta, eps, relu, running)
    # What was rectified away, the backward pass computes once more, from x and beta.
    return [y], BatchStatistics(mean, variance, relu, beta)


def _compute_statistics(x: Columns) -> tuple[Vector, Vector]:
    mean, variance = empty((x.n_column,), FLOAT32), empty((x.n_column,), FLOAT32)
    how = x.launch()
    arguments = [*x.arguments, partial_sums(how, x.n_column), counters(), mean, variance]
    launch('normalization', 'statistics', how.grid, how.block, arguments, x.dtype, how.n_vector)
    return mean, variance


def _normalize(
    x: Columns,
    mean: Vector,
    variance: Vector,
    gamma: Vector,
    beta: Vector,
    eps: float,
    relu: bool,
    running: Running | None = None,
) -> Map:
    y = empty_map(x.shape, x.dtype)
    how = x.launch(sums=False)
    arguments = [*x.arguments, mean, variance, gamma, beta, eps, relu, y, x.n_column]
    arguments += [None, None, 0.0] if running is None else running
    launch('normalization', 'normalize', how.grid, how.block, arguments, x.dtype, how.n_vector)
    return y


def forward_fixed(
    xs: Sequence[Map], gamma: Vector, beta: Vector, mean: Vector, variance: Vector, eps: float, relu: bool
) -> list[Map]:
    """The same with statistics that are given."""
    return [_normalize(Columns(xs), mean, variance, gamma, beta, eps, relu)]


def backward(
    xs: Sequence[Map],
    gamma: Vector,
    statistics: BatchStatistics,
    gys: Sequence[Map | None],
    eps: float,
    ggamma: Vector,
    gbeta: Vector,
    earlier: Sequence[Map | None],
) -> list[Map | None]:
    """The gradients of xs, with `earlier` ones added in the same pass; those of gamma and beta.

    gys: of the one map y.
    """
    mean, variance, relu, beta = statistics
    x, (gy,) = Columns(xs), (as_map(g) for g in gys if g is not None)
    gxs = Columns([empty_map(part.shape, part.dtype) for part in x.maps])
    before = [None if e is None else as_map(e, x.dtype) for e in earlier]
    numbers = [pixel_stride(gy), *misalignments(gy)]
    numbers += [n for e in before if e is not None for n in (pixel_stride(e), *misalignments(e))]
    common = [*x.arguments, mean, variance, gamma, beta, eps, relu, gy, pixel_stride(gy)]
    how = x.launch(*numbers)
    arguments = [*common, partial_sums(how, x.n_column), counters(), ggamma, gbeta]
    launch('normalization', 'gradient_sums', how.grid, how.block, arguments, x.dtype, how.n_vector)
    strides = [0 if e is None else pixel_stride(e) for e in before]
    arguments = [*common, ggamma, gbeta, *padded(gxs.maps, None), *padded(gxs.strides, 0)]
    arguments += [*padded(before, None), *padded(strides, 0)]
    how = x.launch(*numbers, sums=False)
    launch('normalization', 'gradient', how.grid, how.block, arguments, x.dtype, how.n_vector)
    return list(gxs.maps)
