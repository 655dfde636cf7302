"""The link with the parameters of a fully connected layer."""

from __future__ import annotations

import chainer
import numpy as np

import trainer.functions as F
from trainer.functions.node import Input


class Linear(chainer.links.Linear):
    """As `chainer.links.Linear`, computed by `trainer.functions.linear`: y (N, out_size) of x (N, ...)."""

    def forward(self, x: Input, n_batch_axes: int = 1) -> chainer.Variable:
        if self.W.array is None:
            self._initialize_params(int(np.prod(x.shape[n_batch_axes:])))
        return F.linear(x, self.W, self.b, n_batch_axes=n_batch_axes)
