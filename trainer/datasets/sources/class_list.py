"""Files that give the classes their order and names, a line a class: `n01440764 tench, Tinca tinca`."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from trainer.datasets.sources.source import MAX_CLASSES, read_file
from trainer.errors import InputError


class ClassList(NamedTuple):
    keys: tuple[str, ...]  # the first word of each line: what folders are called
    names: tuple[str, ...]  # the rest of it, or the key


def read_class_list(path: Path) -> ClassList:
    """Read `synset_words.txt` or any list of one class a line.

    Raises:
        InputError: unreadable, no text, empty, or a class that comes twice; says which.
    """
    try:
        lines = [line.strip() for line in read_file(path).decode('utf-8').splitlines()]
    except UnicodeDecodeError as error:
        raise InputError(f'{path} is no UTF-8 text (byte {error.start})') from None
    words = [line.split(None, 1) for line in lines if line]
    keys = tuple(word[0] for word in words)
    if not 1 <= len(keys) <= MAX_CLASSES:
        raise InputError(f'{path} lists {len(keys)} classes, expected 1 .. {MAX_CLASSES}')
    if len(set(keys)) < len(keys):
        # A list of plain names, of which two begin with the same word.
        names = tuple(' '.join(word) for word in words)
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f'{path} lists the class {twice[:80]!r} twice')
        return ClassList(names, names)
    return ClassList(keys, tuple(word[-1] for word in words))
