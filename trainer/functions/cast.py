"""Changes of precision within a network."""

from __future__ import annotations

from typing import Any

import chainer
import numpy as np
from ml_dtypes import bfloat16

from trainer import engine
from trainer.engine.errors import EngineError
from trainer.functions.node import Arrays, EngineFunction, Places

FLOAT16, FLOAT32, BFLOAT16 = np.dtype(np.float16), np.dtype(np.float32), np.dtype(bfloat16)


def to_compute_dtype(x: Any) -> Any:
    """`x` in `chainer.config.compute_dtype`, if that is set and the device computes in it."""
    dtype = chainer.config.compute_dtype
    if dtype is None or (engine.of(x) is engine.onednn and not engine.computes_in(dtype)):
        return x
    return to_dtype(x, dtype)


def to_dtype(x: Any, dtype: Any) -> Any:
    """`x` in another precision."""
    return x if x.dtype == dtype else Cast(np.dtype(dtype)).apply((x,))[0]


def to_float32(x: Any) -> Any:
    """`x` in float32 if it is in a half precision that was asked for: Chainer's functions take weights of x's alone."""
    is_half = x.dtype == BFLOAT16 or (x.dtype == FLOAT16 and chainer.config.compute_dtype == FLOAT16)
    return Cast(FLOAT32).apply((x,))[0] if is_half else x


class Cast(EngineFunction):
    """x -> the same in another precision."""

    def __init__(self, dtype: Any) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, inputs: Arrays) -> Arrays:
        self.retain_inputs(())
        (x,) = inputs
        self.x_dtype = x.dtype
        return (_cast(x, self.dtype),)

    def compute_gradients(self, indexes: tuple[int, ...], gys: Arrays, places: Places) -> Arrays:
        (gy,) = gys
        return (_cast(gy, self.x_dtype),)

    def differentiable_gradients(self, indexes: tuple[int, ...], gys: Any) -> Any:
        (gy,) = gys
        return Cast(self.x_dtype).apply((gy,))


def _cast(x: Any, dtype: Any) -> Any:
    try:
        return engine.of(x).convert.as_dtype(x, dtype) if engine.serves(x) else x.astype(dtype)
    except EngineError:
        return x.astype(dtype)
