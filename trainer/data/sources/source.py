"""What a source of encoded images is, and what all of them need: names in little memory, checked labels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from trainer.errors import InputError

MAX_IMAGE_BYTES = 64 << 20  # of one encoded image
MAX_CLASSES = 1 << 16
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.gif', '.webp', '.ppm', '.tif', '.tiff')


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


class Names(Sequence[str]):
    """Many short texts in one block of memory, which processes share after a fork and pickle as two arrays."""

    def __init__(self, texts: Iterable[str]) -> None:
        blob, ends = bytearray(), [0]
        for text in texts:
            blob += os.fsencode(text)
            ends.append(len(blob))
        self._blob, self._ends = bytes(blob), np.array(ends, np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, i: Any) -> Any:
        if not 0 <= i < len(self):
            raise IndexError(i)
        return os.fsdecode(self._blob[self._ends[i] : self._ends[i + 1]])


def checked_labels(labels: Any, classes: Sequence[str] | None, place: Any) -> np.ndarray:
    """(N,) int32 of whole numbers.

    Raises:
        InputError: none at all, or one outside 0 .. number of classes - 1; says which.
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
    """A label that fits in memory whatever is written there.

    Raises:
        InputError: no whole number of 0 .. MAX_CLASSES - 1; names `where`.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) < MAX_CLASSES):
        raise InputError(f'{where}: the label is {text[:40]!r}, expected a whole number of 0..{MAX_CLASSES - 1}')
    return int(text)


def read_file(path: Path) -> bytes:
    """All of a file of a size that an image may have.

    Raises:
        InputError: it cannot be read or is larger than MAX_IMAGE_BYTES.
    """
    try:
        with path.open('rb') as file:
            raw = file.read(MAX_IMAGE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InputError(f'{path} cannot be read: {getattr(error, "strerror", None) or error}') from None
    if len(raw) > MAX_IMAGE_BYTES:
        raise InputError(f'{path} has more than {MAX_IMAGE_BYTES >> 20} MiB')
    return raw
