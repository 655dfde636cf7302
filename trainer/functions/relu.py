"""The rectifier."""

from __future__ import annotations

import chainer

from trainer import engine
from trainer.functions.concat import SideBySide
from trainer.functions.node import EngineFunction, Input, Output, Variables, apply, to_float32
from trainer.functions.places import Arrays, Places


def relu(x: Input) -> Output:
    """max(x, 0), as `chainer.functions.relu`; the CPU's engine makes 0 of NaN.

    x: floating point of any shape, or `SideBySide`; so is what is returned.
    """
    if isinstance(x, SideBySide):
        return SideBySide(map(relu, x))
    if not engine.serves(x):
        return chainer.functions.relu(to_float32(x))
    return apply(ReLU(), (x,), lambda: chainer.functions.relu(to_float32(x)))


class ReLU(EngineFunction):
    """x -> y; its gradient needs y alone, so that x need not stay in memory."""

    def forward(self, inputs: Arrays) -> Arrays:
        (x,) = inputs
        self.retain_inputs(())
        self.retain_outputs((0,))
        return (self.ops.elementwise.relu(x),)

    def compute_gradients(self, indexes: tuple[int, ...], gys: Arrays, places: Places) -> Arrays:
        (gy,) = gys
        y = self.get_retained_outputs()[0].array
        return (self.ops.elementwise.relu_backward(y, gy),)

    def differentiable_gradients(self, indexes: tuple[int, ...], gys: Variables) -> Variables:
        (gy,) = gys
        y = self.get_retained_outputs()[0]
        return (gy * (y.array > 0).astype(gy.dtype),)
