"""Which images of a data set are held out: the same share of every class, a function of the labels and a seed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from trainer.data.rng import HOLDOUT, generator
from trainer.errors import InputError


class Parts(NamedTuple):
    """Indices of images, rising; together each image once."""

    kept: np.ndarray  # (N - n,) int64
    held: np.ndarray  # (n,) int64


def hold_out(labels: np.ndarray, n: int, seed: int) -> Parts:
    """Hold out exactly `n` images, of each class as nearly the same share as whole images allow.

    Args:
        labels: (N,) int32.
        n: images to hold out, 1 .. N - number of classes: every class keeps one.
        seed: 0 .. 2**64 - 1.
    Raises:
        InputError: `n` is out of range.
    """
    count = np.bincount(labels)
    largest = len(labels) - int((count > 0).sum())
    if not 1 <= n <= largest:
        raise InputError(f'{n} of {len(labels)} images to hold out, expected 1..{largest}, as every class keeps one')
    order = generator(seed, 0, HOLDOUT).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind='stable')]  # each class in a random order
    own = labels[by_class]
    rank = np.arange(len(labels)) - np.searchsorted(own, own)
    place = np.where(rank < count[own] - 1, (rank + 0.5) / count[own], np.inf)  # within its class, 0 .. 1
    is_held = np.zeros(len(labels), bool)
    is_held[by_class[np.argsort(place, kind='stable')[:n]]] = True
    return Parts(np.flatnonzero(~is_held), np.flatnonzero(is_held))
