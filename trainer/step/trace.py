"""What a network computes, as a list of layers read off one pass, with normalisations folded into convolutions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import chainer
import numpy as np

from trainer.functions.batch_normalization import FixedBatchNormalization
from trainer.functions.convolution_2d import Convolution2D
from trainer.functions.linear import Linear
from trainer.functions.node import Call, EngineFunction
from trainer.functions.relu import ReLU


class CannotPlan(Exception):
    """The network computes with something the plan does not know."""


@dataclass
class Layer:
    """One function of the network, and what follows it and was folded into it.

    inputs: a number is a value that another layer computes, an array is a constant.
    """

    node: EngineFunction
    inputs: list[int | np.ndarray]
    outputs: list[int]
    scale: np.ndarray | None = None  # (C,) float32: what follows it, folded into it
    shift: np.ndarray | None = None
    relu: bool = False


def read_trace(
    model: chainer.Chain, calls: Sequence[Call], x: np.ndarray, y: np.ndarray, known: Collection[type]
) -> tuple[list[Layer], list[np.ndarray], int]:
    """What the network computed.

    Args:
        calls: the functions it called for x, in order, with their arrays.
        x, y: its input and output.
        known: the functions that can be planned.
    Returns:
        Layers in order; an array like each value (value 0 is x); and the number of the value that is y.
    """
    constants = {id(array) for array in _arrays_of(model)}
    samples: list[np.ndarray] = [x]
    numbers = {id(x): 0}
    layers = []
    for node, inputs, outputs in calls:
        if type(node) not in known:
            raise CannotPlan
        layer = Layer(node, [], [])
        for array in inputs:
            if id(array) not in numbers and id(array) not in constants:
                raise CannotPlan  # a function that the trace does not see has made it
            layer.inputs.append(numbers.get(id(array), array))
        for array in outputs:
            numbers[id(array)] = len(samples)
            layer.outputs.append(len(samples))
            samples.append(array)
        layers.append(layer)
    if id(y) not in numbers or y.ndim != 2:
        raise CannotPlan
    return layers, samples, numbers[id(y)]


def _arrays_of(model: chainer.Chain) -> list[np.ndarray]:
    """Parameters and persistent arrays of all links."""
    arrays: list[Any] = [parameter.array for parameter in model.params()]
    for link in model.links():
        arrays += [getattr(link, name) for name in link._persistent]
    return arrays


def fold(layers: list[Layer], output: int) -> list[Layer]:
    """Fold batch normalisation and rectifiers into the convolutions and linear layers whose outputs only they read."""
    folding = _Folding(layers, output)
    return [layer for layer in layers if not folding.takes(layer)]


class _Folding:
    def __init__(self, layers: list[Layer], output: int) -> None:
        read = [value for layer in layers for value in layer.inputs if isinstance(value, int)]
        self._n_reader = Counter([output, *read])
        self._makers = {value: layer for layer in layers for value in layer.outputs}

    def takes(self, layer: Layer) -> bool:
        """Fold a layer into those that make its inputs; False if it stays."""
        if type(layer.node) is FixedBatchNormalization:
            return self._takes_normalization(layer)
        if type(layer.node) is ReLU and (maker := self._open_maker(layer.inputs[0])) is not None:
            maker.relu = True
            self._hand_over(maker, layer.outputs[0])
            return True
        return False

    def _takes_normalization(self, layer: Layer) -> bool:
        node: Any = layer.node
        *xs, gamma, beta, mean, variance = layer.inputs
        makers = [maker for x in xs if (maker := self._open_maker(x)) is not None and maker.scale is None]
        if len(makers) < len(xs):
            return False
        scale = gamma / np.sqrt(variance + np.float32(node.eps))
        shift = beta - mean * scale
        start = 0
        for maker, y in zip(makers, layer.outputs, strict=True):
            part = slice(start, start + _n_out(maker))
            maker.scale, maker.shift, maker.relu = scale[part].copy(), shift[part].copy(), node.relu
            self._hand_over(maker, y)
            start = part.stop
        return True

    def _open_maker(self, value: int | np.ndarray) -> Layer | None:
        """The layer that makes a value which nothing else reads, if more can be folded into it."""
        maker = self._makers.get(value) if isinstance(value, int) and self._n_reader[value] == 1 else None
        is_open = maker is not None and type(maker.node) in (Convolution2D, Linear) and not maker.relu
        return maker if is_open else None

    def _hand_over(self, maker: Layer, value: int) -> None:
        maker.outputs = [value]
        self._makers[value] = maker


def _n_out(layer: Layer) -> int:
    node: Any = layer.node
    weights: Any = layer.inputs[node.n_part if type(node) is Convolution2D else 1]
    return len(weights)
