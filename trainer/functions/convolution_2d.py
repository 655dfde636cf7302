"""Convolution of a map, or of maps side by side."""

from __future__ import annotations

from typing import Any, NamedTuple

import chainer
import numpy as np
from chainer.utils.conv import get_conv_outsize

from trainer import engine
from trainer.functions.cast import to_compute_dtype, to_float32
from trainer.functions.concat import channels, joined, parts
from trainer.functions.node import Arrays, EngineFunction, Places, apply, pair


def convolution_2d(
    x: Any,
    W: Any,
    b: Any = None,
    stride: Any = 1,
    pad: Any = 0,
    cover_all: bool = False,
    *,
    dilate: Any = 1,
    groups: int = 1,
    add: Any = None,
    **options: Any,
) -> chainer.Variable:
    """As `chainer.functions.convolution_2d`; with `add`, the sum with it in the same pass over memory.

    Args:
        x: (N, C, H, W) floating point, or `SideBySide`.
        W: (out, C / groups, kh, kw).
        b: (out,) or None; left out if an updater has put its id into `chainer.config.dead_biases`.
        stride, pad, dilate: px, one number or (vertical, horizontal).
        cover_all: count a last window that reaches over the edge.
        groups: C and out are split into so many groups that do not see each other.
        add: of the shape of the output, or None.
    Returns:
        (N, out, H', W') with H' = (H + 2 pad - dilate (kh - 1) - 1) // stride + 1.
    """
    if id(b) in chainer.config.dead_biases:
        b = None
    optional = [] if b is None else [b]
    if add is not None:
        optional.append(joined(add))

    def in_chainer(*inputs: Any) -> chainer.Variable:
        """Of x or its parts, W, perhaps b, perhaps what is added."""
        *xs, W = (to_float32(v) for v in inputs[: len(inputs) - len(optional)])
        rest = [to_float32(v) for v in inputs[len(inputs) - len(optional) :]]
        x = xs[0] if len(xs) == 1 else chainer.functions.concat(xs)
        y = chainer.functions.convolution_2d(
            *(x, W, None if b is None else rest.pop(0), stride, pad, cover_all),
            dilate=dilate,
            groups=groups,
            **options,
        )
        return y + rest[0] if rest else y

    window = Window(pair(stride), pair(pad), pair(dilate), groups)
    xs = parts(x) if groups == 1 and W.ndim == 4 else (joined(x),)
    inputs = *xs, W, *optional
    if cover_all or options or not engine.serves(*inputs) or not _is_well_formed(x, W, b, add, window):
        return in_chainer(*inputs)
    xs = tuple(map(to_compute_dtype, xs))
    inputs = *xs, W, *(v if v is b else to_compute_dtype(v) for v in optional)
    if len({v.dtype for v in (*xs, *(inputs[-1:] if add is not None else ()))}) > 1:
        return in_chainer(*inputs)
    return apply(
        Convolution2D(in_chainer, window, len(xs), b is not None, add is not None), inputs, lambda: in_chainer(*inputs)
    )


class Window(NamedTuple):
    """How a kernel moves over a map."""

    stride: tuple[int, int]
    pad: tuple[int, int]
    dilate: tuple[int, int]
    groups: int

    def size_over(self, x: Any, W: Any) -> tuple[int, ...]:
        """Height and width of what comes out."""
        return tuple(
            get_conv_outsize(length, k, s, p, d=d)
            for length, k, s, p, d in zip(x.shape[2:], W.shape[2:], self.stride, self.pad, self.dilate, strict=True)
        )


def _is_well_formed(x: Any, W: Any, b: Any, add: Any, window: Window) -> bool:
    """Otherwise Chainer says what is wrong."""
    if not (
        x.ndim == W.ndim == 4
        and x.shape[1] == W.shape[1] * window.groups
        and W.shape[0] % window.groups == 0
        and W.dtype == np.float32
        and (b is None or (b.shape == W.shape[:1] and b.dtype == np.float32))
    ):
        return False
    y_shape = x.shape[0], W.shape[0], *window.size_over(x, W)
    return min(y_shape) > 0 and (add is None or add.shape == y_shape)


