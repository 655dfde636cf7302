"""Convolution of a map, or of maps side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import chainer
import numpy as np

from trainer import engine
from trainer.engine.backend import Convolution
from trainer.engine.maps import Array, Pair, channel_slices
from trainer.functions.concat import joined, parts
from trainer.functions.node import EngineFunction, Input, Variables, apply, pair, to_compute_dtype, to_float32
from trainer.functions.places import Arrays, Places

Size: TypeAlias = int | Sequence[int]  # px, one number or (vertical, horizontal)


def convolution_2d(
    x: Input,
    W: Input,
    b: Input | None = None,
    stride: Size = 1,
    pad: Size = 0,
    cover_all: bool = False,
    *,
    dilate: Size = 1,
    groups: int = 1,
    add: Input | None = None,
    **options: Any,
) -> chainer.Variable:
    """y[n, o, i, j] = b[o] + sum over c, u, v of W[o, c, u, v] x[n, c, i s + u d - p, j s + v d - p] [+ add].

    As `chainer.functions.convolution_2d`; `add` is added in the same pass over memory.

    Args:
        x: (N, C, H, W) floating point, or `SideBySide`.
        W: (out, C / groups, kh, kw) float32.
        b: (out,) float32, or None; left out if an updater has put its id into `chainer.config.dead_biases`.
        stride, pad, dilate: s, p and d, px, one number or (vertical, horizontal).
        cover_all: count a last window that reaches over the edge.
        groups: C and out are split into this number of groups that do not see each other.
        add: of the shape of the output, or None.
        options: of Chainer's function, which then computes.
    Returns:
        (N, out, H', W') with H' = (H + 2 pad - dilate (kh - 1) - 1) // stride + 1, in the precision of x or
        `chainer.config.compute_dtype`.
    Raises:
        InvalidType, AssertionError: shapes or precisions do not fit (Chainer's own check).
    """
    if id(b) in chainer.config.dead_biases:
        b = None
    optional = [] if b is None else [b]
    if add is not None:
        optional.append(joined(add))

    def in_chainer(*inputs: Input) -> chainer.Variable:
        """Of x or its parts, W, perhaps b, perhaps what is added."""
        inputs = tuple(map(to_float32, inputs))
        n_part = len(inputs) - 1 - len(optional)
        W, *rest = inputs[n_part:]
        x = inputs[0] if n_part == 1 else chainer.functions.concat(inputs[:n_part])
        bias = None if b is None else rest.pop(0)
        window = {'stride': stride, 'pad': pad, 'cover_all': cover_all, 'dilate': dilate, 'groups': groups}
        y = chainer.functions.convolution_2d(x, W, bias, **window, **options)
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
    node = Convolution2D(in_chainer, window, len(xs), b is not None, add is not None)
    return apply(node, inputs)


class Window(NamedTuple):
    """How a kernel moves over a map, px."""

    stride: Pair
    pad: Pair
    dilate: Pair
    groups: int


def _is_well_formed(x: Input, W: Input, b: Input | None, add: Input | None, window: Window) -> bool:
    """Otherwise Chainer says what is wrong."""
    if not (
        x.ndim == W.ndim == 4
        and x.shape[1] == W.shape[1] * window.groups
        and W.shape[0] % window.groups == 0
        and W.dtype == np.float32
        and (b is None or (b.shape == W.shape[:1] and b.dtype == np.float32))
    ):
        return False
    y_shape = Convolution(x.shape, W.shape, *window).y_shape
    return min(y_shape) > 0 and (add is None or add.shape == y_shape)


class Convolution2D(EngineFunction):
    """The parts of x, W, perhaps b, perhaps what is added -> y.

    A convolution of maps side by side is the sum of their convolutions, each with its own columns W[:, i:j] of the
    weights; no concatenation is made, neither of the maps nor of their gradients.
    """

    def __init__(
        self, in_chainer: Callable[..., chainer.Variable], window: Window, n_part: int, has_bias: bool, has_add: bool
    ) -> None:
        super().__init__()
        self.in_chainer, self.window, self.n_part = in_chainer, window, n_part
        self.has_bias, self.has_add = has_bias, has_add

    def reference(self, *inputs: chainer.Variable) -> Variables:
        return (self.in_chainer(*inputs),)

    def forward(self, inputs: Arrays) -> Arrays:
        # What is added has no part in the gradients; retained, it would only stay in memory.
        self.retain_inputs(tuple(range(len(inputs) - self.has_add)))
        convolution = self.ops.convolution
        self.xs = [self.ops.convert.as_dense_map(x) for x in inputs[: self.n_part]]
        W = convolution.as_weights(inputs[self.n_part])
        b = inputs[self.n_part + 1] if self.has_bias else None
        add = inputs[-1] if self.has_add else None
        self.columns = channel_slices(self.xs) if self.n_part > 1 else [slice(None)]
        self.convs = [
            Convolution(x.shape, W[:, columns].shape, *self.window)
            for x, columns in zip(self.xs, self.columns, strict=True)
        ]
        y = self.ops.memory.empty_map(self.convs[0].y_shape, self.xs[0].dtype)
        for conv, x, columns in zip(self.convs, self.xs, self.columns, strict=True):
            y = convolution.forward(conv, x, W[:, columns], b, y, add)
            b, add = None, y  # the next part is added to what is there
        return (y,)

    def compute_gradients(self, indexes: tuple[int, ...], gys: Arrays, places: Places) -> Arrays:
        convolution = self.ops.convolution
        gy = self.ops.convert.as_dense_map(gys[0])
        i_weight, i_bias = self.n_part, self.n_part + 1
        W = convolution.as_weights(self.inputs[i_weight].data)
        gradients: list[Array | None] = [None] * len(self.inputs)
        if self.has_add:
            gradients[-1] = gy
        gW = gb = None
        if i_weight in indexes or (self.has_bias and i_bias in indexes):
            gradients[i_weight] = gW = places.empty_like(i_weight, W)
            if self.has_bias:
                gradients[i_bias] = gb = places.empty_like(i_bias, self.inputs[i_bias].data)
        for i, (conv, x, columns) in enumerate(zip(self.convs, self.xs, self.columns, strict=True)):
            if i in indexes:
                gx = self.ops.memory.empty_map(x.shape, x.dtype)
                gradients[i] = convolution.backward_data(conv, W[:, columns], gy, gx)
            if gW is not None:
                convolution.backward_weights(conv, x, gy, gW[:, columns], gb)
                gb = None  # of all parts it is the same, and made once
        return tuple(gradients[i] for i in indexes)  # type: ignore[misc]

    def differentiable_gradients(self, indexes: tuple[int, ...], gys: Variables) -> Variables:
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
