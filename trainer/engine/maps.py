"""Arrays and maps: their types, and how maps lie in memory.

A map is an array (N, C, H, W) whose channels lie side by side in memory ("channels last"). Element (n, c, h, w) of a
map stands `((n * H + h) * W + w) * pixel_stride + c` elements after its first one. `pixel_stride` is C for a map
without gaps. It is more for a slice of the channels of a wider map: so the parts of a concatenation are views of the
whole, and are written and read where they lie.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray  # of NumPy or of CuPy, whose arrays have the same interface
Map: TypeAlias = Array  # (N, C, H, W), channels last
DType: TypeAlias = np.dtype
Shape: TypeAlias = tuple[int, ...]
Pair: TypeAlias = tuple[int, int]  # (vertical, horizontal)


def pixel_stride(x: Array) -> int:
    """Elements from one pixel of a channels-last map (N, C, H, W) to the next; 0 if its memory is in another order.

    It is C, or more where the map is a slice of the channels of another one.
    """
    n, c, h, w = x.shape
    size = x.itemsize
    per_image, per_channel, per_row, per_pixel = x.strides
    # The stride of a dimension of length 1 means nothing: NumPy and CuPy set it to whatever they like. The first of
    # the dimensions that is longer tells the distance of two pixels.
    if w > 1:
        pixel = per_pixel
    elif h > 1:
        pixel = per_row
    else:
        pixel = per_image if n > 1 else c * size
    is_channels_last = (
        (c == 1 or per_channel == size)
        and pixel >= c * size
        and pixel % size == 0
        and (h == 1 or per_row == w * pixel)
        and (n == 1 or per_image == h * w * pixel)
    )
    return pixel // size if is_channels_last else 0


def is_dense(x: Array) -> bool:
    """Whether the elements lie without a gap, in C order or channels last."""
    return x.flags.c_contiguous or (x.ndim == 4 and pixel_stride(x) == x.shape[1])


def channel_slices(maps: Any) -> list[slice]:
    """Which channels of the concatenation of some maps each of them holds."""
    ends = np.cumsum([x.shape[1] for x in maps]).tolist()
    return [slice(end - x.shape[1], end) for end, x in zip(ends, maps, strict=True)]


def address(x: Array) -> int:
    """Of the first element, in the memory of the array's device."""
    interface: Any = getattr(x, '__array_interface__', None)  # NumPy's; of CuPy's arrays it is not an error to ask
    # NumPy refuses `data` of a bfloat16 array.
    return x.data.ptr if interface is None else interface['data'][0]  # type: ignore[attr-defined]


def misalignments(*arrays: Array) -> list[int]:
    """Elements from a multiple of 16 bytes to the start of each array; slices of channels start anywhere."""
    return [address(x) % 16 // x.itemsize for x in arrays]
