"""Mixup and CutMix: each image of a batch with a partner from the same batch, and the loss of both labels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from trainer.data.rng import MIXING, generator
from trainer.engine.maps import Array


@dataclass(frozen=True)
class Mix:
    """What is drawn for a batch.

    Attributes:
        partner: (B,) int64, the row of the batch that each row is mixed with; a permutation.
        share: of the loss of the row's own label, 0..1; that of its partner's label has the rest.
        box: (top, left, height, width) in px, cut from the partner; None where the images are averaged.
    """

    partner: np.ndarray
    share: float
    box: tuple[int, int, int, int] | None

    def apply(self, x: Array, other: Array) -> Array:
        """Mix images with their partners'.

        mixup: share * x + (1 - share) * other;  CutMix: x, but `other` inside the box.

        Args:
            x, other: (N, C, H, W) floating point, of one device.
        Returns:
            (N, C, H, W), a new array.
        """
        if self.box is None:
            return x * x.dtype.type(self.share) + other * x.dtype.type(1 - self.share)
        top, left, height, width = self.box
        inside = np.s_[:, :, top : top + height, left : left + width]
        y = x.copy()
        y[inside] = other[inside]
        return y


@dataclass(frozen=True)
class Mixing:
    """Draws a `Mix` for each iteration, a pure function of (seed, iteration).

    Args:
        seed: 0 .. 2**64 - 1.
        size: of the images, (height, width) in px.
        mixup, cutmix: alpha of either, whose shares come from Beta(alpha, alpha); 0 for none. Of both, one is taken,
            half of the time each.

    Sources: Zhang et al., "mixup: beyond empirical risk minimization" (2018), section 2; Yun et al., "CutMix:
    regularization strategy to train strong classifiers with localizable features" (2019), section 3.1. As theirs, one
    share a batch; the box of CutMix is cut off at the border, and the share is what is left of the image.
    """

    seed: int
    size: tuple[int, int]
    mixup: float = 0.0
    cutmix: float = 0.0

    def draw(self, iteration: int, n: int) -> Mix:
        """For a batch of n images, after `iteration` updates (below 2**32)."""
        rng = generator(self.seed, iteration, MIXING)
        coin, centre = rng.random(), rng.random(2)
        is_cutmix = self.cutmix > 0 and (self.mixup == 0 or coin < 0.5)
        alpha = self.cutmix if is_cutmix else self.mixup
        share = float(rng.beta(alpha, alpha))
        partner = rng.permutation(n)
        if not is_cutmix:
            return Mix(partner, share, None)
        side = math.sqrt(1 - share)
        bounds = []
        for length, middle in zip(self.size, centre, strict=True):
            half, at = int(length * side) // 2, int(length * middle)
            bounds.append((max(at - half, 0), min(at + half, length)))
        (top, bottom), (left, right) = bounds
        box = top, left, bottom - top, right - left
        return Mix(partner, 1 - box[2] * box[3] / (self.size[0] * self.size[1]), box)
