"""Primitives bound to arrays: described by their layout, made once, run on whatever memory is handed in."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from ctypes import Array as CArray
from ctypes import c_void_p
from typing import TypeAlias

import ml_dtypes
import numpy as np

from trainer.engine.buffers import Buffers, physical_memory
from trainer.engine.maps import DType, Map, Pair, Shape, address
from trainer.engine.onednn import library as dnn
from trainer.engine.onednn.library import Descriptor, Dims, ExecuteArgument, dims, library

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT32 = np.dtype(np.float32)
DATA_TYPES = {BFLOAT16: dnn.BF16, FLOAT32: dnn.F32, np.dtype(np.uint8): dnn.U8}

BUFFERS = Buffers(physical_memory())
_RUNNING = threading.Lock()  # an operation's arguments are rebound at each run, so one runs at a time


Argument: TypeAlias = tuple[int, Descriptor | None]  # its number, and how it lies in memory


class _Scratchpad:
    """What primitives need for themselves while they run: one piece of memory for all, since one runs at a time.

    It holds nothing from one run to the next, and grows with the largest need.
    """

    def __init__(self) -> None:
        self._memories: list[c_void_p] = []
        self._room = np.empty(0, np.uint8)

    def of(self, n_byte: int) -> c_void_p:
        """A memory object of at least so many bytes."""
        lib = library()
        with _RUNNING:
            if n_byte > len(self._room):
                room = empty_bytes(n_byte)
                descriptor = lib.describe((n_byte,), (1,), dnn.U8)
                self._memories.append(lib.create('memory_create', descriptor, lib.engine, address(room)))
                for memory in self._memories:
                    lib.set_data_handle(memory, address(room))
                self._room = room
            return self._memories[-1]


_SCRATCHPAD = _Scratchpad()


class Operation:
    """A primitive and its arguments.

    One operation serves all arrays of the same layouts: its memory objects say how arrays lie, and at each run get the
    addresses at which they lie now. What a primitive needs for itself lies in `_SCRATCHPAD`.

    Args:
        primitive_descriptor: what to compute.
        arguments: (argument number, memory descriptor) of each, in the order in which `run` takes them; None for one
            that is left out.
    """

    def __init__(self, primitive_descriptor: Descriptor, arguments: Sequence[Argument]) -> None:
        lib = library()
        self.name = lib.implementation(primitive_descriptor)
        self.primitive = lib.create('primitive_create', primitive_descriptor)
        n_byte = lib.size(lib.query(primitive_descriptor, dnn.SCRATCHPAD_MD))
        self._scratchpad = _SCRATCHPAD.of(n_byte) if n_byte else None
        self._described = [(number, descriptor) for number, descriptor in arguments if descriptor is not None]
        self._memories, self._arguments = self.place([None] * len(self._described))
        self._execute, self._set_data_handle = lib.execute, lib.set_data_handle
        self._stream, self._n_argument = lib.stream, len(self._arguments)

    def place(self, addresses: Sequence[int | None]) -> tuple[list[c_void_p], CArray[ExecuteArgument]]:
        """Memory objects at these addresses, and the primitive's arguments made of them."""
        lib = library()
        memories = [
            lib.create('memory_create', descriptor, lib.engine, address)
            for (_, descriptor), address in zip(self._described, addresses, strict=True)
        ]
        numbered = zip((number for number, _ in self._described), memories, strict=True)
        arguments = [ExecuteArgument(*pair) for pair in numbered]
        if self._scratchpad is not None:
            arguments.append(ExecuteArgument(dnn.SCRATCHPAD, self._scratchpad))
        return memories, (ExecuteArgument * len(arguments))(*arguments)

    def run(self, *arrays: np.ndarray | None) -> None:
        """Compute on these arrays; None for those that are left out."""
        addresses = [array.__array_interface__['data'][0] for array in arrays if array is not None]
        with _RUNNING:
            for memory, address in zip(self._memories, addresses, strict=True):
                self._set_data_handle(memory, address)
            status = self._execute(self.primitive, self._stream, self._n_argument, self._arguments)
        if status:
            library().check(status, 'primitive_execute')


