"""The rectifier."""

from __future__ import annotations

from typing import Any

import chainer

from trainer import engine
from trainer.functions.cast import to_float32
from trainer.functions.concat import SideBySide
from trainer.functions.node import Arrays, EngineFunction, Places, apply


def relu(x: Any) -> Any:
    """As `chainer.functions.relu`: max(x, 0), of any shape or of maps side by side; the CPU's engine makes 0 of NaN."""
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

    def differentiable_gradients(self, indexes: tuple[int, ...], gys: Any) -> Any:
        (gy,) = gys
        y = self.get_retained_outputs()[0]
        return (gy * (y.array > 0).astype(gy.dtype),)
