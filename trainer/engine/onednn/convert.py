"""Copies into another layout or precision."""

from __future__ import annotations

import functools
from typing import TypeAlias

import numpy as np

from trainer.engine.maps import DType, Map, Shape, pixel_stride
from trainer.engine.onednn.library import DST, SRC, Descriptor, library
from trainer.engine.onednn.operation import DATA_TYPES, Operation, empty, empty_bytes, empty_map

Layout: TypeAlias = tuple[Shape, Shape, int]  # shape, strides in elements, oneDNN's data type


def convert(x: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Copy `x` to `out`, of the same shape, whatever the layouts and precisions of both."""
    # A broadcast, reversed or 0-dimensional array, or a field of records.
    is_odd = min(x.strides, default=0) <= 0 or any(stride % x.itemsize for stride in x.strides)
    if is_odd or x.dtype not in DATA_TYPES:
        out[...] = x
        return out
    reorder_operation(x, out).run(x, out)
    return out


def reorder_operation(x: np.ndarray, out: np.ndarray) -> Operation:
    """The copy as an operation on arrays laid out as these."""
    # The stride of a dimension of length 1 means nothing; without it, equal layouts have equal keys.
    kept = [i for i, length in enumerate(x.shape) if length > 1] or [0]
    source, destination = (
        (tuple(a.shape[i] for i in kept), tuple(a.strides[i] // a.itemsize for i in kept), DATA_TYPES[a.dtype])
        for a in (x, out)
    )
    return _reorder(source, destination)


@functools.lru_cache(4096)
def _reorder(source: Layout, destination: Layout) -> Operation:
    return _make_reorder(library().describe(*source), library().describe(*destination))


def _make_reorder(source: Descriptor, destination: Descriptor) -> Operation:
    lib = library()
    descriptor = lib.describe_primitive('reorder', source, lib.engine, destination, lib.engine)
    return Operation(descriptor, ((SRC, source), (DST, destination)))


def as_map(x: np.ndarray, dtype: DType | None = None) -> Map:
    """`x` (N, C, H, W) itself if its channels lie side by side in `dtype`, else a copy that is so."""
    dtype = x.dtype if dtype is None else dtype
    return x if x.dtype == dtype and pixel_stride(x) else convert(x, empty_map(x.shape, dtype))


def as_dense_map(x: np.ndarray) -> Map:
    """`x` itself if it is a map without gaps, else a copy that is so."""
    return x if pixel_stride(x) == x.shape[1] else convert(x, empty_map(x.shape, x.dtype))


def as_rows(x: np.ndarray) -> np.ndarray:
    """`x` itself if it lies in C order, else a copy that does."""
    return x if x.flags.c_contiguous else convert(x, empty(x.shape, x.dtype))


def as_dtype(x: np.ndarray, dtype: DType) -> np.ndarray:
    """`x` itself or a copy in `dtype`; maps stay maps."""
    if x.dtype == dtype:
        return x
    is_map = x.ndim == 4 and pixel_stride(x)
    return convert(x, empty_map(x.shape, dtype) if is_map else empty(x.shape, dtype))


class Packing:
    """Weights (or maps) into the layout that a primitive has chosen, and back.

    Primitives compute fastest on blocks: say (out / 16, in / 16, kh, kw, 16 in, 16 out), padded with zeros to whole
    blocks. So packed arrays are opaque bytes, as many as the library says, which may be more than the plain ones have.

    Args:
        plain: descriptor of the array as the network holds it, float32 if it is of weights.
        chosen: the primitive's descriptor of it.
    """

    def __init__(self, plain: Descriptor, chosen: Descriptor) -> None:
        self._n_byte = library().size(chosen)
        self._is_plain = library().is_same(plain, chosen)
        self._pack = None if self._is_plain else _make_reorder(plain, chosen)
        self._unpack = None if self._is_plain else _make_reorder(chosen, plain)

    def packed(self, plain: np.ndarray) -> np.ndarray:
        if self._pack is None:
            return plain
        packed = empty_bytes(self._n_byte)
        self._pack.run(plain, packed)
        return packed

    def packed_for(self, plain: np.ndarray) -> np.ndarray:
        """Where a primitive writes what is to end in `plain`."""
        return plain if self._is_plain else empty_bytes(self._n_byte)

    def unpack(self, packed: np.ndarray, plain: np.ndarray) -> None:
        if self._unpack is not None:
            self._unpack.run(packed, plain)
