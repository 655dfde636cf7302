"""Images that are files of their own: named by a list, or sorted into a folder a class."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from trainer.data.images import files_below, image_suffixes, is_hidden, is_image_name
from trainer.data.sources.class_list import read_class_list, read_class_names
from trainer.data.sources.source import Names, checked_labels, read_file, read_label, read_lines
from trainer.errors import InputError

NUMBER = re.compile(r'[-+]?[\d.]+(?:e[-+]?\d+)?')  # what is meant as one, also where it is not a label


class Files:
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


class ImageList(Files):
    """A text file of lines `path label`; a path may contain spaces.

    Labels are numbers, or all of them names of classes: then the classes are in the order of their names, or of a list.

    Args:
        path: of the list.
        class_list: a file of `read_class_list` that names the labels; where these are names, its keys or its names.
        root: what its paths are relative to; None for the folder of the list.
    Raises:
        InputError: another kind of line, a label outside its range, or no line at all; names the line.
    """

    def __init__(self, path: Path, class_list: Path | None = None, root: Path | None = None) -> None:
        words: dict[str, int] = {}  # labels as written, numbered as they come
        rows = ((image, words.setdefault(word, len(words))) for image, word in _read_list(path))
        super().__init__(root or path.parent, rows, None, path)
        if all(word.isascii() and word.isdigit() for word in words):
            self.classes, meaning = read_class_names(class_list), np.array([int(word) for word in words])
        else:
            self.classes, meaning = _named(words, class_list, path)
        self.labels = checked_labels(meaning[self.labels], self.classes, path)


class ClassFolders(Files):
    """Images in `<root>/<class>/*`, however deep, the classes in the order of their names, or of a list.

    Args:
        root: the folder of the classes.
        class_list: a file of `read_class_list` whose keys are the names of the folders, in the order of the
            labels; a folder that is not in it is an error, a class without a folder is not.
    Raises:
        InputError: no such folder, no folder or no image in it, or a class that the list lacks.
    """

    def __init__(self, root: Path, class_list: Path | None = None) -> None:
        folders = _folders(root)
        if not folders:
            raise InputError(f'{root} holds no folder of a class; expected <class>/*')
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
            for file in _images_below(root / folder)
        )
        super().__init__(root, images, names, root)


def named_line(line: str) -> re.Match[str] | None:
    """A path that ends as those of images do, and the name of a class."""
    return _named_line().fullmatch(line)


@functools.cache
def _named_line() -> re.Pattern[str]:
    return re.compile(rf'(.*(?:{"|".join(map(re.escape, image_suffixes()))}))\s+(\S.*)', re.IGNORECASE)


def _read_list(path: Path) -> Iterator[tuple[str, str]]:
    """(path, label) of each line; a label that is a number, without leading zeros."""
    are_names: bool | None = None
    for number, line in read_lines(path):
        where = f'{path}, line {number}'
        words = line.rsplit(None, 1)
        if is_named := not NUMBER.fullmatch(words[-1]):
            found = named_line(line)
            words = list(found.groups()) if found else []
        if len(words) != 2:
            raise InputError(f'{where}: {line[:80]!r} is not `path label`')
        if are_names not in (None, is_named):
            other = 'a name' if is_named else 'a number'
            raise InputError(f'{where}: the label {words[1][:40]!r} is {other}, unlike those before it')
        are_names = is_named
        yield words[0], words[1] if is_named else str(read_label(words[1], where))


def _named(words: Iterable[str], class_list: Path | None, path: Path) -> tuple[tuple[str, ...], np.ndarray]:
    """The classes of a list whose labels are names, and the class of each of its words."""
    words = list(words)
    keys, names = (tuple(sorted(words)),) * 2 if class_list is None else read_class_list(class_list)
    label_of = {name: label for label, name in enumerate(names)} | {key: label for label, key in enumerate(keys)}
    if missing := sorted(set(words) - label_of.keys()):
        raise InputError(f'{path} holds the class {missing[0][:80]!r}, which {class_list} does not list')
    return names, np.array([label_of[word] for word in words])


def _folders(root: Path) -> list[str]:
    """Names of the folders in one, sorted; hidden ones do not count."""
    try:
        with os.scandir(root) as entries:
            return sorted(entry.name for entry in entries if not is_hidden(entry.name) and entry.is_dir())
    except OSError as error:
        raise InputError(f'{root} cannot be listed: {error.strerror}') from None


def _images_below(folder: Path) -> list[str]:
    """Paths of the images in a folder and in those below, sorted; hidden ones do not count."""
    return sorted(path.relative_to(folder).as_posix() for path in files_below(folder) if is_image_name(path.name))
