"""What chance decides about each picture of an epoch, as plain arrays: drawn here, applied by `warp`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from trainer.data.augmentation.kernels import BICUBIC, BILINEAR, NEAREST
from trainer.data.augmentation.sizes import Sizes

# One of four equally likely tickets: nearest 25 %, bilinear 25 %, bicubic 50 %.
_TICKETS = np.array([NEAREST, BILINEAR, BICUBIC, BICUBIC], np.int8)


class Draws(NamedTuple):
    """How images are resized, cropped and mirrored: arrays of NumPy or CuPy, one row an image.

    Attributes:
        side: (N,) int32; the image is resized to side x side, px.
        top: (N,) int32; first row of the crop in the resized image, px.
        left: (N,) int32; first column of the crop, px, before mirroring.
        kernel: (N,) int8; NEAREST, BILINEAR or BICUBIC.
        flip: (N,) bool; True mirrors the crop left to right.
    """

    side: Any
    top: Any
    left: Any
    kernel: Any
    flip: Any


def draw_train(rng: np.random.Generator, n: int, sizes: Sizes) -> Draws:
    """Draw `n` training views: side, offsets and mirroring uniform, the kernel bicubic every other time.

    One array is drawn after the other, so row i depends on `n`: draw a whole epoch, then `take` rows.

    Args:
        rng: spent by a number of draws that is not specified; give it a generator of its own.
        n: images, 0 or more.
        sizes: `crop`, `side_min` and `side_max` count here.
    """
    side = rng.integers(sizes.side_min, sizes.side_max, n, np.int32, endpoint=True)
    top = rng.integers(0, side - sizes.crop, dtype=np.int32, endpoint=True)
    left = rng.integers(0, side - sizes.crop, dtype=np.int32, endpoint=True)
    kernel = _TICKETS[rng.integers(0, len(_TICKETS), n)]
    flip = rng.integers(0, 2, n, np.int8).astype(bool)
    return Draws(side, top, left, kernel, flip)


def draw_test(n: int, sizes: Sizes) -> Draws:
    """The test view of `n` images: bilinear to `sizes.test`, the central `sizes.test_crop` of it, no flip."""
    offset = np.full(n, (sizes.test - sizes.test_crop) // 2, np.int32)
    return Draws(
        side=np.full(n, sizes.test, np.int32),
        top=offset,
        left=offset,
        kernel=np.full(n, BILINEAR, np.int8),
        flip=np.zeros(n, bool),
    )


def take(draws: Draws, index: Any) -> Draws:
    """The rows `index` (an integer or boolean array, or a slice) of every array."""
    return Draws(*(column[index] for column in draws))
