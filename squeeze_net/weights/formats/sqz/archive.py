"""The archive of a compressed network: `.sqz`, described in FORMAT.md beside this file."""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from squeeze_net.weights.formats.sqz.tensor import DTYPES, KINDS, MAX_CODEBOOK, MAX_VALUES, Coded, decode, encode
from squeeze_net.weights.record import Weights
from trainer.data.metadata import Metadata
from trainer.errors import InputError
from trainer.files import atomic_write

MAGIC, VERSION, SUFFIX = b'\x89SQZ\r\n\x1a\n', 2, '.sqz'
_HEAD = struct.Struct('<8sHHII32s')  # magic, version, 0, bytes of the header packed and unpacked, SHA-256 of all after
MAX_ARCHIVE, MAX_HEADER, MAX_TENSORS, MAX_DIMS = 1 << 29, 8 << 20, 1 << 14, 8
MAX_TOTAL = 1 << 28  # values of all tensors
MAX_NAME = 200  # characters
LARGEST = 1 << 30  # number in a header


@dataclass(frozen=True)
class Entry:
    """A tensor in an archive.

    Attributes:
        name: its path in the network.
        kind: index into `tensor.KINDS`.
        shape, dtype: of the numbers.
        offset, n_byte: where it lies after the header.
        n_codebook, n_nonzero: distinct values (0 for dense), values that are not 0.
    """

    name: str
    kind: int
    shape: tuple[int, ...]
    dtype: str
    offset: int
    n_byte: int
    n_codebook: int
    n_nonzero: int


class Archive:
    """An archive that was opened: its header is read and its checksum checked; tensors are decoded when asked for.

    Attributes:
        metadata: network, classes, preprocessing.
        entries: by name.
        n_byte: of the whole file.
        n_header: of what is not tensors: metadata, names, shapes, checksum.
    """

    def __init__(self, raw: bytes | memoryview) -> None:
        if len(raw) > MAX_ARCHIVE:
            raise InputError(f'it has {len(raw)} bytes, more than {MAX_ARCHIVE >> 20} MB')
        if len(raw) < _HEAD.size or bytes(raw[:8]) != MAGIC:
            raise InputError('it does not begin as an archive does')
        _, version, zero, n_packed, n_text, digest = _HEAD.unpack(raw[: _HEAD.size])
        if not 1 <= version <= VERSION or zero:
            raise InputError(f'it is of the version {version}.{zero}, expected 1.0 .. {VERSION}.0')
        if sha256(raw[_HEAD.size :]).digest() != digest:
            raise InputError('its checksum is wrong: it is cut short or damaged')
        if n_packed > len(raw) - _HEAD.size or n_text > MAX_HEADER:
            raise InputError(f'its header declares {n_packed} bytes, unpacked {n_text}')
        self.n_byte, self.n_header = len(raw), _HEAD.size + n_packed
        self._raw = raw[self.n_header :]
        self.metadata, self.entries = _parse_header(raw[_HEAD.size : self.n_header], n_text, len(self._raw))

    def __getitem__(self, name: str) -> np.ndarray:
        """One tensor, float32 (those that are kept in float16, too); nothing else is decoded.

        Raises:
            InputError: no such tensor, or one whose bytes are not those of one.
        """
        if name not in self.entries:
            raise InputError(f'it holds no tensor {name!r}')
        entry = self.entries[name]
        raw = bytes(self._raw[entry.offset : entry.offset + entry.n_byte])
        tensor = decode(raw, entry.kind, entry.shape, DTYPES[entry.dtype])
        if not np.isfinite(tensor).all():
            raise InputError(f'{name} holds numbers that are not finite')
        return tensor.astype(np.float32, copy=False)

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        """All tensors, one after the other."""
        for name in self.entries:
            yield name, self[name]

    def weights(self) -> Weights:
        return Weights(dict(self), self.metadata)


def read(raw: memoryview) -> Weights:
    """The weights in an archive.

    Raises:
        InputError: no archive, a damaged one, or one of numbers out of range.
    """
    return Archive(raw).weights()


