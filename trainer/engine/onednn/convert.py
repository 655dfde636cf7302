"""Copies into another layout or precision."""

from __future__ import annotations

import functools
from ctypes import c_void_p
from typing import Any

import numpy as np

from trainer.engine.onednn.library import DST, SRC, library
from trainer.engine.onednn.operation import BUFFERS, DATA_TYPES, Operation, empty, empty_map, pixel_stride


def convert(x: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Copy `x` to `out`, of the same shape, whatever the layouts and precisions of both."""
    is_odd = min(x.strides) <= 0 or any(stride % x.itemsize for stride in x.strides)  # broadcast, reversed, a field
    if is_odd or x.dtype not in DATA_TYPES:
        out[...] = x
        return out
    reorder_operation(x, out).run(x, out)
    return out


def reorder_operation(x: np.ndarray, out: np.ndarray) -> Operation:
    """The copy as an operation on arrays laid out as these."""
    # A dimension of length 1 has no stride of its own; without it, equal layouts have equal keys.
    kept = [i for i, length in enumerate(x.shape) if length > 1] or [0]
    key = tuple(
        (tuple(a.shape[i] for i in kept), tuple(a.strides[i] // a.itemsize for i in kept), DATA_TYPES[a.dtype])
        for a in (x, out)
    )
    return _reorder(key)


@functools.lru_cache(4096)
def _reorder(key: Any) -> Operation:
    source, destination = (library().describe(*part) for part in key)
    return _make_reorder(source, destination)


def _make_reorder(source: c_void_p, destination: c_void_p) -> Operation:
    lib = library()
    descriptor = lib.create('reorder_primitive_desc_create', source, lib.engine, destination, lib.engine, None)
    return Operation(descriptor, ((SRC, source), (DST, destination)))


def as_map(x: np.ndarray, dtype: Any = None) -> np.ndarray:
    """`x` (N, C, H, W) itself if its channels lie side by side in `dtype`, else a copy that is so."""
    dtype = x.dtype if dtype is None else dtype
    if x.dtype == dtype and pixel_stride(x):
        return x
    return convert(x, empty_map(x.shape, dtype))


def as_dense_map(x: np.ndarray) -> np.ndarray:
    """`x` itself if it is a map without gaps, else a copy that is so."""
    return x if pixel_stride(x) == x.shape[1] else convert(x, empty_map(x.shape, x.dtype))


def as_rows(x: np.ndarray) -> np.ndarray:
    """`x` itself if it lies in C order, else a copy that does."""
    return x if x.flags.c_contiguous else convert(x, empty(x.shape, x.dtype))


def as_dtype(x: np.ndarray, dtype: Any) -> np.ndarray:
    """`x` itself or a copy in `dtype`; maps stay maps."""
    if x.dtype == dtype:
        return x
    if x.ndim == 4 and pixel_stride(x):
        return convert(x, empty_map(x.shape, dtype))
    return convert(x, empty(x.shape, dtype))


class Packing:
    """Weights into the layout that a primitive has chosen, and back.

    Args:
        plain: descriptor of the weights as the network holds them, float32.
        chosen: the primitive's descriptor of them.
    """

    def __init__(self, plain: c_void_p, chosen: c_void_p) -> None:
        self._n_byte = library().size(chosen)
        self._is_plain = library().is_same(plain, chosen)
        self._pack = None if self._is_plain else _make_reorder(plain, chosen)
        self._unpack = None if self._is_plain else _make_reorder(chosen, plain)

    def packed(self, plain: np.ndarray) -> np.ndarray:
        if self._pack is None:
            return plain
        packed = self._empty()
        self._pack.run(plain, packed)
        return packed

    def packed_for(self, plain: np.ndarray) -> np.ndarray:
        """Where a primitive writes what is to end in `plain`."""
        return plain if self._is_plain else self._empty()

    def unpack(self, packed: np.ndarray, plain: np.ndarray) -> None:
        if self._unpack is not None:
            self._unpack.run(packed, plain)

    def _empty(self) -> np.ndarray:
        return BUFFERS.empty((self._n_byte,), (1,), self._n_byte, np.dtype(np.uint8))
