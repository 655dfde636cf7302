"""Maximum and average pooling of channels-last maps."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from trainer.engine.onednn import library as dnn
from trainer.engine.onednn.convert import as_dense_map
from trainer.engine.onednn.library import dims, library
from trainer.engine.onednn.operation import (
    BUFFERS,
    DATA_TYPES,
    FLOAT32,
    Operation,
    describe_map,
    empty_map,
    pixel_stride,
)

Pair = tuple[int, int]
MAX, AVERAGE = dnn.POOLING_MAX, dnn.POOLING_AVERAGE


class Pooling(NamedTuple):
    """Windows of a pooling, (vertical, horizontal), px, and the size of what comes out."""

    algorithm: int  # MAX or AVERAGE
    kernel: Pair
    stride: Pair
    pad: Pair  # above and to the left; below and to the right as much as the last window needs
    y_size: Pair

    def geometry(self, x_shape: tuple[int, ...]) -> tuple[Any, ...]:
        right = [
            max((size - 1) * s + k - length - p, 0)
            for size, s, k, length, p in zip(self.y_size, self.stride, self.kernel, x_shape[2:], self.pad, strict=True)
        ]
        return dims(self.stride), dims(self.kernel), dims((0, 0)), dims(self.pad), dims(right)

    def y_shape(self, x_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*x_shape[:2], *self.y_size)


def forward(pooling: Pooling, x: np.ndarray, training: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """y and, for a maximum in training, which element of its window each came from."""
    x = as_dense_map(x)
    y = empty_map(pooling.y_shape(x.shape), x.dtype)
    operation, n_byte = forward_operation(pooling, x.shape, pixel_stride(x), DATA_TYPES[x.dtype], training)
    if not n_byte:
        operation.run(x, y)
        return y, None
    chosen = BUFFERS.empty((n_byte,), (1,), n_byte, np.dtype(np.uint8))
    operation.run(x, y, chosen)
    return y, chosen


@functools.lru_cache(1024)
def forward_operation(
    pooling: Pooling, x_shape: tuple[int, ...], pixel: int, data_type: int, training: bool
) -> tuple[Operation, int]:
    lib = library()
    y_shape = pooling.y_shape(x_shape)
    x, y = describe_map(x_shape, pixel, data_type), describe_map(y_shape, y_shape[1], data_type)
    descriptor = _forward_descriptor(pooling, x_shape, x, y, training)
    arguments = [(dnn.SRC, x), (dnn.DST, y)]
    n_byte = 0
    if training and pooling.algorithm == dnn.POOLING_MAX:
        workspace = lib.query(descriptor, dnn.WORKSPACE_MD)
        arguments.append((dnn.WORKSPACE, workspace))
        n_byte = lib.size(workspace)
    return Operation(descriptor, arguments), n_byte


def _forward_descriptor(pooling: Pooling, x_shape: tuple[int, ...], x: Any, y: Any, training: bool) -> Any:
    kind = dnn.FORWARD_TRAINING if training else dnn.FORWARD_INFERENCE
    lib = library()
    geometry = pooling.geometry(x_shape)
    return lib.create(
        'pooling_forward_primitive_desc_create', lib.engine, kind, pooling.algorithm, x, y, *geometry, None
    )


def backward(pooling: Pooling, x_shape: tuple[int, ...], gy: np.ndarray, chosen: np.ndarray | None) -> np.ndarray:
    """The gradient of x."""
    gy = as_dense_map(gy)
    gx = empty_map(x_shape, gy.dtype)
    operation = _backward(pooling, x_shape, pixel_stride(gy), DATA_TYPES[gy.dtype])
    operation.run(gy, gx, *([] if chosen is None else [chosen]))
    return gx


@functools.lru_cache(1024)
def _backward(pooling: Pooling, x_shape: tuple[int, ...], pixel: int, data_type: int) -> Operation:
    lib = library()
    y_shape = pooling.y_shape(x_shape)
    gx = describe_map(x_shape, x_shape[1], data_type)
    # The forward pass wrote a dense y; its indices lie as y does.
    hint = _forward_descriptor(pooling, x_shape, gx, describe_map(y_shape, y_shape[1], data_type), True)
    gy = describe_map(y_shape, pixel, data_type)
    descriptor = lib.create(
        'pooling_backward_primitive_desc_create',
        *(lib.engine, pooling.algorithm, gx, gy, *pooling.geometry(x_shape), hint, None),
    )
    arguments = [(dnn.DIFF_DST, gy), (dnn.DIFF_SRC, gx)]
    if pooling.algorithm == dnn.POOLING_MAX:
        arguments.append((dnn.WORKSPACE, lib.query(hint, dnn.WORKSPACE_MD)))
    return Operation(descriptor, arguments)


def places_of_maxima(chosen: np.ndarray, y_shape: tuple[int, ...], n_place: int) -> np.ndarray:
    """(N, C, H', W'): which of the `n_place` elements of its window each maximum was, rows first."""
    n, c, h, w = y_shape
    dtype = np.uint8 if n_place < 256 else np.int32
    return chosen.view(dtype)[: n * c * h * w].reshape(n, h, w, c).transpose(0, 3, 1, 2)


def global_average(x: np.ndarray) -> np.ndarray:
    """(N, C) float32, the mean over the rows and columns of a map."""
    return x.mean(axis=(2, 3), dtype=FLOAT32)


def global_average_backward(gy: np.ndarray, x_shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """The gradient of x, a map of `dtype`, given that of its mean, (N, C) float32."""
    _, _, h, w = x_shape
    gx = empty_map(x_shape, dtype)
    gx[...] = (gy * np.float32(1 / (h * w)))[:, :, None, None]
    return gx
