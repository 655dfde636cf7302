"""Entropy coding of whole numbers and floating-point ones: a range coder, and models that take few bytes to say.

The coder is constriction's. What it needs to know of the numbers is how often each occurs; those counts are rounded to
two significant bits and coded themselves, as steps from one to the next. All of it is whole numbers and divisions, so
that it decodes the same on every machine.

Sources: Martin, "Range encoding" (1979); Bamler, "Understanding entropy coding with asymmetric numeral systems" (2022),
the author of constriction.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trainer.errors import InputError

MANTISSA_BITS = 2  # of a rounded count
MAX_LEVEL = 4 * 30  # of a count below 2**30
N_LENGTH = 34  # bits of a step below 2**32: 0 .. 32, and one that does not occur
CHUNK = 1 << 16  # values whose bits are spread out at a time; of any width, they fill whole bytes


class Writer:
    """Bytes of a coded tensor: whole numbers, and blocks of coded symbols."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def number(self, value: int) -> None:
        """0 or more, seven bits a byte."""
        while value > 127:
            self._parts.append(bytes([value & 127 | 128]))
            value >>= 7
        self._parts.append(bytes([value]))

    def block(self, raw: bytes) -> None:
        self.number(len(raw))
        self._parts.append(raw)

    def raw(self, raw: bytes) -> None:
        """Bytes whose number the reader knows."""
        self._parts.append(raw)

    def getvalue(self) -> bytes:
        return b''.join(self._parts)


class Reader:
    """What a `Writer` has written, read in the same order.

    Raises, from every method:
        InputError: the bytes end too soon, or a number is out of range.
    """

    def __init__(self, raw: bytes) -> None:
        self._raw, self._at = raw, 0

    def number(self, largest: int) -> int:
        value = shift = 0
        while True:
            if self._at == len(self._raw) or shift > 35:
                raise InputError('a coded tensor ends within a number')
            byte = self._raw[self._at]
            self._at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        if value > largest:
            raise InputError(f'a coded tensor says {value} where at most {largest} makes sense')
        return value

    def block(self) -> bytes:
        return self.raw(self.number(len(self._raw)))

    def raw(self, n: int) -> bytes:
        if n > len(self._raw) - self._at:
            raise InputError('a coded tensor ends within its numbers')
        self._at += n
        return self._raw[self._at - n : self._at]

    def end(self) -> None:
        if self._at != len(self._raw):
            raise InputError(f'{len(self._raw) - self._at} bytes are left after a coded tensor')


# ---- symbols ----


def write_symbols(out: Writer, symbols: np.ndarray, n: int) -> None:
    """Code symbols by how often each occurs.

    Args:
        symbols: (N,) whole numbers of 0 .. n - 1.
        n: 1 or more.
    """
    levels = to_levels(np.bincount(symbols, minlength=n))
    write_levels(out, levels)
    out.block(_encode(symbols, from_levels(levels)))


def read_symbols(source: Reader, count: int, n: int) -> np.ndarray:
    """(count,) int32 of 0 .. n - 1."""
    levels = read_levels(source, n)
    if count and not levels.any():
        raise InputError('a coded tensor has no counts')
    return _decode(source.block(), count, from_levels(levels))


def to_levels(counts: np.ndarray) -> np.ndarray:
    """Counts rounded to two significant bits, as numbers that rise with them: 0 for 0, then four to the octave."""
    counts = np.asarray(counts, np.int64)
    octave = np.frexp(np.maximum(counts, 1).astype(np.float64))[1].astype(np.int64) - 1
    step = np.maximum(octave - MANTISSA_BITS, 0)
    rounded = (
        (counts + ((1 << step) >> 1)) >> step << step
    )  # to the nearest with that many bits, maybe of the next octave
    octave = np.frexp(np.maximum(rounded, 1).astype(np.float64))[1].astype(np.int64) - 1
    mantissa = (rounded << MANTISSA_BITS >> octave) & ((1 << MANTISSA_BITS) - 1)
    return np.where(counts > 0, 1 + (octave << MANTISSA_BITS | mantissa), 0)


def from_levels(levels: np.ndarray) -> np.ndarray:
    """The rounded counts, int64, in quarters, so that they are whole: 0, 4, 5, 6, 7, 8, 10, ..."""
    octave, mantissa = np.divmod(np.asarray(levels, np.int64) - 1, 1 << MANTISSA_BITS)
    return np.where(np.asarray(levels) > 0, ((1 << MANTISSA_BITS) + mantissa) << np.maximum(octave, 0), 0)


