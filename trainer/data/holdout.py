"""Which images of a data set are held out: the same share of every class, a function of the labels and a seed."""

from __future__ import annotations

import math
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
    if not largest:
        raise InputError(
            f'{len(labels)} images of as many classes leave none to hold out: each class needs two at least'
        )
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


def count_held(amount: str, n: int) -> int:
    """How many of n images `--validation` holds out: `500`, or `10%` to the nearest whole image.

    Raises:
        InputError: neither a whole number from 1 on nor a share between 0 % and 100 %.
    """
    number, is_share = amount.strip().removesuffix('%').strip(), amount.strip().endswith('%')
    try:
        value = float(number) if is_share else int(number)
    except ValueError:
        value = math.nan
    if not (0 < value < 100 if is_share else value >= 1):
        raise InputError(f'--validation is {amount!r}; expected a number of images such as 500, or a share such as 10%')
    return round(n * value / 100) if is_share else int(value)


def split_off(labels: np.ndarray, amount: str, seed: int) -> Parts:
    """Hold out the images that `--validation` asks for.

    Args:
        labels: (N,) int32, of the training images.
        amount: as for `count_held`.
        seed: as for `hold_out`.
    Raises:
        InputError: `amount` is malformed or out of range.
    """
    try:
        return hold_out(labels, count_held(amount, len(labels)), seed)
    except InputError as error:
        raise InputError(str(error) if '--validation' in str(error) else f'--validation {amount}: {error}') from None
