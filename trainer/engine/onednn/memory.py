"""Arrays in the engine's own memory."""

from __future__ import annotations

import numpy as np

from trainer.engine.onednn.operation import BFLOAT16, FLOAT32, empty
from trainer.engine.onednn.operation import empty_map as empty_map

DTYPES = (FLOAT32, BFLOAT16)  # of maps


def zeros(shape: tuple[int, ...]) -> np.ndarray:
    """Of float32."""
    return np.zeros(shape, FLOAT32)


def empty_like_parameter(parameter: np.ndarray) -> np.ndarray:
    """For the gradient of a parameter, float32."""
    return empty(parameter.shape, FLOAT32)
