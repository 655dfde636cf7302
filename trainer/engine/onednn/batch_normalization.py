"""Batch normalisation of channels-last maps, with a rectifier in the same pass over memory."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from trainer.engine.backend import BatchStatistics, Running
from trainer.engine.maps import Map, Shape, channel_slices, pixel_stride
from trainer.engine.onednn import library as dnn
from trainer.engine.onednn.convert import as_dense_map, as_dtype
from trainer.engine.onednn.elementwise import add
from trainer.engine.onednn.library import Descriptor, library
from trainer.engine.onednn.operation import (
    DATA_TYPES,
    FLOAT32,
    Argument,
    Operation,
    describe_map,
    describe_vector,
    empty,
    empty_map,
    empty_workspace,
    workspace_of,
)

Vector = np.ndarray  # (C,) float32


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

    Each part is normalised by itself: the primitive computes the statistics in the same pass, so that `known` ones
    would save nothing.
    """
    mean, variance = empty(gamma.shape, FLOAT32), empty(gamma.shape, FLOAT32)
    ys, signs = [], []
    for x, c in zip(xs, channel_slices(xs), strict=True):
        x = as_dense_map(x)
        y = empty_map(x.shape, x.dtype)
        operation, n_byte = forward_operation(x.shape, pixel_stride(x), DATA_TYPES[x.dtype], eps, relu, True)
        signs.append(empty_workspace(n_byte))  # with a rectifier a bit an element
        operation.run(x, y, gamma[c], beta[c], mean[c], variance[c], signs[-1])
        ys.append(y)
    if running is not None:
        n = xs[0].size // xs[0].shape[1]
        _move(running.mean, mean, running.decay)
        _move(running.variance, variance * np.float32(n / max(n - 1, 1)), running.decay)
    return ys, BatchStatistics(mean, variance, relu, signs)


def _move(running: Vector, current: Vector, decay: float) -> None:
    running *= decay
    running += (1 - decay) * current


def forward_fixed(
    xs: Sequence[Map], gamma: Vector, beta: Vector, mean: Vector, variance: Vector, eps: float, relu: bool
) -> list[Map]:
    """The same with statistics that are given."""
    ys = []
    for x, c in zip(xs, channel_slices(xs), strict=True):
        x = as_dense_map(x)
        y = empty_map(x.shape, x.dtype)
        operation, _ = forward_operation(x.shape, pixel_stride(x), DATA_TYPES[x.dtype], eps, relu, False)
        operation.run(x, y, gamma[c], beta[c], mean[c], variance[c])
        ys.append(y)
    return ys


@functools.lru_cache(1024)
def forward_operation(
    shape: Shape, pixel: int, data_type: int, eps: float, relu: bool, training: bool
) -> tuple[Operation, int]:
    """The operation on x, y, gamma, beta, mean, variance, [signs], and the bytes of the signs.

    In training mean and variance are written, otherwise read.
    """
    x, y = describe_map(shape, pixel, data_type), describe_map(shape, shape[1], data_type)
    descriptor = _forward_descriptor(x, y, eps, relu, training)
    workspace, n_byte = workspace_of(descriptor) if relu and training else (None, 0)
    vector = describe_vector(shape[1])
    arguments: list[Argument] = [(dnn.SRC, x), (dnn.DST, y), (dnn.SCALE, vector), (dnn.SHIFT, vector)]
    arguments += [(dnn.MEAN, vector), (dnn.VARIANCE, vector), (dnn.WORKSPACE, workspace)]
    return Operation(descriptor, arguments), n_byte


def _flags(relu: bool) -> int:
    return dnn.USE_SCALE | dnn.USE_SHIFT | (dnn.FUSE_NORM_RELU if relu else 0)


def _forward_descriptor(x: Descriptor, y: Descriptor, eps: float, relu: bool, training: bool) -> Descriptor:
    flags = _flags(relu) | (0 if training else dnn.USE_GLOBAL_STATS)
    kind = dnn.FORWARD_TRAINING if training else dnn.FORWARD_INFERENCE
    lib = library()
    return lib.describe_primitive('batch_normalization_forward', lib.engine, kind, x, y, eps, flags)


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
    """The gradients of xs; those of gamma and beta go into `ggamma` and `gbeta`."""
    mean, variance, relu, signs = statistics
    gxs: list[Map | None] = []
    for i, (x, gy, before, c) in enumerate(zip(xs, gys, earlier, channel_slices(xs), strict=True)):
        if gy is None:  # a part that the loss does not depend on
            ggamma[c], gbeta[c] = 0, 0
            gxs.append(before)
            continue
        x, gy = as_dense_map(x), as_dense_map(gy)
        gx = empty_map(x.shape, x.dtype)
        operation = _backward(x.shape, pixel_stride(x), pixel_stride(gy), DATA_TYPES[x.dtype], eps, relu)
        operation.run(x, gy, gx, gamma[c], mean[c], variance[c], ggamma[c], gbeta[c], signs[i])
        gxs.append(gx if before is None else add(gx, as_dtype(before, gx.dtype), gx))
    return gxs


@functools.lru_cache(1024)
def _backward(shape: Shape, pixel_x: int, pixel_y: int, data_type: int, eps: float, relu: bool) -> Operation:
    lib = library()
    x, gx = describe_map(shape, pixel_x, data_type), describe_map(shape, shape[1], data_type)
    gy, vector = describe_map(shape, pixel_y, data_type), describe_vector(shape[1])
    hint = _forward_descriptor(x, gx, eps, relu, True)
    descriptor = lib.describe_primitive(
        'batch_normalization_backward',
        *(lib.engine, dnn.BACKWARD, gx, gy, x, eps, _flags(relu), hint),
    )
    workspace = lib.query(hint, dnn.WORKSPACE_MD) if relu else None
    arguments: list[Argument] = [(dnn.SRC, x), (dnn.DIFF_DST, gy), (dnn.DIFF_SRC, gx), (dnn.SCALE, vector)]
    arguments += [(dnn.MEAN, vector), (dnn.VARIANCE, vector), (dnn.DIFF_SCALE, vector), (dnn.DIFF_SHIFT, vector)]
    return Operation(descriptor, [*arguments, (dnn.WORKSPACE, workspace)])
