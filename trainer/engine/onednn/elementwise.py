"""Rectifier, sums and masks, element by element."""

from __future__ import annotations

import functools
from typing import TypeAlias

import numpy as np

from trainer.engine import dropout
from trainer.engine.dropout import DropoutKey
from trainer.engine.maps import Shape, pixel_stride
from trainer.engine.onednn import library as dnn
from trainer.engine.onednn.convert import as_dense_map, as_map
from trainer.engine.onednn.library import Descriptor, library
from trainer.engine.onednn.operation import (
    DATA_TYPES,
    FLOAT32,
    Operation,
    describe_map,
    describe_vector,
    empty,
    empty_map,
)

Layout: TypeAlias = tuple[Shape, int]  # shape and pixel stride of a map; (size,) and 0 of elements without a gap


def layouts_of(*arrays: np.ndarray) -> tuple[Layout, ...]:
    """Of arrays of one shape that are all maps or all in C order."""
    if arrays[0].ndim != 4 or all(a.flags.c_contiguous for a in arrays):
        return ((arrays[0].size,), 0), *[((a.size,), 0) for a in arrays[1:]]
    if all(pixel_stride(a) == a.shape[1] for a in arrays):
        return tuple(((a.size,), 0) for a in arrays)
    return tuple((a.shape, pixel_stride(a)) for a in arrays)


def _describe(layout: Layout, data_type: int) -> Descriptor:
    shape, pixel = layout
    return describe_map(shape, pixel, data_type) if pixel else describe_vector(shape[0], data_type)


def add(x: np.ndarray, other: np.ndarray, out: np.ndarray) -> np.ndarray:
    """out = x + other; `other` in any layout, `out` laid out as x, or one of them."""
    if other.ndim == 4 and not (x.flags.c_contiguous and other.flags.c_contiguous):
        other = as_map(other)
        if not pixel_stride(x):
            return np.add(x, other, out=out)
    elif not other.flags.c_contiguous:
        return np.add(x, other, out=out)
    types = DATA_TYPES[x.dtype], DATA_TYPES[other.dtype]
    binary_operation(dnn.BINARY_ADD, layouts_of(x, other, out), types).run(x, other, out)
    return out


def sum_of(x: np.ndarray, other: np.ndarray) -> np.ndarray:
    """x + other, of any layouts."""
    return x + other


def accumulate(x: np.ndarray, total: np.ndarray) -> np.ndarray:
    """total += x."""
    return np.add(total, x, out=total)


def _dense(x: np.ndarray) -> np.ndarray:
    return as_dense_map(x) if x.ndim == 4 else np.ascontiguousarray(x)


def _empty_like(x: np.ndarray) -> np.ndarray:
    return empty_map(x.shape, x.dtype) if x.ndim == 4 else empty(x.shape, x.dtype)


@functools.lru_cache(1024)
def binary_operation(
    algorithm: int, layouts: tuple[Layout, ...], types: tuple[int, int], scaled: bool = False
) -> Operation:
    """The operation on two arrays and their sum or product, [and the scale of the second, (1,) float32]."""
    lib = library()
    one, other = (_describe(layout, t) for layout, t in zip(layouts[:2], types, strict=True))
    out = _describe(layouts[2], types[0])
    arguments = [(dnn.SRC, one), (dnn.SRC_1, other), (dnn.DST, out)]
    attributes = lib.attributes()
    if scaled:
        lib.call('primitive_attr_set_scales_mask', attributes, dnn.SRC_1, 0)
        arguments.append((dnn.ATTR_SCALES | dnn.SRC_1, describe_vector(1)))
    descriptor = lib.describe_primitive('binary', lib.engine, algorithm, one, other, out, attributes=attributes)
    return Operation(descriptor, arguments)


class DropoutMask:
    """A mask in memory.

    Args:
        kept: uint8, 0 or 1, of the shape of what is masked.
        scale: of what is kept.
    """

    def __init__(self, kept: np.ndarray, scale: float) -> None:
        self.kept, self.scale = kept, scale

    def apply(self, x: np.ndarray, first_channel: int = 0) -> np.ndarray:
        """x * kept * scale; of a map that is the channels from `first_channel` on of the whole."""
        kept = self.kept if x.ndim < 2 else self.kept[:, first_channel : first_channel + x.shape[1]]
        out, x, kept = _empty_like(x), _dense(x), _dense(kept)
        types = DATA_TYPES[x.dtype], dnn.U8
        operation = binary_operation(dnn.BINARY_MUL, layouts_of(x, kept, out), types, scaled=True)
        operation.run(x, kept, out, np.array([self.scale], FLOAT32))
        return out

    def as_array(self) -> np.ndarray:
        """uint8, 0 or 1."""
        return self.kept


def dropout_mask(shape: Shape, ratio: float, key: DropoutKey | None) -> DropoutMask:
    """The next mask of a pass."""
    return DropoutMask(dropout.draw_mask(shape, ratio, key), 1 / (1 - ratio))


def relu(x: np.ndarray) -> np.ndarray:
    """max(x, 0)."""
    out = _empty_like(x)
    x = _dense(x)
    relu_operation(layouts_of(x, out), DATA_TYPES[x.dtype]).run(x, out)
    return out


@functools.lru_cache(1024)
def relu_operation(layouts: tuple[Layout, ...], data_type: int) -> Operation:
    """The operation on x and max(x, 0)."""
    x, out = (_describe(layout, data_type) for layout in layouts)
    descriptor = _relu_descriptor(x, out)
    return Operation(descriptor, ((dnn.SRC, x), (dnn.DST, out)))


def _relu_descriptor(x: Descriptor, out: Descriptor) -> Descriptor:
    lib = library()
    return lib.describe_primitive(
        'eltwise_forward', lib.engine, dnn.FORWARD_TRAINING, dnn.ELTWISE_RELU_FROM_DST, x, out, 0.0, 0.0
    )


def relu_backward(y: np.ndarray, gy: np.ndarray) -> np.ndarray:
    """gy where y > 0, else 0."""
    gy = _dense(gy)
    out = _empty_like(y)
    _relu_backward(layouts_of(y, gy, out), DATA_TYPES[y.dtype]).run(y, gy, out)
    return out


@functools.lru_cache(1024)
def _relu_backward(layouts: tuple[Layout, ...], data_type: int) -> Operation:
    lib = library()
    y, gy, out = (_describe(layout, data_type) for layout in layouts)
    descriptor = lib.describe_primitive(
        'eltwise_backward',
        *(lib.engine, dnn.ELTWISE_RELU_FROM_DST, out, gy, y, 0.0, 0.0, _relu_descriptor(y, y)),
    )
    return Operation(descriptor, ((dnn.DST, y), (dnn.DIFF_DST, gy), (dnn.DIFF_SRC, out)))
