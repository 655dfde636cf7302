"""One tensor of an archive: dense numbers, or the codes of a codebook, whichever takes fewer bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from squeeze_net.compression.entropy import (
    Reader,
    Writer,
    ordered,
    read_floats,
    read_rising,
    read_symbols,
    write_floats,
    write_rising,
    write_symbols,
)
from trainer.errors import InputError

MAX_CODEBOOK = 1 << 12
MAX_VALUES = 1 << 27  # of a tensor
DENSE, CODED, SPARSE = range(3)
KINDS = ('dense', 'coded', 'sparse')
DTYPES: dict[str, np.dtype[Any]] = {'float32': np.dtype('<f4'), 'float16': np.dtype('<f2')}


@dataclass(frozen=True)
class Coded:
    """A tensor's bytes and what became of it.

    Attributes:
        kind: DENSE, CODED (codes of all values) or SPARSE (where the values are not 0, and codes of those).
        raw: what `decode` reads.
        n_codebook: distinct values, 0 for dense.
        n_value, n_nonzero: values, and those that are not 0.
        parts: bytes of codebook, positions and codes (or values).
    """

    kind: int
    raw: bytes
    n_codebook: int
    n_value: int
    n_nonzero: int
    parts: dict[str, int]


def encode(tensor: np.ndarray) -> Coded:
    """Without loss, as float32 or as float16 where that is what it is.

    Raises:
        InputError: a tensor of other numbers, or one too large.
    """
    if tensor.dtype not in DTYPES.values() or tensor.size > MAX_VALUES:
        raise InputError(
            f'a tensor of {tensor.size} {tensor.dtype} values is not archived, expected float32 or float16'
        )
    flat = np.ascontiguousarray(tensor).reshape(-1)
    # By their bits, so that -0.0 and NaN come back as they were.
    bits = flat.view(f'<u{flat.itemsize}')
    dense = _encode_dense(flat)
    if flat.dtype.itemsize == 2 or flat.size < 16:
        return dense
    distinct, codes = np.unique(bits, return_inverse=True)
    if distinct.size > min(MAX_CODEBOOK, flat.size // 2):
        return dense
    codebook = distinct.view('<f4')
    if not np.isfinite(codebook).all():
        return dense
    order = np.argsort(ordered(codebook))
    rank = np.empty(order.size, np.int64)
    rank[order] = np.arange(order.size)
    candidates = [dense, _encode_coded(codebook[order], rank[codes])]
    (zero,) = np.nonzero(distinct[order] == 0)  # not -0.0
    if zero.size:
        candidates.append(_encode_sparse(codebook[order], rank[codes], int(zero[0])))
    return min(candidates, key=lambda coded: len(coded.raw))


def _encode_dense(flat: np.ndarray) -> Coded:
    out = Writer()
    write_floats(out, flat)
    raw = out.getvalue()
    return Coded(DENSE, raw, 0, flat.size, int(np.count_nonzero(flat)), {'values': len(raw)})


def _encode_coded(codebook: np.ndarray, codes: np.ndarray) -> Coded:
    out, values = Writer(), Writer()
    _write_codebook(out, codebook)
    n_codebook = len(out.getvalue())
    write_symbols(values, codes, codebook.size)
    raw = values.getvalue()
    n_nonzero = int((codebook[codes] != 0).sum())
    return Coded(
        CODED, out.getvalue() + raw, codebook.size, codes.size, n_nonzero, {'codebook': n_codebook, 'codes': len(raw)}
    )


def _encode_sparse(codebook: np.ndarray, codes: np.ndarray, zero: int) -> Coded:
    head, positions, values = Writer(), Writer(), Writer()
    others = np.delete(codebook, zero)
    _write_codebook(head, others)
    is_kept = codes != zero
    write_symbols(positions, is_kept.astype(np.int64), 2)
    kept = codes[is_kept]
    if others.size:
        write_symbols(values, kept - (kept > zero), others.size)
    raws = {'codebook': head.getvalue(), 'positions': positions.getvalue(), 'codes': values.getvalue()}
    parts = {name: len(raw) for name, raw in raws.items()}
    n_nonzero = int((codebook[codes] != 0).sum())
    return Coded(SPARSE, b''.join(raws.values()), codebook.size, codes.size, n_nonzero, parts)


def _write_codebook(out: Writer, codebook: np.ndarray) -> None:
    out.number(codebook.size)
    if codebook.size:
        write_rising(out, codebook)


def _read_codebook(source: Reader) -> np.ndarray:
    n = source.number(MAX_CODEBOOK)
    codebook = read_rising(source, n) if n else np.empty(0, np.float32)
    if not np.isfinite(codebook).all():
        raise InputError('a codebook holds values that are not finite')
    return codebook


def decode(raw: bytes, kind: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The tensor of `Coded.raw`.

    Raises:
        InputError: bytes that are not those of such a tensor.
    """
    count = math.prod(shape)
    source = Reader(raw)
    if kind == DENSE:
        flat = read_floats(source, count, dtype)
    elif kind == CODED:
        codebook = _read_codebook(source)
        if not codebook.size:
            raise InputError('a coded tensor has an empty codebook')
        flat = codebook[read_symbols(source, count, codebook.size)]
    elif kind == SPARSE:
        codebook = _read_codebook(source)
        is_kept = read_symbols(source, count, 2) == 1
        flat = np.zeros(count, np.float32)
        n_kept = int(is_kept.sum())
        if n_kept and not codebook.size:
            raise InputError('a sparse tensor has an empty codebook')
        if codebook.size:
            flat[is_kept] = codebook[read_symbols(source, n_kept, codebook.size)]
    else:
        raise InputError(f'a tensor is of the kind {kind}, expected {DENSE} .. {SPARSE}')
    source.end()
    return flat.reshape(shape)
