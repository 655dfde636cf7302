"""Arrays in the engine's own memory."""

from __future__ import annotations

import numpy as np

from trainer.engine.maps import Shape
from trainer.engine.onednn.operation import FLOAT32, empty
from trainer.engine.onednn.operation import empty_map as empty_map


def zeros(shape: Shape) -> np.ndarray:
    """Of float32."""
    return np.zeros(shape, FLOAT32)


def empty_like_parameter(parameter: np.ndarray) -> np.ndarray:
    """For the gradient of a parameter, float32."""
    return empty(parameter.shape, FLOAT32)
