"""CIFAR-10 and CIFAR-100 in the forms that they are published in.

The University of Toronto's "Python version" and "binary version", as folders or archives, and Parquet files.
A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; section 3.1 describes the sets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from operator import index
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

import numpy as np
from chainer.dataset import get_dataset_directory

from trainer.data.datasets.archive import MAX_BYTES, SUFFIXES, is_archive, member_names, read_members
from trainer.data.datasets.data import Data, Split
from trainer.data.datasets.editions import CIFAR10, CIFAR100, Edition
from trainer.data.datasets.parquet import SUFFIX as PARQUET
from trainer.data.datasets.parquet import find_parquet, read_parquet
from trainer.data.datasets.restricted_pickle import read_pickle
from trainer.data.images import JPEG_SUFFIXES, is_image_name
from trainer.data.sources.source import read_file
from trainer.errors import InputError

__all__ = ['CIFAR10', 'CIFAR100', 'Edition', 'cache_folder', 'read_cifar']

MAX_NAMES = 10_000  # of a folder or archive, looked through for what it may be


def read_cifar(edition: Edition, directory: Path | None = None) -> Data:
    """Read CIFAR-10 or CIFAR-100 (fine labels), downloading it once if no folder is given.

    Args:
        edition: CIFAR10 or CIFAR100.
        directory: the extracted folder of the Python or the binary version, its archive (also as a .zip), Parquet files
            (`find_parquet`), or a folder that holds one of them; None for Chainer's cache of data sets, into which the
            archive is downloaded if it is not there.
    Returns:
        Images of 32 × 32 px, in the order of the files; a batch may have any number of rows from 1.
    Raises:
        InputError: nothing found, no network, or a file that is missing, corrupt or inconsistent; names it.
    """
    if directory is not None and not directory.exists():
        raise InputError(
            f'{directory} does not exist; expected a folder that holds {edition.folder} or {edition.archive}'
        )
    place = _find_or_download(edition) if directory is None else _find(edition, directory)
    if place is None:
        assert directory is not None
        if find_parquet(directory):
            return read_parquet(edition, directory)
        raise InputError(_explain(edition, directory))

    files = _read_files(edition, place)
    is_binary = not files.keys() & edition.batches.keys() and bool(files.keys() & edition.sha1.keys())
    if not files:
        raise InputError(_explain(edition, place))
    wanted = edition.sha1.keys() if is_binary else {*edition.batches, edition.meta}
    if missing := sorted(wanted - files.keys()):
        raise InputError(f'{place} lacks {", ".join(missing)} of {edition.name}')
    return _read_binary(edition, files, place) if is_binary else _read_python(edition, files, place)


def cache_folder() -> Path:
    """Where the archives are looked for, and kept, when no folder is given."""
    return Path(get_dataset_directory('trainer/cifar', create_directory=False))


def _find(edition: Edition, place: Path) -> Path | None:
    """The extracted folder or the archive that `place` is or holds."""
    folders = edition.folder, edition.binary_folder
    is_folder = place.name in folders or any((place / f).is_file() for f in (*edition.batches, *edition.sha1))
    if is_archive(place) or (place.is_dir() and is_folder):
        return place
    inside = (place / name for name in (*folders, edition.archive, edition.binary_archive))
    return next((path for path in inside if path.exists()), None)


def _find_or_download(edition: Edition) -> Path:
    from trainer.data.datasets.download import download  # which loads the modules of HTTP and TLS

    cache = cache_folder()
    if not any((cache / name).exists() for name in (edition.folder, edition.archive)):
        try:
            download(edition.url, cache / edition.archive, edition.md5, mirrors=edition.mirrors)
        except InputError as error:
            raise InputError(
                f'{error}. To go on, download {edition.archive} elsewhere and put it into {cache}, or give its folder '
                'or Parquet files of the set with --data DIR; or use class folders of images, also packed '
                f'(--dataset folder --data {edition.dataset}.tar.xz), or --dataset shapes, which needs no download'
            ) from None
    place = _find(edition, cache)
    assert place is not None
    return place


def _explain(edition: Edition, place: Path) -> str:
    """Why the set cannot be read from a place that exists, by the names in it, and what to do."""
    if place.is_file() and not is_archive(place):
        return (
            f'{place} is not a folder of {edition.name}, an archive ({", ".join(SUFFIXES)}) or '
            f'a train*{PARQUET} or test*{PARQUET}'
        )
    other = CIFAR100 if edition.dataset == CIFAR10.dataset else CIFAR10
    others = {other.folder, other.binary_folder, other.archive, other.binary_archive}
    for name in islice(_names(place), MAX_NAMES):
        path = PurePosixPath(name)
        if others & {*path.parts}:
            return f'{place} holds {other.name}, not {edition.name}: add --dataset {other.dataset}'
        if path.name in (edition.archive, edition.binary_archive) or path.suffix == PARQUET:
            return f'{place} holds {name}: {"" if place.is_dir() else "unpack it, and "}give its folder with --data'
        if path.suffix == '.mat':
            return f'{place} is a MATLAB version, which is not read: give the Python version, {edition.archive}'
        if is_image_name(name):
            return f'{place} holds image files, as {name}: add --dataset folder, which reads class folders'
    return (
        f'{place} holds neither the folder {edition.folder} nor the archive {edition.archive}, '
        'nor Parquet files of train and test, nor the binary version'
    )


def _names(place: Path) -> Iterator[str]:
    if place.is_file():
        return member_names(place)
    return (path.relative_to(place).as_posix() for path in place.rglob('*'))


def _read_files(edition: Edition, place: Path) -> dict[str, bytes]:
    """The contents of the set's files, by name, as far as `place` (folder or archive) has them."""
    wanted = {*edition.batches, edition.meta, *edition.sha1, edition.binary_classes}
    if place.is_dir():
        return {name: read_file(place / name, MAX_BYTES) for name in wanted if (place / name).is_file()}

    def is_wanted(member: str) -> bool:
        path = PurePosixPath(member)
        return path.parent.name in (edition.folder, edition.binary_folder, '') and path.name in wanted

    return {PurePosixPath(name).name: contents for name, contents in read_members(place, is_wanted)}


