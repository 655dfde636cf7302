"""A plan for inference: the operations of oneDNN that a network consists of, and the memory they work on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import chainer
import numpy as np

from trainer.engine.backend import Convolution
from trainer.engine.buffers import ALIGNMENT, Ranges
from trainer.engine.maps import Array, address, channel_slices, pixel_stride
from trainer.engine.onednn import batch_normalization, convolution, elementwise, linear, pooling, response_normalization
from trainer.engine.onednn.convert import convert, reorder_operation
from trainer.engine.onednn.library import BINARY_ADD
from trainer.engine.onednn.operation import BFLOAT16, DATA_TYPES, Operation, PlacedOperation, empty_bytes
from trainer.functions.add import Add
from trainer.functions.batch_normalization import FixedBatchNormalization
from trainer.functions.concat import Concat
from trainer.functions.convolution_2d import Convolution2D
from trainer.functions.linear import Linear
from trainer.functions.local_response_normalization import LocalResponseNormalization
from trainer.functions.node import Call, Cast
from trainer.functions.pooling_2d import AveragePooling2D, GlobalAveragePooling2D, MaxPooling2D
from trainer.functions.relu import ReLU
from trainer.step.trace import CannotPlan, Layer, fold, read_trace

TOLERANCE, TOLERANCE_BF16 = 1e-3, 0.1  # of the largest logit: between a plan and the network it was made of


def in_float(y: Array) -> Array:
    """y itself, or from bfloat16 in float32."""
    return y.astype(np.float32) if y.dtype.kind != 'f' else y


class Plan:
    """The operations of a network for one shape of input, with their memory.

    Args:
        model: maps images to logits.
        calls: the functions it called for x, as `tracing` notes them.
        x: images (N, 3, H, W), float32, NumPy.
        y: the logits.
    """

    def __init__(self, model: chainer.Chain, calls: Sequence[Call], x: np.ndarray, y: np.ndarray) -> None:
        self._lock = threading.Lock()  # one workspace
        self._steps: list[Callable[[], object]] = []
        self._kept: list[tuple[np.ndarray, ...]] = []  # the steps hold the addresses of these arrays
        layers, samples, output = read_trace(model, calls, x, y, _ADDERS)
        expected = in_float(y)
        layers = fold(layers, output)
        self._lay_out(layers, samples, output)
        self._input, self._output = self._arrays[0], self._arrays[output]
        got = self(x)
        tolerance = TOLERANCE_BF16 if any(sample.dtype == BFLOAT16 for sample in samples) else TOLERANCE
        if not np.abs(got - expected).max() <= tolerance * np.abs(expected).max():  # NaN: the network's own business
            raise CannotPlan

    def __call__(self, x: np.ndarray) -> np.ndarray:
        with self._lock:
            convert(x, self._input)
            for step in self._steps:
                step()
            return np.array(self._output, np.float32)

    def _lay_out(self, layers: list[Layer], samples: list[np.ndarray], output: int) -> None:
        """Make arrays for all values, in one workspace, and the steps that compute them."""
        places, n_byte = _assign_places(layers, [sample.nbytes for sample in samples], output)
        workspace = empty_bytes(n_byte)
        self._arrays = {value: _laid_out_as(samples[value], workspace[offset:]) for value, offset in places.items()}
        for layer in layers:
            inputs, outputs = [self._of(v) for v in layer.inputs], [self._of(v) for v in layer.outputs]
            _ADDERS[type(layer.node)](self, layer, inputs, outputs)

    def _of(self, value: int | np.ndarray) -> np.ndarray:
        return self._arrays[value] if isinstance(value, int) else value

    def _run(self, operation: Operation, *arrays: np.ndarray) -> None:
        """Add a step."""
        self._kept.append(arrays)
        self._steps.append(PlacedOperation(operation, [address(array) for array in arrays]))

    # ---- one method for each kind of layer ----

    def _add_convolution(self, layer: Layer, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> None:
        node: Any = layer.node
        xs, W, (y,) = inputs[: node.n_part], inputs[node.n_part], outputs
        b = inputs[node.n_part + 1] if node.has_bias else None
        add = inputs[-1] if node.has_add else None
        after = []
        if layer.scale is not None and layer.shift is not None:
            if add is None:
                W = W * layer.scale[:, None, None, None]
                b = layer.shift + (0 if b is None else b * layer.scale)
            else:  # what is added must be scaled, too
                after = [layer.scale, layer.shift]
        columns = channel_slices(xs) if node.n_part > 1 else [slice(None)]
        for i, (x, column) in enumerate(zip(xs, columns, strict=True)):
            part = np.ascontiguousarray(W[:, column])
            is_last = i == len(xs) - 1
            conv = Convolution(x.shape, part.shape, *node.window)
            operation, packing = convolution.forward_operation(
                convolution.problem_of(conv, x, part),
                *(pixel_stride(x), pixel_stride(y), b is not None, convolution.kind_of_sum(add, y)),
                relu=layer.relu and is_last,
                inference=True,
                affine=bool(after) and is_last,
            )
            operands = [v for v in (b, add) if v is not None and v is not y] + (after if is_last else [])
            self._run(operation, x, packing.packed(part), y, *operands)
            b, add = None, y

    def _add_linear(self, layer: Layer, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> None:
        (x, W, *b), (y,) = inputs, outputs
        bias = b[0] if b else None
        if layer.scale is not None and layer.shift is not None:
            W = W * layer.scale[:, None]
            bias = layer.shift + (0 if bias is None else bias * layer.scale)
        rows = x.reshape(len(x), -1) if x.flags.c_contiguous else np.empty((len(x), x[0].size), x.dtype)
        if not x.flags.c_contiguous:  # the weights are those of a flattened (C, H, W)
            by_channel = rows.reshape(x.shape)
            self._run(reorder_operation(x, by_channel), x, by_channel)
        n_out, n_in = W.shape
        operation, packing = linear.forward_operation(
            linear.Problem(len(x), n_in, n_out, DATA_TYPES[x.dtype]), bias is not None, relu=layer.relu, inference=True
        )
        self._run(operation, rows, packing.packed(np.ascontiguousarray(W)), y, *([] if bias is None else [bias]))

    def _add_batch_normalization(self, layer: Layer, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> None:
        node: Any = layer.node
        *xs, gamma, beta, mean, variance = inputs
        for x, y, c in zip(xs, outputs, channel_slices(xs), strict=True):
            x, y = (v if v.ndim == 4 else v[:, :, None, None] for v in (x, y))
            operation, _ = batch_normalization.forward_operation(
                x.shape, pixel_stride(x), DATA_TYPES[x.dtype], node.eps, node.relu, False
            )
            self._run(operation, x, y, gamma[c], beta[c], mean[c], variance[c])

    def _add_pooling(self, layer: Layer, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> None:
        node: Any = layer.node
        (x,), (y,) = inputs, outputs
        operation, _ = pooling.forward_operation(node.windows, x.shape, pixel_stride(x), DATA_TYPES[x.dtype], False)
        self._run(operation, x, y)

    def _add_global_pooling(self, layer: Layer, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> None:
        (x,), (y,) = inputs, outputs
        self._steps.append(lambda: np.mean(x, axis=(2, 3), dtype=y.dtype, out=y))

    def _add_response_normalization(self, layer: Layer, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> None:
        node: Any = layer.node
        (x,), (y,) = inputs, outputs
        operation, _ = response_normalization.forward_operation(
            x.shape, pixel_stride(x), DATA_TYPES[x.dtype], node.window, False
        )
        self._run(operation, x, y)

    def _add_relu(self, layer: Layer, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> None:
        (x,), (y,) = inputs, outputs
        self._run(elementwise.relu_operation(elementwise.layouts_of(x, y), DATA_TYPES[x.dtype]), x, y)

    def _add_sum(self, layer: Layer, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> None:
        arrays = *inputs, *outputs
        types = DATA_TYPES[arrays[0].dtype], DATA_TYPES[arrays[1].dtype]
        operation = elementwise.binary_operation(BINARY_ADD, elementwise.layouts_of(*arrays), types)
        self._run(operation, *arrays)

    def _add_concatenation(self, layer: Layer, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> None:
        (y,) = outputs
        for x, c in zip(inputs, channel_slices(inputs), strict=True):
            self._run(reorder_operation(x, y[:, c]), x, y[:, c])

    def _add_cast(self, layer: Layer, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> None:
        self._run(reorder_operation(inputs[0], outputs[0]), inputs[0], outputs[0])


Adder: TypeAlias = Callable[[Plan, Layer, list[np.ndarray], list[np.ndarray]], None]
_ADDERS: dict[type, Adder] = {
    Convolution2D: Plan._add_convolution,
    Linear: Plan._add_linear,
    FixedBatchNormalization: Plan._add_batch_normalization,
    MaxPooling2D: Plan._add_pooling,
    AveragePooling2D: Plan._add_pooling,
    GlobalAveragePooling2D: Plan._add_global_pooling,
    LocalResponseNormalization: Plan._add_response_normalization,
    ReLU: Plan._add_relu,
    Add: Plan._add_sum,
    Concat: Plan._add_concatenation,
    Cast: Plan._add_cast,
}


def _assign_places(layers: Sequence[Layer], n_bytes: Sequence[int], output: int) -> tuple[dict[int, int], int]:
    """Where each value lies in the workspace: value -> offset; and how large the workspace is, bytes.

    A place is free for other values after the last layer that reads it. Within a layer no output gets the place of an
    input, since most primitives may not work in place. The output of the network keeps its place to the end.
    """
    last_use = {0: 0, output: len(layers)}
    for i, layer in enumerate(layers):
        for value in layer.inputs:
            if isinstance(value, int):
                last_use[value] = max(last_use.get(value, 0), i)
    ranges = Ranges(1 << 62)  # as much as it takes: `peak` says how much that was
    sizes = [-(-n_byte // ALIGNMENT) * ALIGNMENT for n_byte in n_bytes]
    places = {0: ranges.take(sizes[0])}
    for i, layer in enumerate(layers):
        for value in layer.outputs:
            places[value] = ranges.take(sizes[value])
        for value in {v for v in (*layer.inputs, *layer.outputs) if isinstance(v, int)}:
            if last_use.get(value, i) == i and value != output:
                ranges.give_back(places[value], sizes[value])
    return places, ranges.peak


def _laid_out_as(sample: np.ndarray, room: np.ndarray) -> np.ndarray:
    """An array at the start of `room`: channels last if it has four dimensions, else in C order."""
    flat = room[: sample.nbytes].view(sample.dtype)
    if sample.ndim != 4:
        return flat.reshape(sample.shape)
    n, c, h, w = sample.shape
    return flat.reshape(n, h, w, c).transpose(0, 3, 1, 2)
