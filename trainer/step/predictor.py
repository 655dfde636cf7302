"""Inference: a network's test-mode computation, laid out once for a size of input and then replayed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import chainer
import numpy as np

from trainer import engine
from trainer.engine.buffers import ALIGNMENT, Ranges
from trainer.engine.errors import EngineError
from trainer.engine.onednn import convolution, elementwise, library, linear, normalization, pooling
from trainer.engine.onednn.convert import convert, reorder_operation
from trainer.engine.onednn.operation import BFLOAT16, BUFFERS, DATA_TYPES, Operation, PlacedOperation, pixel_stride
from trainer.functions.add import Add
from trainer.functions.batch_normalization import FixedBatchNormalization
from trainer.functions.cast import Cast
from trainer.functions.concat import Concat, channels
from trainer.functions.convolution_2d import Convolution2D
from trainer.functions.linear import Linear
from trainer.functions.local_response_normalization import LocalResponseNormalization
from trainer.functions.node import EngineFunction, tracing
from trainer.functions.pooling_2d import AveragePooling2D, GlobalAveragePooling2D, MaxPooling2D
from trainer.functions.relu import ReLU

TOLERANCE, TOLERANCE_BF16 = 1e-3, 0.1  # of the largest logit: between a plan and the network it was made of


class Predictor:
    """Images to logits, in test mode and without a graph.

    Where the CPU engine serves, the network runs once for each new shape of input and what it computes is noted down;
    batch normalisation and rectifiers are folded into the convolutions before them, weights are brought into the
    layout of the primitives, all memory is laid out, and from then on that plan is replayed. A network whose
    Python code decides by the values of its maps must not be planned: give `plan=False`. A network that computes
    with something the engine does not know is not planned, and just called.

    The weights are those at the time of the first call; make a new predictor when they have changed.

    Args:
        model: maps images (N, 3, H, W) to logits (N, n_class).
        plan: whether to plan where it can be.
    """

    def __init__(self, model: chainer.Chain, plan: bool = True) -> None:
        self.model, self._may_plan = model, plan
        self._plans: dict[Any, Callable[[Any], Any]] = {}

    def __call__(self, x: Any) -> Any:
        """Logits (N, n_class), float32 at least, on the device of x."""
        settings = chainer.config.engine, chainer.config.compute_dtype
        key = x.shape, x.dtype, type(x), settings
        if key in self._plans:
            return self._plans[key](x)
        with tracing() as calls:
            y = self._call(x)
        is_on_cpu = engine.of(x) is engine.onednn and engine.serves(x)
        if self._may_plan and isinstance(self.model, chainer.Link) and is_on_cpu:
            try:
                self._plans[key] = _Plan(self.model, calls, x, y)
            except _CannotPlan:
                self._may_plan = False
            except EngineError as error:
                self._may_plan = False
                engine.refuse(error, 'a plan for inference')
        return _in_float(y)

    def _call(self, x: Any) -> Any:
        with chainer.using_config('train', False), chainer.no_backprop_mode():
            return self.model(x).array


def _in_float(y: Any) -> Any:
    return y.astype(np.float32) if y.dtype.kind != 'f' else y


class _CannotPlan(Exception):
    """The network computes with something the plan does not know."""


@dataclass
class _Layer:
    """One function of the network.

    inputs: a number is a value that another layer computes, an array is a constant.
    """

    node: EngineFunction
    inputs: list[int | np.ndarray]
    outputs: list[int]
    scale: np.ndarray | None = None  # (C,) float32: what follows it, folded into it
    shift: np.ndarray | None = None
    relu: bool = False

    def fold(self, scale: np.ndarray, shift: np.ndarray) -> None:
        self.scale, self.shift = scale, shift


class _Plan:
    """The operations of a network for one shape of input, with their memory.

    Args:
        model: maps images to logits.
        calls: the functions it called for x, as `tracing` notes them.
        x: images (N, 3, H, W), float32, NumPy.
        y: the logits.
    """

    def __init__(self, model: chainer.Chain, calls: Any, x: np.ndarray, y: np.ndarray) -> None:
        self._steps: list[Callable[[], object]] = []
        self._kept: list[Any] = []  # arrays whose addresses the steps hold
        layers, samples, output = _read_trace(model, calls, x, y)
        expected = _in_float(y)
        layers = _fold(layers, output)
        self.layers = [layer.node for layer in layers]  # what remains after folding, in order
        self._lay_out(layers, samples, output)
        self._input, self._output = self._arrays[0], self._arrays[output]
        got = self(x)
        tolerance = TOLERANCE_BF16 if any(sample.dtype == BFLOAT16 for sample in samples) else TOLERANCE
        if not np.abs(got - expected).max() <= tolerance * np.abs(expected).max():  # NaN: the network's own business
            raise _CannotPlan

    def __call__(self, x: np.ndarray) -> np.ndarray:
        convert(x, self._input)
        for step in self._steps:
            step()
        return np.array(self._output, np.float32)

    # ---- memory ----

    def _lay_out(self, layers: list[_Layer], samples: list[np.ndarray], output: int) -> None:
        """Give every value a place in one workspace, to be used again after its last use, and make the steps."""
        last_use = {0: 0, output: len(layers)}
        for i, layer in enumerate(layers):
            for value in layer.inputs:
                if isinstance(value, int):
                    last_use[value] = max(last_use.get(value, 0), i)
        ranges = Ranges(1 << 62)
        places: dict[int, tuple[int, int]] = {}

        def take(value: int) -> None:
            n_byte = -(-samples[value].nbytes // ALIGNMENT) * ALIGNMENT
            places[value] = ranges.take(n_byte), n_byte

        take(0)
        for i, layer in enumerate(layers):
            for value in layer.outputs:
                take(value)
            for value in {v for v in (*layer.inputs, *layer.outputs) if isinstance(v, int)}:
                if last_use.get(value, i) == i and value != output:
                    ranges.give_back(*places[value])
        workspace = BUFFERS.empty((ranges.peak,), (1,), ranges.peak, np.dtype(np.uint8))
        self._arrays = {
            value: _laid_out_as(samples[value], workspace[offset:]) for value, (offset, _) in places.items()
        }
        for layer in layers:
            self._add(layer)

    def _of(self, value: int | np.ndarray) -> np.ndarray:
        return self._arrays[value] if isinstance(value, int) else value

    def _run(self, operation: Operation, *arrays: np.ndarray) -> None:
        """Add a step."""
        self._kept.append(arrays)
        addresses = [array.__array_interface__['data'][0] for array in arrays]
        self._steps.append(PlacedOperation(operation, addresses))

    # ---- one method a kind of layer ----

    def _add(self, layer: _Layer) -> None:
        inputs, outputs = [self._of(v) for v in layer.inputs], [self._of(v) for v in layer.outputs]
        kind: Any = type(layer.node)
        _ADDERS[kind](self, layer, inputs, outputs)

    def _add_convolution(self, layer: _Layer, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> None:
        node: Any = layer.node
        xs, W, (y,) = inputs[: node.n_part], inputs[node.n_part], outputs
        b = inputs[node.n_part + 1] if node.has_bias else None
        add = inputs[-1] if node.has_add else None
        after = []
        if layer.scale is not None and layer.shift is not None:
            if add is None:
                W = W * layer.scale[:, None, None, None]
                b = layer.shift + (0 if b is None else b * layer.scale)
            else:  # what is added has to be scaled, too
                after = [layer.scale, layer.shift]
        columns = channels(xs) if node.n_part > 1 else [slice(None)]
        for i, (x, column) in enumerate(zip(xs, columns, strict=True)):
            part = np.ascontiguousarray(W[:, column])
            is_last = i == len(xs) - 1
            operation, packing = convolution.forward_operation(
                convolution.describe(x, part, *node.window),
                *(pixel_stride(x), pixel_stride(y), b is not None, convolution.kind_of_sum(add, y)),
                relu=layer.relu and is_last,
                inference=True,
                affine=bool(after) and is_last,
            )
            operands = [v for v in (b, add) if v is not None and v is not y] + (after if is_last else [])
            self._run(operation, x, packing.packed(part), y, *operands)
            b, add = None, y

    def _add_linear(self, layer: _Layer, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> None:
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
            (len(x), n_in, n_out), DATA_TYPES[x.dtype], bias is not None, relu=layer.relu, inference=True
        )
        self._run(operation, rows, packing.packed(np.ascontiguousarray(W)), y, *([] if bias is None else [bias]))

    def _add_batch_normalization(self, layer: _Layer, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> None:
        node: Any = layer.node
        *xs, gamma, beta, mean, variance = inputs
        for x, y, c in zip(xs, outputs, channels(xs), strict=True):
            x, y = (v if v.ndim == 4 else v[:, :, None, None] for v in (x, y))
            operation, _ = normalization.forward_operation(
                x.shape, pixel_stride(x), DATA_TYPES[x.dtype], node.eps, node.relu, False
            )
            self._run(operation, x, y, gamma[c], beta[c], mean[c], variance[c])

    def _add_pooling(self, layer: _Layer, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> None:
        node: Any = layer.node
        (x,), (y,) = inputs, outputs
        operation, _ = pooling.forward_operation(node.windows, x.shape, pixel_stride(x), DATA_TYPES[x.dtype], False)
        self._run(operation, x, y)

    def _add_global_pooling(self, layer: _Layer, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> None:
        (x,), (y,) = inputs, outputs
        self._steps.append(lambda: np.mean(x, axis=(2, 3), dtype=y.dtype, out=y))

    def _add_response_normalization(self, layer: _Layer, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> None:
        node: Any = layer.node
        (x,), (y,) = inputs, outputs
        operation, _ = normalization.response_operation(
            x.shape, pixel_stride(x), DATA_TYPES[x.dtype], node.window, False
        )
        self._run(operation, x, y)

    def _add_relu(self, layer: _Layer, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> None:
        (x,), (y,) = inputs, outputs
        self._run(elementwise.relu_operation(elementwise.layouts_of(x, y), DATA_TYPES[x.dtype]), x, y)

    def _add_sum(self, layer: _Layer, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> None:
        arrays = *inputs, *outputs
        types = DATA_TYPES[arrays[0].dtype], DATA_TYPES[arrays[1].dtype]
        operation = elementwise.binary_operation(library.BINARY_ADD, elementwise.layouts_of(*arrays), types, False)
        self._run(operation, *arrays)

    def _add_concatenation(self, layer: _Layer, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> None:
        (y,) = outputs
        for x, c in zip(inputs, channels(inputs), strict=True):
            self._run(reorder_operation(x, y[:, c]), x, y[:, c])

    def _add_cast(self, layer: _Layer, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> None:
        self._run(reorder_operation(inputs[0], outputs[0]), inputs[0], outputs[0])


_ADDERS: dict[type, Any] = {
    Convolution2D: _Plan._add_convolution,
    Linear: _Plan._add_linear,
    FixedBatchNormalization: _Plan._add_batch_normalization,
    MaxPooling2D: _Plan._add_pooling,
    AveragePooling2D: _Plan._add_pooling,
    GlobalAveragePooling2D: _Plan._add_global_pooling,
    LocalResponseNormalization: _Plan._add_response_normalization,
    ReLU: _Plan._add_relu,
    Add: _Plan._add_sum,
    Concat: _Plan._add_concatenation,
    Cast: _Plan._add_cast,
}


def _laid_out_as(sample: np.ndarray, room: np.ndarray) -> np.ndarray:
    """An array at the start of `room`: channels last if it has four dimensions, else in C order."""
    flat = room[: sample.nbytes].view(sample.dtype)
    if sample.ndim != 4:
        return flat.reshape(sample.shape)
    n, c, h, w = sample.shape
    return flat.reshape(n, h, w, c).transpose(0, 3, 1, 2)


def _read_trace(
    model: chainer.Chain, calls: Any, x: np.ndarray, y: np.ndarray
) -> tuple[list[_Layer], list[np.ndarray], int]:
    """What the network computed.

    Returns:
        Layers in order; an array like each value (value 0 is x); and the number of the value that is y.
    """
    constants = {id(array) for array in _arrays_of(model)}
    samples: list[np.ndarray] = [x]
    numbers = {id(x): 0}
    layers = []
    for node, inputs, outputs in calls:
        if type(node) not in _ADDERS:
            raise _CannotPlan
        layer = _Layer(node, [], [])
        for array in inputs:
            if id(array) not in numbers and id(array) not in constants:
                raise _CannotPlan  # a function that the trace does not see has made it
            layer.inputs.append(numbers.get(id(array), array))
        for array in outputs:
            numbers[id(array)] = len(samples)
            layer.outputs.append(len(samples))
            samples.append(array)
        layers.append(layer)
    if id(y) not in numbers or y.ndim != 2:
        raise _CannotPlan
    return layers, samples, numbers[id(y)]


def _arrays_of(model: chainer.Chain) -> list[np.ndarray]:
    """Parameters and persistent arrays of all links."""
    arrays: list[Any] = [parameter.array for parameter in model.params()]
    for link in model.links():
        arrays += [getattr(link, name) for name in link._persistent]
    return arrays


def _fold(layers: list[_Layer], output: int) -> list[_Layer]:
    """Fold batch normalisation and rectifiers into the convolutions and linear layers whose outputs only they read."""
    readers: dict[int, int] = {output: 1}
    for layer in layers:
        for value in layer.inputs:
            if isinstance(value, int):
                readers[value] = readers.get(value, 0) + 1
    maker = {value: layer for layer in layers for value in layer.outputs}

    def foldable(value: Any) -> _Layer | None:
        made_by = maker.get(value) if isinstance(value, int) and readers[value] == 1 else None
        is_open = made_by is not None and type(made_by.node) in (Convolution2D, Linear) and not made_by.relu
        return made_by if is_open else None

    kept = []
    for layer in layers:
        node: Any = layer.node
        if type(node) is FixedBatchNormalization:
            *xs, gamma, beta, mean, variance = layer.inputs
            makers = [foldable(x) for x in xs]
            if all(m is not None and m.scale is None for m in makers):
                scale = gamma / np.sqrt(variance + np.float32(node.eps))
                shift = beta - mean * scale
                start = 0
                for made_by, y in zip(makers, layer.outputs, strict=True):
                    part = slice(start, start + _n_out(made_by))
                    made_by.fold(scale[part].copy(), shift[part].copy())  # type: ignore[union-attr]
                    made_by.relu, made_by.outputs = node.relu, [y]  # type: ignore[union-attr]
                    maker[y], start = made_by, part.stop  # type: ignore[assignment]
                continue
        if type(node) is ReLU and (made_by := foldable(layer.inputs[0])) is not None:
            made_by.relu, made_by.outputs = True, layer.outputs
            maker[layer.outputs[0]] = made_by
            continue
        kept.append(layer)
    return kept


def _n_out(layer: _Layer | None) -> int:
    weights: Any = layer.inputs[layer.node.n_part if type(layer.node) is Convolution2D else 1]  # type: ignore
    return len(weights)
