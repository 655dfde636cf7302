"""MXNet's RecordIO: one file of images with their labels (`.rec`), and the offsets of its records (`.idx`).

A record is the word 0xced7230a, a word of which the upper 3 bits say whether it is whole (0) or the first (1), a middle
(2) or the last (3) of several parts and the lower 29 how many bytes follow, those bytes, and zeros up to a multiple of
4. Parts are joined by the word 0xced7230a: the writer cuts a record where it holds that word at a multiple of 4, so
that a reader may look for the beginnings of records. All numbers are little-endian.

A record of an image begins with a header (flag uint32, label float32, id uint64, id2 uint64). If flag is not 0, as many
float32 follow, of which the first is the label. The rest is the encoded image.

Source: the documentation of MXNet, "Data loading API" and "Create a dataset using RecordIO"; dmlc-core, recordio.h.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import IO

import numpy as np

from trainer.data.sources.class_list import read_class_names
from trainer.data.sources.reader import Reader
from trainer.data.sources.source import MAX_CLASSES, MAX_IMAGE_BYTES, checked_labels, read_lines
from trainer.errors import InputError

MAGIC = 0xCED7230A
_MAGIC = struct.pack('<I', MAGIC)
_FRAME = struct.Struct('<2I')
_HEADER = struct.Struct('<If2Q')
WHOLE, FIRST, MIDDLE, LAST = range(4)
MAX_LENGTH = (1 << 29) - 1  # of a part
MAX_RECORD = MAX_IMAGE_BYTES + (1 << 20)  # header and labels included


class RecordIO:
    """The images of a `.rec` file, in the order of its `.idx`; without one, in that of the file, which is scanned.

    Args:
        path: of the `.rec`; its index has the same name with the suffix `.idx`.
        class_list: a file of `read_class_list` that names the labels; None for `<name>.classes.txt`, if there.
    Raises:
        InputError: a file that is cut short or not RecordIO, an index that does not fit it, a label that is not a
            whole number; says which record.
    """

    def __init__(self, path: Path, class_list: Path | None = None) -> None:
        self.place, self._path = str(path), path
        self._reader = Reader([path])
        self._n_bytes = self._reader.size(0)
        self.classes = read_class_names(class_list, class_list_of(path))
        index = path.with_suffix('.idx')
        self._offsets = np.fromiter(_read_index(index) if index.is_file() else self._scan(), np.int64)
        labels = np.fromiter(map(self._label, range(len(self))), np.int64, len(self))
        self.labels = checked_labels(labels, self.classes, path)

    def __len__(self) -> int:
        return len(self._offsets)

    def name(self, i: int) -> str:
        return f'{self._path}: record {i} (byte {self._offsets[i]})'

    def read(self, i: int) -> bytes:
        record = self._record(i, MAX_RECORD)
        if len(record) >= MAX_RECORD:
            raise InputError(f'{self.name(i)} has more than {MAX_RECORD:,} bytes')
        return record[self._header(i, record)[1] :]

    def _label(self, i: int) -> int:
        label, _ = self._header(i, self._record(i, _HEADER.size + 4))
        if not 0 <= label < MAX_CLASSES or label != int(label):
            raise InputError(f'{self.name(i)}: the label is {label:g}, expected a whole number of 0..{MAX_CLASSES - 1}')
        return int(label)

    def _header(self, i: int, record: bytes) -> tuple[float, int]:
        """The label, and where the image begins."""
        if len(record) < _HEADER.size:
            raise InputError(f'{self.name(i)} has {len(record)} bytes, too few for its header')
        flag, label, _, _ = _HEADER.unpack_from(record)
        if flag:
            if len(record) < _HEADER.size + 4:
                raise InputError(f'{self.name(i)} says it has {flag} labels, but ends before them')
            (label,) = struct.unpack_from('<f', record, _HEADER.size)
        return label, _HEADER.size + 4 * flag

    def _record(self, i: int, n_wanted: int) -> bytes:
        """A record, or its first `n_wanted` bytes or somewhat more."""
        record = b''
        for flag, start, n_bytes in self._parts(int(self._offsets[i])):
            if flag in (MIDDLE, LAST):
                record += _MAGIC
            wanted = max(0, min(n_bytes, n_wanted - len(record)))
            part = self._reader.read(0, start, wanted)
            if len(part) < wanted:
                raise InputError(f'{self.name(i)} is cut short')
            record += part
            if len(record) >= n_wanted:
                break
        return record

    def _parts(self, offset: int) -> Iterator[tuple[int, int, int]]:
        """(flag, offset, bytes) of the parts of the record at an offset."""
        expected: tuple[int, ...] = (WHOLE, FIRST)
        while True:
            frame = self._reader.read(0, offset, _FRAME.size)
            if len(frame) < _FRAME.size:
                raise InputError(f'{self._path} is cut short: a record should begin or go on at byte {offset}')
            magic, word = _FRAME.unpack(frame)
            flag, n_bytes = word >> 29, word & MAX_LENGTH
            if magic != MAGIC or flag not in expected:
                raise InputError(f'{self._path} holds no RecordIO record at byte {offset}')
            if offset + _FRAME.size + n_bytes > self._n_bytes:
                raise InputError(f'{self._path} is cut short inside the record at byte {offset}')
            yield flag, offset + _FRAME.size, n_bytes
            if flag in (WHOLE, LAST):
                return
            offset += _FRAME.size + n_bytes + -n_bytes % 4
            expected = MIDDLE, LAST

    def _scan(self) -> Iterator[int]:
        offset = 0
        while offset < self._n_bytes:
            yield offset
            for _, start, n_bytes in self._parts(offset):
                end = start + n_bytes
            offset = end + -end % 4


def class_list_of(path: Path) -> Path:
    """Where the class list of a `.rec` lies, if it has one."""
    return path.with_suffix('.classes.txt')


def _read_index(path: Path) -> Iterator[int]:
    """The offsets of a file of lines `key offset`."""
    for number, line in read_lines(path):
        words = line.split()
        if len(words) != 2 or not words[1].isdecimal() or len(words[1]) > 18:
            raise InputError(f'{path}, line {number}: {line[:60]!r} is not `key offset`')
        yield int(words[1])


def write_record(file: IO[bytes], label: int, number: int, image: bytes) -> int:
    """Append the record of an image.

    Args:
        file: the `.rec`, open for writing.
        label, number: of the image; its class, and its id in the header.
        image: encoded.
    Returns:
        The record's offset, for the index.
    """
    offset = file.tell()
    record = _HEADER.pack(0, label, number, 0) + image
    words = [match.start() for match in re.finditer(re.escape(_MAGIC), record) if match.start() % 4 == 0]
    parts = [record[start + 4 : end] for start, end in pairwise([-4, *words, len(record)])]
    flags = [FIRST, *[MIDDLE] * (len(parts) - 2), LAST] if words else [WHOLE]
    for flag, part in zip(flags, parts, strict=True):
        file.write(_FRAME.pack(MAGIC, flag << 29 | len(part)) + part + bytes(-len(part) % 4))
    return offset
