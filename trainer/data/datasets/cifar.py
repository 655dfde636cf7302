"""CIFAR-10 and CIFAR-100 as the University of Toronto publishes them ("python version").

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; section 3.1 describes the sets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from operator import index
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

import numpy as np
from chainer.dataset import get_dataset_directory

from trainer.data.datasets.archive import MAX_BYTES, is_archive, read_members
from trainer.data.datasets.data import Data, Split
from trainer.data.datasets.restricted_pickle import read_pickle
from trainer.data.images import JPEG_SUFFIXES
from trainer.data.sources.source import read_file
from trainer.errors import InputError


@dataclass(frozen=True)
class Edition:
    """One of the two sets: its files, and the keys inside them."""

    name: str
    url: str
    md5: str  # of the archive
    folder: str
    train: dict[str, str]  # file -> md5 of the official one
    test: dict[str, str]
    meta: str
    label_key: str
    class_key: str
    n_class: int

    @property
    def archive(self) -> str:
        return self.url.rpartition('/')[2]

    @property
    def batches(self) -> dict[str, str]:
        return self.train | self.test


CIFAR10 = Edition(
    name='CIFAR-10',
    url='https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz',
    md5='c58f30108f718f92721af3b95e74349a',
    folder='cifar-10-batches-py',
    train={
        'data_batch_1': 'c99cafc152244af753f735de768cd75f',
        'data_batch_2': 'd4bba439e000b95fd0a9bffe97cbabec',
        'data_batch_3': '54ebc095f3ab1f0389bbae665268c751',
        'data_batch_4': '634d18415352ddfa80567beed471001a',
        'data_batch_5': '482c414d41f54cd18b22e5b47cb7c3cb',
    },
    test={'test_batch': '40351d587109b95175f43aff81a1287e'},
    meta='batches.meta',
    label_key='labels',
    class_key='label_names',
    n_class=10,
)
CIFAR100 = Edition(
    name='CIFAR-100',
    url='https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz',
    md5='eb9058c3a382ffc7106e4002c42a8d85',
    folder='cifar-100-python',
    train={'train': '16019d7e3df5f24257cddd939b257f8d'},
    test={'test': 'f0ef6b0ae62326f3e7ffdfab6717acfc'},
    meta='meta',
    label_key='fine_labels',
    class_key='fine_label_names',
    n_class=100,
)


def read_cifar(edition: Edition, directory: Path | None = None) -> Data:
    """Read CIFAR-10 or CIFAR-100 (fine labels), downloading it once if no folder is given.

    Args:
        edition: CIFAR10 or CIFAR100.
        directory: the extracted folder, the archive, or a folder that holds one of them; None for Chainer's cache of
            data sets, into which the archive is downloaded if it is not there.
    Returns:
        Images of 32 × 32 px, in the order of the files; a batch may have any number of rows from 1.
    Raises:
        InputError: nothing found, no network, or a file that is missing, corrupt or inconsistent; names it.
    """
    place = _find(edition, directory) if directory else _find_or_download(edition)
    wanted = {*edition.batches, edition.meta}
    files = _read_files(edition, place, wanted)
    if missing := sorted(wanted - files.keys()):
        raise InputError(f'{place} lacks {", ".join(missing)} of {edition.name}')

    classes = _read_classes(edition, files[edition.meta], f'{place}/{edition.meta}')
    batches = {name: _read_batch(edition, files[name], f'{place}/{name}') for name in edition.batches}
    is_jpeg = any(is_jpeg for _, is_jpeg in batches.values())
    if all(_md5(files[name]) == md5 for name, md5 in edition.batches.items()):
        source = f'{edition.name}, official files'
    else:
        source = f'JPEG re-encoding of {edition.name}' if is_jpeg else f'{edition.name}, files of unknown origin'
    train, test = (_join(batches[name][0] for name in names) for names in (edition.train, edition.test))
    return Data(edition.name, train, test, classes, source, is_jpeg)


def cache_folder() -> Path:
    """Where the archives are looked for, and kept, when no folder is given."""
    return Path(get_dataset_directory('trainer/cifar', create_directory=False))


def _find(edition: Edition, place: Path) -> Path:
    """The extracted folder or the archive that `place` is or holds."""
    if not place.exists():
        raise InputError(f'{place} does not exist; expected a folder that holds {edition.folder} or {edition.archive}')
    if is_archive(place) or place.name == edition.folder or any((place / f).is_file() for f in edition.batches):
        return place
    for inside in place / edition.folder, place / edition.archive:
        if inside.exists():
            return inside
    raise InputError(f'{place} holds neither the folder {edition.folder} nor the archive {edition.archive}')


def _find_or_download(edition: Edition) -> Path:
    from trainer.data.datasets.download import download  # which loads the modules of HTTP and TLS

    cache = cache_folder()
    if not any((cache / name).exists() for name in (edition.folder, edition.archive)):
        try:
            download(edition.url, cache / edition.archive, edition.md5)
        except InputError as error:
            raise InputError(
                f'{error}. To go on, download {edition.archive} elsewhere and give its folder with --data DIR, '
                f'or put it into {cache}, or use --dataset shapes, which needs no download'
            ) from None
    return _find(edition, cache)


def _read_files(edition: Edition, place: Path, wanted: set[str]) -> dict[str, bytes]:
    """The contents of the wanted files, by name, as far as `place` (folder or archive) has them."""
    if place.is_dir():
        return {name: read_file(place / name, MAX_BYTES) for name in wanted if (place / name).is_file()}

    def is_wanted(member: str) -> bool:
        path = PurePosixPath(member)
        return path.parent.name == edition.folder and path.name in wanted

    return {PurePosixPath(name).name: contents for name, contents in read_members(place, is_wanted)}


def _read_batch(edition: Edition, raw: bytes, name: str) -> tuple[Split, bool]:
    """One batch file, and whether its file names are those of JPEG files."""
    batch = _read_dict(raw, name)
    data, labels = batch.get('data'), batch.get(edition.label_key)
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3072 or data.dtype != np.uint8:
        given = f'{data.dtype} {data.shape}' if isinstance(data, np.ndarray) else type(data).__name__
        raise InputError(f'{name}: data is {given}, expected uint8 (N, 3072)')
    try:
        labels = np.array([index(label) for label in labels], np.int64)  # type: ignore[union-attr]
    except (TypeError, OverflowError):
        raise InputError(f'{name}: {edition.label_key} is not a list of whole numbers') from None
    if not len(data) == len(labels) >= 1:
        raise InputError(
            f'{name} holds {len(data)} images and {len(labels)} {edition.label_key}, expected equal numbers, at least 1'
        )
    if labels.min() < 0 or labels.max() >= edition.n_class:
        raise InputError(
            f'{name}: {edition.label_key} are {labels.min()}..{labels.max()}, expected 0..{edition.n_class - 1}'
        )
    split = Split(np.asarray(data).reshape(-1, 3, 32, 32), labels.astype(np.int32))
    filenames = batch.get('filenames')
    is_jpeg = _is_text_list(filenames) and any(_text(f).endswith(JPEG_SUFFIXES) for f in filenames)
    return split, is_jpeg


def _read_classes(edition: Edition, raw: bytes, name: str) -> tuple[str, ...]:
    classes = _read_dict(raw, name).get(edition.class_key)
    if not _is_text_list(classes) or len(classes) != edition.n_class:
        raise InputError(f'{name}: {edition.class_key} is not a list of {edition.n_class} names')
    return tuple(map(_text, classes))


def _read_dict(raw: bytes, name: str) -> dict[str, Any]:
    value = read_pickle(raw, name)
    if not isinstance(value, dict):
        raise InputError(f'{name} holds a {type(value).__name__}, expected a dict')
    return {_text(key): item for key, item in value.items()}


def _join(splits: Iterable[Split]) -> Split:
    images, labels = zip(*splits, strict=True)
    return Split(np.concatenate(images), np.concatenate(labels))


def _is_text_list(value: Any) -> TypeGuard[list[str | bytes]]:
    return isinstance(value, list) and all(isinstance(item, str | bytes) for item in value)


def _text(value: Any) -> str:
    return value.decode('utf-8', 'replace') if isinstance(value, bytes) else str(value)


def _md5(raw: bytes) -> str:
    return hashlib.md5(raw, usedforsecurity=False).hexdigest()
