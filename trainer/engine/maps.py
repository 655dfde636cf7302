"""Maps: arrays (N, C, H, W), of NumPy or CuPy, whose channels lie side by side in memory."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray  # of NumPy or of CuPy, whose arrays have the same interface


def pixel_stride(x: Any) -> int:
    """Elements from one pixel of a channels-last map (N, C, H, W) to the next; 0 if its memory is in another order.

    It is C, or more where the map is a slice of the channels of another one.
    """
    n, c, h, w = x.shape
    size = x.itemsize
    per_image, per_channel, per_row, per_pixel = x.strides
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


def address(x: Any) -> int:
    """Of the first element, in the memory of the array's device."""
    interface = getattr(x, '__array_interface__', None)  # NumPy's; CuPy's arrays raise no error over its absence
    return x.data.ptr if interface is None else interface['data'][0]


def misalignments(*arrays: Any) -> list[int]:
    """How far each array starts behind a multiple of 16 bytes, elements; slices of channels start anywhere."""
    return [address(x) % 16 // x.itemsize for x in arrays]
