"""Loss and accuracy: Chainer's own, for logits in whatever precision."""

from __future__ import annotations

from typing import Any

import chainer

from trainer.functions.cast import to_float32


def softmax_cross_entropy(x: Any, t: Any, **options: Any) -> Any:
    """As `chainer.functions.softmax_cross_entropy`; computed in float32 at least.

    Args:
        x: (N, classes) logits.
        t: (N,) int32 classes.
    """
    return chainer.functions.softmax_cross_entropy(to_float32(x), t, **options)


def accuracy(y: Any, t: Any, ignore_label: int | None = None) -> Any:
    """As `chainer.functions.accuracy`: the fraction of rows whose largest logit stands at their class."""
    return chainer.functions.accuracy(to_float32(y), t, ignore_label)
