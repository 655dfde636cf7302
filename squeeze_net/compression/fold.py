"""What a trained network need not keep: statistics of batch normalisation, and biases without effect.

In test mode batch normalisation is a scale and a shift: two numbers per channel instead of four. A bias that is added
just before batch normalisation has no effect: the mean that is subtracted contains it. And the weights after
BN-ReLU can take over its scale, of which the sign is left.
"""

from __future__ import annotations

from typing import Any

import chainer
import numpy as np

import trainer.functions as F
import trainer.links as L
from trainer.functions.shifts import find_dead_biases

LEAST_SCALE = 0.02  # of the median of a layer's scales: a smaller one would blow up its shift


def fold_model(model: chainer.Chain, size: int) -> int:
    """Fold every batch normalisation, in place; in test mode the network computes the same, except for rounding.

    Args:
        model: on the CPU.
        size: of its images, px.
    Returns:
        How many biases have no effect; they are 0 afterwards.
    """
    x = np.random.default_rng(0).normal(0, 1, (2, 3, size, size)).astype(np.float32)
    dead = _dead_biases(model, x)
    if any(bias.array.any() for bias in dead):
        before = _RecordInputs()
        _compute(model, x, before)
        for bias in dead:
            bias.array[...] = 0
        _compute(model, x, _MoveMeans(before.inputs))
    for link in model.links():
        if hasattr(link, 'avg_mean'):
            fold_link(link)
    return len(dead)


class _RecordInputs(chainer.LinkHook):
    """Records the input of each batch normalisation."""

    name = 'RecordInputs'

    def __init__(self) -> None:
        self.inputs: dict[int, np.ndarray] = {}

    def forward_preprocess(self, args: Any) -> None:
        if hasattr(args.link, 'avg_mean'):
            self.inputs[id(args.link)] = args.args[0].array.astype(np.float64)


class _MoveMeans(chainer.LinkHook):
    """Moves each running mean as far as its input has moved, before it is used; all that follows stays as it was."""

    name = 'MoveMeans'

    def __init__(self, before: dict[int, np.ndarray]) -> None:
        self.before = before

    def forward_preprocess(self, args: Any) -> None:
        if hasattr(args.link, 'avg_mean'):
            moved = self.before[id(args.link)] - args.args[0].array
            axes = (0, *range(2, moved.ndim))
            args.link.avg_mean -= moved.mean(axes).astype(args.link.avg_mean.dtype)


def fold_link(link: Any) -> None:
    """Put all of batch normalisation, y = gamma * (x - mean) / sqrt(var + eps) + beta, into its gamma and beta."""
    scale = link.gamma.array / np.sqrt(link.avg_var.astype(np.float64) + link.eps)
    shift = link.beta.array - link.avg_mean.astype(np.float64) * scale
    link.gamma.array[...], link.beta.array[...] = scale, shift
    link.avg_mean[...] = 0
    link.avg_var[...] = unit_variance(link.eps)


def absorb_scales(layer: L.BNReLUConv) -> None:
    """Let the weights of a convolution take over the scales before it, in place: 1 or -1 is left of each when folded.

    relu(scale * x + shift) = |scale| relu(sign(scale) * x + shift / |scale|). In test mode the network computes the
    same, except for rounding. Scales below `LEAST_SCALE` of the median stay.
    """
    bn: Any = layer.bn
    conv: Any = layer.conv
    xp = chainer.backend.get_array_module(bn.gamma.array)
    scales = xp.abs(bn.gamma.array.astype(np.float64)) / xp.sqrt(bn.avg_var.astype(np.float64) + bn.eps)
    taken = xp.where(scales > LEAST_SCALE * xp.median(scales), scales, 1.0)
    bn.gamma.array[...] = bn.gamma.array / taken
    bn.beta.array[...] = bn.beta.array / taken
    conv.W.array[...] = conv.W.array * taken[:, None, None]


def scales_of(model: chainer.Chain) -> dict[str, np.ndarray]:
    """Path of a convolution's weights -> sizes of the scales before it, (C,), of each BN-ReLU-Conv layer."""
    host = chainer.get_device('@numpy')
    norms: dict[str, Any] = {path: link.bn for path, link in model.namedlinks() if isinstance(link, L.BNReLUConv)}
    return {f'{path}/conv/W'[1:]: np.abs(host.send(bn.gamma.array)) for path, bn in norms.items()}


def unit_variance(eps: float) -> np.float32:
    """The variance whose sum with eps is 1 in float32, so that the division changes nothing."""
    variance = np.float32(1 - eps)
    while variance + np.float32(eps) < 1:
        variance = np.nextafter(variance, np.float32(2))
    while variance + np.float32(eps) > 1:
        variance = np.nextafter(variance, np.float32(0))
    return variance


def _dead_biases(model: chainer.Chain, x: np.ndarray) -> list[Any]:
    with (
        chainer.using_config('train', True),
        chainer.using_config('in_recomputing', True),  # statistics stay
        chainer.using_config('engine', 'fused'),  # `find_dead_biases` knows its functions; without it, all biases stay
    ):
        y = model(x)
        return find_dead_biases(F.softmax_cross_entropy(y, np.zeros(len(x), np.int32)), in_tests=True)


def _compute(model: chainer.Chain, x: np.ndarray, hook: chainer.LinkHook) -> None:
    with (
        chainer.using_config('train', False),
        chainer.using_config('engine', 'plain'),
        chainer.no_backprop_mode(),
        hook,
    ):
        model(x)
