"""Local response normalisation."""

from __future__ import annotations

import chainer

from trainer import engine
from trainer.engine.backend import ResponseWindow
from trainer.functions.concat import joined
from trainer.functions.node import EngineFunction, Input, apply, to_float32
from trainer.functions.places import Arrays, Places


def local_response_normalization(
    x: Input, n: int = 5, k: float = 2, alpha: float = 1e-4, beta: float = 0.75
) -> chainer.Variable:
    """y = x / (k + alpha * sum of x^2 over n channels) ** beta, as `chainer.functions.local_response_normalization`.

    Args:
        x: (N, C, H, W) floating point, or `SideBySide`.
        n: channels of the window, odd; its middle is the channel of x.
    Returns:
        Of the shape and precision of x.

    Source: Krizhevsky et al., "ImageNet classification with deep convolutional neural networks" (2012), section 3.3.
    """

    def in_chainer(x: Input) -> chainer.Variable:
        return chainer.functions.local_response_normalization(to_float32(x), n, k, alpha, beta)

    x = joined(x)
    window, backend = ResponseWindow(n, k, alpha, beta), engine.of(x)
    if x.ndim != 4 or not engine.serves(x) or not (backend and backend.response_normalization.is_supported(window, x)):
        return in_chainer(x)
    return apply(LocalResponseNormalization(window), (x,), lambda: in_chainer(x))


class LocalResponseNormalization(EngineFunction):
    """x -> y."""

    def __init__(self, window: ResponseWindow) -> None:
        super().__init__()
        self.window = window

    def reference(self, *inputs: chainer.Variable) -> tuple[chainer.Variable, ...]:
        return (chainer.functions.local_response_normalization(inputs[0], *self.window),)

    def forward(self, inputs: Arrays) -> Arrays:
        self.retain_inputs((0,))
        (x,) = inputs
        y, self.workspace = self.ops.response_normalization.forward(x, self.window, chainer.config.enable_backprop)
        return (y,)

    def compute_gradients(self, indexes: tuple[int, ...], gys: Arrays, places: Places) -> Arrays:
        (gy,) = gys
        x = self.inputs[0].data
        gx = self.ops.response_normalization.backward(x, self.workspace, gy, self.window)
        return (gx,)
