"""The wire format of protocol buffers: messages as fields of a number and a value, read in place.

Enough for Caffe's and ONNX's models, without code generated from their definitions. A value is a view of the file, so
that reading takes no memory to speak of, whatever a message declares; depth is the caller's, which descends by name.

Source: Protocol Buffers documentation, "Encoding".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

from trainer.errors import InputError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MAX_VARINT_BYTES = 10


def fields(message: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """The fields of a message: number, wire type, and a number (VARINT) or the bytes (all others).

    Raises:
        InputError: the message ends within a field, or has a wire type that no longer exists.
    """
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise InputError('a message holds a field 0')
        if kind == VARINT:
            value, at = _varint(message, at)
            yield number, kind, value
            continue
        if kind == BYTES:
            length, at = _varint(message, at)
        elif kind in (FIXED32, FIXED64):
            length = 4 if kind == FIXED32 else 8
        else:
            raise InputError(f'a message holds a field of the wire type {kind}')
        if length > end - at:
            raise InputError(f'a field declares {length} bytes, where {end - at} are left')
        yield number, kind, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    for i in range(at, min(at + MAX_VARINT_BYTES, len(message))):
        byte = message[i]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, i + 1
        shift += 7
    raise InputError('a message ends within a number')


def varints(packed: memoryview, limit: int) -> list[int]:
    """A packed field of whole numbers, at most `limit` of them."""
    found: list[int] = []
    at = 0
    while at < len(packed):
        if len(found) == limit:
            raise InputError(f'a list of numbers has more than {limit}')
        value, at = _varint(packed, at)
        found.append(value)
    return found


def text(value: int | memoryview) -> str:
    if isinstance(value, int):
        raise InputError('a message holds a number where a text is expected')
    return bytes(value).decode('utf-8', 'replace')


def message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise InputError('a message holds a number where a message is expected')
    return value


def number(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise InputError('a message holds bytes where a number is expected')
    return value


class Floats:
    """A repeated field of numbers, packed or one by one, gathered as it comes."""

    def __init__(self, dtype: str) -> None:
        self._dtype = np.dtype(dtype)
        self._raw: memoryview | bytearray = bytearray()  # the one part in place, or a copy of several

    def add(self, value: int | memoryview) -> None:
        part = message(value)
        if not self._raw:
            self._raw = part
            return
        if isinstance(self._raw, memoryview):
            self._raw = bytearray(self._raw)
        self._raw += part

    def array(self) -> np.ndarray:
        """(n,) of the dtype.

        Raises:
            InputError: bytes that are no whole number of values.
        """
        if len(self._raw) % self._dtype.itemsize:
            raise InputError(f'{len(self._raw)} bytes are no whole number of {self._dtype} values')
        return np.frombuffer(self._raw, self._dtype)

    def __bool__(self) -> bool:
        return bool(self._raw)


def key(field: int, kind: int) -> bytes:
    return encoded(field << 3 | kind)


def encoded(value: int) -> bytes:
    """A whole number as a varint; negative ones in ten bytes, as prescribed."""
    value &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def put(field: int, value: int | float | str | bytes) -> bytes:
    """A field with its key: a varint, a 32-bit float, or bytes."""
    if isinstance(value, float):
        return key(field, FIXED32) + struct.pack('<f', value)
    if isinstance(value, int):
        return key(field, VARINT) + encoded(value)
    raw = value.encode() if isinstance(value, str) else value
    return key(field, BYTES) + encoded(len(raw)) + raw
