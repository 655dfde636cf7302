"""What a trained network need not keep: statistics of batch normalisation, and biases that cannot matter.

In test mode batch normalisation is a scale and a shift: two numbers a channel in the place of four. A bias whose
channel is normalised before anything else becomes of it is taken away again.
"""

from __future__ import annotations

from typing import Any

import chainer
import numpy as np

import trainer.functions as F
from trainer.functions.shifts import find_dead_biases


def settle(model: chainer.Chain, size: int) -> int:
    """Bring a network into that form, in place; in test mode it computes the same, but for rounding.

    Args:
        model: on the CPU.
        size: of its images, px.
    Returns:
        How many biases were found not to matter; they are 0 afterwards.
    """
    x = np.random.default_rng(0).normal(0, 1, (2, 3, size, size)).astype(np.float32)
    dead = _dead_biases(model, x)
    if any(bias.array.any() for bias in dead):
        before = _Inputs()
        _compute(model, x, before)
        for bias in dead:
            bias.array[...] = 0
        _compute(model, x, _MoveMeans(before.found))
    for link in model.links():
        if hasattr(link, 'avg_mean'):
            fold(link)
    return len(dead)


class _Inputs(chainer.LinkHook):
    """Notes down what each batch normalisation is given."""

    name = 'Inputs'

    def __init__(self) -> None:
        self.found: dict[int, np.ndarray] = {}

    def forward_preprocess(self, args: Any) -> None:
        if hasattr(args.link, 'avg_mean'):
            self.found[id(args.link)] = args.args[0].array.astype(np.float64)


class _MoveMeans(chainer.LinkHook):
    """Moves each running mean as far as its input has moved, before it is used: so all that follows is as it was."""

    name = 'MoveMeans'

    def __init__(self, before: dict[int, np.ndarray]) -> None:
        self.before = before

    def forward_preprocess(self, args: Any) -> None:
        if hasattr(args.link, 'avg_mean'):
            moved = self.before[id(args.link)] - args.args[0].array
            axes = (0, *range(2, moved.ndim))
            args.link.avg_mean -= moved.mean(axes).astype(args.link.avg_mean.dtype)


def fold(link: Any) -> None:
    """Make scale and shift of batch normalisation's gamma and beta: y = gamma * (x - mean) / sqrt(var + eps) + beta."""
    scale = link.gamma.array / np.sqrt(link.avg_var.astype(np.float64) + link.eps)
    shift = link.beta.array - link.avg_mean.astype(np.float64) * scale
    link.gamma.array[...], link.beta.array[...] = scale, shift
    link.avg_mean[...] = 0
    link.avg_var[...] = unit_variance(link.eps)


def unit_variance(eps: float) -> np.float32:
    """The variance whose sum with eps is 1 in float32, so that nothing is left of the division."""
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
        chainer.using_config('engine', 'fused'),  # whose functions it knows; where there is none, all biases stay
    ):
        y = model(x)
        return find_dead_biases(F.softmax_cross_entropy(y, np.zeros(len(x), np.int32)))


def _compute(model: chainer.Chain, x: np.ndarray, hook: chainer.LinkHook) -> None:
    with (
        chainer.using_config('train', False),
        chainer.using_config('engine', 'plain'),
        chainer.no_backprop_mode(),
        hook,
    ):
        model(x)
