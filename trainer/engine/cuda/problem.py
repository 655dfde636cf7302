"""Convolutions as cuDNN is asked for them."""

from __future__ import annotations

from typing import NamedTuple

import ml_dtypes
import numpy as np

from trainer.engine.maps import Pair, Shape

FORWARD, BACKWARD_DATA, BACKWARD_WEIGHTS = 'forward', 'backward_data', 'backward_weights'
WRITTEN = {FORWARD: 3, BACKWARD_DATA: 1, BACKWARD_WEIGHTS: 2}  # which of Problem.operands()
NUMPY_TYPES = {'float16': np.float16, 'bfloat16': ml_dtypes.bfloat16, 'float32': np.float32}


class Tensor(NamedTuple):
    """An array (N, C, H, W) in memory, or weights (K, C / groups, R, S)."""

    shape: Shape
    strides: Shape  # elements
    dtype: str  # float16, bfloat16 or float32

    @property
    def n_bytes(self) -> int:
        """From the first element to the end of the last, with all gaps between."""
        last = sum((length - 1) * stride for length, stride in zip(self.shape, self.strides, strict=True))
        return (last + 1) * np.dtype(NUMPY_TYPES[self.dtype]).itemsize


class Problem(NamedTuple):
    """y = x * w [+ b] [+ add], or the gradient of x, or of w; there are x.C / w.C groups."""

    kind: str
    x: Tensor  # written in BACKWARD_DATA
    w: Tensor  # written in BACKWARD_WEIGHTS
    y: Tensor  # its gradient, in both
    stride: Pair  # (vertical, horizontal), px, as the two below
    pad: Pair
    dilate: Pair
    bias: bool = False  # (1, K, 1, 1), float32; like `add` of FORWARD only
    add: Tensor | None = None  # of y's shape

    def operands(self) -> dict[int, Tensor]:
        """What a plan takes, in that order: name in the graph -> tensor."""
        k = self.w.shape[0]
        bias = Tensor((1, k, 1, 1), (k, 1, k, k), 'float32') if self.bias else None
        listed = {1: self.x, 2: self.w, 3: self.y, 4: bias, 5: self.add}
        return {name: tensor for name, tensor in listed.items() if tensor is not None}
