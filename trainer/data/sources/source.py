"""What a source of encoded images is, and what all of them need: names in little memory, checked labels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from trainer.errors import InputError

MAX_IMAGE_BYTES = 64 << 20  # of one encoded image
MAX_LIST_BYTES = 1 << 30
MAX_CLASSES = 1 << 16


class Source(Protocol):
    """Encoded images that need not fit in memory, read one at a time, in any order.

    Sources are pickled to the processes that read them, and open their files there when they are first read.

    Attributes:
        labels: (N,) int32, 0 or more.
        classes: the name of each label, or None.
        place: what messages and records call it.
    """

    labels: np.ndarray
    classes: tuple[str, ...] | None
    place: str

    def __len__(self) -> int: ...

    def read(self, i: int) -> bytes:
        """The encoded image i.

        Raises:
            InputError: it cannot be read; names it.
        """

    def name(self, i: int) -> str:
        """What to call image i: a path, or a key within a file."""


class Names:
    """Many short texts in one block of memory, which processes share after a fork and pickle as two arrays."""

    def __init__(self, texts: Iterable[str]) -> None:
        blob, ends = bytearray(), [0]
        for text in texts:
            blob += os.fsencode(text)
            ends.append(len(blob))
        self._blob, self._ends = bytes(blob), np.array(ends, np.int64)

    def __getitem__(self, i: int) -> str:
        return os.fsdecode(self._blob[self._ends[i] : self._ends[i + 1]])


def checked_labels(labels: npt.ArrayLike, classes: Sequence[str] | None, place: str | Path) -> np.ndarray:
    """Labels as an (N,) int32 array.

    Args:
        labels: (N,) whole numbers.
        classes: their names; None allows 0 .. MAX_CLASSES - 1.
        place: what messages call the source.
    Raises:
        InputError: no label at all, or one outside 0 .. number of classes - 1; says which.
    """
    n_class = MAX_CLASSES if classes is None else len(classes)
    values = np.asarray(labels, np.int64)
    if not len(values):
        raise InputError(f'{place} holds no image')
    if values.min() < 0 or values.max() >= n_class:
        wrong = int(values[(values < 0) | (values >= n_class)][0])
        raise InputError(f'{place}: the label {wrong} is outside 0..{n_class - 1}')
    return values.astype(np.int32)


def read_label(text: str, where: str) -> int:
    """A label of any text; numbers of any length are refused before they take memory.

    Raises:
        InputError: not a whole number of 0 .. MAX_CLASSES - 1; names `where`.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) < MAX_CLASSES):
        raise InputError(f'{where}: the label is {text[:40]!r}, expected a whole number of 0..{MAX_CLASSES - 1}')
    return int(text)


def read_file(path: Path, max_bytes: int = MAX_IMAGE_BYTES) -> bytes:
    """All bytes of a file.

    Raises:
        InputError: it cannot be read or is larger than `max_bytes`.
    """
    try:
        with path.open('rb') as file:
            raw = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        is_windows = '\\' in str(path) and os.sep == '/'
        hint = ' (its folders are separated by \\; write /)' if is_windows else ''
        raise InputError(f'{path} cannot be read: {getattr(error, "strerror", None) or error}{hint}') from None
    if len(raw) > max_bytes:
        raise InputError(f'{path} has more than {max_bytes:,} bytes')
    return raw


def read_text(path: Path, max_bytes: int = MAX_IMAGE_BYTES) -> str:
    """All of a UTF-8 text file without its byte order mark, its line ends as they are.

    Raises:
        InputError: not a file, one that cannot be read or is larger than `max_bytes`, or not UTF-8; names the line.
    """
    if not os.path.isfile(path):  # noqa: PTH113  (Path.is_file raises where a folder cannot be entered)
        raise InputError(f'{path} cannot be read: it is missing or not a file')
    raw = read_file(path, max_bytes)
    try:
        return raw.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        line = raw.count(b'\n', 0, error.start) + 1
        raise InputError(f'{path}, line {line}: byte {raw[error.start]:#04x} is not UTF-8') from None


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not empty, stripped, and their numbers from 1 on.

    Raises:
        InputError: it cannot be read or is larger than MAX_LIST_BYTES.
    """
    try:
        if path.stat().st_size > MAX_LIST_BYTES:
            raise InputError(f'{path} has more than {MAX_LIST_BYTES:,} bytes')
        with path.open(encoding='utf-8-sig', errors='surrogateescape') as file:
            for number, line in enumerate(file, 1):
                if line := line.strip():
                    yield number, line
    except OSError as error:
        raise InputError(f'{path} cannot be read: {error.strerror}') from None
