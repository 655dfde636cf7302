"""ONNX models: the weights of any, and a writer of the whole network, which runs wherever ONNX does.

Source: ONNX's `onnx.proto3` (ModelProto, GraphProto, NodeProto, TensorProto) and operators, opset 13.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import chainer
import numpy as np

from squeeze_net.weights import names
from squeeze_net.weights.file import MAX_TENSOR_BYTES, Weights
from squeeze_net.weights.formats import wire
from squeeze_net.weights.formats.wire import put
from squeeze_net.weights.model import arrays_of
from trainer.data.metadata import KEY, Metadata
from trainer.errors import InputError

IR_VERSION, OPSET = 8, 13
MAX_TENSORS, MAX_DIMS = 1 << 14, 8
FLOAT, INT64 = 1, 7  # TensorProto.DataType
DTYPES = {1: '<f4', 2: 'u1', 3: 'i1', 5: '<i2', 6: '<i4', 7: '<i8', 10: '<f2', 11: '<f8'}


# ---- reading ----


def read(raw: memoryview) -> Weights:
    """The initializers of the graph.

    Raises:
        InputError: no such file, a broken one, or one whose tensors lie in other files.
    """
    graph, text = None, None
    for field, _, value in wire.fields(raw):
        if field == 7:
            graph = wire.message(value)
        elif field == 14:
            entry = {number: wire.text(content) for number, _, content in wire.fields(wire.message(value))}
            if entry.get(1) == KEY:
                text = entry.get(2, '')
    if graph is None:
        raise InputError('it holds no graph')
    tensors: dict[str, np.ndarray] = {}
    budget = MAX_TENSOR_BYTES
    for field, _, value in wire.fields(graph):
        if field == 5:
            name, tensor = _read_tensor(wire.message(value))
            budget -= tensor.nbytes
            if len(tensors) == MAX_TENSORS or budget < 0:
                raise InputError(f'it holds more than {MAX_TENSORS} tensors or {MAX_TENSOR_BYTES >> 20} MB of them')
            if name in tensors:
                raise InputError(f'it holds the tensor {name[:80]!r} twice')
            tensors[name] = tensor
    tensors = {name: tensor for name, tensor in tensors.items() if tensor.dtype.kind == 'f'}  # the rest are sizes
    if not tensors:
        raise InputError('its graph holds no weights')
    metadata = Metadata(network=names.torchvision_network(tensors)) if text is None else Metadata.loads(text)
    return Weights(names.from_torch(tensors) if names.is_torch(tensors) else tensors, metadata)


def _read_tensor(tensor: memoryview) -> tuple[str, np.ndarray]:
    name, kind, dims, raw = '', FLOAT, [], None
    lists = {4: wire.Floats('<f4'), 10: wire.Floats('<f8')}
    for field, wire_type, value in wire.fields(tensor):
        if field == 1:
            dims += [wire.number(value)] if wire_type == wire.VARINT else wire.varints(wire.message(value), MAX_DIMS)
            if len(dims) > MAX_DIMS:
                raise InputError(f'a tensor has more than {MAX_DIMS} dimensions')
        elif field == 2:
            kind = wire.number(value)
        elif field == 8:
            name = wire.text(value)
        elif field == 9:
            raw = wire.message(value)
        elif field in lists:
            lists[field].add(value)
        elif field in (13, 14) and value:
            raise InputError(f'the tensor {name[:80]!r} lies in another file, which is not read')
    if kind not in DTYPES:
        raise InputError(f'the tensor {name[:80]!r} is of the ONNX type {kind}, expected one of {sorted(DTYPES)}')
    dtype = np.dtype(DTYPES[kind])
    if raw is None and kind not in (FLOAT, 11):
        return name, np.empty(0, dtype)  # whole numbers one by one: not weights
    if raw is None:
        values = lists[4 if kind == FLOAT else 10].array()
    elif len(raw) % dtype.itemsize:
        raise InputError(f'the tensor {name[:80]!r} has {len(raw)} bytes, no whole number of {dtype}')
    else:
        values = np.frombuffer(raw, dtype)
    if math.prod(dims) != values.size:
        raise InputError(f'the tensor {name[:80]!r} of the shape {dims} holds {values.size} numbers')
    return name, values.reshape(dims)


# ---- writing ----


def write(model: chainer.Chain, weights: Weights, size: int) -> bytes:
    """The network in test mode: images (N, 3, size, size), as its preprocessing makes them, to logits.

    Args:
        model: with the weights in it; called once, on plain Chainer functions.
        weights: whose metadata go along.
        size: px.
    Raises:
        InputError: the network computes something that is not known here; names the function.
    """
    graph = _Graph(model)
    graph.trace(size)
    message = put(1, IR_VERSION) + put(2, 'squeeze_net') + put(7, graph.message(size)) + put(8, put(2, OPSET))
    return message + put(14, put(1, KEY) + put(2, weights.metadata.dumps()))


class _Graph:
    """Nodes and initializers of a network, in the order of their computation."""

    def __init__(self, model: chainer.Chain) -> None:
        self.model = model
        self.nodes: list[bytes] = []
        self.initializers: list[bytes] = []
        self._names: dict[int, str] = {}  # of variable nodes
        self._arrays = arrays_of(model)
        self._paths = {id(array): path for path, array in self._arrays.items()}
        self._written: set[str] = set()
        self._kept: list[Any] = []  # so that ids stay theirs

    def trace(self, size: int) -> None:
        x = chainer.Variable(np.zeros((1, 3, size, size), np.float32))
        self._names[id(x.node)] = 'images'
        for path, parameter in self.model.namedparams():
            self._names[id(parameter.node)] = path[1:]
        with chainer.using_config('train', False), chainer.using_config('engine', 'plain'):
            y = self.model(x)
        self._kept += [x, y]
        found: dict[int, Any] = {}
        stack = [y.creator_node]
        while stack:
            function = stack.pop()
            if function is not None and id(function) not in found:
                found[id(function)] = function
                stack += [node.creator_node for node in function.inputs]
        for function in sorted(found.values(), key=lambda function: function.rank):
            self._add(function)
        self.n_class = y.shape[1]
        self._put_node('Identity', [self._names[id(y.node)]], ['logits'])

    def message(self, size: int) -> bytes:
        nodes = b''.join(put(1, node) for node in self.nodes)
        tensors = b''.join(put(5, tensor) for tensor in self.initializers)
        x, y = _value_info('images', ('N', 3, size, size)), _value_info('logits', ('N', self.n_class))
        return nodes + put(2, type(self.model).__name__) + tensors + put(11, x) + put(12, y)

    def _add(self, function: Any) -> None:
        adders: dict[str, Callable[[Any], tuple[str, dict[str, Any]]]] = {
            'Convolution2DFunction': self._convolution,
            'LinearFunction': lambda f: ('Gemm', {'transB': 1}),
            'FixedBatchNormalization': lambda f: ('BatchNormalization', {'epsilon': float(f.eps)}),
            'ReLU': lambda f: ('Relu', {}),
            'MaxPoolingND': self._max_pooling,
            'Concat': lambda f: ('Concat', {'axis': f.axis}),
            '_ + _': lambda f: ('Add', {}),
            'LocalResponseNormalization': self._response_normalization,
        }
        if function.label in adders:
            kind, attributes = adders[function.label](function)
            self._put_node(kind, self._inputs(function), self._outputs(function), attributes)
        elif function.label == 'SplitAxis' and function.axis == 1:
            sizes = [output().shape[1] for output in function.outputs]
            outputs = self._outputs(function)
            self._put_tensor(f'{outputs[0]}/sizes', np.array(sizes, np.int64))
            self._put_node('Split', [*self._inputs(function), f'{outputs[0]}/sizes'], outputs, {'axis': 1})
        elif function.label == 'Reshape' and len(function.outputs[0]().shape) == 2:
            self._put_node('Flatten', self._inputs(function), self._outputs(function), {'axis': 1})
        elif function.label == 'Mean' and tuple(function.axis) == (2, 3) and not function.keepdims:
            (output,) = self._outputs(function)
            self._put_node('GlobalAveragePool', self._inputs(function), [f'{output}/map'])
            self._put_node('Flatten', [f'{output}/map'], [output], {'axis': 1})
        else:
            raise InputError(f'{type(self.model).__name__} computes {function.label}, which is not written to ONNX')

    def _inputs(self, function: Any) -> list[str]:
        found = []
        for node in function.inputs:
            if id(node) not in self._names and node.data is not None and id(node.data) in self._paths:
                self._names[id(node)] = self._paths[id(node.data)]
                self._kept.append(node)
            if id(node) not in self._names:
                raise InputError(f'{function.label} of {type(self.model).__name__} takes an array that is no parameter')
            found.append(self._names[id(node)])
        return [self._with_weights(name) for name in found]

    def _with_weights(self, name: str) -> str:
        """Have the weights of that name among the initializers, if it is one."""
        if name in self._arrays and name not in self._written:
            self._put_tensor(name, np.asarray(self._arrays[name], np.float32))
        return name

    def _outputs(self, function: Any) -> list[str]:
        found = []
        for i, reference in enumerate(function.outputs):
            node = reference()
            name = f'value{len(self.nodes)}' + (f'_{i}' if i else '')
            found.append(name)
            if node is not None:  # some half that nobody reads
                self._names[id(node)] = name
                self._kept.append(node)
        return found

    def _put_node(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str], attributes: dict[str, Any] | None = None
    ) -> None:
        message = b''.join(put(1, name) for name in inputs) + b''.join(put(2, name) for name in outputs)
        message += put(3, f'{kind}_{len(self.nodes)}') + put(4, kind)
        self.nodes.append(message + b''.join(put(5, _attribute(*item)) for item in (attributes or {}).items()))

    def _put_tensor(self, name: str, array: np.ndarray) -> None:
        self._written.add(name)
        kind = INT64 if array.dtype == np.int64 else FLOAT
        dims = put(1, b''.join(map(wire.encoded, array.shape)))
        data = np.ascontiguousarray(array, DTYPES[kind]).tobytes()
        self.initializers.append(dims + put(2, kind) + put(8, name) + put(9, data))

    def _convolution(self, function: Any) -> tuple[str, dict[str, Any]]:
        return 'Conv', {
            'kernel_shape': list(function.inputs[1].shape[2:]),
            'strides': [function.sy, function.sx],
            'pads': [function.ph, function.pw] * 2,
            'dilations': [function.dy, function.dx],
            'group': function.groups,
        }

    def _max_pooling(self, function: Any) -> tuple[str, dict[str, Any]]:
        """Padded so that nothing is left to rounding up, in which runtimes differ."""
        before = list(function.pad)
        shapes = zip(function.inputs[0].shape[2:], function.outputs[0]().shape[2:], strict=True)
        windows = zip(shapes, function.ksize, function.stride, before, strict=True)
        after = [max(0, (n_out - 1) * stride + ksize - n - pad) for (n, n_out), ksize, stride, pad in windows]
        return 'MaxPool', {
            'kernel_shape': list(function.ksize),
            'strides': list(function.stride),
            'pads': before + after,
        }

    def _response_normalization(self, function: Any) -> tuple[str, dict[str, Any]]:
        """ONNX divides alpha by the number of channels summed over, Chainer does not."""
        return 'LRN', {
            'alpha': float(function.alpha * function.n),
            'beta': float(function.beta),
            'bias': float(function.k),
            'size': function.n,
        }


def _attribute(name: str, value: Any) -> bytes:
    if isinstance(value, float):
        return put(1, name) + put(2, value) + put(20, 1)
    if isinstance(value, int):
        return put(1, name) + put(3, value) + put(20, 2)
    return put(1, name) + b''.join(put(8, int(item)) for item in value) + put(20, 7)


def _value_info(name: str, shape: Sequence[str | int]) -> bytes:
    dims = b''.join(put(1, put(2, n) if isinstance(n, str) else put(1, n)) for n in shape)
    return put(1, name) + put(2, put(1, put(1, FLOAT) + put(2, dims)))
