"""The random choices for each picture of an epoch, as plain arrays: drawn here, applied by `warp`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from trainer.data.augmentation.kernels import BICUBIC, BILINEAR, NEAREST
from trainer.data.augmentation.sizes import Sizes
from trainer.engine.maps import Array

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

    side: Array
    top: Array
    left: Array
    kernel: Array
    flip: Array


def draw_square(integers: Callable[[Any], Any], sizes: Sizes) -> tuple[Any, Any, Any, Any]:
    """The experiment's draw: side and offsets uniform, the kernel bicubic every other time.

    Args:
        integers: highest -> uniform integers 0 .. highest; of one image, or an array for many.
        sizes: `crop`, `side_min` and `side_max` count here.
    Returns:
        side, top, left and kernel, as in `Draws`.
    """
    side = sizes.side_min + integers(sizes.side_max - sizes.side_min)
    top = integers(side - sizes.crop)
    left = integers(side - sizes.crop)
    return side, top, left, _TICKETS[integers(len(_TICKETS) - 1)]


def draw_train(rng: np.random.Generator, n: int, sizes: Sizes) -> Draws:
    """Draw `n` training views: those of `draw_square`, each mirrored half of the time.

    One array is drawn after the other, so row i depends on `n`: draw a whole epoch, then `take` rows.

    Args:
        rng: advanced by an unspecified number of draws; pass a generator of its own.
        n: images, 0 or more.
        sizes: `crop`, `side_min` and `side_max` count here.
    """
    square = draw_square(lambda highest: rng.integers(0, highest, n, np.int32, endpoint=True), sizes)
    return Draws(*square, flip=rng.integers(0, 2, n, np.int8).astype(bool))


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


def take(draws: Draws, index: Array | slice) -> Draws:
    """The rows `index` (an integer or boolean array, or a slice) of every array."""
    return Draws(*(column[index] for column in draws))
