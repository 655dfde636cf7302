"""Convolution, forward and backward, of channels-last maps."""

from __future__ import annotations

import functools
from ctypes import c_void_p
from typing import Any, NamedTuple

import numpy as np

from trainer.engine.onednn import library as dnn
from trainer.engine.onednn import linear
from trainer.engine.onednn.convert import Packing, as_dense_map
from trainer.engine.onednn.library import dims, library, post_op_arg
from trainer.engine.onednn.operation import (
    DATA_TYPES,
    Operation,
    describe_map,
    describe_plain,
    describe_vector,
    pixel_stride,
)

Pair = tuple[int, int]


ADDS_IN_PLACE = True  # `forward` may add to what y holds


class Convolution(NamedTuple):
    """What a convolution computes, but for its numbers.

    stride, pad, dilate are (vertical, horizontal), px.
    """

    x_shape: tuple[int, int, int, int]
    weight_shape: tuple[int, int, int, int]  # (out, in / groups, kh, kw)
    stride: Pair
    pad: Pair
    dilate: Pair
    groups: int
    data_type: int  # of maps: F32 or BF16; weights and their gradients are float32
    weight_row: int  # elements from the weights of one output channel to the next; more than their number in a slice

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        size = [
            (length + 2 * p - d * (k - 1) - 1) // s + 1
            for length, k, s, p, d in zip(
                self.x_shape[2:], self.weight_shape[2:], self.stride, self.pad, self.dilate, strict=True
            )
        ]
        return self.x_shape[0], self.weight_shape[0], *size  # type: ignore[return-value]

    @property
    def grouped_shape(self) -> tuple[int, ...]:
        """Of the weights as oneDNN wants them."""
        out, *rest = self.weight_shape
        return (self.groups, out // self.groups, *rest) if self.groups > 1 else self.weight_shape

    @property
    def is_matrix_product(self) -> bool:
        """Whether every output pixel is made of the input pixel at its place."""
        return self.weight_shape[2:] == (1, 1) == self.stride and self.pad == (0, 0) and self.groups == 1

    def describe_weights(self) -> c_void_p:
        """As the network holds them: rows of (in, kh, kw) in C order, float32."""
        _, _, kh, kw = self.weight_shape
        strides = [self.weight_row, kh * kw, kw, 1]
        if self.groups > 1:
            strides.insert(0, self.weight_shape[0] // self.groups * self.weight_row)
        return library().describe(self.grouped_shape, strides, dnn.F32)

    def geometry(self) -> tuple[Any, Any, Any, Any]:
        """Strides, dilations (0: none) and the padding on either side."""
        kernel = self.weight_shape[2:]
        right = [
            max((length - 1) * s + d * (k - 1) + 1 - size - p, 0)
            for length, s, d, k, size, p in zip(
                self.y_shape[2:], self.stride, self.dilate, kernel, self.x_shape[2:], self.pad, strict=True
            )
        ]
        return dims(self.stride), dims([d - 1 for d in self.dilate]), dims(self.pad), dims(right)


def describe(x: np.ndarray, W: np.ndarray, stride: Pair, pad: Pair, dilate: Pair, groups: int) -> Convolution:
    row = W.strides[0] // W.itemsize if len(W) > 1 else W[0].size
    return Convolution(x.shape, W.shape, stride, pad, dilate, groups, DATA_TYPES[x.dtype], row)


def as_weights(W: np.ndarray) -> np.ndarray:
    """As the primitives take them."""
    return np.ascontiguousarray(W)


def forward(
    conv: Convolution,
    x: np.ndarray,
    W: np.ndarray,
    b: np.ndarray | None,
    y: np.ndarray,
    add: np.ndarray | None = None,
) -> np.ndarray:
    """y = x * W + b [+ add]; of maps of one precision. `add` may be y."""
    x = as_dense_map(x)
    operation, packing = forward_operation(
        conv, pixel_stride(x), pixel_stride(y), b is not None, kind_of_sum(add, y), relu=False, inference=False
    )
    arrays = [x, packing.packed(W), y]
    if b is not None:
        arrays.append(b)
    if add is not None and add is not y:
        arrays.append(add)
    operation.run(*arrays)
    return y


IN_PLACE = -1


def kind_of_sum(add: np.ndarray | None, y: np.ndarray) -> int:
    """What `forward_operation` is told of it: 0 for nothing, IN_PLACE for y itself, else its pixel stride.

    As an operand beside y, y itself would be overwritten before it is read by some implementations.
    """
    if add is None:
        return 0
    return IN_PLACE if add is y else pixel_stride(add)


@functools.lru_cache(1024)
def forward_operation(
    conv: Convolution,
    pixel_x: int,
    pixel_y: int,
    bias: bool,
    pixel_add: int,
    relu: bool,
    inference: bool,
    affine: bool = False,
) -> tuple[Operation, Packing]:
    """The operation on x, packed weights, y, [b], [what is added], [scale and shift of the channels after that].

    pixel_add: see `kind_of_sum`.
    """
    lib = library()
    x = describe_map(conv.x_shape, pixel_x, conv.data_type)
    y = describe_map(conv.y_shape, pixel_y, conv.data_type)
    weights = lib.describe_any(conv.grouped_shape, conv.data_type)
    b = describe_vector(conv.weight_shape[0]) if bias else None
    post_ops: list[tuple[Any, ...]] = []
    if pixel_add == IN_PLACE:
        post_ops.append(('sum',))
    elif pixel_add:
        post_ops.append(('add', describe_map(conv.y_shape, pixel_add, conv.data_type)))
    if affine:
        per_channel = describe_plain((1, conv.weight_shape[0], 1, 1), dnn.F32)
        post_ops += [('mul', per_channel), ('add', per_channel)]
    operands = [(post_op_arg(i), operand) for i, (_, *operands) in enumerate(post_ops) for operand in operands]
    if relu:
        post_ops.append(('relu',))
    descriptor = lib.create(
        'convolution_forward_primitive_desc_create',
        *(lib.engine, dnn.FORWARD_INFERENCE if inference else dnn.FORWARD_TRAINING, dnn.CONVOLUTION_DIRECT),
        *(x, weights, b, y, *conv.geometry(), lib.attributes(post_ops)),
    )
    chosen = lib.query(descriptor, dnn.WEIGHTS_MD)
    arguments = [(dnn.SRC, x), (dnn.WEIGHTS, chosen), (dnn.DST, y)]
    if b is not None:
        arguments.append((dnn.BIAS, b))
    return Operation(descriptor, arguments + operands), Packing(conv.describe_weights(), chosen)


def backward_data(conv: Convolution, W: np.ndarray, gy: np.ndarray, gx: np.ndarray) -> np.ndarray:
    """The gradient of x into `gx`, a map."""
    gy = as_dense_map(gy)
    operation, packing = _backward_data(conv, pixel_stride(gx), pixel_stride(gy))
    operation.run(gy, packing.packed(W), gx)
    return gx


@functools.lru_cache(1024)
def _backward_data(conv: Convolution, pixel_x: int, pixel_y: int) -> tuple[Operation, Packing]:
    lib = library()
    x = describe_map(conv.x_shape, pixel_x, conv.data_type)
    y = describe_map(conv.y_shape, pixel_y, conv.data_type)
    weights = lib.describe_any(conv.grouped_shape, conv.data_type)
    hint = _hint(conv, x, y)
    descriptor = lib.create(
        'convolution_backward_data_primitive_desc_create',
        *(lib.engine, dnn.CONVOLUTION_DIRECT, x, weights, y, *conv.geometry(), hint, None),
    )
    chosen = lib.query(descriptor, dnn.WEIGHTS_MD)
    operation = Operation(descriptor, ((dnn.DIFF_DST, y), (dnn.WEIGHTS, chosen), (dnn.DIFF_SRC, x)))
    return operation, Packing(conv.describe_weights(), chosen)


def backward_weights(conv: Convolution, x: np.ndarray, gy: np.ndarray, gW: np.ndarray, gb: np.ndarray | None) -> None:
    """The gradients of W into `gW` and of b into `gb`, in float32."""
    x, gy = as_dense_map(x), as_dense_map(gy)
    if (
        conv.is_matrix_product
        and conv.data_type == dnn.F32
        and pixel_stride(x) * pixel_stride(gy) == x.shape[1] * gy.shape[1]
    ):
        # As a matrix product of pixels it is up to ten times faster; in bfloat16 it is not.
        linear.backward_weights(_as_rows(x), _as_rows(gy), gW.reshape(gW.shape[:2]), gb)
        return
    operation, pack_x, pack_y, packing = _backward_weights(conv, pixel_stride(x), pixel_stride(gy), gb is not None)
    packed = packing.packed_for(gW)
    operation.run(pack_x.packed(x), pack_y.packed(gy), packed, *([] if gb is None else [gb]))
    packing.unpack(packed, gW)


def _as_rows(x: np.ndarray) -> np.ndarray:
    """(pixels, C)."""
    return x.transpose(0, 2, 3, 1).reshape(-1, x.shape[1])


@functools.lru_cache(1024)
def _backward_weights(
    conv: Convolution, pixel_x: int, pixel_y: int, bias: bool
) -> tuple[Operation, Packing, Packing, Packing]:
    lib = library()
    plain_x = x = describe_map(conv.x_shape, pixel_x, conv.data_type)
    plain_y = y = describe_map(conv.y_shape, pixel_y, conv.data_type)
    if conv.data_type == dnn.F32:
        # In float32, blocks of channels instead of all of them side by side pay for the copy, by a quarter to a half.
        x = lib.describe_any(conv.x_shape, dnn.F32) if conv.x_shape[1] > 3 else x
        y = lib.describe_any(conv.y_shape, dnn.F32)
    weights = lib.describe_any(conv.grouped_shape, dnn.F32)
    b = describe_vector(conv.weight_shape[0]) if bias else None
    descriptor = lib.create(
        'convolution_backward_weights_primitive_desc_create',
        *(lib.engine, dnn.CONVOLUTION_DIRECT, x, weights, b, y, *conv.geometry(), _hint(conv, x, y), None),
    )
    chosen_x, chosen_y = lib.query(descriptor, dnn.SRC_MD), lib.query(descriptor, dnn.DIFF_DST_MD)
    chosen = lib.query(descriptor, dnn.DIFF_WEIGHTS_MD)
    arguments = [(dnn.SRC, chosen_x), (dnn.DIFF_DST, chosen_y), (dnn.DIFF_WEIGHTS, chosen)]
    if b is not None:
        arguments.append((dnn.DIFF_BIAS, b))
    packings = Packing(plain_x, chosen_x), Packing(plain_y, chosen_y), Packing(conv.describe_weights(), chosen)
    return Operation(descriptor, arguments), *packings


def _hint(conv: Convolution, x: Any, y: Any) -> Any:
    """The forward descriptor that oneDNN asks for beside a backward one."""
    lib = library()
    weights = lib.describe_any(conv.grouped_shape, conv.data_type)
    return lib.create(
        'convolution_forward_primitive_desc_create',
        *(lib.engine, dnn.FORWARD_TRAINING, dnn.CONVOLUTION_DIRECT, x, weights, None, y, *conv.geometry(), None),
    )
