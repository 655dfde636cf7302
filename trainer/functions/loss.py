"""Softmax cross entropy and accuracy, of logits in whatever precision."""

from __future__ import annotations

from typing import Any

import chainer
import numpy as np

from trainer import engine
from trainer.engine.maps import Array
from trainer.functions.node import Input, Output, UnaryFunction, Variables, apply, array_of, to_float32


def softmax_cross_entropy(
    x: Input, t: Input, *, smoothing: float = 0.0, class_weight: Array | None = None, **options: Any
) -> Output:
    """The mean of -class_weight_t sum_c target_c log softmax(x)_c, as `chainer.functions.softmax_cross_entropy`.

    The target of class c is (1 - smoothing) * [c = t] + smoothing / classes. The mean is over the number of rows, as
    Chainer has it, not over the sum of their weights: so the mean of the parts of a batch is that of the whole.

    Args:
        x: (N, classes) logits, floating point.
        t: (N,) int32 classes; -1 does not count.
        smoothing: 0..1; with it, no other option.
        class_weight: (classes,) float32 on the device of x; None for 1 each.
        options: of Chainer's function.
    Returns:
        (), float32 at least.
    Raises:
        ValueError: smoothing together with another option.

    Source of the smoothing: Szegedy et al., "Rethinking the Inception architecture" (2016), section 7.
    """
    if smoothing and options:
        raise ValueError(f'smoothing={smoothing} goes with no other option, not with {", ".join(options)}')
    is_served = x.ndim == 2 and t.dtype == np.int32 and t.shape == x.shape[:1] and engine.serves(x)
    backend = engine.of(x) if is_served and not options else None
    is_served = backend is not None and backend.loss is not None
    return apply(SoftmaxCrossEntropy(t, smoothing, class_weight, options), (x,), is_served)


def _in_chainer(
    x: Input, t: Input, smoothing: float, class_weight: Array | None, options: dict[str, Any]
) -> chainer.Variable:
    loss = chainer.functions.softmax_cross_entropy(x, t, class_weight=class_weight, **options)
    if not smoothing:
        return loss
    labels = array_of(t)
    counts = (labels >= 0).astype(loss.dtype)
    weights = counts / max(counts.sum(), 1) / x.shape[1]  # (N,)
    if class_weight is not None:
        weights *= class_weight[labels]
    all_classes = chainer.functions.sum(chainer.functions.log_softmax(x) * weights[:, None])
    return loss * (1 - smoothing) - all_classes * smoothing


class SoftmaxCrossEntropy(UnaryFunction):
    """x -> the mean loss, float32."""

    def __init__(self, t: Input, smoothing: float, class_weight: Array | None, options: dict[str, Any]) -> None:
        super().__init__()
        self.t, self.smoothing, self.class_weight, self.options = t, smoothing, class_weight, options

    def reference(self, *inputs: chainer.Variable) -> Variables:
        return (_in_chainer(inputs[0], self.t, self.smoothing, self.class_weight, self.options),)

    def compute(self, x: Array) -> Array:
        self.retain_inputs((0,))
        assert self.ops.loss is not None
        loss, self.saved = self.ops.loss.softmax_cross_entropy(x, array_of(self.t), self.smoothing, self.class_weight)
        return loss

    def gradient(self, gy: Array) -> Array:
        x, t = self.inputs[0].data, array_of(self.t)
        assert self.ops.loss is not None
        return self.ops.loss.softmax_cross_entropy_backward(x, t, self.saved, gy, self.smoothing, self.class_weight)


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
