"""One tensor of an archive, in the kind that is shortest.

Numbers; where they are not 0, and which; codes of a codebook; or the one number that all of them are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from squeeze_net.weights.formats.sqz.entropy import (
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
DENSE, CODED, SPARSE, CONSTANT = range(4)
KINDS = ('dense', 'coded', 'sparse', 'constant')
DTYPES: dict[str, np.dtype[Any]] = {'float32': np.dtype('<f4'), 'float16': np.dtype('<f2')}


@dataclass(frozen=True)
class Coded:
    """A tensor's bytes and what became of it.

    Attributes:
        kind: DENSE, CODED (codes of all values), SPARSE (where values are not 0, and those: pruned, not quantised) or
            CONSTANT (one number for all).
        raw: what `decode` reads.
        n_codebook: distinct values of a coded tensor, else 0.
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
    candidates = [_encode_dense(flat)]
    if flat.size and (bits == bits[0]).all():
        candidates.append(_encode_constant(flat))
    if not bits.all():
        candidates.append(_encode_sparse(flat, bits != 0))
    if flat.dtype.itemsize == 4 and flat.size >= 16:
        distinct, codes = np.unique(bits, return_inverse=True)
        codebook = distinct.view('<f4')
        if distinct.size <= min(MAX_CODEBOOK, flat.size // 2) and np.isfinite(codebook).all():
            order = np.argsort(ordered(codebook))
            rank = np.empty(order.size, np.int64)
            rank[order] = np.arange(order.size)
            candidates.append(_encode_coded(codebook[order], rank[codes]))
    return min(candidates, key=lambda coded: len(coded.raw))


def _encode_dense(flat: np.ndarray) -> Coded:
    out = Writer()
    write_floats(out, flat)
    raw = out.getvalue()
    return Coded(DENSE, raw, 0, flat.size, int(np.count_nonzero(flat)), {'values': len(raw)})


def _encode_constant(flat: np.ndarray) -> Coded:
    raw = flat[:1].tobytes()
    return Coded(CONSTANT, raw, 0, flat.size, int(np.count_nonzero(flat)), {'values': len(raw)})


def _encode_coded(codebook: np.ndarray, codes: np.ndarray) -> Coded:
    out, values = Writer(), Writer()
    out.number(codebook.size)
    write_rising(out, codebook)
    n_codebook = len(out.getvalue())
    write_symbols(values, codes, codebook.size)
    raw = values.getvalue()
    n_nonzero = int((codebook[codes] != 0).sum())
    return Coded(
        CODED, out.getvalue() + raw, codebook.size, codes.size, n_nonzero, {'codebook': n_codebook, 'codes': len(raw)}
    )


def _encode_sparse(flat: np.ndarray, is_kept: np.ndarray) -> Coded:
    positions, values = Writer(), Writer()
    write_symbols(positions, is_kept.astype(np.int64), 2)
    write_floats(values, flat[is_kept])
    raws = {'positions': positions.getvalue(), 'values': values.getvalue()}
    parts = {name: len(raw) for name, raw in raws.items()}
    return Coded(SPARSE, b''.join(raws.values()), 0, flat.size, int(np.count_nonzero(flat)), parts)


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
        codebook = read_rising(source, source.number(MAX_CODEBOOK))
        if not codebook.size or not np.isfinite(codebook).all():
            raise InputError('a coded tensor has a codebook that is empty or not finite')
        flat = codebook[read_symbols(source, count, codebook.size)]
    elif kind == SPARSE:
        is_kept = read_symbols(source, count, 2) == 1
        flat = np.zeros(count, dtype)
        flat[is_kept] = read_floats(source, int(is_kept.sum()), dtype)
    elif kind == CONSTANT:
        flat = np.repeat(np.frombuffer(source.raw(dtype.itemsize), dtype), count)
    else:
        raise InputError(f'a tensor is of the kind {kind}, expected {DENSE} .. {CONSTANT}')
    source.end()
    return flat.reshape(shape)