def _read_python(edition: Edition, files: dict[str, bytes], place: Path) -> Data:
    classes = _read_classes(edition, files[edition.meta], f'{place}/{edition.meta}')
    batches = {name: _read_batch(edition, files[name], f'{place}/{name}') for name in edition.batches}
    is_jpeg = any(is_jpeg for _, is_jpeg in batches.values())
    if all(_digest(files[name], 'md5') == md5 for name, md5 in edition.batches.items()):
        source = f'{edition.name}, official files'
    else:
        source = f'JPEG re-encoding of {edition.name}' if is_jpeg else f'{edition.name}, files of unknown origin'
    train, test = (_join(batches[name][0] for name in names) for names in (edition.train, edition.test))
    return Data(edition.name, train, test, classes, source, is_jpeg)


def _read_binary(edition: Edition, files: dict[str, bytes], place: Path) -> Data:
    """Rows of one label byte (CIFAR-100: two, the coarse one first) and 3072 of pixels."""
    n_label = len(edition.label_columns)
    batches = {}
    for name in edition.sha1:
        raw = np.frombuffer(files[name], np.uint8)
        if not len(raw) or len(raw) % (n_label + 3072):
            raise InputError(f'{place}/{name} has {len(raw)} bytes, expected a multiple of {n_label + 3072}')
        rows = raw.reshape(-1, n_label + 3072)
        labels = rows[:, n_label - 1].astype(np.int32)
        _check_labels(edition, labels, f'{place}/{name}: labels')
        batches[name.removesuffix('.bin')] = Split(rows[:, n_label:].reshape(-1, 3, 32, 32), labels)
    is_official = all(_digest(files[name], 'sha1') == sha1 for name, sha1 in edition.sha1.items())
    source = f'{edition.name}, {"official files" if is_official else "files of unknown origin"}'
    lines = _text(files.get(edition.binary_classes, b'')).splitlines()
    classes = tuple(line.strip() for line in lines if line.strip())
    if len(classes) != edition.n_class:
        classes = edition.classes
    train, test = (_join(batches[name] for name in names) for names in (edition.train, edition.test))
    return Data(edition.name, train, test, classes, source, is_jpeg=False)


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
    _check_labels(edition, labels, f'{name}: {edition.label_key}')
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


def _check_labels(edition: Edition, labels: np.ndarray, name: str) -> None:
    if labels.min() < 0 or labels.max() >= edition.n_class:
        raise InputError(f'{name} are {labels.min()}..{labels.max()}, expected 0..{edition.n_class - 1}')


def _digest(raw: bytes, kind: str) -> str:
    return hashlib.new(kind, raw, usedforsecurity=False).hexdigest()
