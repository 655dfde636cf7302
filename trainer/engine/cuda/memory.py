"""Arrays on the device."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trainer.engine.cuda.kernel import FLOAT32
from trainer.engine.cuda.runtime import Runtime, runtime
from trainer.engine.maps import Array, DType, Map, Shape


def empty(shape: Shape, dtype: npt.DTypeLike) -> Array:
    """An uninitialised array in C order.

    CuPy's pool frees and hands out memory in the order of the host's calls, and everything runs on one stream. So an
    array that only a kernel needs may be dropped as soon as the kernel is launched.
    """
    return runtime().empty(shape, dtype)


def zeros(shape: Shape) -> Array:
    """Of float32."""
    return runtime().zeros(shape, FLOAT32)


def empty_map(shape: Shape, dtype: DType) -> Map:
    """An uninitialised map (N, C, H, W), channels side by side."""
    n, c, h, w = shape
    return runtime().empty((n, h, w, c), dtype).transpose(0, 3, 1, 2)


def empty_like_parameter(parameter: Array) -> Array:
    """For the gradient of a parameter, float32; of convolutions in the order in which cuDNN writes it."""
    if parameter.ndim == 4:
        return empty_map(parameter.shape, FLOAT32)
    return empty(parameter.shape, FLOAT32)


N_COUNTER = 65536
_counters: dict[tuple[Runtime, int], Array] = {}  # one array a device: what runs on a stream runs one after the other


def counters() -> Array:
    """Zeros (N_COUNTER,) uint32 that every kernel leaves as zeros; always at one address, as graphs remember it."""
    run = runtime()
    key = run, run.device
    if key not in _counters:
        _counters[key] = run.zeros((N_COUNTER,), np.uint32)
    return _counters[key]
