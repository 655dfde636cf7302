"""Sums of maps."""

from __future__ import annotations

import chainer

from trainer import engine
from trainer.functions.concat import SideBySide, joined
from trainer.functions.node import EngineFunction, Input, Output, Variables, apply
from trainer.functions.places import Arrays, Places


def add(x: Input, other: Input) -> Output:
    """x + other, as `chainer.functions.add` of two.

    Args:
        x, other: floating point, of one shape and precision; if both are side by side, and alike, so is the sum.
    Raises:
        InvalidType: they are not of one shape and precision (Chainer's own check).
    """
    if isinstance(x, SideBySide) and isinstance(other, SideBySide) and x.shape == other.shape:
        sizes = [part.shape[1] for part in x]
        if sizes == [part.shape[1] for part in other]:
            return SideBySide(map(add, x, other))
    x, other = joined(x), joined(other)
    is_served = x.ndim == 4 and x.shape == other.shape and x.dtype == other.dtype and engine.serves(x, other)
    return apply(Add(), (x, other), is_served)


class Add(EngineFunction):
    """x, other -> x + other, maps."""

    def reference(self, *inputs: chainer.Variable) -> Variables:
        return (chainer.functions.add(*inputs),)

    def forward(self, inputs: Arrays) -> Arrays:
        self.retain_inputs(())
        x, other = self.ops.convert.as_map(inputs[0]), inputs[1]
        return (self.ops.elementwise.add(x, other, self.ops.memory.empty_map(x.shape, x.dtype)),)

    def compute_gradients(self, indexes: tuple[int, ...], gys: Arrays, places: Places) -> Arrays:
        return gys * len(indexes)

    def differentiable_gradients(self, indexes: tuple[int, ...], gys: Variables) -> Variables:
        return gys * len(indexes)
