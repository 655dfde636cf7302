"""Images that are files of their own: named by a list, or sorted into a folder a class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from trainer.data.sources.class_list import read_class_list
from trainer.data.sources.source import IMAGE_SUFFIXES, Names, checked_labels, read_file, read_label
from trainer.errors import InputError

MAX_LIST_BYTES = 1 << 30


class _Files:
    """Files below a root.

    Args:
        root: what the paths are relative to.
        paths: of the images.
        labels, classes, place: as of any source.
    """

    def __init__(self, root: Path, paths: Names, labels: np.ndarray, classes: tuple[str, ...] | None, place: str):
        self._root, self._paths = root, paths
        self.labels, self.classes, self.place = labels, classes, place

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, i: int) -> str:
        return str(self._root / self._paths[i])

    def read(self, i: int) -> bytes:
        return read_file(self._root / self._paths[i])


class ImageList(_Files):
    """A text file of lines `path label`; a path may hold spaces.

    Args:
        path: of the list.
        root: what its paths are relative to; None for the folder of the list.
        class_list: a file of `read_class_list` that names the labels.
    Raises:
        InputError: a line that is not that, a label outside its range, no line at all; names the line.
    """

    def __init__(self, path: Path, root: Path | None = None, class_list: Path | None = None) -> None:
        classes = None if class_list is None else read_class_list(class_list).names
        labels: list[int] = []

        def paths() -> Iterator[str]:
            for number, line in _lines(path):
                words = line.rsplit(None, 1)
                if len(words) != 2:
                    raise InputError(f'{path}, line {number}: {line[:80]!r} is not `path label`')
                labels.append(read_label(words[1], f'{path}, line {number}'))
                yield words[0].strip()

        names = Names(paths())
        super().__init__(root or path.parent, names, checked_labels(labels, classes, path), classes, str(path))


class ClassFolders(_Files):
    """Images in `<root>/<class>/*`, the classes in the order of their names, or of a list.

    Args:
        root: the folder of the classes.
        class_list: a file of `read_class_list` whose keys are the names of the folders, in the order of the
            labels; a folder that is not in it is an error, a class without a folder is not.
    Raises:
        InputError: no such folder, no image in it, or a class that the list lacks.
    """

    def __init__(self, root: Path, class_list: Path | None = None) -> None:
        folders = _entries(root, of_folders=True)
        if class_list is None:
            keys = names = tuple(folders)
        else:
            keys, names = read_class_list(class_list, folders)
            if missing := sorted(set(folders) - set(keys)):
                raise InputError(f'{root} holds the class {missing[0]!r}, which {class_list} does not list')
        label_of = {key: label for label, key in enumerate(keys)}
        labels: list[int] = []

        def paths() -> Iterator[str]:
            for folder in sorted(folders, key=label_of.__getitem__):
                for file in _entries(root / folder, of_folders=False):
                    labels.append(label_of[folder])
                    yield f'{folder}/{file}'

        super().__init__(root, Names(paths()), checked_labels(labels, names, root), names, str(root))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text that are not empty, and their numbers from 1 on."""
    try:
        if (n_bytes := path.stat().st_size) > MAX_LIST_BYTES:
            raise InputError(f'{path} has {n_bytes} bytes, more than {MAX_LIST_BYTES >> 30} GiB')
        with path.open(encoding='utf-8', errors='surrogateescape') as file:
            for number, line in enumerate(file, 1):
                if line := line.strip():
                    yield number, line
    except OSError as error:
        raise InputError(f'{path} cannot be read: {error.strerror}') from None


def _entries(folder: Path, of_folders: bool) -> list[str]:
    """Names of the folders, or of the image files, of a folder, sorted; hidden ones do not count."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                entry.name
                for entry in entries
                if not entry.name.startswith('.')
                and (entry.is_dir() if of_folders else entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file())
            )
    except OSError as error:
        raise InputError(f'{folder} cannot be listed: {error.strerror}') from None
