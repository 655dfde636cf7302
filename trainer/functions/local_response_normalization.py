"""Local response normalisation."""

from __future__ import annotations

import chainer

from trainer import engine
from trainer.engine.backend import ResponseWindow
from trainer.engine.maps import Array
from trainer.functions.concat import joined
from trainer.functions.node import Input, UnaryFunction, Variables, apply


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
    x = joined(x)
    window = ResponseWindow(n, k, alpha, beta)
    backend = engine.of(x) if x.ndim == 4 and engine.serves(x) else None
    is_served = backend is not None and backend.response_normalization.is_supported(window, x)
    return apply(LocalResponseNormalization(window), (x,), is_served)


class LocalResponseNormalization(UnaryFunction):
    """x -> y."""

    def __init__(self, window: ResponseWindow) -> None:
        super().__init__()
        self.window = window

    def reference(self, *inputs: chainer.Variable) -> Variables:
        return (chainer.functions.local_response_normalization(inputs[0], *self.window),)

    def compute(self, x: Array) -> Array:
        self.retain_inputs((0,))
        y, self.workspace = self.ops.response_normalization.forward(x, self.window, chainer.config.enable_backprop)
        return y

    def gradient(self, gy: Array) -> Array:
        return self.ops.response_normalization.backward(self.inputs[0].data, self.workspace, gy, self.window)
