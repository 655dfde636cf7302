"""Data sets: images in memory, by the names that `--dataset` knows them by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trainer.datasets.cifar import CIFAR10, CIFAR100, Edition, read_cifar
from trainer.datasets.data import Data, Split
from trainer.datasets.folder import read_folder
from trainer.datasets.shapes import make_shapes
from trainer.errors import InputError

__all__ = ['CIFAR10', 'CIFAR100', 'DATASETS', 'Data', 'Split', 'load', 'make_shapes', 'read_cifar', 'read_folder']

MAX_SHAPES = 10_000


def load(
    name: str, directory: str | Path | None = None, *, limit: int | None = None, max_side: int | None = None
) -> Data:
    """Load a data set by name, from `directory` or from wherever it is at home.

    Args:
        name: one of `DATASETS`.
        directory: its folder or archive; None for the cache of downloads.
        limit: only the first `limit` images of each class, in both splits.
        max_side: px; larger images, and those of several sizes, are squashed to a square of this.
    Raises:
        InputError: an unknown name, or data that cannot be found or read.
    """
    if name not in DATASETS:
        raise InputError(f'{name!r} is no data set; expected one of {", ".join(DATASETS)}')
    return DATASETS[name](Path(directory) if directory is not None else None, limit, max_side)


def _load_cifar(edition: Edition) -> Callable[[Path | None, int | None, int | None], Data]:
    def read(directory: Path | None, limit: int | None, max_side: int | None) -> Data:
        data = read_cifar(edition, directory)
        return data if limit is None else data.limited(limit)

    return read


def _load_shapes(directory: Path | None, limit: int | None, max_side: int | None) -> Data:
    if directory is not None:
        raise InputError(f'the data set shapes is drawn, so --data {directory} has no place')
    if limit is not None and limit > MAX_SHAPES:
        raise InputError(f'--limit {limit} asks for more than the {MAX_SHAPES:,} images of a class that shapes has')
    return make_shapes() if limit is None else make_shapes(n_train=limit, n_test=min(limit, 100))


DATASETS = {
    'cifar10': _load_cifar(CIFAR10),
    'cifar100': _load_cifar(CIFAR100),
    'folder': read_folder,
    'shapes': _load_shapes,
}
