"""Local response normalisation."""

from __future__ import annotations

from typing import Any

import chainer

from trainer import engine
from trainer.functions.cast import to_float32
from trainer.functions.concat import joined
from trainer.functions.node import Arrays, EngineFunction, Places, apply


def local_response_normalization(
    x: Any, n: int = 5, k: float = 2, alpha: float = 1e-4, beta: float = 0.75
) -> chainer.Variable:
    """As `chainer.functions.local_response_normalization`: x / (k + alpha * sum of x^2 over n channels) ** beta.

    Args:
        x: (N, C, H, W) floating point.
        n: channels of the window, odd.

    Source: Krizhevsky et al., "ImageNet classification with deep convolutional neural networks" (2012), section 3.3.
    """

    def in_chainer(x: Any) -> chainer.Variable:
        return chainer.functions.local_response_normalization(to_float32(x), n, k, alpha, beta)

    x = joined(x)
    if x.ndim != 4 or not engine.serves(x):
        return in_chainer(x)
    normalization = engine.of(x).normalization
    window = normalization.ResponseWindow(n, k, alpha, beta)
    if not normalization.is_right(window, x):
        return in_chainer(x)
    return apply(LocalResponseNormalization(window), (x,), lambda: in_chainer(x))


class LocalResponseNormalization(EngineFunction):
    """x -> y."""

    def __init__(self, window: Any) -> None:
        super().__init__()
        self.window = window

    def reference(self, *inputs: chainer.Variable) -> tuple[chainer.Variable, ...]:
        return (chainer.functions.local_response_normalization(inputs[0], *self.window),)

    def forward(self, inputs: Arrays) -> Arrays:
        self.retain_inputs((0,))
        (x,) = inputs
        y, self.workspace = self.ops.normalization.local_response_normalization(
            x, self.window, chainer.config.enable_backprop
        )
        return (y,)

    def compute_gradients(self, indexes: tuple[int, ...], gys: Arrays, places: Places) -> Arrays:
        (gy,) = gys
        x = self.inputs[0].data
        gx = self.ops.normalization.local_response_normalization_backward(x, self.workspace, gy, self.window)
        return (gx,)
