"""Batch normalisation, with a rectifier in the same pass over memory if asked."""

from __future__ import annotations

from typing import Any

import chainer
import numpy as np

from trainer import engine
from trainer.engine.onednn import normalization
from trainer.engine.onednn.operation import FLOAT32
from trainer.functions.cast import to_float32
from trainer.functions.concat import channels, parts, put_together
from trainer.functions.node import Arrays, EngineFunction, Places, apply


def batch_normalization(
    x: Any,
    gamma: Any,
    beta: Any,
    *,
    eps: float = 2e-5,
    running_mean: Any = None,
    running_var: Any = None,
    decay: float = 0.9,
    axis: Any = None,
    relu: bool = False,
) -> chainer.Variable:
    """As `chainer.functions.batch_normalization`; with `relu`, max(0, .) of it.

    Args:
        x: (N, C) or (N, C, H, W) floating point, or `SideBySide`.
        gamma, beta: (C,).
        eps: added to the variance.
        running_mean, running_var: (C,), updated in place, or None.
        decay: of the running statistics.
        axis: to aggregate over; None for all but the channels.
        relu: rectify the output.

    Source: Ioffe and Szegedy, "Batch normalization" (2015).
    """

    xs = parts(x)

    def in_chainer(*inputs: Any, **statistics: Any) -> Any:
        """Of x or its parts, gamma and beta."""
        *xs, gamma, beta = inputs
        x = to_float32(xs[0] if len(xs) == 1 else chainer.functions.concat(xs))
        y = chainer.functions.batch_normalization(x, gamma, beta, eps=eps, decay=decay, axis=axis, **statistics)
        y = chainer.functions.relu(y) if relu else y
        return y if len(xs) == 1 else chainer.functions.split_axis(y, [c.stop for c in channels(xs)[:-1]], axis=1)

    inputs = *xs, gamma, beta
    statistics = {'running_mean': running_mean, 'running_var': running_var}
    if not _is_served(x, gamma, beta, axis) or np.prod(x.shape) == x.shape[1]:  # of one value: Chainer warns
        return put_together(in_chainer(*inputs, **statistics), x)
    node = BatchNormalization(in_chainer, eps, relu)
    y = apply(node, inputs, lambda: in_chainer(*inputs, **statistics))
    is_complete = len(node.statistics) == len(xs)  # else Chainer has computed it, and moved the averages
    if is_complete and running_mean is not None and running_var is not None:
        n = int(np.prod(x.shape)) // x.shape[1]
        for part, c in zip(node.statistics, channels(xs), strict=True):
            _move(running_mean[c], part.mean, decay)
            _move(running_var[c], part.variance * np.float32(n / max(n - 1, 1)), decay)
    return put_together(y, x)


def fixed_batch_normalization(
    x: Any, gamma: Any, beta: Any, mean: Any, var: Any, eps: float = 2e-5, axis: Any = None, *, relu: bool = False
) -> chainer.Variable:
    """As `chainer.functions.fixed_batch_normalization`; with `relu`, max(0, .) of it.

    Args:
        mean, var: (C,) statistics to normalise with; the others as in `batch_normalization`.
    """

    xs = parts(x)

    def in_chainer(*inputs: Any) -> Any:
        """Of x or its parts, gamma, beta, mean and var."""
        x = to_float32(inputs[0] if len(xs) == 1 else chainer.functions.concat(inputs[: len(xs)]))
        gamma, beta, mean, var = inputs[len(xs) :]
        y = chainer.functions.fixed_batch_normalization(x, gamma, beta, mean, var, eps, axis)
        y = chainer.functions.relu(y) if relu else y
        return y if len(xs) == 1 else chainer.functions.split_axis(y, [c.stop for c in channels(xs)[:-1]], axis=1)

    inputs = *xs, gamma, beta, mean, var
    # The engine has no gradient for it: it is asked for in fine-tuning with fixed statistics at most.
    if (
        chainer.config.enable_backprop
        or not _is_served(x, gamma, beta, axis)
        or not _are_vectors(mean, var, like=gamma)
    ):
        return put_together(in_chainer(*inputs), x)
    return put_together(apply(FixedBatchNormalization(eps, relu), inputs, lambda: in_chainer(*inputs)), x)


def _is_served(x: Any, gamma: Any, beta: Any, axis: Any) -> bool:
    all_but_channels = {2: (0,), 4: (0, 2, 3)}.get(x.ndim)
    return (
        all_but_channels is not None
        and (axis is None or tuple(np.atleast_1d(axis)) == all_but_channels)
        and engine.serves(*parts(x), gamma, beta)
        and gamma.dtype == beta.dtype == FLOAT32
        and gamma.shape == beta.shape == (x.shape[1],)
    )


def _are_vectors(*arrays: Any, like: Any) -> bool:
    return all(engine.serves(a) and a.dtype == FLOAT32 and a.shape == like.shape for a in arrays)


def _move(running: np.ndarray, current: np.ndarray, decay: float) -> None:
    running *= decay
    running += (1 - decay) * current


def _as_4d(x: Any) -> Any:
    return x if x.ndim == 4 else x[:, :, None, None]


class BatchNormalization(EngineFunction):
    """The parts of x, gamma, beta -> the parts of y."""

    def __init__(self, in_chainer: Any, eps: float, relu: bool) -> None:
        super().__init__()
        self.in_chainer, self.eps, self.relu = in_chainer, eps, relu
        self.statistics: list[normalization.BatchStatistics] = []

    def reference(self, *inputs: chainer.Variable) -> tuple[chainer.Variable, ...]:
        y = self.in_chainer(*inputs)
        return y if isinstance(y, tuple) else (y,)

    def forward(self, inputs: Arrays) -> Arrays:
        self.retain_inputs(tuple(range(len(inputs))))
        *xs, gamma, beta = inputs
        self.channels = channels(xs)
        ys = []
        for x, c in zip(xs, self.channels, strict=True):
            y, statistics = normalization.batch_normalization(_as_4d(x), gamma[c], beta[c], self.eps, self.relu)
            ys.append(y.reshape(x.shape))
            self.statistics.append(statistics)
        return tuple(ys)

    def compute_gradients(self, indexes: tuple[int, ...], gys: Arrays, places: Places) -> Arrays:
        *xs, gamma, beta = (node.data for node in self.inputs)
        ggamma, gbeta = places.empty_like(len(xs), gamma), places.empty_like(len(xs) + 1, beta)
        gradients: list[Any] = []
        for x, gy, c, statistics in zip(xs, gys, self.channels, self.statistics, strict=True):
            if gy is None:  # a part that the loss does not depend on
                ggamma[c], gbeta[c] = 0, 0
                gradients.append(None)
                continue
            gx = normalization.batch_normalization_backward(
                _as_4d(x), gamma[c], statistics, _as_4d(gy), self.eps, ggamma[c], gbeta[c]
            )
            gradients.append(gx.reshape(x.shape))
        gradients += [ggamma, gbeta]
        return tuple(gradients[i] for i in indexes)


class FixedBatchNormalization(EngineFunction):
    """The parts of x, gamma, beta, mean, variance -> the parts of y."""

    def __init__(self, eps: float, relu: bool) -> None:
        super().__init__()
        self.eps, self.relu = eps, relu

    def forward(self, inputs: Arrays) -> Arrays:
        *xs, gamma, beta, mean, variance = inputs
        return tuple(
            normalization.fixed_batch_normalization(
                _as_4d(x), gamma[c], beta[c], mean[c], variance[c], self.eps, self.relu
            ).reshape(x.shape)
            for x, c in zip(xs, channels(xs), strict=True)
        )
