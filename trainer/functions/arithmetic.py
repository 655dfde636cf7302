"""Sums and concatenations of maps."""

from __future__ import annotations

from typing import Any

import chainer
import numpy as np

from trainer import engine
from trainer.engine.onednn import elementwise
from trainer.engine.onednn.convert import as_map, convert
from trainer.engine.onednn.operation import empty_map
from trainer.functions.cast import to_float32
from trainer.functions.node import Arrays, EngineFunction, Places, apply


def add(x: Any, other: Any) -> chainer.Variable:
    """x + other, of one shape; as `chainer.functions.add` of two."""
    if x.ndim != 4 or x.shape != other.shape or x.dtype != other.dtype or not engine.serves(x, other):
        return chainer.functions.add(to_float32(x), to_float32(other))
    return apply(Add(), (x, other), lambda: chainer.functions.add(x, other))


class Add(EngineFunction):
    """x, other -> x + other, maps."""

    def forward(self, inputs: Arrays) -> Arrays:
        self.retain_inputs(())
        x, other = map(as_map, inputs)
        return (elementwise.add(x, other, empty_map(x.shape, x.dtype)),)

    def compute_gradients(self, indexes: tuple[int, ...], gys: Arrays, places: Places) -> Arrays:
        (gy,) = gys
        return (gy,) * len(indexes)

    def differentiable_gradients(self, indexes: tuple[int, ...], gys: Any) -> Any:
        (gy,) = gys
        return (gy,) * len(indexes)


def concat(xs: Any, axis: int = 1) -> chainer.Variable:
    """As `chainer.functions.concat`; for convolutions side by side, `concat_convolution_2d` does without the copy."""
    xs = list(xs)
    shapes = {(x.ndim, x.shape[:1], x.shape[2:], x.dtype) for x in xs}
    if axis != 1 or xs[0].ndim != 4 or len(shapes) > 1 or not engine.serves(*xs):
        return chainer.functions.concat([to_float32(x) for x in xs], axis)
    return apply(Concat(), tuple(xs), lambda: chainer.functions.concat(xs, axis))


class Concat(EngineFunction):
    """Maps -> one of all their channels."""

    def forward(self, inputs: Arrays) -> Arrays:
        self.retain_inputs(())
        ends = np.cumsum([x.shape[1] for x in inputs]).tolist()
        self.slices = [slice(end - x.shape[1], end) for end, x in zip(ends, inputs, strict=True)]
        n, _, h, w = inputs[0].shape
        y = empty_map((n, ends[-1], h, w), inputs[0].dtype)
        for x, part in zip(inputs, self.slices, strict=True):
            convert(x, y[:, part])
        return (y,)

    def compute_gradients(self, indexes: tuple[int, ...], gys: Arrays, places: Places) -> Arrays:
        (gy,) = gys
        return tuple(gy[:, self.slices[i]] for i in indexes)  # views: no copy

    def differentiable_gradients(self, indexes: tuple[int, ...], gys: Any) -> Any:
        (gy,) = gys
        return tuple(gy[:, self.slices[i]] for i in indexes)
