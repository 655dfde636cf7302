"""Batch normalisation, with a rectifier in the same pass over memory if asked."""

from __future__ import annotations

import weakref
from typing import Any

import chainer
import numpy as np

from trainer import engine
from trainer.engine.errors import EngineError
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
    running = None if running_mean is None or running_var is None else (running_mean, running_var, decay)
    node = BatchNormalization(in_chainer, eps, relu, running, known=_latest.of(xs))
    y = put_together(apply(node, inputs, lambda: in_chainer(*inputs, **statistics)), x)
    _latest.keep(xs, node)
    return y


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
    # The engine has no gradient but that of x, which passes through what is frozen.
    has_others = any(isinstance(v, chainer.Variable) and v.requires_grad for v in (gamma, beta, mean, var))
    if (
        (has_others and chainer.config.enable_backprop)
        or not _is_served(x, gamma, beta, axis)
        or not _are_vectors(mean, var, like=gamma)
    ):
        return put_together(in_chainer(*inputs), x)
    return put_together(apply(FixedBatchNormalization(in_chainer, eps, relu), inputs, lambda: in_chainer(*inputs)), x)


class _Latest:
    """The statistics computed last: two normalisations of one map, one after the other, need to read it for them once.

    Only of what a function has computed, since nobody writes to that afterwards.
    """

    def __init__(self) -> None:
        self.nodes: list[Any] = []  # weak references to the variables' nodes
        self.statistics: Any = None

    def of(self, xs: Any) -> Any:
        """Those of these parts, or None."""
        is_same = len(xs) == len(self.nodes) and all(
            isinstance(x, chainer.Variable) and x.node is node() for x, node in zip(xs, self.nodes, strict=True)
        )
        return self.statistics if is_same else None

    def keep(self, xs: Any, node: BatchNormalization) -> None:
        self.nodes, self.statistics = [], getattr(node, 'shared', None)
        if self.statistics is not None and all(isinstance(x, chainer.Variable) and x.creator_node for x in xs):
            self.nodes = [weakref.ref(x.node) for x in xs]


_latest = _Latest()


def _is_served(x: Any, gamma: Any, beta: Any, axis: Any) -> bool:
    all_but_channels = {2: (0,), 4: (0, 2, 3)}.get(x.ndim)
    return (
        all_but_channels is not None
        and (axis is None or tuple(np.atleast_1d(axis)) == all_but_channels)
        and engine.serves(*parts(x), gamma, beta)
        and gamma.dtype == beta.dtype == np.float32
        and gamma.shape == beta.shape == (x.shape[1],)
    )


def _are_vectors(*arrays: Any, like: Any) -> bool:
    return all(engine.serves(a) and a.dtype == np.float32 and a.shape == like.shape for a in arrays)


def _as_4d(x: Any) -> Any:
    return x if x.ndim == 4 else x[:, :, None, None]


def _as(x: Any, ndim: int) -> Any:
    return x if x.ndim == ndim else x[:, :, 0, 0]


