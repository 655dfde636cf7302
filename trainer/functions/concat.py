"""Concatenation of maps, carried out or only stood for."""

from __future__ import annotations

from collections.abc import Sequence

import chainer
import numpy as np

from trainer import engine
from trainer.engine.maps import Array, DType, Shape, channel_slices
from trainer.functions.node import EngineFunction, Input, Output, Variables, apply, array_of, to_float32
from trainer.functions.places import Arrays, Places


def concat(xs: Sequence[Input], axis: int = 1) -> chainer.Variable:
    """One array of several, one after the other along `axis`; as `chainer.functions.concat`.

    Args:
        xs: alike but for their size along `axis`; `SideBySide` counts as its parts.
        axis: 1 for the channels. `side_by_side` does without the copy there.
    Raises:
        InvalidType: they are not alike (Chainer's own check).
    """
    xs = [part for x in xs for part in parts(x)] if axis == 1 else [joined(x) for x in xs]
    shapes = {(x.ndim, x.shape[:1], x.shape[2:], x.dtype) for x in xs}
    if axis != 1 or xs[0].ndim != 4 or len(shapes) > 1 or not engine.serves(*xs):
        return chainer.functions.concat([to_float32(x) for x in xs], axis)
    return apply(Concat(), tuple(xs))


class Concat(EngineFunction):
    """Maps -> one of all their channels."""

    def reference(self, *inputs: chainer.Variable) -> Variables:
        return (chainer.functions.concat(inputs),)

    def forward(self, inputs: Arrays) -> Arrays:
        self.retain_inputs(())
        self.slices = channel_slices(inputs)
        n, _, h, w = inputs[0].shape
        y = self.ops.memory.empty_map((n, self.slices[-1].stop, h, w), inputs[0].dtype)
        for x, part in zip(inputs, self.slices, strict=True):
            self.ops.convert.convert(x, y[:, part])
        return (y,)

    def compute_gradients(self, indexes: tuple[int, ...], gys: Arrays, places: Places) -> Arrays:
        (gy,) = gys
        return tuple(gy[:, self.slices[i]] for i in indexes)  # views: no copy

    def differentiable_gradients(self, indexes: tuple[int, ...], gys: Variables) -> Variables:
        (gy,) = gys
        return tuple(gy[:, self.slices[i]] for i in indexes)


class SideBySide(tuple):
    """Maps (N, C_i, H, W) that stand for their concatenation along the channels, without the copy it costs.

    Convolutions, batch normalisation, pooling, dropout and sums of this package take it as they take a map.
    What does not know it takes `joined()`.
    """

    @property
    def shape(self) -> Shape:
        n, _, h, w = self[0].shape
        return n, sum(part.shape[1] for part in self), h, w

    @property
    def ndim(self) -> int:
        return 4

    @property
    def dtype(self) -> DType:
        return self[0].dtype

    @property
    def array(self) -> Array:
        return array_of(self.joined())

    def joined(self) -> chainer.Variable:
        return concat(self)


def side_by_side(maps: Sequence[Input]) -> Output:
    """`SideBySide` where the engine serves; elsewhere the concatenation itself, a variable."""
    alike = {(x.ndim, x.shape[:1], x.shape[2:], x.dtype) for x in maps}
    return SideBySide(maps) if len(alike) == 1 and maps[0].ndim == 4 and engine.serves(*maps) else concat(maps)


def parts(x: Input) -> tuple[Input, ...]:
    """The maps that make up x: itself, or those side by side."""
    return tuple(x) if isinstance(x, SideBySide) else (x,)


def joined(x: Input) -> Input:
    """A map, whatever it was."""
    return x.joined() if isinstance(x, SideBySide) else x


def put_together(outputs: Output, like: Input) -> Output:
    """Outputs of a function of the parts of `like`: side by side as it is, unless they are one already."""
    return SideBySide(outputs) if isinstance(like, SideBySide) and isinstance(outputs, tuple) else outputs


def split(x: Input, sizes: Sequence[int]) -> tuple[Output, ...]:
    """x as maps of these numbers of channels; without a copy if it consists of those."""
    if isinstance(x, SideBySide) and [part.shape[1] for part in x] == list(sizes):
        return tuple(x)
    return tuple(chainer.functions.split_axis(to_float32(joined(x)), np.cumsum(sizes[:-1]).tolist(), axis=1))
