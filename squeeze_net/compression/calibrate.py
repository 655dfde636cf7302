"""What layers see: second moments of their inputs, how much the loss depends on their outputs, statistics of maps.

All are measured on some training images, batch by batch, so that no more than the maps of one batch and the moments of
one layer are in memory.

Sources: Frantar and Alistarh, "Optimal brain compression" (2022), section 3, for the moments; Grosse and Martens, "A
Kronecker-factored approximate Fisher matrix for convolution layers" (2016), section 3, for the outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import chainer
import numpy as np

import trainer.functions as F
from trainer.engine.maps import Array
from trainer.functions.concat import joined
from trainer.functions.node import array_of

MAX_INPUTS = 4608  # of a layer whose moments are kept in full: 170 MB in float64, and a few times that to factorise
MAX_VALUES = 1 << 24  # of windows side by side at a time, 64 MB

Batches = Callable[[], Iterable[Array]]  # images (B, 3, H, W), the same ones at each call


@dataclass(frozen=True)
class Moments:
    """Of the inputs of a layer: K for each output, in G groups.

    Attributes:
        products: (G, K, K) float64, x x^T summed over the places of an image, averaged over images; less what a bias
            can make up for, if the layer has one. (G, K), its diagonal, where K is above `MAX_INPUTS`.
        means: (G, K) float64, over all places of all images.
    """

    products: np.ndarray
    means: np.ndarray

    @property
    def n_input(self) -> int:
        """K."""
        return self.means.shape[1]


@dataclass(frozen=True)
class Statistics:
    """Means and variances of the channels of a map, (C,) float64, over all places of all images."""

    means: np.ndarray
    variances: np.ndarray


@dataclass(frozen=True)
class Survey:
    """A network before it is changed.

    Attributes:
        order: paths of weights and of batch normalisations, in the order in which they are computed.
        sensitivities: path of the weights -> (outputs,) float64, how much the loss depends on each: see `survey`.
        statistics: path of the batch normalisation -> of its inputs.
    """

    order: list[str] = field(default_factory=list)
    sensitivities: dict[str, np.ndarray] = field(default_factory=dict)
    statistics: dict[str, Statistics] = field(default_factory=dict)


def survey(model: chainer.Chain, batches: Batches, seed: int) -> Survey:
    """How much the loss depends on the outputs of each layer, and the statistics before each batch normalisation.

    The former is the mean over images and places of the squared gradient, for labels drawn from the network's own
    predictions (the diagonal of the Fisher information). It stands for the second derivative of the loss if places and
    channels are taken as independent.

    Args:
        seed: of the labels.
    """
    rng = np.random.default_rng(seed)
    found = Survey()
    sums = {path: _MapSums() for path in _normalisations(model)}
    for x in batches():
        hook = _Watch(model, sums)
        with chainer.using_config('train', False), chainer.force_backprop_mode():
            with hook:
                y = model(x)
            logits = _on_host(y.array).astype(np.float64)
            labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1).astype(np.int32)  # drawn by their softmax
            (F.softmax_cross_entropy(y, y.device.send(labels)) * len(x)).backward(retain_grad=True)
        for name, output in hook.outputs.items():
            g = _on_host(output.grad)
            squares = np.square(g, dtype=np.float64).sum((0, *range(2, g.ndim))) / g[0, 0].size
            found.sensitivities[name] = found.sensitivities.get(name, 0) + squares
        model.cleargrads()
        found.order[:] = hook.order
    n_image = sum(len(x) for x in batches())
    found.sensitivities.update({name: total / n_image for name, total in found.sensitivities.items()})
    found.statistics.update({path: one.statistics() for path, one in sums.items() if one.n_place})
    return found


def measure_inputs(model: chainer.Chain, name: str, batches: Batches) -> Moments:
    """The moments of one layer's inputs, of the network as it is.

    Args:
        name: path of the layer's weights.
    """
    link = _links(model)[name]
    sums = _ProductSums(link)
    _stop_at(model, link, sums.add, batches)
    return sums.moments()


def measure_maps(model: chainer.Chain, name: str, batches: Batches) -> Statistics:
    """The statistics of one batch normalisation's inputs, of the network as it is.

    Args:
        name: path of the link.
    """
    sums = _MapSums()
    _stop_at(model, _normalisations(model)[name], sums.add, batches)
    return sums.statistics()


def is_in_full(weights: np.ndarray) -> bool:
    """Whether the moments of a layer of these weights are kept in full, not only their diagonal."""
    return weights.size // len(weights) <= MAX_INPUTS


def _links(model: chainer.Chain) -> dict[str, Any]:
    """Path of the weights -> link."""
    return {f'{path}/W'[1:]: link for path, link in model.namedlinks() if getattr(link, 'W', None) is not None}


def _normalisations(model: chainer.Chain) -> dict[str, Any]:
    return {path[1:]: link for path, link in model.namedlinks() if hasattr(link, 'avg_mean')}


def _on_host(x: Any) -> np.ndarray:
    return chainer.get_device('@numpy').send(x)


def _input(args: Any) -> np.ndarray:
    """The first argument of a link's call, in float32."""
    return np.ascontiguousarray(_on_host(array_of(joined(args.args[0]))), np.float32)


