"""Weights in the precision of the maps, kept up to date by whoever updates them instead of copied for every use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from trainer.engine.cuda.convert import as_dense_map, convert
from trainer.engine.cuda.memory import empty_map
from trainer.engine.maps import Array, DType, Map, address

_kept: dict[int, Map] = {}


def in_precision(W: Array, dtype: DType) -> Map:
    """Weights (out, in, kh, kw), float32, as cuDNN reads them: channels last, in the precision of the maps."""
    copy = _kept.get(address(W))
    if copy is not None and copy.dtype == dtype and copy.size == W.size:
        return copy.reshape(W.shape) if copy.ndim != W.ndim else copy
    return as_dense_map(W) if W.dtype == dtype else convert(W, empty_map(W.shape, dtype))


@contextmanager
def keeping(copies: dict[int, Map]) -> Iterator[None]:
    """Within, `copies` (address of the original -> copy, channels last) hold what their originals do."""
    _kept.update(copies)
    try:
        yield
    finally:
        for key in copies:
            _kept.pop(key, None)
