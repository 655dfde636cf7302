"""Data sets: images in memory, by the names that `--dataset` knows them by."""

from __future__ import annotations

from pathlib import Path

from trainer.datasets.cifar import CIFAR10, CIFAR100, read_cifar
from trainer.datasets.data import Data, Split
from trainer.datasets.shapes import make_shapes
from trainer.errors import InputError

DATASETS = ('cifar10', 'cifar100', 'shapes')

__all__ = ['DATASETS', 'Data', 'Split', 'load', 'make_shapes', 'read_cifar']


def load(
    name: str,
    directory: str | Path | None = None,
    *,
    limit: int | None = None,
    seed: int = 0,
    max_side: int | None = None,
) -> Data:
    """A data set by its name."""
    if name == 'shapes':
        return make_shapes(seed, limit or 500, min(limit or 100, 100))
    if name not in DATASETS:
        raise InputError(f'{name!r} is no data set, expected one of {", ".join(DATASETS)}')
    data = read_cifar(CIFAR10 if name == 'cifar10' else CIFAR100, Path(directory) if directory else None)
    return data if limit is None else data.limited(limit)
