"""Softmax cross entropy and accuracy, of logits in whatever precision."""

from __future__ import annotations

from typing import Any

import chainer
import numpy as np

from trainer import engine
from trainer.functions.cast import to_float32
from trainer.functions.node import Arrays, EngineFunction, Places, apply


def softmax_cross_entropy(x: Any, t: Any, **options: Any) -> Any:
    """As `chainer.functions.softmax_cross_entropy`; computed in float32 at least.

    Args:
        x: (N, classes) logits.
        t: (N,) int32 classes; -1 does not count.
    """

    def in_chainer() -> Any:
        return chainer.functions.softmax_cross_entropy(to_float32(x), t, **options)

    if options or x.ndim != 2 or t.dtype != np.int32 or t.shape != x.shape[:1] or not engine.serves(x):
        return in_chainer()
    if not hasattr(engine.of(x), 'loss'):
        return in_chainer()  # the CPU has nothing to gain from an own one
    labels = t.array if isinstance(t, chainer.Variable) else t
    return apply(SoftmaxCrossEntropy(labels), (x,), in_chainer)


class SoftmaxCrossEntropy(EngineFunction):
    """x -> the mean loss, float32."""

    def __init__(self, t: Any) -> None:
        super().__init__()
        self.t = t

    def reference(self, *inputs: chainer.Variable) -> tuple[chainer.Variable, ...]:
        return (chainer.functions.softmax_cross_entropy(inputs[0], self.t),)

    def forward(self, inputs: Arrays) -> Arrays:
        self.retain_inputs((0,))
        loss, self.kept = self.ops.loss.softmax_cross_entropy(inputs[0], self.t)
        return (loss,)

    def compute_gradients(self, indexes: tuple[int, ...], gys: Arrays, places: Places) -> Arrays:
        (gy,) = gys
        return (self.ops.loss.softmax_cross_entropy_backward(self.inputs[0].data, self.t, self.kept, gy),)


def accuracy(y: Any, t: Any, ignore_label: int | None = None) -> Any:
    """As `chainer.functions.accuracy`: the fraction of rows whose largest logit stands at their class."""
    return chainer.functions.accuracy(to_float32(y), t, ignore_label)
