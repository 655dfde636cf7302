"""ONNX models: the weights of any, and a writer of the whole network, which runs wherever ONNX does.

Source: ONNX's operators, opset 13.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import chainer
import numpy as np

from squeeze_net.weights.formats.layer_names import read_torch
from squeeze_net.weights.formats.protobuf import parse
from squeeze_net.weights.network import arrays_of, build
from squeeze_net.weights.record import MAX_TENSOR_BYTES, Weights
from trainer.data.metadata import KEY
from trainer.errors import InputError

IR_VERSION, OPSET = 8, 13
MAX_TENSORS = 1 << 14
DTYPES = ('FLOAT', 'UINT8', 'INT8', 'INT16', 'INT32', 'INT64', 'FLOAT16', 'DOUBLE')


def _import_onnx() -> ModuleType:
    try:
        import onnx
    except ModuleNotFoundError:
        raise InputError('.onnx files need the package onnx: pip install onnx') from None
    return onnx


# ---- reading ----


def read(raw: memoryview) -> Weights:
    """The initializers of the graph.

    Raises:
        InputError: no such file, a broken one, or one whose tensors lie in other files.
    """
    model = parse(_import_onnx().ModelProto, raw, 'an ONNX model')
    if not model.HasField('graph'):
        raise InputError('it holds no graph')
    tensors: dict[str, np.ndarray] = {}
    budget = MAX_TENSOR_BYTES
    for proto in model.graph.initializer:
        name = _text(proto.name)
        tensor = _read_tensor(proto, name[:80])
        budget -= tensor.nbytes
        if len(tensors) == MAX_TENSORS or budget < 0:
            raise InputError(f'it holds more than {MAX_TENSORS} tensors or {MAX_TENSOR_BYTES >> 20} MB of them')
        if name in tensors:
            raise InputError(f'it holds the tensor {name[:80]!r} twice')
        tensors[name] = tensor
    tensors = {name: tensor for name, tensor in tensors.items() if tensor.dtype.kind == 'f'}  # the rest are sizes
    if not tensors:
        raise InputError('its graph holds no weights')
    texts = {entry.key: _text(entry.value) for entry in model.metadata_props}
    return read_torch(tensors, texts.get(KEY))


def _text(value: str | bytes) -> str:
    """A string of a message, which comes as bytes if it is not UTF-8."""
    return value if isinstance(value, str) else value.decode('utf-8', 'replace')


def _read_tensor(proto: Any, name: str) -> np.ndarray:
    onnx = _import_onnx()
    if proto.external_data or proto.data_location == onnx.TensorProto.EXTERNAL:
        raise InputError(f'the tensor {name!r} lies in another file, which is not read')
    if proto.data_type not in [onnx.TensorProto.DataType.Value(dtype) for dtype in DTYPES]:
        raise InputError(f'the tensor {name!r} is of the ONNX type {proto.data_type}, expected {", ".join(DTYPES)}')
    try:
        return onnx.numpy_helper.to_array(proto)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f'the tensor {name!r} cannot be read ({" ".join(str(error).split())[:80]})') from None


# ---- writing ----


def write(weights: Weights) -> bytes:
    """The network in test mode: images (N, 3, size, size), as its preprocessing makes them, to logits (N, n_class).

    Raises:
        InputError: the network is not known, or computes something that is not known here; names the function.
    """
    helper = _import_onnx().helper
    model, size = build(weights, 'an .onnx file')
    graph = _Graph(model, size).proto()
    opset = helper.make_opsetid('', OPSET)
    proto = helper.make_model(graph, producer_name='squeeze_net', ir_version=IR_VERSION, opset_imports=[opset])
    helper.set_model_props(proto, {KEY: weights.metadata.dumps()})
    return proto.SerializeToString()


class _Graph:
    """Nodes and initializers of a network, in the order of their computation; functions are `chainer.FunctionNode`s.

    Args:
        model: with its weights; called once, on plain Chainer functions.
        size: of the images, px.
    """

    def __init__(self, model: chainer.Chain, size: int) -> None:
        self.onnx = _import_onnx()
        self.model, self.size = model, size
        self.nodes: list[Any] = []
        self.initializers: dict[str, Any] = {}
        self._arrays = arrays_of(model)
        self._paths = {id(array): path for path, array in self._arrays.items()}
        x = chainer.Variable(np.zeros((1, 3, size, size), np.float32))
        self._names = {id(x.node): 'images'}  # of variable nodes, all of which `y` and the model keep alive
        self._names |= {id(parameter.node): path[1:] for path, parameter in model.namedparams()}
        with chainer.using_config('train', False), chainer.using_config('engine', 'plain'):
            y = model(x)
        for function in _functions_before(y):
            self._add(function)
        self.n_class = y.shape[1]
        self._put_node('Identity', [self._names[id(y.node)]], ['logits'])

    def proto(self) -> Any:
        """The GraphProto."""
        helper, kind = self.onnx.helper, self.onnx.TensorProto.FLOAT
        images = helper.make_tensor_value_info('images', kind, ['N', 3, self.size, self.size])
        logits = helper.make_tensor_value_info('logits', kind, ['N', self.n_class])
        tensors = list(self.initializers.values())
        return helper.make_graph(self.nodes, type(self.model).__name__, [images], [logits], tensors)

    def _add(self, function: Any) -> None:
        inputs, outputs = self._inputs(function), self._outputs(function)
        if function.label in OPERATORS:
            kind, attributes = OPERATORS[function.label](function)
            self._put_node(kind, inputs, outputs, **attributes)
        elif function.label == 'SplitAxis' and function.axis == 1:
            sizes = [output().shape[1] for output in function.outputs]
            self._put_node(
                'Split', [*inputs, self._put_tensor(f'{outputs[0]}/sizes', np.array(sizes))], outputs, axis=1
            )
        elif function.label == 'Reshape' and len(function.outputs[0]().shape) == 2:
            self._put_node('Flatten', inputs, outputs, axis=1)
        elif function.label == 'Mean' and tuple(function.axis) == (2, 3) and not function.keepdims:
            self._put_node('GlobalAveragePool', inputs, [f'{outputs[0]}/map'])
            self._put_node('Flatten', [f'{outputs[0]}/map'], outputs, axis=1)
        else:
            raise InputError(f'{type(self.model).__name__} computes {function.label}, which is not written to ONNX')

    def _inputs(self, function: Any) -> list[str]:
        """The names of its inputs; parameters among them become initializers."""
        found = []
        for node in function.inputs:
            name = self._names.get(id(node)) or self._paths.get(id(node.data))
            if name is None:
                raise InputError(
                    f'{function.label} of {type(self.model).__name__} takes an array that is not a parameter'
                )
            if name in self._arrays:
                self._put_tensor(name, self._arrays[name].astype(np.float32))
            found.append(name)
        return found

    def _outputs(self, function: Any) -> list[str]:
        found = []
        for i, reference in enumerate(function.outputs):
            found.append(f'value{len(self.nodes)}' + (f'_{i}' if i else ''))
            if (node := reference()) is not None:  # None: a half that nobody reads
                self._names[id(node)] = found[-1]
        return found

    def _put_node(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> None:
        name = f'{kind}_{len(self.nodes)}'
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, outputs, name, **attributes))

    def _put_tensor(self, name: str, array: np.ndarray) -> str:
        if name not in self.initializers:
            self.initializers[name] = self.onnx.numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name


def _functions_before(y: chainer.Variable) -> list[Any]:
    """All functions that `y` was computed by, in the order of their computation."""
    found = {}
    stack = [y.creator_node]
    while stack:
        function = stack.pop()
        if function is not None and id(function) not in found:
            found[id(function)] = function
            stack += [node.creator_node for node in function.inputs]
    return sorted(found.values(), key=lambda function: function.rank)


def _convolution(function: Any) -> tuple[str, dict[str, Any]]:
    return 'Conv', {
        'kernel_shape': function.inputs[1].shape[2:],
        'strides': [function.sy, function.sx],
        'pads': [function.ph, function.pw] * 2,
        'dilations': [function.dy, function.dx],
        'group': function.groups,
    }


def _max_pooling(function: Any) -> tuple[str, dict[str, Any]]:
    """Padded so that nothing is left to rounding up, in which runtimes differ."""
    shapes = zip(function.inputs[0].shape[2:], function.outputs[0]().shape[2:], strict=True)
    windows = zip(shapes, function.ksize, function.stride, function.pad, strict=True)
    after = [max(0, (n_out - 1) * stride + ksize - n - pad) for (n, n_out), ksize, stride, pad in windows]
    return 'MaxPool', {'kernel_shape': function.ksize, 'strides': function.stride, 'pads': [*function.pad, *after]}


def _response_normalization(function: Any) -> tuple[str, dict[str, Any]]:
    """ONNX divides alpha by the number of channels summed over, Chainer does not."""
    alpha, beta, bias = float(function.alpha * function.n), float(function.beta), float(function.k)
    return 'LRN', {'alpha': alpha, 'beta': beta, 'bias': bias, 'size': function.n}


OPERATORS: dict[str, Callable[[Any], tuple[str, dict[str, Any]]]] = {  # by the labels of Chainer's functions
    'Convolution2DFunction': _convolution,
    'LinearFunction': lambda f: ('Gemm', {'transB': 1}),
    'FixedBatchNormalization': lambda f: ('BatchNormalization', {'epsilon': float(f.eps)}),
    'ReLU': lambda f: ('Relu', {}),
    'MaxPoolingND': _max_pooling,
    'Concat': lambda f: ('Concat', {'axis': f.axis}),
    '_ + _': lambda f: ('Add', {}),
    'LocalResponseNormalization': _response_normalization,
}
