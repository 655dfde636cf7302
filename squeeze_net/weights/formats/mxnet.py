"""MXNet's `.params`: a list of arrays and a list of names, of `mx.nd.save`, modules and Gluon.

Source: `src/ndarray/ndarray.cc` of MXNet: NDArray::Save and Load, and the older LegacyLoad.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from squeeze_net.weights.formats.matching import read_named
from squeeze_net.weights.record import Weights
from trainer.errors import InputError

LIST = 0x112
V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA  # older arrays begin with their number of dimensions
DTYPES = {0: '<f4', 1: '<f8', 2: '<f2', 3: 'u1', 4: '<i4', 5: 'i1', 6: '<i8'}
MAX_TENSORS, MAX_DIMS, MAX_NAME = 1 << 14, 8, 200


def read(raw: memoryview) -> Weights:
    """The arrays that have names.

    Raises:
        InputError: not such a file, cut short, or with sparse arrays or arrays without names.
    """
    at = 0

    def take(form: str) -> tuple[Any, ...]:
        nonlocal at
        values = struct.unpack_from('<' + form, raw, at)
        at += struct.calcsize('<' + form)
        return values

    try:
        header, _, n = take('QQQ')
        if header != LIST or n > MAX_TENSORS:
            raise InputError(f'it does not begin as a list of at most {MAX_TENSORS} arrays of MXNet')
        arrays = []
        for _ in range(n):
            dtype, shape = _read_header(take)
            n_bytes = math.prod(shape) * dtype.itemsize
            if n_bytes > len(raw) - at:
                raise InputError(f'it is cut short: an array of the shape {shape} lies beyond its end')
            arrays.append(np.frombuffer(bytes(raw[at : at + n_bytes]), dtype).reshape(shape))
            at += n_bytes
        (n_names,) = take('Q')
        if n_names != n:
            raise InputError(f'it has {n} arrays and {n_names} names: save a dictionary of arrays, not a list')
        names = []
        for _ in range(n):
            (length,) = take('Q')
            if length > MAX_NAME:
                raise InputError(f'it has a name of {length} bytes, more than {MAX_NAME}')
            names.append(take(f'{length}s')[0].decode('utf-8', 'replace'))
    except InputError:
        raise
    except (struct.error, ValueError, OverflowError):
        raise InputError('it is not a .params file of MXNet, or is cut short') from None
    if len(set(names)) < len(names):
        raise InputError('it has several arrays of one name')
    return read_named(dict(zip(names, arrays, strict=True)))


def _read_header(take: Callable[[str], tuple[Any, ...]]) -> tuple[np.dtype, tuple[int, ...]]:
    """Type and shape of the next array; what stands between them says on which device it was."""
    (magic,) = take('I')
    if magic in (V2, V3) and take('i')[0] != 0:
        raise InputError('it has sparse arrays, which are not read: save them by tostype("default")')
    n_dims = take('I')[0] if magic in (V1, V2, V3) else magic
    if not 1 <= n_dims <= MAX_DIMS:
        raise InputError(f'it has an array of {n_dims} dimensions, expected 1 .. {MAX_DIMS}')
    shape = take(f'{n_dims}{"q" if magic in (V1, V2, V3) else "I"}')
    _, _, kind = take('iii')
    if kind not in DTYPES or min(shape) < 0:
        raise InputError(f'it has an array of the type {kind} and the shape {shape}')
    return np.dtype(DTYPES[kind]), shape
