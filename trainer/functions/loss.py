"""Softmax cross entropy and accuracy, of logits in whatever precision."""

from __future__ import annotations

from typing import Any

import chainer
import numpy as np

from trainer import engine
from trainer.functions.cast import to_float32
from trainer.functions.node import Arrays, EngineFunction, Places, apply


def softmax_cross_entropy(x: Any, t: Any, *, smoothing: float = 0.0, **options: Any) -> Any:
    """As `chainer.functions.softmax_cross_entropy`, of smoothed labels if asked; computed in float32 at least.

    The target of class c is (1 - smoothing) * [c = t] + smoothing / classes.

    Args:
        x: (N, classes) logits.
        t: (N,) int32 classes; -1 does not count.
        smoothing: 0..1; with it, no other option.
    Raises:
        ValueError: smoothing together with another option.

    Source of the smoothing: Szegedy et al., "Rethinking the Inception architecture" (2016), section 7.
    """
    if smoothing and options:
        raise ValueError(f'smoothing={smoothing} goes with no other option, not with {", ".join(options)}')

    def in_chainer() -> Any:
        return _in_chainer(to_float32(x), t, smoothing, options)

    if options or x.ndim != 2 or t.dtype != np.int32 or t.shape != x.shape[:1] or not engine.serves(x):
        return in_chainer()
    if not hasattr(engine.of(x), 'loss'):
        return in_chainer()  # the CPU has nothing to gain from an own one
    labels = t.array if isinstance(t, chainer.Variable) else t
    return apply(SoftmaxCrossEntropy(labels, smoothing), (x,), in_chainer)


def _in_chainer(x: Any, t: Any, smoothing: float, options: Any) -> Any:
    loss = chainer.functions.softmax_cross_entropy(x, t, **options)
    if not smoothing:
        return loss
    labels: Any = t.array if isinstance(t, chainer.Variable) else t
    counts = (labels >= 0).astype(loss.dtype)
    weights = counts / max(counts.sum(), 1) / x.shape[1]  # (N,)
    all_classes = chainer.functions.sum(chainer.functions.log_softmax(x) * weights[:, None])
    return loss * (1 - smoothing) - all_classes * smoothing


class SoftmaxCrossEntropy(EngineFunction):
    """x -> the mean loss, float32."""

    def __init__(self, t: Any, smoothing: float = 0.0) -> None:
        super().__init__()
        self.t, self.smoothing = t, smoothing

    def reference(self, *inputs: chainer.Variable) -> tuple[chainer.Variable, ...]:
        return (_in_chainer(inputs[0], self.t, self.smoothing, {}),)

    def forward(self, inputs: Arrays) -> Arrays:
        self.retain_inputs((0,))
        loss, self.kept = self.ops.loss.softmax_cross_entropy(inputs[0], self.t, self.smoothing)
        return (loss,)

    def compute_gradients(self, indexes: tuple[int, ...], gys: Arrays, places: Places) -> Arrays:
        (gy,) = gys
        x = self.inputs[0].data
        return (self.ops.loss.softmax_cross_entropy_backward(x, self.t, self.kept, gy, self.smoothing),)


def accuracy(y: Any, t: Any, ignore_label: int | None = None) -> Any:
    """As `chainer.functions.accuracy`: the fraction of rows whose largest logit stands at their class."""
    return chainer.functions.accuracy(to_float32(y), t, ignore_label)
