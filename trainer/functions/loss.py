"""Softmax cross entropy and accuracy, of logits in whatever precision."""

from __future__ import annotations

from typing import Any

import chainer
import numpy as np

from trainer import engine
from trainer.engine.maps import Array
from trainer.functions.node import EngineFunction, Input, Output, apply, array_of, to_float32
from trainer.functions.places import Arrays, Places


def softmax_cross_entropy(x: Input, t: Input, *, smoothing: float = 0.0, **options: Any) -> Output:
    """The mean of -sum_c target_c log softmax(x)_c, as `chainer.functions.softmax_cross_entropy`.

    The target of class c is (1 - smoothing) * [c = t] + smoothing / classes.

    Args:
        x: (N, classes) logits, floating point.
        t: (N,) int32 classes; -1 does not count.
        smoothing: 0..1; with it, no other option.
        options: of Chainer's function.
    Returns:
        (), float32 at least.
    Raises:
        ValueError: smoothing together with another option.

    Source of the smoothing: Szegedy et al., "Rethinking the Inception architecture" (2016), section 7.
    """
    if smoothing and options:
        raise ValueError(f'smoothing={smoothing} goes with no other option, not with {", ".join(options)}')

    def in_chainer() -> chainer.Variable:
        return _in_chainer(to_float32(x), t, smoothing, options)

    if options or x.ndim != 2 or t.dtype != np.int32 or t.shape != x.shape[:1] or not engine.serves(x):
        return in_chainer()
    backend = engine.of(x)
    if backend is None or backend.loss is None:
        return in_chainer()
    return apply(SoftmaxCrossEntropy(array_of(t), smoothing), (x,), in_chainer)


def _in_chainer(x: Input, t: Input, smoothing: float, options: dict[str, Any]) -> chainer.Variable:
    loss = chainer.functions.softmax_cross_entropy(x, t, **options)
    if not smoothing:
        return loss
    labels = array_of(t)
    counts = (labels >= 0).astype(loss.dtype)
    weights = counts / max(counts.sum(), 1) / x.shape[1]  # (N,)
    all_classes = chainer.functions.sum(chainer.functions.log_softmax(x) * weights[:, None])
    return loss * (1 - smoothing) - all_classes * smoothing


class SoftmaxCrossEntropy(EngineFunction):
    """x -> the mean loss, float32."""

    def __init__(self, t: Array, smoothing: float = 0.0) -> None:
        super().__init__()
        self.t, self.smoothing = t, smoothing

    def reference(self, *inputs: chainer.Variable) -> tuple[chainer.Variable, ...]:
        return (_in_chainer(inputs[0], self.t, self.smoothing, {}),)

    def forward(self, inputs: Arrays) -> Arrays:
        self.retain_inputs((0,))
        assert self.ops.loss is not None
        loss, self.saved = self.ops.loss.softmax_cross_entropy(inputs[0], self.t, self.smoothing)
        return (loss,)

    def compute_gradients(self, indexes: tuple[int, ...], gys: Arrays, places: Places) -> Arrays:
        (gy,) = gys
        x = self.inputs[0].data
        assert self.ops.loss is not None
        return (self.ops.loss.softmax_cross_entropy_backward(x, self.t, self.saved, gy, self.smoothing),)


def accuracy(y: Input, t: Input, ignore_label: int | None = None) -> Output:
    """The fraction of rows whose largest logit is that of their class, as `chainer.functions.accuracy`.

    Args:
        y: (N, classes) logits, floating point.
        t: (N,) int32 classes.
        ignore_label: rows of this class do not count.
    Returns:
        (), float32 at least.
    """
    return chainer.functions.accuracy(to_float32(y), t, ignore_label)
