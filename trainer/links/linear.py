"""The link with the parameters of a fully connected layer."""

from __future__ import annotations

from typing import Any

import chainer
import numpy as np

import trainer.functions as F


class Linear(chainer.links.Linear):
    """As `chainer.links.Linear`, computed by `trainer.functions.linear`."""

    def forward(self, x: Any, n_batch_axes: int = 1) -> chainer.Variable:
        if self.W.array is None:
            self._initialize_params(int(np.prod(x.shape[n_batch_axes:])))
        return F.linear(x, self.W, self.b, n_batch_axes=n_batch_axes)
