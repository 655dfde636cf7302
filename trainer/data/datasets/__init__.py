"""Data sets by the names that `--dataset` knows them by: images in memory, or streamed from files."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from trainer.data.datasets.cifar import CIFAR10, CIFAR100, Edition, read_cifar
from trainer.data.datasets.data import IMAGES_OF, Data, Split
from trainer.data.datasets.folder import read_folder
from trainer.data.datasets.shapes import make_shapes
from trainer.data.sources import SOURCES
from trainer.data.stream import Stream, read_splits
from trainer.errors import InputError

__all__ = [
    'CIFAR10',
    'CIFAR100',
    'DATASETS',
    'Data',
    'Split',
    'Stream',
    'describe',
    'load',
    'make_shapes',
    'read_cifar',
    'read_folder',
]

MAX_SHAPES = 10_000


def load(
    name: str,
    directory: str | Path | None = None,
    *,
    limit: int | None = None,
    max_side: int | None = None,
    preprocess: str = 'experiment',
    seed: int = 0,
    unreadable: str = 'fail',
    needs_train: bool = True,
) -> Data | Stream:
    """Load a data set by name, from `directory` or from its usual place.

    Args:
        name: one of `DATASETS`.
        directory: its folder or archive; None for the cache of downloads.
        limit: only the first `limit` images of each class, in every split.
        max_side: px; larger images kept in memory, and those of several sizes, are squashed to a square of this.
        preprocess: a preprocessing by name; with any but 'experiment', a folder is streamed.
        seed: of the images that are held out as the test of a folder that has none.
        unreadable: 'fail', or 'skip' to leave out images that cannot be read into memory.
        needs_train: whether there must be training images in files; without, the test images stand in for them.
    Returns:
        `Data`, or a `Stream` of what need not fit in memory.
    Raises:
        InputError: an unknown name, or data that cannot be found or read.
    """
    if name not in DATASETS:
        raise InputError(f'{name!r} is not a data set; expected one of {", ".join(DATASETS)}')
    place = Path(directory) if directory is not None else None
    options = {'max_side': max_side, 'preprocess': preprocess, 'seed': seed, 'unreadable': unreadable}
    return DATASETS[name](place, limit=limit, needs_train=needs_train, **options)


def describe(data: Data | Stream) -> str:
    """Lines: where the images are from, how many there are for what, and what was left out."""
    counts = [f'{len(part.labels):,} {IMAGES_OF[name].removesuffix(" images")}' for name, part in data.splits.items()]
    return '\n'.join([f'{data.source}: {", ".join(counts[:-1])} and {counts[-1]} images', *data.notes])


def _load_cifar(edition: Edition, directory: Path | None, limit: int | None, **_: object) -> Data:
    data = read_cifar(edition, directory)
    return data if limit is None else data.limited(limit)


def _load_splits(name: str, directory: Path | None, limit: int | None, needs_train: bool, **_: object) -> Stream:
    if directory is None:
        raise InputError(f'the data set {name} needs --data DIR')
    return read_splits(directory, SOURCES[name], limit, needs_train)


def _load_shapes(directory: Path | None, limit: int | None, **_: object) -> Data:
    if directory is not None:
        raise InputError(f'--data {directory}: the data set shapes is drawn, not read')
    if limit is not None and limit > MAX_SHAPES:
        raise InputError(f'--limit {limit} exceeds the {MAX_SHAPES:,} images per class of shapes')
    return make_shapes() if limit is None else make_shapes(n_train=limit, n_test=min(limit, 100))


# What loads each, given the directory and the keywords of `load`.
DATASETS: dict[str, Callable[..., Data | Stream]] = {
    'cifar10': partial(_load_cifar, CIFAR10),
    'cifar100': partial(_load_cifar, CIFAR100),
    'folder': read_folder,
    'shapes': _load_shapes,
}
for _name in SOURCES:
    DATASETS.setdefault(_name, partial(_load_splits, _name))
