"""Products of two matrices."""

from __future__ import annotations

import functools

import numpy as np

from trainer.engine.onednn import library as dnn
from trainer.engine.onednn.library import library
from trainer.engine.onednn.operation import FLOAT32, Operation, empty

Layout = tuple[tuple[int, ...], tuple[int, ...]]  # shape, and strides in elements


def matmul(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x y: float32 (m, k) and (k, n), each in C order or transposed from it, -> (m, n), a new array."""
    out = empty((x.shape[0], y.shape[1]), FLOAT32)
    _operation(_layout(x), _layout(y), _layout(out)).run(x, y, out)
    return out


def _layout(x: np.ndarray) -> Layout:
    return x.shape, tuple(stride // x.itemsize for stride in x.strides)


@functools.lru_cache(256)
def _operation(x: Layout, y: Layout, out: Layout) -> Operation:
    lib = library()
    described = [lib.describe(*layout, dnn.F32) for layout in (x, y, out)]
    left, right, result = described
    descriptor = lib.describe_primitive('matmul', lib.engine, left, right, None, result)
    return Operation(descriptor, ((dnn.SRC, left), (dnn.WEIGHTS, right), (dnn.DST, result)))
