"""Arrays on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trainer.engine.cuda.kernel import BFLOAT16, FLOAT16, FLOAT32
from trainer.engine.cuda.runtime import runtime

DTYPES = (FLOAT16, BFLOAT16, FLOAT32)  # of maps


def empty(shape: Sequence[int], dtype: Any) -> Any:
    """An uninitialised array in C order."""
    return runtime().empty(shape, dtype)


def zeros(shape: Sequence[int]) -> Any:
    """Of float32."""
    return runtime().zeros(shape, FLOAT32)


def empty_map(shape: Sequence[int], dtype: Any) -> Any:
    """An uninitialised map (N, C, H, W), channels side by side."""
    n, c, h, w = shape
    return runtime().empty((n, h, w, c), dtype).transpose(0, 3, 1, 2)


def empty_like_parameter(parameter: Any) -> Any:
    """For the gradient of a parameter, float32; of convolutions in the order in which cuDNN writes it."""
    if parameter.ndim == 4:
        return empty_map(parameter.shape, FLOAT32)
    return empty(parameter.shape, FLOAT32)


N_COUNTER = 65536
_counters: dict[Any, Any] = {}  # one array a device: what runs on a stream runs one after the other


def counters() -> Any:
    """Zeros (N_COUNTER,) uint32 that every kernel leaves as zeros; always at one address, as graphs remember it."""
    run = runtime()
    key = run, run.device
    if key not in _counters:
        _counters[key] = run.zeros((N_COUNTER,), np.uint32)
    return _counters[key]