class Convolution2D(EngineFunction):
    """The parts of x, W, perhaps b, perhaps what is added -> y.

    A convolution of maps side by side is the sum of their convolutions, each with its own columns of W.
    """

    def __init__(self, in_chainer: Any, window: Window, n_part: int, has_bias: bool, has_add: bool) -> None:
        super().__init__()
        self.in_chainer, self.window, self.n_part = in_chainer, window, n_part
        self.has_bias, self.has_add = has_bias, has_add

    def reference(self, *inputs: chainer.Variable) -> tuple[chainer.Variable, ...]:
        return (self.in_chainer(*inputs),)

    def forward(self, inputs: Arrays) -> Arrays:
        # What is added has no part in the gradients; retained, it would only stay in memory.
        self.retain_inputs(tuple(range(len(inputs) - self.has_add)))
        convolution, as_dense_map = self.ops.convolution, self.ops.convert.as_dense_map
        self.xs = [as_dense_map(x) for x in inputs[: self.n_part]]
        W = convolution.as_weights(inputs[self.n_part])
        b = inputs[self.n_part + 1] if self.has_bias else None
        add = as_dense_map(inputs[-1]) if self.has_add else None
        self.columns = channels(self.xs) if self.n_part > 1 else [slice(None)]
        y = None
        for x, columns in zip(self.xs, self.columns, strict=True):
            part = W[:, columns]
            conv = convolution.describe(x, part, *self.window)
            if y is None or not convolution.ADDS_IN_PLACE:
                y = self.ops.memory.empty_map(conv.y_shape, x.dtype)
            convolution.forward(conv, x, part, b, y, add)
            b, add = None, y  # the next part adds to what is there
        return (y,)

    def compute_gradients(self, indexes: tuple[int, ...], gys: Arrays, places: Places) -> Arrays:
        convolution, empty_map = self.ops.convolution, self.ops.memory.empty_map
        gy = self.ops.convert.as_dense_map(gys[0])
        i_weight = self.n_part
        W = convolution.as_weights(self.inputs[i_weight].data)
        gradients: list[Any] = [None] * len(self.inputs)
        if self.has_add:
            gradients[-1] = gy
        wants_weights = i_weight in indexes or (self.has_bias and i_weight + 1 in indexes)
        gW = places.empty_like(i_weight, W) if wants_weights else None
        gb = (
            places.empty_like(i_weight + 1, self.inputs[i_weight + 1].data) if wants_weights and self.has_bias else None
        )
        gradients[i_weight] = gW
        if gb is not None:
            gradients[i_weight + 1] = gb
        for i, (x, columns) in enumerate(zip(self.xs, self.columns, strict=True)):
            part = W[:, columns]
            conv = convolution.describe(x, part, *self.window)
            if i in indexes:
                gradients[i] = convolution.backward_data(conv, part, gy, empty_map(x.shape, x.dtype))
            if gW is not None:
                convolution.backward_weights(conv, x, gy, gW[:, columns], gb)
                gb = None
        return tuple(gradients[i] for i in indexes)

    def differentiable_gradients(self, indexes: tuple[int, ...], gys: Any) -> Any:
        if not self.has_add:
            return super().differentiable_gradients(indexes, gys)
        (gy,) = gys
        i_add = len(self.inputs) - 1
        inputs = self.differentiable_inputs()
        wanted = tuple(i for i in indexes if i != i_add)
        with chainer.using_config('engine', 'plain'), chainer.using_config('enable_backprop', True):
            y = self.in_chainer(*inputs, gy.xp.zeros(gy.shape, gy.dtype))
            gradients = chainer.grad([y], [inputs[i] for i in wanted], [gy], enable_double_backprop=True)
        return *gradients, *([gy] if i_add in indexes else [])
