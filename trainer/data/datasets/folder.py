"""Images in folders by class: `train/<class>/*` and `test/<class>/*`, as a directory or a tar archive of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from trainer.data.datasets.archive import MAX_BYTES, is_archive, member_names, read_members
from trainer.data.datasets.data import Data, Split
from trainer.data.images import JPEG_SUFFIXES, decode_named, is_image_name, squash
from trainer.data.sources import SOURCES
from trainer.data.sources.source import read_file
from trainer.data.stream import Stream, read_splits
from trainer.errors import InputError

SPLITS = {'train': 'train', 'test': 'test', 'val': 'test'}
MAX_IN_MEMORY = 8 << 30  # bytes of pixels; a larger folder is read as it is needed


class Entry(NamedTuple):
    """An image file; entries sort by split, class and path."""

    split: str
    class_name: str
    path: str  # below the folder, or in the archive


def read_folder(
    place: Path | None, limit: int | None = None, max_side: int | None = None, preprocess: str = 'experiment'
) -> Data | Stream:
    """Read `train/<class>/*` and `test/<class>/*` (or `val/...`), which may lie in one folder below `place`.

    Classes and their images are ordered by name.  Images that all have one square size of at most `max_side` are kept
    as they are; otherwise each is squashed to max_side x max_side (Pillow's bicubic), which bounds the memory.

    Args:
        place: a folder, or a .tar, .tar.gz, .tgz or .tar.xz of one.
        limit: take only the first `limit` images of each class, in both splits; no other is decoded.
        max_side: px; None takes images of one square size only.
        preprocess: a preprocessing by name; any but 'experiment' is cut from the images at their own size.
    Returns:
        (N, 3, H, W) images in memory; a stream of them for a folder that would take more than MAX_IN_MEMORY bytes, or
        with another preprocessing.
    Raises:
        InputError: nothing found, an image that cannot be read, or classes that differ between the splits; names it.
    """
    if place is None:
        raise InputError('the data set folder needs --data DIR, with train/<class>/* and test/<class>/* in it')
    if not place.exists():
        raise InputError(f'{place} does not exist; expected a folder or tar archive of train/<class>/*, test/<class>/*')
    if place.is_file() and not is_archive(place):
        raise InputError(f'{place} is neither a folder nor a .tar, .tar.gz, .tgz or .tar.xz')
    if place.is_dir() and preprocess != 'experiment':
        return read_splits(_with_splits(place), SOURCES['folder'], limit)
    entries = _select(sorted(set(_list(place))), limit)
    classes = _classes(entries, place)
    if place.is_dir() and max_side is not None and len(entries) * 3 * max_side**2 > MAX_IN_MEMORY:
        return read_splits(_with_splits(place), SOURCES['folder'], limit)
    return _read(place, entries, classes, max_side)


def _read(place: Path, entries: list[Entry], classes: list[str], max_side: int | None) -> Data:
    images = {entry: _decode(raw, f'{place}: {entry.path}', max_side) for entry, raw in _contents(place, entries)}
    if len({image.shape for image in images.values()}) > 1:
        if max_side is None:
            raise InputError(f'{place} holds images of several sizes; expected one')
        images = {entry: squash(image, max_side, max_side) for entry, image in images.items()}

    def stack(split: str) -> Split:
        chosen = [entry for entry in entries if entry.split == split]
        labels = np.array([classes.index(entry.class_name) for entry in chosen], np.int32)
        return Split(np.stack([images[entry].transpose(2, 0, 1) for entry in chosen]), labels)

    is_jpeg = any(entry.path.lower().endswith(JPEG_SUFFIXES) for entry in entries)
    return Data(
        name=place.resolve().name,
        train=stack('train'),
        test=stack('test'),
        classes=tuple(classes),
        source=f'images of {place.resolve().name}' + (' (JPEG files)' if is_jpeg else ''),
        is_jpeg=is_jpeg,
    )


def _with_splits(place: Path) -> Path:
    """The folder, or the one in it, that holds `train`."""
    return next((path for path in (place, *sorted(place.iterdir())) if (path / 'train').is_dir()), place)


def _list(place: Path) -> Iterator[Entry]:
    if place.is_file():
        yield from filter(None, map(_parse, member_names(place)))
        return
    for path in place.rglob('*'):
        if (entry := _parse(path.relative_to(place).as_posix())) and path.is_file():
            yield entry


def _parse(path: str) -> Entry | None:
    """The entry of `train/<class>/<image>`, also one folder down; None for any other file."""
    parts = PurePosixPath(path).parts
    if len(parts) in (3, 4) and parts[-3] in SPLITS and is_image_name(path):
        return Entry(SPLITS[parts[-3]], parts[-2], path)
    return None


def _select(entries: Iterable[Entry], limit: int | None) -> list[Entry]:
    groups = groupby(entries, key=lambda entry: (entry.split, entry.class_name))
    return [entry for _, group in groups for entry in islice(group, limit)]


def _classes(entries: Iterable[Entry], place: Path) -> list[str]:
    classes: dict[str, set[str]] = {'train': set(), 'test': set()}
    for entry in entries:
        classes[entry.split].add(entry.class_name)
    for split, names in classes.items():
        if not names:
            raise InputError(f'{place} holds no images as {split}/<class>/*')
    if odd := sorted(classes['train'] ^ classes['test']):
        raise InputError(f'{place}: the class {odd[0]!r} is in only one of train and test; both need the same classes')
    return sorted(classes['train'])


def _contents(place: Path, entries: Iterable[Entry]) -> Iterator[tuple[Entry, bytes]]:
    if place.is_dir():
        for entry in entries:
            yield entry, read_file(place / entry.path, MAX_BYTES)
        return
    wanted = {entry.path: entry for entry in entries}
    for name, raw in read_members(place, wanted.__contains__):
        yield wanted[name], raw


def _decode(raw: bytes, name: str, max_side: int | None) -> np.ndarray:
    """(H, W, 3) uint8, RGB, upright; squashed to a square of max_side unless it is one of at most that."""
    image = np.asarray(decode_named(raw, name))
    height, width, _ = image.shape
    return image if max_side is None or height == width <= max_side else squash(image, max_side, max_side)
