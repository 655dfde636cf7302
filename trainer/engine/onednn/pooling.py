"""Maximum and average pooling of channels-last maps."""

from __future__ import annotations

import functools

import numpy as np

from trainer.engine.backend import AVERAGE, MAX, Pooling
from trainer.engine.maps import DType, Map, Shape, pixel_stride
from trainer.engine.onednn import library as dnn
from trainer.engine.onednn.convert import as_dense_map
from trainer.engine.onednn.library import Descriptor, Dims, dims, library
from trainer.engine.onednn.operation import (
    DATA_TYPES,
    FLOAT32,
    Operation,
    describe_map,
    empty_map,
    empty_workspace,
    window_geometry,
    workspace_of,
)

ALGORITHMS = {MAX: dnn.POOLING_MAX, AVERAGE: dnn.POOLING_AVERAGE}


def _geometry(pooling: Pooling, x_shape: Shape) -> tuple[Dims, Dims, Dims, Dims, Dims]:
    """Strides, windows, dilations (0: none) and the padding on either side."""
    _, kernel, stride, pad, y_size = pooling
    strides, dilations, before, after = window_geometry((x_shape[2:], y_size), kernel, stride, pad)
    return strides, dims(kernel), dilations, before, after


def forward(pooling: Pooling, x: Map, training: bool) -> tuple[Map, np.ndarray | None]:
    """y and, for a maximum in training, which element of its window each came from."""
    x = as_dense_map(x)
    y = empty_map(pooling.y_shape(x.shape), x.dtype)
    operation, n_byte = forward_operation(pooling, x.shape, pixel_stride(x), DATA_TYPES[x.dtype], training)
    chosen = empty_workspace(n_byte)
    operation.run(x, y, chosen)
    return y, chosen


@functools.lru_cache(1024)
def forward_operation(
    pooling: Pooling, x_shape: Shape, pixel: int, data_type: int, training: bool
) -> tuple[Operation, int]:
    """The operation on x, y, [the places of the maxima], and the bytes of those."""
    y_shape = pooling.y_shape(x_shape)
    x, y = describe_map(x_shape, pixel, data_type), describe_map(y_shape, y_shape[1], data_type)
    descriptor = _forward_descriptor(pooling, x_shape, x, y, training)
    workspace, n_byte = workspace_of(descriptor) if training and pooling.algorithm == MAX else (None, 0)
    return Operation(descriptor, [(dnn.SRC, x), (dnn.DST, y), (dnn.WORKSPACE, workspace)]), n_byte


def _forward_descriptor(pooling: Pooling, x_shape: Shape, x: Descriptor, y: Descriptor, training: bool) -> Descriptor:
    kind = dnn.FORWARD_TRAINING if training else dnn.FORWARD_INFERENCE
    lib = library()
    return lib.describe_primitive(
        'pooling_forward',
        *(lib.engine, kind, ALGORITHMS[pooling.algorithm], x, y, *_geometry(pooling, x_shape)),
    )


def backward(pooling: Pooling, x_shape: Shape, gy: Map, chosen: np.ndarray | None) -> Map:
    """The gradient of x."""
    gy = as_dense_map(gy)
    gx = empty_map(x_shape, gy.dtype)
    operation = _backward(pooling, x_shape, pixel_stride(gy), DATA_TYPES[gy.dtype])
    operation.run(gy, gx, chosen)
    return gx


@functools.lru_cache(1024)
def _backward(pooling: Pooling, x_shape: Shape, pixel: int, data_type: int) -> Operation:
    lib = library()
    y_shape = pooling.y_shape(x_shape)
    gx = describe_map(x_shape, x_shape[1], data_type)
    # The forward pass wrote a dense y; its indices lie as y does.
    hint = _forward_descriptor(pooling, x_shape, gx, describe_map(y_shape, y_shape[1], data_type), True)
    gy = describe_map(y_shape, pixel, data_type)
    descriptor = lib.describe_primitive(
        'pooling_backward',
        *(lib.engine, ALGORITHMS[pooling.algorithm], gx, gy, *_geometry(pooling, x_shape), hint),
    )
    workspace = lib.query(hint, dnn.WORKSPACE_MD) if pooling.algorithm == MAX else None
    return Operation(descriptor, [(dnn.DIFF_DST, gy), (dnn.DIFF_SRC, gx), (dnn.WORKSPACE, workspace)])


def places_of_maxima(chosen: np.ndarray, y_shape: Shape, n_place: int) -> np.ndarray:
    """(N, C, H', W'): which of the `n_place` elements of its window each maximum was, rows first.

    What is in the workspace is not part of the interface of oneDNN: in 3.2 it is a dense map of bytes, of int32 for
    large windows. The tests compare it with Chainer.
    """
    n, c, h, w = y_shape
    dtype = np.uint8 if n_place < 256 else np.int32
    return chosen.view(dtype)[: n * c * h * w].reshape(n, h, w, c).transpose(0, 3, 1, 2)


def global_average(x: Map) -> np.ndarray:
    """(N, C) float32, the mean over the rows and columns of a map."""
    return x.mean(axis=(2, 3), dtype=FLOAT32)


def global_average_backward(gy: np.ndarray, x_shape: Shape, dtype: DType) -> Map:
    """The gradient of x, a map of `dtype`, given that of its mean, (N, C) float32."""
    _, _, h, w = x_shape
    gx = empty_map(x_shape, dtype)
    gx[...] = (gy * np.float32(1 / (h * w)))[:, :, None, None]
    return gx