class PlacedOperation:
    """An operation on arrays that stay where they are: it sets no addresses when it runs.

    Args:
        operation: what to compute.
        addresses: of its arrays, which must live as long.
    """

    def __init__(self, operation: Operation, addresses: Sequence[int]) -> None:
        self._operation = operation  # owns the primitive
        self._memories, arguments = operation.place(addresses)
        lib = library()
        self._execution = operation.primitive, lib.stream, len(arguments), arguments
        self._execute, self._destroy = lib.execute, lib.memory_destroy

    def __call__(self) -> None:
        with _RUNNING:
            status = self._execute(*self._execution)
        if status:
            library().check(status, 'primitive_execute')

    def __del__(self) -> None:
        for memory in self._memories:
            self._destroy(memory)


# ---- maps: arrays (N, C, H, W) whose channels lie side by side in memory ----


def empty_map(shape: Shape, dtype: DType) -> Map:
    """An uninitialised channels-last map."""
    n, c, h, w = shape
    size = dtype.itemsize
    return BUFFERS.empty(shape, (h * w * c * size, size, w * c * size, c * size), n * c * h * w * size, dtype)


def empty_bytes(n_byte: int) -> np.ndarray:
    """For what a primitive keeps in a form of its own: packed weights, the workspace of a backward pass."""
    return BUFFERS.empty((n_byte,), (1,), n_byte, np.dtype(np.uint8))


def empty(shape: Shape, dtype: DType) -> np.ndarray:
    """An uninitialised array in C order."""
    strides, n_byte = [], dtype.itemsize
    for length in reversed(shape):
        strides.append(n_byte)
        n_byte *= length
    return BUFFERS.empty(shape, tuple(reversed(strides)), n_byte, dtype)


def workspace_of(descriptor: Descriptor) -> tuple[Descriptor | None, int]:
    """What a forward primitive keeps for the backward one, and its bytes; (None, 0) if it is nothing."""
    lib = library()
    workspace = lib.query(descriptor, dnn.WORKSPACE_MD)
    n_byte = lib.size(workspace) if workspace else 0  # it may have none
    return (workspace, n_byte) if n_byte else (None, 0)


def empty_workspace(n_byte: int) -> np.ndarray | None:
    """Memory for it, or None."""
    return empty_bytes(n_byte) if n_byte else None


def window_geometry(
    sizes: tuple[Shape, Shape], kernel: Shape, stride: Pair, pad: Pair, dilate: Pair = (1, 1)
) -> tuple[Dims, Dims, Dims, Dims]:
    """Strides, dilations (0: none) and the padding on either side of windows that move over a map.

    oneDNN wants the padding after the last row and column, too. It is what the last window needs: more than `pad` where
    that reaches over the edge, less where the windows do not come out even, and never negative.

    Args:
        sizes: height and width of x, and of y, px.
        kernel, stride, pad, dilate: (vertical, horizontal), px.
    """
    after = [
        max((n_window - 1) * s + d * (k - 1) + 1 - length - p, 0)
        for length, n_window, k, s, p, d in zip(*sizes, kernel, stride, pad, dilate, strict=True)
    ]
    return dims(stride), dims([d - 1 for d in dilate]), dims(pad), dims(after)


def as_pixels(x: Map) -> np.ndarray:
    """A map (N, C, H, W) without gaps as rows (N * H * W, C), in the same memory."""
    return x.transpose(0, 2, 3, 1).reshape(-1, x.shape[1])


def describe_map(shape: Shape, pixel: int, data_type: int) -> Descriptor:
    """Of a map with this pixel stride. To oneDNN sizes are (N, C, H, W) whatever the strides, which are of elements."""
    _, _, h, w = shape
    return library().describe(shape, (h * w * pixel, 1, w * pixel, pixel), data_type)


def describe_plain(shape: Sequence[int], data_type: int) -> Descriptor:
    """In C order."""
    strides = [1]
    for length in reversed(shape[1:]):
        strides.append(strides[-1] * length)
    return library().describe(shape, strides[::-1], data_type)


def describe_vector(n: int, data_type: int = dnn.F32) -> Descriptor:
    """Of n elements without a gap."""
    return library().describe((n,), (1,), data_type)
