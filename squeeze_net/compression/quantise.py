"""Weights of few distinct values: a codebook a layer, found by k-means, and retrained by the sum of its gradients.

Source: Han et al., "Deep Compression" (2016), section 3: weight sharing, initialisation of the centroids (3.2), and
gradients summed by code (3.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import chainer
import numpy as np

from squeeze_net.compression.prune import weights_of
from trainer.step.optimizer import GradientHook

INITIALISATIONS = ('linear', 'density', 'random')
N_LLOYD = 50


def cluster(values: np.ndarray, n: int, initialisation: str = 'linear', seed: int = 0) -> np.ndarray:
    """The centroids of values by k-means (Lloyd's algorithm, in one dimension), rising.

    Args:
        values: (N,) float.
        n: centroids, at most the distinct values.
        initialisation: 'linear' spreads them evenly from the least value to the largest, which keeps the few large
            weights that matter most (the paper's choice); 'density' by quantiles; 'random' takes values.
    Returns:
        (n,) float32, or fewer where values are fewer, or clusters run empty.
    """
    values = np.sort(values.astype(np.float64))
    if not values.size:
        return np.empty(0, np.float32)
    distinct = np.unique(values)
    if distinct.size <= n:
        return distinct.astype(np.float32)
    if initialisation == 'linear':
        centroids = np.linspace(values[0], values[-1], n)
    elif initialisation == 'density':
        centroids = np.quantile(values, (np.arange(n) + 0.5) / n)
    else:
        centroids = np.sort(np.random.default_rng(seed).choice(distinct, n, replace=False))
    sums = np.concatenate(([0.0], np.cumsum(values)))
    for _ in range(N_LLOYD):
        # Sorted values: the clusters are intervals, so that a step costs n searches and no pass over the values.
        bounds = np.searchsorted(values, (centroids[1:] + centroids[:-1]) / 2)
        starts, stops = np.concatenate(([0], bounds)), np.concatenate((bounds, [values.size]))
        counts = stops - starts
        means = (sums[stops] - sums[starts]) / np.maximum(counts, 1)
        updated = np.where(counts > 0, means, centroids)
        if np.array_equal(updated, centroids):
            break
        centroids = updated
    return np.unique(centroids[counts > 0].astype(np.float32))


def nearest(values: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Which centroid is nearest to each value, an array of intp like them."""
    middles = (centroids[1:].astype(np.float64) + centroids[:-1]) / 2
    return np.searchsorted(middles, values)


def quantise(weights: np.ndarray, bits: int, initialisation: str = 'linear', seed: int = 0) -> np.ndarray:
    """Weights of at most 2**bits distinct values, of which 0 is one if there are zeros: those stay.

    Args:
        weights: float32; zeros are taken for pruned.
        bits: 1 .. 8.
    """
    kept = weights != 0
    n = 2**bits - (not kept.all())
    centroids = cluster(weights[kept], n, initialisation, seed)
    quantised = np.zeros_like(weights)
    if centroids.size:
        # A centroid of exactly 0 would be taken for pruned weights; there it is as good as one.
        quantised[kept] = centroids[nearest(weights[kept], centroids)]
    return quantised


def codebook_of(weights: np.ndarray, bits: int, initialisation: str = 'linear', seed: int = 0) -> np.ndarray:
    """The values of `quantise`, with 0 among them whether or not there are zeros: at most 2**bits, rising."""
    return np.union1d(cluster(weights[weights != 0], 2**bits - 1, initialisation, seed), np.zeros(1, np.float32))


def quantise_model(
    model: chainer.Chain, bits: Mapping[str, int], initialisation: str = 'linear', seed: int = 0
) -> None:
    """Quantise each layer's weights in place.

    Args:
        bits: of each layer, by the path of its weights.
    """
    device = next(iter(model.params())).device
    host = chainer.get_device('@numpy')
    for name, parameter in weights_of(model).items():
        parameter.array[...] = device.send(quantise(host.send(parameter.array), bits[name], initialisation, seed))


def to_e5m4(values: np.ndarray) -> np.ndarray:
    """Float16 rounded to the nearest of four bits of mantissa instead of ten.

    Args:
        values: at most 63,488 in size; those of 6e-5 or more change by at most 1/32 of them.
    Returns:
        float32, such that float16 holds them.
    """
    bits = values.astype(np.float16).view(np.uint16)
    return ((bits + np.uint16(1 << 5)) & np.uint16(0xFFC0)).view(np.float16).astype(np.float32)


class TiedWeights(GradientHook):
    """Keeps equal weights equal: each gets the sum of the gradients of all that share its value, zeros none.

    So the centroids themselves are what is trained. Momentum of equal weights stays equal, too, as it starts at 0.
    """

    name = 'TiedWeights'

    def __init__(self) -> None:
        self._codes: dict[str, tuple[Any, int]] = {}

    def __call__(self, optimizer: Any) -> None:
        for name, parameter in weights_of(optimizer.target).items():
            xp = chainer.backend.get_array_module(parameter.array)
            if name not in self._codes:
                centroids, codes = xp.unique(parameter.array, return_inverse=True)
                codes = codes.reshape(-1)
                self._codes[name] = xp.where(parameter.array.reshape(-1) == 0, len(centroids), codes), len(centroids)
            codes, n = self._codes[name]
            sums = xp.bincount(codes, weights=parameter.grad.reshape(-1), minlength=n + 1)
            sums[n] = 0  # the code of zeros
            parameter.grad[...] = sums[codes].reshape(parameter.shape).astype(parameter.grad.dtype)
