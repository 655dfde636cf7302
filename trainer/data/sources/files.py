"""Images that are files of their own: named by a list, or sorted into a folder a class."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from trainer.data.images import is_image_name
from trainer.data.sources.class_list import read_class_list, read_class_names
from trainer.data.sources.source import Names, checked_labels, read_file, read_label, read_lines
from trainer.errors import InputError


class _Files:
    """Files below a root.

    Args:
        root: what the paths are relative to.
        images: (path, label) of each, read once.
        classes, place: as of any source.
    """

    def __init__(
        self, root: Path, images: Iterable[tuple[str, int]], classes: tuple[str, ...] | None, place: Path
    ) -> None:
        labels: list[int] = []

        def paths() -> Iterator[str]:
            for path, label in images:
                labels.append(label)
                yield path

        self._root, self._paths = root, Names(paths())  # one at a time: a million paths take much memory
        self.labels, self.classes, self.place = checked_labels(labels, classes, place), classes, str(place)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, i: int) -> str:
        return str(self._root / self._paths[i])

    def read(self, i: int) -> bytes:
        return read_file(self._root / self._paths[i])


class ImageList(_Files):
    """A text file of lines `path label`; a path may contain spaces.

    Args:
        path: of the list.
        class_list: a file of `read_class_list` that names the labels.
        root: what its paths are relative to; None for the folder of the list.
    Raises:
        InputError: another kind of line, a label outside its range, or no line at all; names the line.
    """

    def __init__(self, path: Path, class_list: Path | None = None, root: Path | None = None) -> None:
        super().__init__(root or path.parent, _read_list(path), read_class_names(class_list), path)


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
        images = (
            (f'{folder}/{file}', label_of[folder])
            for folder in sorted(folders, key=label_of.__getitem__)
            for file in _entries(root / folder, of_folders=False)
        )
        super().__init__(root, images, names, root)


def _read_list(path: Path) -> Iterator[tuple[str, int]]:
    for number, line in read_lines(path):
        words = line.rsplit(None, 1)
        if len(words) != 2:
            raise InputError(f'{path}, line {number}: {line[:80]!r} is not `path label`')
        yield words[0], read_label(words[1], f'{path}, line {number}')


def _entries(folder: Path, of_folders: bool) -> list[str]:
    """Names of the folders, or of the image files, of a folder, sorted; hidden ones do not count."""

    def is_one(entry: os.DirEntry) -> bool:
        if of_folders:
            return not entry.name.startswith('.') and entry.is_dir()
        return is_image_name(entry.name) and entry.is_file()

    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if is_one(entry))
    except OSError as error:
        raise InputError(f'{folder} cannot be listed: {error.strerror}') from None
