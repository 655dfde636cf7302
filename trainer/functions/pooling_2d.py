"""Maximum, average and global average pooling."""

from __future__ import annotations

from typing import Any

import chainer
from chainer.functions.pooling import max_pooling_nd
from chainer.utils.conv import get_conv_outsize

from trainer import engine
from trainer.functions.cast import to_float32
from trainer.functions.concat import SideBySide, joined
from trainer.functions.node import Arrays, EngineFunction, Places, apply, pair


def max_pooling_2d(
    x: Any, ksize: Any, stride: Any = None, pad: Any = 0, cover_all: bool = True, return_indices: bool = False
) -> Any:
    """As `chainer.functions.max_pooling_2d`.

    Args:
        x: (N, C, H, W) floating point, or `SideBySide`.
        ksize, stride, pad: px, one number or (vertical, horizontal); the stride is that of the window if None.
        cover_all: count a last window that reaches over the edge (ceil mode).
        return_indices: also return where in its window each maximum stood.
    """

    if isinstance(x, SideBySide) and not return_indices:
        return SideBySide(max_pooling_2d(part, ksize, stride, pad, cover_all) for part in x)
    x = joined(x)

    def in_chainer(x: Any) -> Any:
        return chainer.functions.max_pooling_2d(to_float32(x), ksize, stride, pad, cover_all, return_indices)

    windows = _windows('MAX', x, ksize, stride, pad, cover_all)
    if return_indices or windows is None:
        return in_chainer(x)
    return apply(MaxPooling2D(windows), (x,), lambda: in_chainer(x))


def average_pooling_2d(x: Any, ksize: Any, stride: Any = None, pad: Any = 0) -> Any:
    """As `chainer.functions.average_pooling_2d`: padding counts as zeros.

    Args:
        x: (N, C, H, W) floating point, or `SideBySide`.
        ksize, stride, pad: px, one number or (vertical, horizontal); the stride is that of the window if None.
    """

    if isinstance(x, SideBySide):
        return SideBySide(average_pooling_2d(part, ksize, stride, pad) for part in x)

    def in_chainer(x: Any) -> chainer.Variable:
        return chainer.functions.average_pooling_2d(to_float32(x), ksize, stride, pad)

    windows = _windows('AVERAGE', x, ksize, stride, pad, False)
    if windows is None:
        return in_chainer(x)
    return apply(AveragePooling2D(windows), (x,), lambda: in_chainer(x))


def _windows(algorithm: str, x: Any, ksize: Any, stride: Any, pad: Any, cover_all: bool) -> Any:
    """What the engine is to compute, its `Pooling`; None if it cannot."""
    if x.ndim != 4 or not engine.serves(x):
        return None
    kernel, stride, pad = pair(ksize), pair(ksize if stride is None else stride), pair(pad)
    y_size = tuple(
        get_conv_outsize(length, k, s, p, cover_all)
        for length, k, s, p in zip(x.shape[2:], kernel, stride, pad, strict=True)
    )
    is_possible = all(
        size > 0 and p < k and (size - 1) * s - p < length  # no window without an element
        for size, k, s, p, length in zip(y_size, kernel, stride, pad, x.shape[2:], strict=True)
    )
    pooling = engine.of(x).pooling
    return pooling.Pooling(getattr(pooling, algorithm), kernel, stride, pad, y_size) if is_possible else None


class MaxPooling2D(EngineFunction):
    """x -> y; keeps where each maximum stood, not x."""

    def __init__(self, windows: Any) -> None:
        super().__init__()
        self.windows = windows

    def forward(self, inputs: Arrays) -> Arrays:
        self.retain_inputs(())
        (x,) = inputs
        self.x_shape, self.x_dtype = x.shape, x.dtype
        y, self.chosen = self.ops.pooling.forward(self.windows, x, training=chainer.config.enable_backprop)
        return (y,)

    def compute_gradients(self, indexes: tuple[int, ...], gys: Arrays, places: Places) -> Arrays:
        (gy,) = gys
        return (self.ops.pooling.backward(self.windows, self.x_shape, gy, self.chosen),)

    def differentiable_gradients(self, indexes: tuple[int, ...], gys: Any) -> Any:
        """Chainer's own gradient, given the places of the maxima."""
        (gy,) = gys
        _, kernel, stride, pad, y_size = self.windows
        cover_all = any(
            size != get_conv_outsize(length, k, s, p)
            for size, length, k, s, p in zip(y_size, self.x_shape[2:], kernel, stride, pad, strict=True)
        )
        forward = max_pooling_nd.MaxPoolingND(2, kernel, stride, pad, cover_all)
        forward._in_shape, forward._in_dtype = self.x_shape, gy.dtype
        y_shape = *self.x_shape[:2], *y_size
        places = self.ops.pooling.places_of_maxima(self.chosen, y_shape, kernel[0] * kernel[1])
        forward.indexes = places.astype('int64')
        return max_pooling_nd.MaxPoolingNDGrad(forward).apply((gy,))


class AveragePooling2D(EngineFunction):
    """x -> y."""

    def __init__(self, windows: Any) -> None:
        super().__init__()
        self.windows = windows

    def reference(self, *inputs: chainer.Variable) -> tuple[chainer.Variable, ...]:
        _, kernel, stride, pad, _ = self.windows
        return (chainer.functions.average_pooling_2d(inputs[0], kernel, stride, pad),)

    def forward(self, inputs: Arrays) -> Arrays:
        self.retain_inputs((0,))
        (x,) = inputs
        return (self.ops.pooling.forward(self.windows, x, training=chainer.config.enable_backprop)[0],)

    def compute_gradients(self, indexes: tuple[int, ...], gys: Arrays, places: Places) -> Arrays:
        (gy,) = gys
        return (self.ops.pooling.backward(self.windows, self.inputs[0].shape, gy, None),)


def mean(x: Any, axis: Any = None, *, weights: Any = None, keepdims: bool = False) -> chainer.Variable:
    """As `chainer.functions.mean` (and `average`); over the rows and columns of a map it is global average pooling.

    Args:
        x: floating point; the mean of bfloat16 is in float32.
        axis: dimensions to average over, all if None.
    """
    x = joined(x)
    if weights is None and not keepdims and axis in ((2, 3), [2, 3]) and x.ndim == 4 and engine.serves(x):
        return GlobalAveragePooling2D().apply((x,))[0]
    return chainer.functions.average(to_float32(x), axis, weights, keepdims)


class GlobalAveragePooling2D(EngineFunction):
    """x (N, C, H, W) -> (N, C), float32."""

    def reference(self, *inputs: chainer.Variable) -> tuple[chainer.Variable, ...]:
        return (chainer.functions.average(inputs[0], (2, 3)),)

    def forward(self, inputs: Arrays) -> Arrays:
        self.retain_inputs(())
        (x,) = inputs
        self.x_shape, self.x_dtype = x.shape, x.dtype
        return (self.ops.pooling.global_average(x),)

    def compute_gradients(self, indexes: tuple[int, ...], gys: Arrays, places: Places) -> Arrays:
        (gy,) = gys
        return (self.ops.pooling.global_average_backward(gy, self.x_shape, self.x_dtype),)

    def differentiable_gradients(self, indexes: tuple[int, ...], gys: Any) -> Any:
        (gy,) = gys
        h, w = self.x_shape[2:]
        gx = chainer.functions.broadcast_to(gy[:, :, None, None] / (h * w), self.x_shape)
        return (gx,)
