"""Fully connected layers."""

from __future__ import annotations

import functools

import numpy as np

from trainer.engine.onednn import library as dnn
from trainer.engine.onednn.convert import Packing
from trainer.engine.onednn.library import Descriptor, library
from trainer.engine.onednn.operation import DATA_TYPES, Operation, describe_plain, describe_vector, empty

Shape = tuple[int, int, int]  # batch, inputs, outputs
LARGE = 2**20  # weights


def forward(x: np.ndarray, W: np.ndarray, b: np.ndarray | None) -> np.ndarray:
    """y = x W^T + b: x (N, inputs) in C order, W (outputs, inputs) and b (outputs,) float32."""
    (n, n_in), n_out = x.shape, W.shape[0]
    y = empty((n, n_out), x.dtype)
    operation, packing = forward_operation((n, n_in, n_out), DATA_TYPES[x.dtype], b is not None)
    operation.run(x, packing.packed(W), y, *([] if b is None else [b]))
    return y


@functools.lru_cache(256)
def forward_operation(
    shape: Shape, data_type: int, bias: bool, relu: bool = False, inference: bool = False
) -> tuple[Operation, Packing]:
    n, n_in, n_out = shape
    lib = library()
    x, y = describe_plain((n, n_in), data_type), describe_plain((n, n_out), data_type)
    weights = _describe_weights(shape, data_type, gradient=False)
    b = describe_vector(n_out) if bias else None
    kind = dnn.FORWARD_INFERENCE if inference else dnn.FORWARD_TRAINING
    descriptor = lib.create(
        'inner_product_forward_primitive_desc_create',
        *(lib.engine, kind, x, weights, b, y, lib.attributes([('relu',)] if relu else [])),
    )
    chosen = lib.query(descriptor, dnn.WEIGHTS_MD)
    arguments = [(dnn.SRC, x), (dnn.WEIGHTS, chosen), (dnn.DST, y)]
    if b is not None:
        arguments.append((dnn.BIAS, b))
    return Operation(descriptor, arguments), Packing(describe_plain((n_out, n_in), dnn.F32), chosen)


def backward_data(W: np.ndarray, gy: np.ndarray) -> np.ndarray:
    """The gradient of x."""
    n_out, n_in = W.shape
    gx = empty((len(gy), n_in), gy.dtype)
    operation, packing = _backward_data((len(gy), n_in, n_out), DATA_TYPES[gy.dtype])
    operation.run(gy, packing.packed(W), gx)
    return gx


@functools.lru_cache(256)
def _backward_data(shape: Shape, data_type: int) -> tuple[Operation, Packing]:
    n, n_in, n_out = shape
    lib = library()
    x, y = describe_plain((n, n_in), data_type), describe_plain((n, n_out), data_type)
    weights = _describe_weights(shape, data_type)
    descriptor = lib.create(
        'inner_product_backward_data_primitive_desc_create', lib.engine, x, weights, y, _hint(shape, data_type), None
    )
    chosen = lib.query(descriptor, dnn.WEIGHTS_MD)
    operation = Operation(descriptor, ((dnn.DIFF_DST, y), (dnn.WEIGHTS, chosen), (dnn.DIFF_SRC, x)))
    return operation, Packing(describe_plain((n_out, n_in), dnn.F32), chosen)


def backward_weights(x: np.ndarray, gy: np.ndarray, gW: np.ndarray, gb: np.ndarray | None) -> None:
    """The gradients of W into `gW`, whose rows may be apart, and of b into `gb`, float32."""
    n_out, n_in = gW.shape
    # Of columns of the gradient of all weights, rows are further apart than they are long.
    row = gW.strides[0] // gW.itemsize if n_out > 1 else n_in
    operation, packing = _backward_weights((len(gy), n_in, n_out), DATA_TYPES[gy.dtype], gb is not None, row)
    packed = packing.packed_for(gW)
    operation.run(x, gy, packed, *([] if gb is None else [gb]))
    packing.unpack(packed, gW)


@functools.lru_cache(256)
def _backward_weights(shape: Shape, data_type: int, bias: bool, row: int) -> tuple[Operation, Packing]:
    n, n_in, n_out = shape
    lib = library()
    x, y = describe_plain((n, n_in), data_type), describe_plain((n, n_out), data_type)
    weights = _describe_weights(shape, dnn.F32)
    b = describe_vector(n_out) if bias else None
    descriptor = lib.create(
        'inner_product_backward_weights_primitive_desc_create',
        *(lib.engine, x, weights, b, y, _hint(shape, data_type), None),
    )
    chosen = lib.query(descriptor, dnn.DIFF_WEIGHTS_MD)
    arguments = [(dnn.SRC, x), (dnn.DIFF_DST, y), (dnn.DIFF_WEIGHTS, chosen)]
    if b is not None:
        arguments.append((dnn.DIFF_BIAS, b))
    return Operation(descriptor, arguments), Packing(lib.describe((n_out, n_in), (row, 1), dnn.F32), chosen)


def _describe_weights(shape: Shape, data_type: int, gradient: bool = True) -> Descriptor:
    """Small weights in the layout that the primitive likes best; large ones as they are, since the copy costs more.

    In float32, the forward pass alone gains from its own layout even then.
    """
    _, n_in, n_out = shape
    if n_in * n_out >= LARGE and (gradient or data_type != dnn.F32):
        return describe_plain((n_out, n_in), data_type)
    return library().describe_any((n_out, n_in), data_type)


def _hint(shape: Shape, data_type: int) -> Descriptor:
    n, n_in, n_out = shape
    lib = library()
    x, y = describe_plain((n, n_in), data_type), describe_plain((n, n_out), data_type)
    weights = _describe_weights(shape, data_type)
    return lib.create(
        'inner_product_forward_primitive_desc_create', lib.engine, dnn.FORWARD_TRAINING, x, weights, None, y, None
    )
