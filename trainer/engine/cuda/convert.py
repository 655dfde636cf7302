"""Copies into another layout or precision."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.engine.cuda.kernel import N_THREAD, STORAGE, grid_of, launch
from trainer.engine.cuda.memory import empty, empty_map
from trainer.engine.errors import EngineError
from trainer.engine.maps import Array, DType, Map, pixel_stride


def convert(x: Array, out: Array) -> Array:
    """Copy `x` to `out`, of the same shape of up to four dimensions, whatever the layouts and precisions of both."""
    if x.dtype not in STORAGE or out.dtype not in STORAGE or x.ndim > 4:
        raise EngineError(f'no copy from {x.dtype} to {out.dtype} of {x.ndim} dimensions')
    # The kernel counts through (N, C, H, W). A vector is channels alone, a matrix images and channels; dimensions that
    # an array lacks have length 1 and stride 0.
    places = {1: (1,), 2: (0, 1), 3: (0, 1, 3)}.get(x.ndim, (0, 1, 2, 3))

    def spread(values: Sequence[int], rest: int) -> list[int]:
        full = [rest] * 4
        for place, value in zip(places, values, strict=True):
            full[place] = value
        return full

    _, c, h, w = spread(x.shape, 1)
    strides = [step for a in (x, out) for step in spread([stride // a.itemsize for stride in a.strides], 0)]
    arguments = [x, out, c, h, w, *strides, x.size]
    launch('copy', 'copy', grid_of(x.size), (N_THREAD,), arguments, out.dtype, source=x.dtype)
    return out


def as_map(x: Array, dtype: DType | None = None) -> Map:
    """`x` (N, C, H, W) itself if its channels lie side by side in `dtype`, else a copy that is so."""
    dtype = x.dtype if dtype is None else dtype
    return x if x.dtype == dtype and pixel_stride(x) else convert(x, empty_map(x.shape, dtype))


def as_dense_map(x: Array) -> Map:
    """`x` itself if it is a map without gaps, else a copy that is so."""
    return x if pixel_stride(x) == x.shape[1] else convert(x, empty_map(x.shape, x.dtype))


def as_dtype(x: Array, dtype: DType) -> Array:
    """`x` itself or a copy in `dtype`; maps stay maps."""
    if x.dtype == dtype:
        return x
    is_map = x.ndim == 4 and pixel_stride(x)
    return convert(x, empty_map(x.shape, dtype) if is_map else empty(x.shape, dtype))


def as_rows(x: Array) -> Array:
    """`x` itself if it lies in C order, else a copy that does."""
    return x if x.flags.c_contiguous else convert(x, empty(x.shape, x.dtype))
