"""Tar archives of images and their labels, as WebDataset has them: `key.jpg` beside `key.cls`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np

from trainer.data.datasets.archive import list_members
from trainer.data.images import is_image_name
from trainer.data.sources.class_list import read_class_names
from trainer.data.sources.reader import Reader
from trainer.data.sources.source import MAX_IMAGE_BYTES, Names, checked_labels, read_label
from trainer.errors import InputError

CLASS_LIST = 'classes.txt'


class Shards:
    """Images in plain tar archives, found by their offsets, which one pass over the headers gathers.

    Members are called `<key>.<suffix>`, the key being all up to the first dot of the file's name; those of one key
    follow each other. Of each key there is one image and `<key>.cls`, its label as a number in text; what else there
    is of it does not count.

    Args:
        place: a folder of *.tar, in the order of their names, or one of them.
        class_list: a file of `read_class_list` that names the labels; None for `classes.txt` in the folder, if there.
    Raises:
        InputError: no archive, one that is cut short or compressed, an image without a label or a label without an
            image.

    Source: the documentation of WebDataset, "The WebDataset Format".
    """

    def __init__(self, place: Path, class_list: Path | None = None) -> None:
        self.place = str(place)
        self._reader = Reader(sorted(place.glob('*.tar')) if place.is_dir() else [place])
        if not self._reader.paths:
            raise InputError(f'{place} holds no *.tar')
        self.classes = read_class_names(class_list, self._reader.paths[0].with_name(CLASS_LIST))
        rows: list[tuple[int, int, int, int]] = []  # file, offset, bytes, label

        def names() -> Iterator[str]:
            for file, path in enumerate(self._reader.paths):
                for name, offset, n_bytes, label in self._scan(file, path):
                    rows.append((file, offset, n_bytes, label))
                    yield name

        self._names = Names(names())
        table = np.array(rows, np.int64).reshape(-1, 4)
        self._files, self._offsets, self._sizes = table[:, 0].astype(np.int32), table[:, 1].copy(), table[:, 2].copy()
        self.labels = checked_labels(table[:, 3], self.classes, place)

    def _scan(self, file: int, path: Path) -> Iterator[tuple[str, int, int, int]]:
        """(name, offset, bytes, label) of the images of an archive."""
        members = (member for member in list_members(path) if not _base(member[0]).startswith('.'))
        for key, of_key in groupby(members, key=lambda member: _key(member[0])):
            image: tuple[str, int, int] | None = None
            label: int | None = None
            for name, offset, n_bytes in of_key:
                if name.lower() == f'{key}.cls'.lower():
                    text = self._reader.read(file, offset, min(n_bytes, 20)).decode('latin-1')
                    label = read_label(text.strip(), f'{path}: {name}')
                elif is_image_name(name):
                    if image is not None:
                        raise InputError(f'{path}: {name} is the second image of its key')
                    if n_bytes > MAX_IMAGE_BYTES:
                        raise InputError(f'{path}: {name} has {n_bytes:,} bytes, more than {MAX_IMAGE_BYTES:,}')
                    image = name, offset, n_bytes
            if (image is None) != (label is None):
                raise InputError(f'{path}: {key} has no {"image" if image is None else "label (.cls)"}')
            if image is not None and label is not None:
                yield *image, label

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, i: int) -> str:
        return f'{self._reader.paths[self._files[i]]}: {self._names[i]}'

    def read(self, i: int) -> bytes:
        n_bytes = int(self._sizes[i])
        raw = self._reader.read(int(self._files[i]), int(self._offsets[i]), n_bytes)
        if len(raw) < n_bytes:
            raise InputError(f'{self.name(i)} is cut short')
        return raw


def _base(name: str) -> str:
    return name.rpartition('/')[2]


def _key(name: str) -> str:
    """All of a name up to the first dot of its last part."""
    base = _base(name)
    return name.removesuffix(base) + base.partition('.')[0]