def _step_counts() -> np.ndarray:
    """How often a step from one level to the next is expected, by its place in `_fold`: half as often each two."""
    place = np.arange(2 * MAX_LEVEL + 1)
    return np.maximum(1 << np.maximum(20 - place // 2, 0), 1)


def write_levels(out: Writer, levels: np.ndarray) -> None:
    """Append rounded counts (n,), as their differences."""
    out.block(_encode(_fold(np.diff(levels, prepend=0)), _step_counts()))


def read_levels(source: Reader, n: int) -> np.ndarray:
    """The `n` rounded counts that `write_levels` appended."""
    steps = _unfold(_decode(source.block(), n, _step_counts()).astype(np.int64))
    levels = np.cumsum(steps)
    if levels.min() < 0 or levels.max() > MAX_LEVEL:
        raise InputError('a coded tensor has counts out of range')
    return levels


def _fold(steps: np.ndarray) -> np.ndarray:
    """0, -1, 1, -2, 2, ... -> 0, 1, 2, 3, 4, ..."""
    return np.where(steps < 0, -2 * steps - 1, 2 * steps)


def _unfold(places: np.ndarray) -> np.ndarray:
    return np.where(places % 2 == 1, -(places + 1) // 2, places // 2)


def _constriction() -> Any:
    try:
        import constriction
    except ModuleNotFoundError:
        raise InputError('compressed archives need the package constriction, which is not installed') from None
    return constriction


def _model(counts: np.ndarray) -> Any:
    return _constriction().stream.model.Categorical(counts / counts.sum(), perfect=False)


def _encode(symbols: np.ndarray, counts: np.ndarray) -> bytes:
    used = np.flatnonzero(counts)
    if used.size < 2 or not symbols.size:
        return b''  # the counts say it all
    place = np.zeros(counts.size, np.int32)
    place[used] = np.arange(used.size)
    coder = _constriction().stream.queue.RangeEncoder()
    coder.encode(place[symbols], _model(counts[used]))
    return coder.get_compressed().astype('<u4').tobytes()


def _decode(raw: bytes, count: int, counts: np.ndarray) -> np.ndarray:
    used = np.flatnonzero(counts).astype(np.int32)
    if used.size < 2 or not count:
        if raw:
            raise InputError('a coded tensor has bytes where none are needed')
        return np.full(count, used[0] if used.size else 0, np.int32)
    if len(raw) % 4:
        raise InputError(f'a block of a coded tensor has {len(raw)} bytes, which is not a whole number of words')
    coder = _constriction().stream.queue.RangeDecoder(np.frombuffer(raw, '<u4').astype(np.uint32))
    try:
        symbols = used[coder.decode(_model(counts[used]), count)]
    except (ValueError, AssertionError) as error:
        raise InputError(f'a coded tensor cannot be decoded ({str(error)[:60]})') from None
    if not coder.maybe_exhausted():
        raise InputError('a block of a coded tensor goes on after its last symbol')
    return symbols


# ---- floating-point numbers ----


def write_floats(out: Writer, values: np.ndarray) -> None:
    """Code numbers without loss: sign and exponent by how often they occur, the mantissa without bits that are all 0.

    Args:
        values: (N,) float32 or float16.
    """
    bits, n_mantissa = _float_layout(values.dtype)
    numbers = values.view(f'<u{values.itemsize}').astype(np.int64)
    # The sign after the exponent, so that what occurs lies side by side.
    heads = (numbers >> n_mantissa & ((1 << (bits - 1 - n_mantissa)) - 1)) << 1 | numbers >> (bits - 1)
    coded = Writer()
    if values.size:
        lowest = int(heads.min())
        coded.number(lowest)
        coded.number(int(heads.max()) - lowest)
        write_symbols(coded, heads - lowest, int(heads.max()) - lowest + 1)
        mantissas = numbers & ((1 << n_mantissa) - 1)
        used = int(np.bitwise_or.reduce(mantissas))
        n_zero = (used & -used).bit_length() - 1 if used else n_mantissa  # low bits that none of them has
        coded.block(_pack_all(mantissas >> n_zero, n_mantissa - n_zero))
    if 0 < len(coded.getvalue()) < values.nbytes:
        out.number(1 + n_zero)
        out.raw(coded.getvalue())
    else:
        out.number(0)
        out.raw(values.tobytes())


def read_floats(source: Reader, count: int, dtype: np.dtype) -> np.ndarray:
    """(count,) of float32 or float16."""
    bits, n_mantissa = _float_layout(dtype)
    n_zero = source.number(1 + n_mantissa) - 1
    if n_zero < 0:
        return np.frombuffer(source.raw(count * dtype.itemsize), dtype).copy()
    lowest = source.number((1 << (bits - n_mantissa)) - 1)
    span = source.number((1 << (bits - n_mantissa)) - 1 - lowest)
    heads = (lowest + read_symbols(source, count, span + 1)).astype(np.uint32)
    mantissas = _unpack_all(source.block(), count, n_mantissa - n_zero) << n_zero
    numbers = (heads & 1) << (bits - 1) | heads >> 1 << n_mantissa | mantissas
    return numbers.astype(f'<u{dtype.itemsize}').view(dtype)


def _float_layout(dtype: np.dtype) -> tuple[int, int]:
    """Bits of a number, and of its mantissa."""
    return {2: (16, 10), 4: (32, 23)}[dtype.itemsize]


def write_rising(out: Writer, values: np.ndarray) -> None:
    """Code distinct float32 numbers in rising order: the lengths of the steps between them, then their bits."""
    numbers = ordered(values).astype(np.int64)
    steps = np.diff(numbers, prepend=-1) - 1  # 0 or more
    lengths = np.frexp(steps.astype(np.float64))[1]  # of 2**k .. 2**(k + 1) - 1: k + 1 bits, the first of them 1
    write_symbols(out, lengths, N_LENGTH)
    below = np.maximum(lengths - 1, 0)
    out.block(_pack(steps - np.where(lengths > 0, 1 << below.astype(np.int64), 0), below))


def read_rising(source: Reader, count: int) -> np.ndarray:
    """The `count` rising numbers that `write_rising` appended."""
    lengths = read_symbols(source, count, N_LENGTH)
    below = np.maximum(lengths - 1, 0)
    steps = _unpack(source.block(), below).astype(np.int64) + np.where(lengths > 0, 1 << below.astype(np.int64), 0)
    numbers = np.cumsum(steps + 1) - 1
    if count and numbers[-1] >= 1 << 32:
        raise InputError('a coded tensor has a codebook out of range')
    return _unordered(numbers.astype(np.uint32))


def ordered(values: np.ndarray) -> np.ndarray:
    """Float32 as uint32 that rise with them; -0.0 comes right before 0.0."""
    bits = values.astype('<f4').view('<u4')
    return np.where(bits >> 31 == 1, ~bits, bits | np.uint32(1 << 31))


def _unordered(numbers: np.ndarray) -> np.ndarray:
    bits = np.where(numbers >> 31 == 1, numbers & np.uint32((1 << 31) - 1), ~numbers).astype('<u4')
    return bits.view('<f4').astype(np.float32)


def _pack_all(numbers: np.ndarray, length: int) -> bytes:
    """Numbers (N,) of `length` bits each, in chunks, as each bit takes bytes of memory on the way."""
    chunks = (numbers[i : i + CHUNK] for i in range(0, numbers.size, CHUNK))
    return b''.join(_pack(chunk, np.full(chunk.size, length)) for chunk in chunks)


def _unpack_all(raw: bytes, count: int, length: int) -> np.ndarray:
    n_byte = (count * length + 7) // 8
    if len(raw) != n_byte:
        raise InputError(f'a block of a coded tensor has {len(raw)} bytes, expected {n_byte}')
    if not length:  # or a few bytes would take minutes
        return np.zeros(count, np.uint32)
    numbers, step = np.empty(count, np.uint32), CHUNK * length // 8
    for k, i in enumerate(range(0, count, CHUNK)):
        part = numbers[i : i + CHUNK]
        part[...] = _unpack(raw[k * step : (k + 1) * step], np.full(part.size, length))
    return numbers


def _pack(numbers: np.ndarray, lengths: np.ndarray) -> bytes:
    """Numbers (N,), each of its own number of bits, 0 .. 32, one after the other, the highest bit first."""
    place = np.arange(32)[None]
    shift = lengths[:, None].astype(np.int64) - 1 - place
    bits = (numbers[:, None].astype(np.int64) >> np.maximum(shift, 0)) & 1
    return np.packbits(bits[shift >= 0].astype(np.uint8)).tobytes()


def _unpack(raw: bytes, lengths: np.ndarray) -> np.ndarray:
    n_bit = int(lengths.sum())
    if len(raw) != (n_bit + 7) // 8:
        raise InputError(f'a block of a coded tensor has {len(raw)} bytes, expected {(n_bit + 7) // 8}')
    bits = np.unpackbits(np.frombuffer(raw, np.uint8))[:n_bit]
    shift = lengths[:, None].astype(np.int64) - 1 - np.arange(32)[None]
    table = np.zeros(shift.shape, np.uint32)
    table[shift >= 0] = bits
    return (table << np.maximum(shift, 0).astype(np.uint32)).sum(1, dtype=np.uint32)