def _stop_at(model: chainer.Chain, link: Any, add: Callable[[np.ndarray], None], batches: Batches) -> None:
    """Give `add` what the link gets of each batch; nothing after the link is computed."""
    with chainer.using_config('train', False), chainer.no_backprop_mode(), _Stop(link, add):
        for x in batches():
            try:
                model(x)
            except _Reached:
                continue


class _Reached(Exception):
    """The forward pass has come to the link that was asked for."""


class _Stop(chainer.LinkHook):
    name = 'Stop'

    def __init__(self, link: Any, add: Callable[[np.ndarray], None]) -> None:
        self.link, self.add = link, add

    def forward_preprocess(self, args: Any) -> None:
        if args.link is self.link:
            self.add(_input(args))
            raise _Reached


class _Watch(chainer.LinkHook):
    """Keeps the outputs of layers, and sums up the inputs of batch normalisations."""

    name = 'Watch'

    def __init__(self, model: chainer.Chain, sums: dict[str, _MapSums]) -> None:
        self.layers = {link: name for name, link in _links(model).items()}
        self.normalisations = {link: name for name, link in _normalisations(model).items()}
        self.sums = sums
        self.order: list[str] = []
        self.outputs: dict[str, chainer.Variable] = {}

    def forward_preprocess(self, args: Any) -> None:
        if args.link in self.normalisations:
            name = self.normalisations[args.link]
            self.order.append(name)
            self.sums[name].add(_input(args))

    def forward_postprocess(self, args: Any) -> None:
        if args.link in self.layers:
            name = self.layers[args.link]
            self.order.append(name)
            self.outputs[name] = args.out


class _MapSums:
    """Of the channels of maps (N, C, ...)."""

    def __init__(self) -> None:
        self.n_place = 0
        self.first: Any = 0.0
        self.second: Any = 0.0

    def add(self, x: np.ndarray) -> None:
        axes = (0, *range(2, x.ndim))
        self.n_place += x[:, 0].size
        self.first += x.sum(axes, dtype=np.float64)
        self.second += np.square(x).sum(axes, dtype=np.float64)

    def statistics(self) -> Statistics:
        means = self.first / self.n_place
        return Statistics(means, np.maximum(self.second / self.n_place - means**2, 0))


class _ProductSums:
    """Of what each output of a layer is a product of, less the means of the first batch.

    Float32 would lose small variances beside large means.
    """

    def __init__(self, link: Any) -> None:
        self.link = link
        self.groups = getattr(link, 'groups', 1)
        n_input = link.W.size // len(link.W)
        self.is_full = is_in_full(link.W)
        self.products = np.zeros((self.groups, n_input, n_input) if self.is_full else (self.groups, n_input))
        self.sums = np.zeros((self.groups, n_input))
        self.shift = self.sums.astype(np.float32)  # the means
        self.n_image = self.n_place = 0

    def add(self, x: np.ndarray) -> None:
        self.n_image += len(x)
        step = max(MAX_VALUES // (self.sums.size * x[0, 0].size), 1)
        for start in range(0, len(x), step):
            columns = self._columns(x[start : start + step])
            if not self.n_place:
                self.shift = columns.mean(axis=2, dtype=np.float64).astype(np.float32)
            columns = columns - self.shift[:, :, None]
            self.n_place += columns.shape[2]
            self.sums += columns.sum(axis=2, dtype=np.float64)
            if self.is_full:
                self.products += columns @ columns.transpose(0, 2, 1)
            else:
                self.products += np.square(columns).sum(axis=2, dtype=np.float64)

    def _columns(self, x: np.ndarray) -> np.ndarray:
        """(G, K, places)."""
        link = self.link
        if link.W.ndim == 2:
            return x.reshape(1, len(x), -1).transpose(0, 2, 1)
        window = {'ksize': link.W.shape[2:], 'stride': link.stride, 'pad': link.pad, 'dilate': link.dilate}
        columns = chainer.functions.im2col(x, **window).array  # (N, C kh kw, H', W')
        columns = columns.reshape(len(x), self.groups, self.sums.shape[1], -1)
        return columns.transpose(1, 2, 0, 3).reshape(*self.sums.shape, -1)

    def moments(self) -> Moments:
        def squares(of: np.ndarray) -> np.ndarray:
            return of[:, :, None] * of[:, None] if self.is_full else np.square(of)

        moved = self.sums / self.n_place
        means = moved + self.shift
        products = self.products / self.n_place - squares(moved)
        if self.link.b is None:
            products += squares(means)
        return Moments(products * (self.n_place / self.n_image), means)
