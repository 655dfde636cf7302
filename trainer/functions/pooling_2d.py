"""Maximum, average and global average pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import chainer
from chainer.functions.pooling import max_pooling_nd
from chainer.utils.conv import get_conv_outsize

from trainer import engine
from trainer.engine.backend import AVERAGE, MAX, Pooling
from trainer.engine.maps import Array
from trainer.functions.concat import SideBySide, joined
from trainer.functions.node import Input, Output, UnaryFunction, Variables, apply, pair, to_float32

Size: TypeAlias = int | Sequence[int]  # px, one number or (vertical, horizontal)


def max_pooling_2d(
    x: Input,
    ksize: Size,
    stride: Size | None = None,
    pad: Size = 0,
    cover_all: bool = True,
    return_indices: bool = False,
) -> Output:
    """The maximum of each window, as `chainer.functions.max_pooling_2d`.

    Args:
        x: (N, C, H, W) floating point, or `SideBySide`.
        ksize, stride, pad: px, one number or (vertical, horizontal); the stride is that of the window if None.
        cover_all: count a last window that reaches over the edge (ceil mode).
        return_indices: also return where in its window each maximum stood, (N, C, H', W') int.
    Returns:
        (N, C, H', W') with H' = (H + 2 pad - ksize) // stride + 1, or with `cover_all` that division rounded up.
    Raises:
        InvalidType, AssertionError: no window fits (Chainer's own check).
    """

    if isinstance(x, SideBySide) and not return_indices:
        return SideBySide(max_pooling_2d(part, ksize, stride, pad, cover_all) for part in x)
    x = joined(x)

    def in_chainer() -> Output:
        return chainer.functions.max_pooling_2d(to_float32(x), ksize, stride, pad, cover_all, return_indices)

    windows = None if return_indices else _windows(MAX, x, ksize, stride, pad, cover_all)
    return in_chainer() if windows is None else apply(MaxPooling2D(windows), (x,), otherwise=in_chainer)


def average_pooling_2d(x: Input, ksize: Size, stride: Size | None = None, pad: Size = 0) -> Output:
    """The mean of each window, padding counted as zeros; as `chainer.functions.average_pooling_2d`.

    Args:
        x: (N, C, H, W) floating point, or `SideBySide`.
        ksize, stride, pad: px, one number or (vertical, horizontal); the stride is that of the window if None.
    Returns:
        (N, C, H', W') with H' = (H + 2 pad - ksize) // stride + 1.
    """
    if isinstance(x, SideBySide):
        return SideBySide(average_pooling_2d(part, ksize, stride, pad) for part in x)
    windows = _windows(AVERAGE, x, ksize, stride, pad, False)
    if windows is None:
        return chainer.functions.average_pooling_2d(to_float32(x), ksize, stride, pad)
    return apply(AveragePooling2D(windows), (x,))


def _windows(algorithm: str, x: Input, ksize: Size, stride: Size | None, pad: Size, cover_all: bool) -> Pooling | None:
    """What the engine is to compute; None if it cannot."""
    if x.ndim != 4 or not engine.serves(x):
        return None
    kernel, stride, pad = pair(ksize), pair(ksize if stride is None else stride), pair(pad)
    y_size = pair(
        [
            get_conv_outsize(length, k, s, p, cover_all)
            for length, k, s, p in zip(x.shape[2:], kernel, stride, pad, strict=True)
        ]
    )
    is_possible = all(
        size > 0 and p < k and (size - 1) * s - p < length  # no window without an element
        for size, k, s, p, length in zip(y_size, kernel, stride, pad, x.shape[2:], strict=True)
    )
    return Pooling(algorithm, kernel, stride, pad, y_size) if is_possible else None


class _Pooling(UnaryFunction):
    def __init__(self, windows: Pooling) -> None:
        super().__init__()
        self.windows = windows


class MaxPooling2D(_Pooling):
    """x -> y; saves where each maximum stood, not x."""

    def compute(self, x: Array) -> Array:
        self.retain_inputs(())
        self.x_shape = x.shape
        y, self.chosen = self.ops.pooling.forward(self.windows, x, training=chainer.config.enable_backprop)
        return y

    def gradient(self, gy: Array) -> Array:
        return self.ops.pooling.backward(self.windows, self.x_shape, gy, self.chosen)

    def differentiable_gradients(self, indexes: tuple[int, ...], gys: Variables) -> Variables:
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
        assert self.chosen is not None, 'saved wherever there is a gradient'
        places = self.ops.pooling.places_of_maxima(self.chosen, y_shape, kernel[0] * kernel[1])
        forward.indexes = places.astype('int64')
        return max_pooling_nd.MaxPoolingNDGrad(forward).apply((gy,))


class AveragePooling2D(_Pooling):
    """x -> y."""

    def reference(self, *inputs: chainer.Variable) -> tuple[chainer.Variable, ...]:
        _, kernel, stride, pad, _ = self.windows
        return (chainer.functions.average_pooling_2d(inputs[0], kernel, stride, pad),)

    def compute(self, x: Array) -> Array:
        self.retain_inputs((0,))
        return self.ops.pooling.forward(self.windows, x, training=chainer.config.enable_backprop)[0]

    def gradient(self, gy: Array) -> Array:
        return self.ops.pooling.backward(self.windows, self.inputs[0].shape, gy, None)


def mean(
    x: Input, axis: Size | None = None, *, weights: Input | None = None, keepdims: bool = False
) -> chainer.Variable:
    """The mean, as `chainer.functions.average`; over the rows and columns of a map it is global average pooling.

    Args:
        x: floating point of any shape; the mean of bfloat16 is in float32.
        axis: dimensions to average over, all if None.
        weights, keepdims: as Chainer's.
    """
    x = joined(x)
    if weights is None and not keepdims and axis in ((2, 3), [2, 3]) and x.ndim == 4 and engine.serves(x):
        return apply(GlobalAveragePooling2D(), (x,))
    return chainer.functions.average(to_float32(x), axis, weights, keepdims)


class GlobalAveragePooling2D(UnaryFunction):
    """x (N, C, H, W) -> (N, C), float32."""

    def reference(self, *inputs: chainer.Variable) -> Variables:
        return (chainer.functions.average(inputs[0], (2, 3)),)

    def compute(self, x: Array) -> Array:
        self.retain_inputs(())
        self.x_shape, self.x_dtype = x.shape, x.dtype
        return self.ops.pooling.global_average(x)

    def gradient(self, gy: Array) -> Array:
        return self.ops.pooling.global_average_backward(gy, self.x_shape, self.x_dtype)

    def differentiable_gradients(self, indexes: tuple[int, ...], gys: Variables) -> Variables:
        (gy,) = gys
        h, w = self.x_shape[2:]
        gx = chainer.functions.broadcast_to(gy[:, :, None, None] / (h * w), self.x_shape)
        return (gx,)
