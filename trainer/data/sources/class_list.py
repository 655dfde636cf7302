"""Files that give the classes their order and names, a line a class: `n01440764 tench, Tinca tinca`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from trainer.data.sources.source import MAX_CLASSES, read_text
from trainer.errors import InputError

KEY = re.compile(r'[A-Za-z]*\d+')  # of WordNet, n01440764, or a number


class ClassList(NamedTuple):
    """The classes in the order of their labels."""

    keys: tuple[str, ...]  # what folders are called: the first word of each line if all are like `KEY`, else the line
    names: tuple[str, ...]  # the rest of the line, or the key


def read_class_names(path: Path | None, default: Path | None = None) -> tuple[str, ...] | None:
    """The names in a class list, or if None is given in the `default` one, where that exists; else None.

    Raises:
        InputError: as `read_class_list`.
    """
    if path is None and default is not None and default.is_file():
        path = default
    return None if path is None else read_class_list(path).names


def read_class_list(path: Path, folders: Collection[str] = ()) -> ClassList:
    """Read `synset_words.txt`, or any list with a class on each line.

    Args:
        path: the file.
        folders: names of folders; if all of them are first words of lines, first words are the keys, whatever they are.
    Raises:
        InputError: the file cannot be read, is not UTF-8 text, is empty, or lists a class twice; says which. Only
            names without keys may stand twice, as "crane" does in ImageNet.
    """
    lines = (line.strip() for line in read_text(path).splitlines())
    words = [line.split(None, 1) for line in lines if line]
    has_keys = bool(folders) and set(folders) <= {word[0] for word in words}
    are_names = not has_keys and not all(KEY.fullmatch(word[0]) for word in words)
    if are_names:
        words = [[' '.join(word)] for word in words]
    keys = tuple(word[0] for word in words)
    if not 1 <= len(keys) <= MAX_CLASSES:
        raise InputError(f'{path} lists {len(keys)} classes, expected 1 .. {MAX_CLASSES}')
    twice = next((key for key, n in Counter(keys).items() if n > 1 and (key in folders or not are_names)), None)
    if twice is not None:
        raise InputError(f'{path} lists the class {twice[:80]!r} twice')
    return ClassList(keys, tuple(word[-1] for word in words))
