"""Batch normalisation, with a rectifier in the same pass over memory if asked."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import chainer
import numpy as np

from trainer import engine
from trainer.engine.backend import BatchStatistics, Running
from trainer.engine.errors import EngineError
from trainer.engine.maps import Array, Map, channel_slices
from trainer.functions.concat import parts, put_together
from trainer.functions.node import EngineFunction, Input, Output, apply, to_float32
from trainer.functions.places import Arrays, Places

Axes: TypeAlias = int | tuple[int, ...] | None
InChainer: TypeAlias = Callable[..., Output]


def batch_normalization(
    x: Input,
    gamma: Input,
    beta: Input,
    *,
    eps: float = 2e-5,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    decay: float = 0.9,
    axis: Axes = None,
    relu: bool = False,
) -> Output:
    """y = gamma (x - mean) / sqrt(variance + eps) + beta, over the batch, the rows and the columns.

    As `chainer.functions.batch_normalization`; with `relu`, max(0, y).

    Args:
        x: (N, C) or (N, C, H, W) floating point, or `SideBySide`.
        gamma, beta: (C,) float32.
        eps: added to the variance.
        running_mean, running_var: (C,) float32, updated in place, or None.
        decay: of the running statistics.
        axis: to aggregate over; None for all but the channels.
        relu: rectify the output.
    Returns:
        Of the shape and precision of x, side by side if x is and the engine leaves the parts apart.
    Raises:
        InvalidType: shapes or precisions do not fit (Chainer's own check).

    Source: Ioffe and Szegedy, "Batch normalization" (2015), algorithm 1.
    """
    xs = parts(x)

    def in_chainer(*inputs: Input, **statistics: Array | None) -> Output:
        """Of x or its parts, gamma and beta."""
        *xs, gamma, beta = inputs
        y = chainer.functions.batch_normalization(
            _joined(xs), gamma, beta, eps=eps, decay=decay, axis=axis, **statistics
        )
        return _rectified_parts(y, relu, xs)

    inputs = *xs, gamma, beta
    statistics = {'running_mean': running_mean, 'running_var': running_var}
    if not _is_served(x, gamma, beta, axis) or np.prod(x.shape) == x.shape[1]:  # of one value: Chainer warns
        return put_together(in_chainer(*inputs, **statistics), x)
    running = None if running_mean is None or running_var is None else Running(running_mean, running_var, decay)
    node = BatchNormalization(in_chainer, eps, relu, running, known=_latest.of(xs))
    y = put_together(apply(node, inputs, otherwise=lambda: in_chainer(*inputs, **statistics)), x)
    _latest.keep(xs, node)
    return y


def fixed_batch_normalization(
    x: Input,
    gamma: Input,
    beta: Input,
    mean: Input,
    var: Input,
    eps: float = 2e-5,
    axis: Axes = None,
    *,
    relu: bool = False,
) -> Output:
    """y = gamma (x - mean) / sqrt(var + eps) + beta, with statistics that are given.

    As `chainer.functions.fixed_batch_normalization`; with `relu`, max(0, y).

    Args:
        mean, var: (C,) float32, the statistics; the rest is as in `batch_normalization`.
    """
    xs = parts(x)

    def in_chainer(*inputs: Input) -> Output:
        """Of x or its parts, gamma, beta, mean and var."""
        *xs, gamma, beta, mean, var = inputs
        y = chainer.functions.fixed_batch_normalization(_joined(xs), gamma, beta, mean, var, eps, axis)
        return _rectified_parts(y, relu, xs)

    inputs = *xs, gamma, beta, mean, var
    # The engine has no gradient but that of x, which passes through what is frozen.
    has_others = any(isinstance(v, chainer.Variable) and v.requires_grad for v in (gamma, beta, mean, var))
    if (
        (has_others and chainer.config.enable_backprop)
        or not _is_served(x, gamma, beta, axis)
        or not _are_vectors(mean, var, like=gamma)
    ):
        return put_together(in_chainer(*inputs), x)
    return put_together(
        apply(FixedBatchNormalization(in_chainer, eps, relu), inputs, otherwise=lambda: in_chainer(*inputs)), x
    )


def _joined(xs: Sequence[Input]) -> chainer.Variable:
    return to_float32(xs[0] if len(xs) == 1 else chainer.functions.concat(xs))


def _rectified_parts(y: chainer.Variable, relu: bool, xs: Sequence[Input]) -> Output:
    """y, rectified if asked, as the parts that xs are."""
    y = chainer.functions.relu(y) if relu else y
    return y if len(xs) == 1 else chainer.functions.split_axis(y, [c.stop for c in channel_slices(xs)[:-1]], axis=1)


class _Latest:
    """The statistics computed last: of two normalisations of one map, the second takes those of the first.

    Only of what a function has computed, since nothing writes to that afterwards.
    """

    def __init__(self) -> None:
        self.nodes: list[weakref.ref[chainer.variable.VariableNode]] = []
        self.statistics: BatchStatistics | None = None

    def of(self, xs: Sequence[Input]) -> BatchStatistics | None:
        """Those of these parts, or None."""
        is_same = len(xs) == len(self.nodes) and all(
            isinstance(x, chainer.Variable) and x.node is node() for x, node in zip(xs, self.nodes, strict=True)
        )
        return self.statistics if is_same else None

    def keep(self, xs: Sequence[Input], node: BatchNormalization) -> None:
        """Those of a node that was applied to these parts; none if the library refused it."""
        self.nodes, self.statistics = [], node.statistics
        if self.statistics is not None and all(isinstance(x, chainer.Variable) and x.creator_node for x in xs):
            self.nodes = [weakref.ref(x.node) for x in xs]


_latest = _Latest()


def _is_served(x: Input, gamma: Input, beta: Input, axis: Axes) -> bool:
    all_but_channels = {2: (0,), 4: (0, 2, 3)}.get(x.ndim)
    return (
        all_but_channels is not None
        and (axis is None or tuple(np.atleast_1d(axis)) == all_but_channels)
        and engine.serves(*parts(x), gamma, beta)
        and gamma.dtype == beta.dtype == np.float32
        and gamma.shape == beta.shape == (x.shape[1],)
    )


def _are_vectors(*arrays: Input, like: Input) -> bool:
    return all(engine.serves(a) and a.dtype == np.float32 and a.shape == like.shape for a in arrays)


def _as_4d(x: Array) -> Map:
    return x if x.ndim == 4 else x[:, :, None, None]


def _as(x: Map, ndim: int) -> Array:
    return x if x.ndim == ndim else x[:, :, 0, 0]


class _Normalization(EngineFunction):
    """What the two functions have in common: `in_chainer` of the inputs is the parts of y."""

    n_output: int

    def __init__(self, in_chainer: InChainer, eps: float, relu: bool) -> None:
        super().__init__()
        self.in_chainer, self.eps, self.relu = in_chainer, eps, relu

    def reference(self, *inputs: chainer.Variable) -> tuple[chainer.Variable, ...]:
        ys = self.in_chainer(*inputs)
        if not isinstance(ys, tuple):
            return (ys,)
        return (chainer.functions.concat(ys),) if self.n_output == 1 else ys


class BatchNormalization(_Normalization):
    """The parts of x, gamma, beta -> the parts of y, or y itself where the engine puts them together."""

    statistics: BatchStatistics | None = None

    def __init__(
        self,
        in_chainer: InChainer,
        eps: float,
        relu: bool,
        running: Running | None,
        known: BatchStatistics | None = None,
    ) -> None:
        super().__init__(in_chainer, eps, relu)
        self.running, self.known = running, known

    def forward(self, inputs: Arrays) -> Arrays:
        self.retain_inputs(tuple(range(len(inputs))))
        *xs, gamma, beta = inputs
        ys, self.statistics = self.ops.batch_normalization.forward(
            [_as_4d(x) for x in xs], gamma, beta, self.eps, self.relu, self.running, self.known
        )
        self.n_output = len(ys)
        return tuple(_as(y, xs[0].ndim) for y in ys)

    def compute_gradients(self, indexes: tuple[int, ...], gys: Arrays, places: Places) -> Arrays:
        *xs, gamma, beta = (node.data for node in self.inputs)
        ggamma, gbeta = places.empty_like(len(xs), gamma), places.empty_like(len(xs) + 1, beta)
        earlier = [places.take_earlier(i) if i in indexes else None for i in range(len(xs))]
        assert self.statistics is not None
        gxs = self.ops.batch_normalization.backward(
            [_as_4d(x) for x in xs],
            gamma,
            self.statistics,
            [None if gy is None else _as_4d(gy) for gy in gys],
            self.eps,
            ggamma,
            gbeta,
            [None if e is None else _as_4d(e) for e in earlier],
        )
        gradients = [None if gx is None else _as(gx, xs[0].ndim) for gx in gxs] + [ggamma, gbeta]
        return tuple(gradients[i] for i in indexes)  # type: ignore[misc]


class FixedBatchNormalization(_Normalization):
    """The parts of x, gamma, beta, mean, variance -> the parts of y, or y itself where the engine puts them together.

    The gradient of x alone is the engine's: that of y, rectified as y was, normalised with a mean and a beta of 0.
    """

    def forward(self, inputs: Arrays) -> Arrays:
        self.retain_inputs(tuple(range(len(inputs))))
        *xs, gamma, beta, mean, variance = inputs
        ys = self.ops.batch_normalization.forward_fixed(
            [_as_4d(x) for x in xs], gamma, beta, mean, variance, self.eps, self.relu
        )
        self.n_output, self.channels = len(ys), channel_slices(xs)
        if self.relu:
            self.retain_outputs(tuple(range(len(ys))))
        return tuple(_as(y, xs[0].ndim) for y in ys)

    def compute_gradients(self, indexes: tuple[int, ...], gys: Arrays, places: Places) -> Arrays:
        *xs, gamma, beta, _, variance = (node.data for node in self.inputs)
        if max(indexes) >= len(xs):
            raise EngineError('of a parameter whose statistics are fixed')
        zeros = self.ops.memory.zeros(beta.shape)

        def pass_back(y: Any, gy: Array | None, c: slice) -> Array | None:
            if gy is None:
                return None
            gy = _as_4d(gy if y is None else self.ops.elementwise.relu_backward(y.array, gy))
            statistics = zeros[c], zeros[c], variance[c]
            (gx,) = self.ops.batch_normalization.forward_fixed([gy], gamma[c], *statistics, self.eps, False)
            return _as(gx, xs[0].ndim)

        ys = self.get_retained_outputs() if self.relu else [None] * len(gys)
        if len(gys) == len(xs):
            gxs = [pass_back(*of_part) for of_part in zip(ys, gys, self.channels, strict=True)]
        else:
            gx = pass_back(ys[0], gys[0], slice(None))
            gxs = [None if gx is None else gx[:, c] for c in self.channels]
        return tuple(gxs[i] for i in indexes)  # type: ignore[misc]
