"""What each layer gets to see: second moments of its inputs, and how much the loss depends on its outputs.

Both are measured on some training images, batch by batch, so that no more than the maps of one batch and the moments of
one layer are in memory.

Sources: Frantar and Alistarh, "Optimal brain compression" (2022), section 3, for the moments; Grosse and Martens, "A
Kronecker-factored approximate Fisher matrix for convolution layers" (2016), section 3, for the outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import chainer
import numpy as np

import trainer.functions as F
from trainer.engine.maps import Array
from trainer.functions.concat import joined
from trainer.functions.node import array_of

MAX_INPUTS = 4608  # of a layer whose moments are kept in full: 170 MB in float64, and a few times that to factorise
MAX_COLUMNS = 1 << 24  # values of windows side by side at a time, 64 MB

Batches = Callable[[], Iterable[Array]]  # images (B, 3, H, W), the same at each call


@dataclass
class Moments:
    """Of the inputs of a layer: K for each output, in G groups.

    Attributes:
        products: (G, K, K) float64, the sum over all places of an image of x x^T, averaged over images; less what a
            bias can compensate, if the layer has one; (G, K), its diagonal, where K is above `MAX_INPUTS`.
        means: (G, K) float64, over all places of all images.
    """

    products: np.ndarray
    means: np.ndarray


def measure_outputs(model: chainer.Chain, batches: Batches, seed: int) -> dict[str, np.ndarray]:
    """How much the loss depends on each layer's outputs, of the layers in the order in which they are computed.

    The mean over images and places of the squared gradient, for labels that are drawn from the network's own
    predictions (the diagonal of the Fisher information): the second derivative of the loss, where places and channels are
    taken as independent.

    Args:
        seed: of the labels.
    Returns:
        path of the weights -> (outputs,) float64.
    """
    rng = np.random.default_rng(seed)
    host = chainer.get_device('@numpy')
    names = _names(model)
    sums: dict[str, np.ndarray] = {}
    n_image = 0
    for x in batches():
        outputs = _Outputs(names)
        with chainer.using_config('train', False), outputs:
            y = model(x)
        logits = host.send(y.array).astype(np.float64)
        noise = rng.gumbel(size=logits.shape)  # the largest of logits + noise is drawn by softmax
        labels = (logits + noise).argmax(axis=1).astype(np.int32)
        loss = F.softmax_cross_entropy(y, y.device.send(labels)) * len(x)
        loss.backward(retain_grad=True)
        for name, variable in outputs.variables.items():
            g = host.send(variable.grad)
            axes = (0, *range(2, g.ndim))
            squares = np.square(g, dtype=np.float64).sum(axes) / max(g[0, 0].size, 1)
            sums[name] = sums.get(name, 0) + squares
        model.cleargrads()
        n_image += len(x)
    return {name: total / n_image for name, total in sums.items()}


def measure_inputs(model: chainer.Chain, name: str, batches: Batches) -> Moments:
    """The moments of one layer's inputs, of the network as it is.

    Args:
        name: path of the layer's weights.
    """
    link = {path: link for link, path in _names(model).items()}[name]
    hook = _Inputs(link)
    with chainer.using_config('train', False), chainer.no_backprop_mode(), hook:
        for x in batches():
            try:
                model(x)
            except _Reached:
                pass
    return hook.moments()


def _names(model: chainer.Chain) -> dict[Any, str]:
    """link -> path of its weights."""
    return {link: f'{path}/W'[1:] for path, link in model.namedlinks() if getattr(link, 'W', None) is not None}


class _Reached(Exception):
    """The forward pass has come to the layer that was asked for."""


class _Outputs(chainer.LinkHook):
    """Keeps the outputs of layers."""

    name = 'Outputs'

    def __init__(self, names: dict[Any, str]) -> None:
        self.names = names
        self.variables: dict[str, chainer.Variable] = {}

    def forward_postprocess(self, args: Any) -> None:
        if args.link in self.names:
            self.variables[self.names[args.link]] = args.out


class _Inputs(chainer.LinkHook):
    """Sums up the moments of a layer's inputs, and stops the forward pass there."""

    name = 'Inputs'

    def __init__(self, link: Any) -> None:
        self.link = link
        self.groups = getattr(link, 'groups', 1)
        n_input = link.W.size // len(link.W)
        self.is_full = n_input <= MAX_INPUTS
        self.products = np.zeros((self.groups, n_input, n_input) if self.is_full else (self.groups, n_input))
        self.sums = np.zeros((self.groups, n_input))
        self.n_image = self.n_place = 0

    def forward_preprocess(self, args: Any) -> None:
        if args.link is self.link:
            x = chainer.get_device('@numpy').send(array_of(joined(args.args[0])))
            step = max(MAX_COLUMNS // (self.sums.size * x[0, 0].size), 1)
            for start in range(0, len(x), step):
                self._add(self._columns(x[start : start + step]))
            self.n_image += len(x)
            raise _Reached

    def _columns(self, x: np.ndarray) -> np.ndarray:
        """What each output is a product of: (G, K, places)."""
        link = self.link
        if link.W.ndim == 2:
            return np.ascontiguousarray(x, np.float32).reshape(1, len(x), -1).transpose(0, 2, 1)
        window = {'ksize': link.W.shape[2:], 'stride': link.stride, 'pad': link.pad, 'dilate': link.dilate}
        columns = chainer.functions.im2col(np.ascontiguousarray(x, np.float32), **window).array
        n, _, height, width = columns.shape
        columns = columns.reshape(n, self.groups, -1, height * width)
        return columns.transpose(1, 2, 0, 3).reshape(self.groups, columns.shape[2], -1)

    def _add(self, columns: np.ndarray) -> None:
        self.n_place += columns.shape[2]
        self.sums += columns.sum(axis=2, dtype=np.float64)
        if self.is_full:
            self.products += columns @ columns.transpose(0, 2, 1)
        else:
            self.products += np.square(columns).sum(axis=2, dtype=np.float64)

    def moments(self) -> Moments:
        products, means = self.products / self.n_image, self.sums / self.n_place
        if self.link.b is not None:
            n_place = self.n_place / self.n_image
            products -= n_place * (means[:, :, None] * means[:, None] if self.is_full else means**2)
        return Moments(products, means)
