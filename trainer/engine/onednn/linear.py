"""Fully connected layers."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from trainer.engine.onednn import library as dnn
from trainer.engine.onednn.convert import Packing
from trainer.engine.onednn.library import Descriptor, library
from trainer.engine.onednn.operation import DATA_TYPES, Operation, describe_plain, describe_vector, empty

LARGE = 2**20  # weights


class Problem(NamedTuple):
    """A layer as its primitives are made and remembered for it."""

    n: int  # rows of the batch
    n_in: int
    n_out: int
    data_type: int  # of x and y: F32 or BF16; weights and their gradients are float32

    def describe_rows(self) -> tuple[Descriptor, Descriptor]:
        """x and y."""
        return describe_plain((self.n, self.n_in), self.data_type), describe_plain((self.n, self.n_out), self.data_type)

    def describe_weights(self, data_type: int, gradient: bool = True) -> Descriptor:
        """Small weights in the layout that the primitive likes best; large ones as they are: the copy costs more.

        In float32, the forward pass alone gains from its own layout even then.
        """
        shape = self.n_out, self.n_in
        if self.n_in * self.n_out >= LARGE and (gradient or data_type != dnn.F32):
            return describe_plain(shape, data_type)
        return library().describe_any(shape, data_type)

    def packing(self, chosen: Descriptor, row: int | None = None) -> Packing:
        """From weights whose rows are `row` elements apart, by default without gaps, to what a primitive has chosen."""
        return Packing(library().describe((self.n_out, self.n_in), (row or self.n_in, 1), dnn.F32), chosen)


def forward(x: np.ndarray, W: np.ndarray, b: np.ndarray | None) -> np.ndarray:
    """y = x W^T + b: x (N, inputs) in C order, W (outputs, inputs) and b (outputs,) float32."""
    (n, n_in), n_out = x.shape, W.shape[0]
    y = empty((n, n_out), x.dtype)
    operation, packing = forward_operation(Problem(n, n_in, n_out, DATA_TYPES[x.dtype]), b is not None)
    operation.run(x, packing.packed(W), y, b)
    return y


@functools.lru_cache(256)
def forward_operation(
    problem: Problem, bias: bool, relu: bool = False, inference: bool = False
) -> tuple[Operation, Packing]:
    """The operation on x, packed weights, y, [b]."""
    lib = library()
    x, y = problem.describe_rows()
    weights = problem.describe_weights(problem.data_type, gradient=False)
    b = describe_vector(problem.n_out) if bias else None
    kind = dnn.FORWARD_INFERENCE if inference else dnn.FORWARD_TRAINING
    attributes = lib.attributes([('relu',)] if relu else [])
    descriptor = lib.describe_primitive(
        'inner_product_forward', lib.engine, kind, x, weights, b, y, attributes=attributes
    )
    chosen = lib.query(descriptor, dnn.WEIGHTS_MD)
    arguments = [(dnn.SRC, x), (dnn.WEIGHTS, chosen), (dnn.DST, y), (dnn.BIAS, b)]
    return Operation(descriptor, arguments), problem.packing(chosen)


def backward_data(W: np.ndarray, gy: np.ndarray) -> np.ndarray:
    """The gradient of x."""
    n_out, n_in = W.shape
    gx = empty((len(gy), n_in), gy.dtype)
    operation, packing = _backward_data(Problem(len(gy), n_in, n_out, DATA_TYPES[gy.dtype]))
    operation.run(gy, packing.packed(W), gx)
    return gx


@functools.lru_cache(256)
def _backward_data(problem: Problem) -> tuple[Operation, Packing]:
    lib = library()
    x, y = problem.describe_rows()
    weights = problem.describe_weights(problem.data_type)
    descriptor = lib.describe_primitive('inner_product_backward_data', lib.engine, x, weights, y, _hint(problem))
    chosen = lib.query(descriptor, dnn.WEIGHTS_MD)
    operation = Operation(descriptor, ((dnn.DIFF_DST, y), (dnn.WEIGHTS, chosen), (dnn.DIFF_SRC, x)))
    return operation, problem.packing(chosen)


def backward_weights(x: np.ndarray, gy: np.ndarray, gW: np.ndarray, gb: np.ndarray | None) -> None:
    """The gradients of W into `gW`, whose rows may be apart, and of b into `gb`, float32."""
    n_out, n_in = gW.shape
    # Of columns of the gradient of all weights, rows are further apart than they are long.
    row = gW.strides[0] // gW.itemsize if n_out > 1 else n_in
    problem = Problem(len(gy), n_in, n_out, DATA_TYPES[gy.dtype])
    operation, packing = _backward_weights(problem, gb is not None, row)
    packed = packing.packed_for(gW)
    operation.run(x, gy, packed, gb)
    packing.unpack(packed, gW)


@functools.lru_cache(256)
def _backward_weights(problem: Problem, bias: bool, row: int) -> tuple[Operation, Packing]:
    lib = library()
    x, y = problem.describe_rows()
    weights = problem.describe_weights(dnn.F32)
    b = describe_vector(problem.n_out) if bias else None
    descriptor = lib.describe_primitive('inner_product_backward_weights', lib.engine, x, weights, b, y, _hint(problem))
    chosen = lib.query(descriptor, dnn.DIFF_WEIGHTS_MD)
    arguments = [(dnn.SRC, x), (dnn.DIFF_DST, y), (dnn.DIFF_WEIGHTS, chosen), (dnn.DIFF_BIAS, b)]
    return Operation(descriptor, arguments), problem.packing(chosen, row)


def _hint(problem: Problem) -> Descriptor:
    """The forward descriptor that oneDNN asks for with a backward one."""
    lib = library()
    x, y = problem.describe_rows()
    weights = problem.describe_weights(problem.data_type)
    return lib.describe_primitive('inner_product_forward', lib.engine, dnn.FORWARD_TRAINING, x, weights, None, y)
