"""Convolution, forward and backward, of channels-last maps."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from trainer.engine.backend import Convolution
from trainer.engine.maps import Map, Shape, pixel_stride
from trainer.engine.onednn import library as dnn
from trainer.engine.onednn import linear
from trainer.engine.onednn.convert import Packing, as_dense_map
from trainer.engine.onednn.library import Descriptor, Dims, PostOp, library, post_op_arg
from trainer.engine.onednn.operation import (
    DATA_TYPES,
    Operation,
    as_pixels,
    describe_map,
    describe_plain,
    describe_vector,
    empty_map,
    window_geometry,
)


class Problem(NamedTuple):
    """A convolution as its primitives are made and remembered for it."""

    conv: Convolution
    data_type: int  # of maps: F32 or BF16; weights and their gradients are float32
    # Elements from the weights of one output channel to those of the next. Of columns W[:, i:j], which belong to some
    # channels of a concatenation, it is that of all weights, so that the columns are read and written where they lie.
    weight_row: int

    @property
    def grouped_shape(self) -> Shape:
        """Of the weights as oneDNN wants them: groups are a dimension of their own."""
        out, *rest = self.conv.weight_shape
        groups = self.conv.groups
        return (groups, out // groups, *rest) if groups > 1 else self.conv.weight_shape

    @property
    def is_matrix_product(self) -> bool:
        """Whether every output pixel is made of the input pixel at its place."""
        conv = self.conv
        return conv.weight_shape[2:] == (1, 1) == conv.stride and conv.pad == (0, 0) and conv.groups == 1

    def describe_maps(self, pixel_x: int, pixel_y: int) -> tuple[Descriptor, Descriptor]:
        """x and y, given their pixel strides."""
        x = describe_map(self.conv.x_shape, pixel_x, self.data_type)
        return x, describe_map(self.conv.y_shape, pixel_y, self.data_type)

    def describe_weights(self) -> Descriptor:
        """As the network holds them: rows of (in, kh, kw) in C order, float32."""
        out, _, kh, kw = self.conv.weight_shape
        strides = [self.weight_row, kh * kw, kw, 1]
        if self.conv.groups > 1:
            strides.insert(0, out // self.conv.groups * self.weight_row)
        return library().describe(self.grouped_shape, strides, dnn.F32)

    def geometry(self) -> tuple[Dims, Dims, Dims, Dims]:
        """Strides, dilations (0: none) and the padding on either side."""
        conv = self.conv
        sizes = conv.x_shape[2:], conv.y_shape[2:]
        return window_geometry(sizes, conv.weight_shape[2:], conv.stride, conv.pad, conv.dilate)


def problem_of(conv: Convolution, x: Map, W: np.ndarray) -> Problem:
    """Of maps in the precision of x, and weights that lie as W."""
    row = W.strides[0] // W.itemsize if len(W) > 1 else W[0].size
    return Problem(conv, DATA_TYPES[x.dtype], row)


def as_weights(W: np.ndarray) -> np.ndarray:
    """As the primitives take them."""
    return np.ascontiguousarray(W)


def forward(conv: Convolution, x: Map, W: np.ndarray, b: np.ndarray | None, y: Map, add: Map | None = None) -> Map:
    """y = x * W + b [+ add]; `add` may be y."""
    x = as_dense_map(x)
    add = add if add is None or add is y else as_dense_map(add)
    operation, packing = forward_operation(
        problem_of(conv, x, W), pixel_stride(x), pixel_stride(y), b is not None, kind_of_sum(add, y)
    )
    operation.run(x, packing.packed(W), y, b, None if add is y else add)
    return y


IN_PLACE = -1


def kind_of_sum(add: Map | None, y: Map) -> int:
    """What `forward_operation` is told of it: 0 for nothing, IN_PLACE for y itself, else its pixel stride.

    y itself is not handed in as an operand besides y: some implementations would overwrite it before they read it.
    """
    if add is None:
        return 0
    return IN_PLACE if add is y else pixel_stride(add)


@functools.lru_cache(1024)
def forward_operation(
    problem: Problem,
    pixel_x: int,
    pixel_y: int,
    bias: bool,
    pixel_add: int,
    relu: bool = False,
    inference: bool = False,
    affine: bool = False,
) -> tuple[Operation, Packing]:
    """The operation on x, packed weights, y, [b], [what is added], [scale and shift of the channels after that].

    pixel_add: see `kind_of_sum`.
    """
    lib, n_out = library(), problem.conv.weight_shape[0]
    x, y = problem.describe_maps(pixel_x, pixel_y)
    weights = lib.describe_any(problem.grouped_shape, problem.data_type)
    b = describe_vector(n_out) if bias else None
    post_ops: list[PostOp] = []
    if pixel_add == IN_PLACE:
        post_ops.append(('sum',))
    elif pixel_add:
        post_ops.append(('add', describe_map(problem.conv.y_shape, pixel_add, problem.data_type)))
    if affine:
        per_channel = describe_plain((1, n_out, 1, 1), dnn.F32)
        post_ops += [('mul', per_channel), ('add', per_channel)]
    # An operand's argument number says to which post-op of the chain it belongs, counted with those that have none.
    operands = [(post_op_arg(i), operand) for i, (_, *operands) in enumerate(post_ops) for operand in operands]
    if relu:
        post_ops.append(('relu',))
    descriptor = lib.describe_primitive(
        'convolution_forward',
        *(lib.engine, dnn.FORWARD_INFERENCE if inference else dnn.FORWARD_TRAINING, dnn.CONVOLUTION_DIRECT),
        *(x, weights, b, y, *problem.geometry()),
        attributes=lib.attributes(post_ops),
    )
    chosen = lib.query(descriptor, dnn.WEIGHTS_MD)
    arguments = [(dnn.SRC, x), (dnn.WEIGHTS, chosen), (dnn.DST, y), (dnn.BIAS, b), *operands]
    return Operation(descriptor, arguments), Packing(problem.describe_weights(), chosen)


def backward_data(conv: Convolution, W: np.ndarray, gy: Map, gx: Map) -> Map:
    """The gradient of x into `gx`, a map."""
    gy = as_dense_map(gy)
    operation, packing = _backward_data(problem_of(conv, gy, W), pixel_stride(gx), pixel_stride(gy))
    operation.run(gy, packing.packed(W), gx)
    return gx


@functools.lru_cache(1024)
def _backward_data(problem: Problem, pixel_x: int, pixel_y: int) -> tuple[Operation, Packing]:
    lib = library()
    x, y = problem.describe_maps(pixel_x, pixel_y)
    weights = lib.describe_any(problem.grouped_shape, problem.data_type)
    descriptor = lib.describe_primitive(
        'convolution_backward_data',
        *(lib.engine, dnn.CONVOLUTION_DIRECT, x, weights, y, *problem.geometry(), _hint(problem, x, y)),
    )
    chosen = lib.query(descriptor, dnn.WEIGHTS_MD)
    operation = Operation(descriptor, ((dnn.DIFF_DST, y), (dnn.WEIGHTS, chosen), (dnn.DIFF_SRC, x)))
    return operation, Packing(problem.describe_weights(), chosen)


def backward_weights(conv: Convolution, x: Map, gy: Map, gW: np.ndarray, gb: np.ndarray | None) -> None:
    """The gradients of W into `gW` and of b into `gb`, in float32."""
    if conv.weight_shape[2:] == (1, 1) and conv.stride != (1, 1) and conv.pad == (0, 0):
        # Of the pixels that the windows see alone: with AVX-512, the library's kernel that skips the others writes
        # beyond its scratchpad where the channels are no multiple of 16.
        (down, across), (_, _, height, width) = conv.stride, gy.shape
        seen = x[:, :, ::down, ::across][:, :, :height, :width]
        x = empty_map(seen.shape, x.dtype)
        x[...] = seen
        conv = conv._replace(x_shape=x.shape, stride=(1, 1))
    x, gy = as_dense_map(x), as_dense_map(gy)
    if x.dtype != np.float32 and gy.shape[3] == 1 and conv.stride[1] > 1:
        # Where a row holds one window, the library's kernel reads on to the end of the step, in memory that nobody has
        # written: 0 times what lies there is not 0 if it is NaN.
        x, gy = x.astype(np.float32), gy.astype(np.float32)
    problem = problem_of(conv, x, gW)
    if problem.is_matrix_product and problem.data_type == dnn.F32:
        # As a matrix product of pixels it is up to ten times faster; in bfloat16 it is not.
        linear.backward_weights(as_pixels(x), as_pixels(gy), gW.reshape(gW.shape[:2]), gb)
        return
    operation, pack_x, pack_y, packing = _backward_weights(problem, pixel_stride(x), pixel_stride(gy), gb is not None)
    packed = packing.packed_for(gW)
    operation.run(pack_x.packed(x), pack_y.packed(gy), packed, gb)
    packing.unpack(packed, gW)


@functools.lru_cache(1024)
def _backward_weights(
    problem: Problem, pixel_x: int, pixel_y: int, bias: bool
) -> tuple[Operation, Packing, Packing, Packing]:
    lib = library()
    plain_x, plain_y = x, y = problem.describe_maps(pixel_x, pixel_y)
    is_f32 = problem.data_type == dnn.F32
    if is_f32 and problem.conv.x_shape[1] > 3 and not lib.has(dnn.INSTRUCTION_SETS['AVX-512']):
        # With AVX2, blocks of channels instead of all of them side by side pay for the copy, by up to a fifth.
        x, y = lib.describe_any(problem.conv.x_shape, dnn.F32), lib.describe_any(problem.conv.y_shape, dnn.F32)
    weights = lib.describe_any(problem.grouped_shape, dnn.F32)
    b = describe_vector(problem.conv.weight_shape[0]) if bias else None
    descriptor = lib.describe_primitive(
        'convolution_backward_weights',
        *(lib.engine, dnn.CONVOLUTION_DIRECT, x, weights, b, y, *problem.geometry(), _hint(problem, x, y)),
    )
    chosen_x, chosen_y = lib.query(descriptor, dnn.SRC_MD), lib.query(descriptor, dnn.DIFF_DST_MD)
    chosen = lib.query(descriptor, dnn.DIFF_WEIGHTS_MD)
    arguments = [(dnn.SRC, chosen_x), (dnn.DIFF_DST, chosen_y), (dnn.DIFF_WEIGHTS, chosen), (dnn.DIFF_BIAS, b)]
    packings = Packing(plain_x, chosen_x), Packing(plain_y, chosen_y), Packing(problem.describe_weights(), chosen)
    return Operation(descriptor, arguments), *packings


def _hint(problem: Problem, x: Descriptor, y: Descriptor) -> Descriptor:
    """The forward descriptor that oneDNN asks for with a backward one."""
    lib = library()
    weights = lib.describe_any(problem.grouped_shape, problem.data_type)
    return lib.describe_primitive(
        'convolution_forward',
        *(lib.engine, dnn.FORWARD_TRAINING, dnn.CONVOLUTION_DIRECT, x, weights, None, y, *problem.geometry()),
    )