class BatchNormalization(EngineFunction):
    """The parts of x, gamma, beta -> the parts of y, or y itself where the engine puts them together."""

    def __init__(self, in_chainer: Any, eps: float, relu: bool, running: Any, known: Any = None) -> None:
        super().__init__()
        self.in_chainer, self.eps, self.relu, self.running, self.known = in_chainer, eps, relu, running, known

    def reference(self, *inputs: chainer.Variable) -> tuple[chainer.Variable, ...]:
        ys = self.in_chainer(*inputs)
        if not isinstance(ys, tuple):
            return (ys,)
        return (chainer.functions.concat(ys),) if self.n_output == 1 else ys

    def forward(self, inputs: Arrays) -> Arrays:
        self.retain_inputs(tuple(range(len(inputs))))
        *xs, gamma, beta = inputs
        normalization = self.ops.normalization
        running = None if self.running is None else normalization.Running(*self.running)
        options = {'known': self.known} if normalization.SHARES_STATISTICS else {}
        ys, self.statistics = normalization.batch_normalization(
            [_as_4d(x) for x in xs], gamma, beta, self.eps, self.relu, running, **options
        )
        if normalization.SHARES_STATISTICS:
            self.shared = self.statistics.mean, self.statistics.variance
        self.n_output = len(ys)
        return tuple(_as(y, xs[0].ndim) for y in ys)

    def compute_gradients(self, indexes: tuple[int, ...], gys: Arrays, places: Places) -> Arrays:
        *xs, gamma, beta = (node.data for node in self.inputs)
        ggamma, gbeta = places.empty_like(len(xs), gamma), places.empty_like(len(xs) + 1, beta)
        normalization = self.ops.normalization
        options = {}
        if normalization.ADDS_EARLIER:  # in the same pass over memory
            earlier = [places.take_earlier(i) if i in indexes else None for i in range(len(xs))]
            options['earlier'] = [None if e is None else _as_4d(e) for e in earlier]
        gxs = normalization.batch_normalization_backward(
            [_as_4d(x) for x in xs],
            gamma,
            self.statistics,
            [None if gy is None else _as_4d(gy) for gy in gys],
            self.eps,
            ggamma,
            gbeta,
            **options,
        )
        gradients = [None if gx is None else _as(gx, xs[0].ndim) for gx in gxs] + [ggamma, gbeta]
        return tuple(gradients[i] for i in indexes)


class FixedBatchNormalization(EngineFunction):
    """The parts of x, gamma, beta, mean, variance -> the parts of y, or y itself where the engine puts them together.

    The gradient of x alone is the engine's: that of y, rectified as y was, normalised with a mean and a beta of 0.
    """

    def __init__(self, in_chainer: Any, eps: float, relu: bool) -> None:
        super().__init__()
        self.in_chainer, self.eps, self.relu = in_chainer, eps, relu

    def reference(self, *inputs: chainer.Variable) -> tuple[chainer.Variable, ...]:
        ys = self.in_chainer(*inputs)
        if not isinstance(ys, tuple):
            return (ys,)
        return (chainer.functions.concat(ys),) if self.n_output == 1 else ys

    def forward(self, inputs: Arrays) -> Arrays:
        self.retain_inputs(tuple(range(len(inputs))))
        *xs, gamma, beta, mean, variance = inputs
        ys = self.ops.normalization.fixed_batch_normalization(
            [_as_4d(x) for x in xs], gamma, beta, mean, variance, self.eps, self.relu
        )
        self.n_output, self.channels = len(ys), channels(xs)
        if self.relu:
            self.retain_outputs(tuple(range(len(ys))))
        return tuple(_as(y, xs[0].ndim) for y in ys)

    def compute_gradients(self, indexes: tuple[int, ...], gys: Arrays, places: Places) -> Arrays:
        *xs, gamma, beta, _, variance = (node.data for node in self.inputs)
        if max(indexes) >= len(xs):
            raise EngineError('of a parameter whose statistics are fixed')
        zeros = self.ops.memory.zeros(beta.shape)

        def pass_back(y: Any, gy: Any, c: slice) -> Any:
            if gy is None:
                return None
            gy = _as_4d(gy if y is None else self.ops.elementwise.relu_backward(y.array, gy))
            statistics = zeros[c], zeros[c], variance[c]
            (gx,) = self.ops.normalization.fixed_batch_normalization([gy], gamma[c], *statistics, self.eps, False)
            return _as(gx, xs[0].ndim)

        ys = self.get_retained_outputs() if self.relu else [None] * len(gys)
        if len(gys) == len(xs):
            gxs = [pass_back(*of_part) for of_part in zip(ys, gys, self.channels, strict=True)]
        else:
            gx = pass_back(ys[0], gys[0], slice(None))
            gxs = [gx[:, c] for c in self.channels]
        return tuple(gxs[i] for i in indexes)