def _parse_header(packed: bytes | memoryview, n_text: int, n_body: int) -> tuple[Metadata, dict[str, Entry]]:
    try:
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(packed, n_text) if n_text else b''
        if len(text) != n_text or not unpacker.eof or unpacker.unused_data:
            raise InputError(f'its header does not unpack to the {n_text} bytes it declares')
        header = json.loads(text)
        metadata = Metadata.loads(header['metadata'])
        rows = header['tensors']
        if not isinstance(rows, list) or not 1 <= len(rows) <= MAX_TENSORS:
            raise InputError(f'its header lists no tensors, or more than {MAX_TENSORS}')
        entries: dict[str, Entry] = {}
        offset = n_value = 0
        for row in rows:
            entry = _parse_entry(row, offset)
            offset, n_value = offset + entry.n_byte, n_value + math.prod(entry.shape)
            if entry.name in entries or n_value > MAX_TOTAL:
                raise InputError(f'its header lists {entry.name[:60]!r} twice, or more than {MAX_TOTAL} values')
            entries[entry.name] = entry
    except (zlib.error, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f'its header cannot be read ({str(error)[:60]})') from None
    if offset != n_body:
        raise InputError(f'its tensors take {offset} bytes, but {n_body} follow the header')
    return metadata, entries


def _parse_entry(row: Any, offset: int) -> Entry:
    name, kind, shape, dtype, n_byte, n_codebook, n_nonzero = row
    numbers = (kind, n_byte, n_codebook, n_nonzero, *shape)
    is_sound = (
        isinstance(name, str)
        and 0 < len(name) <= MAX_NAME
        and name.isprintable()
        and dtype in DTYPES
        and len(shape) <= MAX_DIMS
    )
    if not is_sound or not all(type(number) is int and 0 <= number <= LARGEST for number in numbers):
        raise InputError(f'its header holds {ascii(row)[:80]}, which is not a tensor')
    n_value = math.prod(shape)
    if kind >= len(KINDS) or n_value > MAX_VALUES or n_nonzero > n_value or n_codebook > MAX_CODEBOOK:
        raise InputError(f'{name} is of the kind {kind} and shape {shape}, {n_nonzero} not 0, {n_codebook} distinct')
    return Entry(name, kind, tuple(shape), dtype, offset, n_byte, n_codebook, n_nonzero)


def pack(weights: Weights, half: frozenset[str] = frozenset()) -> tuple[bytes, dict[str, Coded]]:
    """The bytes of an archive, and what became of each tensor.

    Args:
        weights: float32 tensors.
        half: names of tensors to keep in float16, which loses what that does not hold.
    Raises:
        InputError: a tensor that is not finite in the precision it is kept in; names it.
    """
    coded: dict[str, Coded] = {}
    rows = []
    for name, tensor in weights.tensors.items():
        is_constant = not np.ptp(tensor) if np.size(tensor) else True  # four bytes for all
        dtype = 'float16' if name in half and not is_constant else 'float32'
        with np.errstate(over='ignore'):
            kept = np.asarray(tensor).astype(DTYPES[dtype])
        if not np.isfinite(kept).all():
            raise InputError(f'{name} holds numbers that are not finite in {dtype}')
        one = encode(kept)
        if dtype == 'float16':  # codebooks hold float32: of few distinct values, they are shorter
            as_codes = encode(kept.astype(np.float32))
            if len(as_codes.raw) < len(one.raw):
                one, dtype = as_codes, 'float32'
        coded[name] = one
        rows.append([name, one.kind, list(tensor.shape), dtype, len(one.raw), one.n_codebook, one.n_nonzero])
    text = json.dumps({'metadata': weights.metadata.dumps(), 'tensors': rows}, separators=(',', ':')).encode()
    packed = zlib.compress(text, 9)
    body = packed + b''.join(one.raw for one in coded.values())
    head = _HEAD.pack(MAGIC, VERSION, 0, len(packed), len(text), sha256(body).digest())
    return head + body, coded


def write(weights: Weights) -> bytes:
    """The bytes of an archive, without loss."""
    return pack(weights)[0]


def save(weights: Weights, path: Path, half: frozenset[str] = frozenset()) -> dict[str, Coded]:
    """Write an archive to a file, whole or not at all; returns what became of each tensor."""
    raw, coded = pack(weights, half)
    with atomic_write(path) as file:
        file.write(raw)
    return coded


def payload(coded: Mapping[str, Coded]) -> int:
    """Bytes of the tensors, without names and metadata."""
    return sum(len(one.raw) for one in coded.values())
