"""Sums of maps."""

from __future__ import annotations

from typing import Any

import chainer

from trainer import engine
from trainer.functions.cast import to_float32
from trainer.functions.concat import SideBySide, joined
from trainer.functions.node import Arrays, EngineFunction, Places, apply


def add(x: Any, other: Any) -> Any:
    """x + other, of one shape; as `chainer.functions.add` of two.

    Args:
        x, other: floating point; if both are side by side, and alike, so is the sum.
    """
    if isinstance(x, SideBySide) and isinstance(other, SideBySide) and x.shape == other.shape:
        sizes = [part.shape[1] for part in x]
        if sizes == [part.shape[1] for part in other]:
            return SideBySide(map(add, x, other))
    x, other = joined(x), joined(other)
    if x.ndim != 4 or x.shape != other.shape or x.dtype != other.dtype or not engine.serves(x, other):
        return chainer.functions.add(to_float32(x), to_float32(other))
    return apply(Add(), (x, other), lambda: chainer.functions.add(to_float32(x), to_float32(other)))


class Add(EngineFunction):
    """x, other -> x + other, maps."""

    def forward(self, inputs: Arrays) -> Arrays:
        self.retain_inputs(())
        x, other = map(self.ops.convert.as_map, inputs)
        return (self.ops.elementwise.add(x, other, self.ops.memory.empty_map(x.shape, x.dtype)),)

    def compute_gradients(self, indexes: tuple[int, ...], gys: Arrays, places: Places) -> Arrays:
        (gy,) = gys
        return (gy,) * len(indexes)

    def differentiable_gradients(self, indexes: tuple[int, ...], gys: Any) -> Any:
        (gy,) = gys
        return (gy,) * len(indexes)
