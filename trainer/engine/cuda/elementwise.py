"""Sums, rectifier, bias and dropout, element by element."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from trainer.engine import dropout
from trainer.engine.cuda.convert import as_map, as_rows
from trainer.engine.cuda.kernel import N_THREAD, Argument, grid_of, launch, vector_of
from trainer.engine.cuda.memory import empty, empty_map
from trainer.engine.cuda.runtime import runtime
from trainer.engine.dropout import DROPOUT, N_ELEMENT_PER_COUNTER, DropoutKey
from trainer.engine.maps import Array, Shape, misalignments, pixel_stride

Rows: TypeAlias = tuple[Array, int, int]  # what the kernels see: an array, its columns, and elements from row to row


def rows_of(x: Array) -> Rows:
    """A map as rows of channels; anything else, copied into C order if it is not, as one of (N, ...)."""
    if x.ndim == 4:
        x = as_map(x)
        return x, x.shape[1], pixel_stride(x)
    x = as_rows(x)
    columns = x.size // len(x) if x.ndim > 1 else x.size
    return x, columns, columns


def empty_like(x: Array) -> Array:
    """An uninitialised array of the shape and precision of x: a map if x has four dimensions, else in C order."""
    return empty_map(x.shape, x.dtype) if x.ndim == 4 else empty(x.shape, x.dtype)


def _launch(name: str, arguments: list[Argument], like: Array, columns: int, *numbers: int) -> None:
    """Run a kernel over the rows of `like`: `arguments`, then its columns, and how many packs of elements it has.

    numbers: strides and misalignments of all arrays (see `vector_of`).
    """
    n_vector = vector_of(like.dtype, columns, *numbers)
    n_pack = like.size // n_vector
    launch('elementwise', name, grid_of(n_pack), (N_THREAD,), [*arguments, columns, n_pack], like.dtype, n_vector)


def add(x: Array, other: Array, out: Array) -> Array:
    """out = x + other; `out`, a map without gaps if they are maps, may be one of them."""
    (x, columns, ld_x), (other, _, ld_other), (_, _, ld_out) = rows_of(x), rows_of(other), rows_of(out)
    numbers = ld_x, ld_other, ld_out, *misalignments(x, other, out)
    _launch('add', [x, ld_x, other, ld_other, out, ld_out], x, columns, *numbers)
    return out


def sum_of(x: Array, other: Array) -> Array:
    """x + other, of any layouts."""
    return add(x, other, empty_like(x))


def accumulate(x: Array, total: Array) -> Array:
    """total += x: gradients of a parameter, of one layout."""
    flat = x.reshape(-1) if x.flags.c_contiguous else x.transpose(0, 2, 3, 1).reshape(-1)
    flat_total = total.reshape(-1) if total.flags.c_contiguous else total.transpose(0, 2, 3, 1).reshape(-1)
    add(flat, flat_total, flat_total)
    return total


def add_bias(y: Array, bias: Array | None, other: Array | None) -> Array:
    """y += bias of the channel (or None) + other (or None), in place; y is a map."""
    _, columns, ld = rows_of(y)
    ld_other = 0
    if other is not None:
        other, _, ld_other = rows_of(other)
    numbers = ld, ld_other, *misalignments(*(a for a in (y, other) if a is not None))
    _launch('add_bias', [y, ld, bias, other, ld_other], y, columns, *numbers)
    return y


def relu(x: Array) -> Array:
    """max(x, 0); NaN stays."""
    x, columns, ld = rows_of(x)
    y = empty_like(x)
    _launch('relu', [x, ld, y], x, columns, ld, *misalignments(x))
    return y


def relu_backward(y: Array, gy: Array) -> Array:
    """gy where y > 0, else 0."""
    (y, columns, ld), (gy, _, ld_gy) = rows_of(y), rows_of(gy)
    gx = empty_like(y)
    _launch('relu_gradient', [y, ld, gy, ld_gy, gx], y, columns, ld, ld_gy, *misalignments(y, gy))
    return gx


class DropoutMask:
    """A mask of a `DropoutKey`, never in memory: the kernel makes it when it is applied.

    Args:
        shape: of the whole of what is masked, (N, ...).
        ratio: of the elements that are dropped.
        key: of the pass; its next layer is taken.
    """

    def __init__(self, shape: Shape, ratio: float, key: DropoutKey) -> None:
        self.shape = shape
        self.chance = dropout.threshold(ratio), 1 / (1 - ratio)
        rows = key.first_row, key.row_step
        self.key = key.seed, DROPOUT, key.next_layer(), _on_device(key.iteration), *rows

    def apply(self, x: Array, first_channel: int = 0) -> Array:
        """x, masked; of a map that is the channels from `first_channel` on of the whole."""
        x, columns, ld = rows_of(x)
        y = empty_like(x)
        n_channel = self.shape[1] if x.ndim == 4 else columns
        n_pixel = self.shape[2] * self.shape[3] if x.ndim == 4 else 1
        # A thread makes the words of one counter, which are of elements of one image of the whole, and masks those of
        # them that lie in x.
        n_counter = -(-n_pixel * n_channel // N_ELEMENT_PER_COUNTER) * self.shape[0]
        arguments: list[Argument] = [x, ld, y, columns, columns, first_channel, n_channel, n_pixel, self.shape[0]]
        launch(
            'elementwise', 'dropout', grid_of(n_counter), (N_THREAD,), [*arguments, *self.key, *self.chance], x.dtype
        )
        return y

    def as_array(self) -> Array:
        """0 or 1."""
        return self.apply(runtime().xp.ones(self.shape, np.float32)) != 0


def dropout_mask(shape: Shape, ratio: float, key: DropoutKey | None) -> DropoutMask:
    """The next mask of a pass; without a key, of one drawn from NumPy's global generator."""
    return DropoutMask(shape, ratio, key or DropoutKey(int(np.random.randint(2**63)), 0))


def _on_device(iteration: int | Array) -> Array:
    """(1,) uint64 on the device, where a captured graph counts it."""
    if not isinstance(iteration, int):
        return iteration
    counter = runtime().empty((1,), np.uint64)
    runtime().upload(np.array([iteration], np.uint64), counter)
    return counter
