"""Resize, crop and mirror a batch on its device, as drawn: two matrix products an image."""

from __future__ import annotations

import functools

import numpy as np
from chainer import backend

from trainer.data.augmentation.draw import Draws
from trainer.data.augmentation.kernels import KERNEL_NAMES, resize_weights
from trainer.engine.maps import Array

_WHITE = 255


def warp(images: Array, draws: Draws, size: int, sides: tuple[int, int] | None = None) -> Array:
    """Resize each image to its side, cut its crop out, and mirror it where drawn.

    y[n, c] = clip(Wy_n @ clip(x[n, c] @ Wx_n^T))

    Wy_n is rows top_n .. top_n + size - 1 of `resize_weights(kernel_n, H, side_n)`; Wx_n likewise with left_n
    and W, its rows in reversed order where flip_n; clip is to 0..255.

    Args:
        images: (N, C, H, W) uint8 or float32, 0..255.
        draws: N rows, on the device of `images`.
        size: of the crops, px.
        sides: (smallest, largest) that `draws` may hold, px; None looks there, for which a GPU has to wait.
    Returns:
        (N, C, size, size) float32, 0..255, on the device of `images`.
    Raises:
        ValueError: a side outside `sides`, or a crop that reaches outside its resized image; looked for on
            the CPU only, since a GPU would have to wait.

    Pillow's `resize` rounds to integers after each of its two passes (along the rows, then the columns); this
    does not round.  Once this is rounded too, the two agree to within one grey level.
    """
    xp = backend.get_array_module(images)
    device = backend.get_device_from_array(images)
    N, C, H, W = images.shape
    sides = sides or (int(draws.side.min()), int(draws.side.max()))
    if xp is np:
        _check(draws, size, sides)
    pixel = xp.arange(size, dtype=np.int32)
    column = xp.where(draws.flip[:, None], size - 1 - pixel, pixel)
    Wy = _rows(_weights(H, sides, device), draws, sides, draws.top[:, None] + pixel)  # (N, size, H)
    Wx = _rows(_weights(W, sides, device), draws, sides, draws.left[:, None] + column)  # (N, size, W)
    h = images.astype(np.float32).reshape(N, C * H, W) @ Wx.transpose(0, 2, 1)  # (N, C * H, size)
    xp.clip(h, 0, _WHITE, out=h)
    y = Wy[:, None] @ h.reshape(N, C, H, size)
    return xp.clip(y, 0, _WHITE, out=y)


def _check(draws: Draws, size: int, sides: tuple[int, int]) -> None:
    beyond = draws.side - size
    wrong = (draws.side < sides[0]) | (draws.side > sides[1])
    wrong |= (draws.top < 0) | (draws.top > beyond) | (draws.left < 0) | (draws.left > beyond)
    if wrong.any():
        n = int(wrong.argmax())
        raise ValueError(
            f'image {n}: crop {size} px at top {draws.top[n]}, left {draws.left[n]} of side {draws.side[n]}: '
            f'sides must lie in {sides[0]} .. {sides[1]} px, and crops inside their side'
        )


def _rows(table: Array, draws: Draws, sides: tuple[int, int], pixel: Array) -> Array:
    """Rows `pixel` (N, size) of each image's own matrix in a table of `_weights`: (N, size, length)."""
    return table[matrix_of(draws, sides)[:, None] * sides[1] + pixel]


@functools.lru_cache(maxsize=16)
def _weights(length: int, sides: tuple[int, int], device: backend.Device) -> Array:
    """The matrices of every kernel and side, stacked: (kernels * sides * highest, length) float32.

    Each is filled up with zeros to the height of the highest.  From 32 px to 124..132 px they take 0.5 MB.
    """
    return device.send(weight_table(length, sides).reshape(-1, length))


def weight_table(length: int, sides: tuple[int, int]) -> np.ndarray:
    """The matrix of every kernel and side, in the order of `matrix_of`: (matrices, highest, length) float32."""
    lowest, highest = sides
    table = np.zeros((len(KERNEL_NAMES), highest - lowest + 1, highest, length), np.float32)
    for kernel, matrices in enumerate(table):
        for side in range(lowest, highest + 1):
            matrices[side - lowest, :side] = resize_weights(kernel, length, side)
    return table.reshape(-1, highest, length)


def matrix_of(draws: Draws, sides: tuple[int, int]) -> Array:
    """Which of a `weight_table` each image is resized with, (N,) int32."""
    lowest, highest = sides
    return draws.kernel.astype(np.int32) * (highest - lowest + 1) + draws.side - lowest
