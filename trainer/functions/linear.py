"""Fully connected layers."""

from __future__ import annotations

import chainer
import numpy as np

from trainer import engine
from trainer.engine.maps import Array
from trainer.functions.concat import joined
from trainer.functions.node import EngineFunction, Input, Variables, apply, to_compute_dtype, to_float32
from trainer.functions.places import Arrays, Places


def linear(x: Input, W: Input, b: Input | None = None, n_batch_axes: int = 1) -> chainer.Variable:
    """y = x W^T + b, as `chainer.functions.linear`.

    Args:
        x: (N, ...) floating point, (N, inputs) once the rest is flattened.
        W: (outputs, inputs) float32.
        b: (outputs,) float32, or None.
        n_batch_axes: leading dimensions of x that count as N.
    Returns:
        (N, outputs), in the precision of x or `chainer.config.compute_dtype`.
    Raises:
        InvalidType: shapes or precisions do not fit (Chainer's own check).
    """
    x = joined(x)
    inputs: tuple[Input, ...] = (x, W) if b is None else (x, W, b)
    n_in = int(np.prod(x.shape[1:]))
    if (
        n_batch_axes != 1
        or x.ndim < 2
        or not engine.serves(*inputs)
        or W.ndim != 2
        or W.shape[1] != n_in
        or W.dtype != np.float32
        or (b is not None and (b.shape != W.shape[:1] or b.dtype != np.float32))
    ):
        return chainer.functions.linear(to_float32(x), W, None if b is None else to_float32(b), n_batch_axes)
    inputs = to_compute_dtype(x), *inputs[1:]
    return apply(Linear(), inputs)


class Linear(EngineFunction):
    """x, W and perhaps b -> y."""

    def reference(self, *inputs: chainer.Variable) -> Variables:
        return (chainer.functions.linear(*inputs),)

    def forward(self, inputs: Arrays) -> Arrays:
        self.retain_inputs(tuple(range(len(inputs))))
        x, W, *b = inputs
        as_rows = self.ops.convert.as_rows  # the weights are those of a flattened (C, H, W)
        self.x = as_rows(x).reshape(len(x), -1)
        return (self.ops.linear.forward(self.x, as_rows(W), b[0] if b else None),)

    def compute_gradients(self, indexes: tuple[int, ...], gys: Arrays, places: Places) -> Arrays:
        (gy,) = gys
        fully_connected, as_rows = self.ops.linear, self.ops.convert.as_rows
        gy, W = as_rows(gy), as_rows(self.inputs[1].data)
        gradients: list[Array | None] = [None, None, None]
        if 0 in indexes:
            gradients[0] = fully_connected.backward_data(W, gy).reshape(self.inputs[0].shape)
        if 1 in indexes or 2 in indexes:
            gradients[1] = gW = places.empty_like(1, W)
            gradients[2] = gb = places.empty_like(2, self.inputs[2].data) if 2 in indexes else None
            fully_connected.backward_weights(self.x, gy, gW, gb)
        return tuple(gradients[i] for i in indexes)  # type: ignore[misc]
