"""The interpolation kernels as matrices: resizing is linear, so along one axis it is `weights @ pixels`."""

from __future__ import annotations

import numpy as np

NEAREST, BILINEAR, BICUBIC = 0, 1, 2
KERNEL_NAMES = ('nearest', 'bilinear', 'bicubic')


def resize_weights(kernel: int, length: int, side: int) -> np.ndarray:
    """The weights with which Pillow resizes one axis, before it rounds them.

    W[i, j] = k(|j + 0.5 - c(i)| / r) / sum over j
    c(i) = (i + 0.5) * length / side,  r = max(length / side, 1)

    Pixel centres lie at half-integers.  Shrinking widens the kernel by r, so that every source pixel counts.
    Beyond the edge there is nothing: the weights inside are rescaled to sum to 1.  NEAREST takes pixel
    floor(c(i)).

    Args:
        kernel: NEAREST, BILINEAR or BICUBIC (a = -0.5).
        length: of the source axis, px.
        side: of the resized axis, px.
    Returns:
        (side, length) float32; each row sums to 1.

    Source: Pillow, src/libImaging/Resample.c (`precompute_coeffs`) and Geometry.c (`ImagingScaleAffine`).
    """
    step = length / side
    if kernel == NEAREST:
        # A centre may lie on the border of two pixels (32 to 124 px: 15.5 * 32 / 124 = 4).  Pillow adds step
        # to step, and what rounding has made of the sum by then decides; `accumulate` adds in the same order.
        centre = np.add.accumulate(np.r_[step * 0.5, np.full(side - 1, step)])
        pixel = np.minimum(centre.astype(np.intp), length - 1)
        return (np.arange(length) == pixel[:, None]).astype(np.float32)
    centre = (np.arange(side) + 0.5) * step
    distance = np.abs(np.arange(length) + 0.5 - centre[:, None]) / max(step, 1.0)  # (side, length)
    weights = _triangle(distance) if kernel == BILINEAR else _cubic(distance)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _triangle(t: np.ndarray) -> np.ndarray:
    return np.maximum(1 - t, 0)


def _cubic(t: np.ndarray, a: float = -0.5) -> np.ndarray:
    """Keys' cubic convolution kernel for t >= 0."""
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = (((t - 5) * t + 8) * t - 4) * a
    return np.where(t < 1, near, np.where(t < 2, far, 0))
