"""Maximum, average and global average pooling of maps."""

from __future__ import annotations

import numpy as np

from trainer.engine.backend import MAX, Pooling
from trainer.engine.cuda.columns import global_average as global_average
from trainer.engine.cuda.convert import as_map, as_rows
from trainer.engine.cuda.kernel import FLOAT32, N_THREAD, Argument, grid_of, launch, vector_of
from trainer.engine.cuda.memory import empty, empty_map
from trainer.engine.errors import EngineError
from trainer.engine.maps import Array, DType, Map, Shape, misalignments, pixel_stride


def _arguments(pooling: Pooling, x_shape: Shape) -> list[int]:
    _, c, h, w = x_shape
    return [h, w, c, *pooling.y_size, *pooling.kernel, *pooling.stride, *pooling.pad]


def forward(pooling: Pooling, x: Map, training: bool) -> tuple[Map, Array | None]:
    """y and, for a maximum in training, which element of its window each came from: uint8, channels last."""
    if np.prod(pooling.kernel) > 256:
        raise EngineError(f'windows of {pooling.kernel[0]}x{pooling.kernel[1]} px, where 256 elements are the most')
    x = as_map(x)
    n, c, *_ = x.shape
    y = empty_map(pooling.y_shape(x.shape), x.dtype)
    n_vector = vector_of(x.dtype, c, pixel_stride(x), *misalignments(x))
    n_pack = y.size // n_vector
    arrays: list[Argument] = [x, pixel_stride(x), y]
    chosen = None
    if pooling.algorithm == MAX:
        chosen = empty((n, *pooling.y_size, c), np.uint8) if training else None
        arrays.append(chosen)
    arguments = [*arrays, *_arguments(pooling, x.shape), n_pack]
    launch('pooling', f'{pooling.algorithm}_pool', grid_of(n_pack, 16), (N_THREAD,), arguments, x.dtype, n_vector)
    return y, chosen


def backward(pooling: Pooling, x_shape: Shape, gy: Map, chosen: Array | None) -> Map:
    """The gradient of x."""
    gy = as_map(gy)
    gx = empty_map(x_shape, gy.dtype)
    n_vector = vector_of(gy.dtype, x_shape[1], pixel_stride(gy), *misalignments(gy))
    n_pack = gx.size // n_vector
    arrays = [gy, pixel_stride(gy), *([] if chosen is None else [chosen]), gx]
    arguments = [*arrays, *_arguments(pooling, x_shape), n_pack]
    name = f'{pooling.algorithm}_pool_gradient'
    launch('pooling', name, grid_of(n_pack, 16), (N_THREAD,), arguments, gy.dtype, n_vector)
    return gx


def places_of_maxima(chosen: Array, y_shape: Shape, n_place: int) -> Array:
    """(N, C, H', W'): which of the `n_place` elements of its window each maximum was, rows first."""
    return chosen.transpose(0, 3, 1, 2)


def global_average_backward(gy: Array, x_shape: Shape, dtype: DType) -> Map:
    """The gradient of x, a map of `dtype`, given that of its mean, (N, C) float32."""
    gx = empty_map(x_shape, dtype)
    _, c, h, w = x_shape
    n_vector = vector_of(dtype, c)
    gy = as_rows(gy.astype(FLOAT32, copy=False))
    arguments = [gy, gx, c, h * w, gx.size]
    grid = grid_of(gx.size // n_vector)
    launch('columns', 'global_average_gradient', grid, (N_THREAD,), arguments, dtype, n_vector)
    return gx
