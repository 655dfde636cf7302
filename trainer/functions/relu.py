"""The rectifier."""

from __future__ import annotations

import chainer

from trainer import engine
from trainer.engine.maps import Array
from trainer.functions.concat import SideBySide
from trainer.functions.node import Input, Output, UnaryFunction, Variables, apply


def relu(x: Input) -> Output:
    """max(x, 0), as `chainer.functions.relu`; the CPU's engine makes 0 of NaN.

    x: floating point of any shape, or `SideBySide`; so is what is returned.
    """
    if isinstance(x, SideBySide):
        return SideBySide(map(relu, x))
    return apply(ReLU(), (x,), engine.serves(x))


class ReLU(UnaryFunction):
    """x -> y; its gradient needs y alone, so that x need not stay in memory."""

    def reference(self, *inputs: chainer.Variable) -> Variables:
        return (chainer.functions.relu(*inputs),)

    def compute(self, x: Array) -> Array:
        self.retain_inputs(())
        self.retain_outputs((0,))
        return self.ops.elementwise.relu(x)

    def gradient(self, gy: Array) -> Array:
        y = self.get_retained_outputs()[0].array
        return self.ops.elementwise.relu_backward(y, gy)

    def differentiable_gradients(self, indexes: tuple[int, ...], gys: Variables) -> Variables:
        (gy,) = gys
        y = self.get_retained_outputs()[0]
        return (gy * (y.array > 0).astype(gy.dtype),)
