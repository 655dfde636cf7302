"""Fully connected layers: convolutions of images of one pixel."""

from __future__ import annotations

from trainer.engine.backend import Convolution
from trainer.engine.cuda import convolution
from trainer.engine.cuda.memory import empty
from trainer.engine.maps import Array, Map


def _as_map(x: Array) -> Map:
    """(N, C) in C order as a map (N, C, 1, 1), in the same memory."""
    return x.reshape(*x.shape, 1, 1)


def _convolution(n: int, W: Array) -> Convolution:
    n_out, n_in = W.shape
    return Convolution((n, n_in, 1, 1), (n_out, n_in, 1, 1), (1, 1), (0, 0), (1, 1), 1)


def forward(x: Array, W: Array, b: Array | None) -> Array:
    """y = x W^T + b: x (N, inputs) in C order, W (outputs, inputs) and b (outputs,) or None, float32."""
    y = empty((len(x), W.shape[0]), x.dtype)
    convolution.forward(_convolution(len(x), W), _as_map(x), _as_map(W), b, _as_map(y))
    return y


def backward_data(W: Array, gy: Array) -> Array:
    """The gradient of x."""
    gx = empty((len(gy), W.shape[1]), gy.dtype)
    convolution.backward_data(_convolution(len(gy), W), _as_map(W), _as_map(gy), _as_map(gx))
    return gx


def backward_weights(x: Array, gy: Array, gW: Array, gb: Array | None) -> None:
    """The gradients of W into `gW` and of b into `gb` (or None), float32."""
    convolution.backward_weights(_convolution(len(x), gW), _as_map(x), _as_map(gy), _as_map(gW), gb)
