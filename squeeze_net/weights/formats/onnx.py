"""ONNX models: the weights of any, and a writer of the whole network, which runs wherever ONNX does.

Source: ONNX's operators, opset 13.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import chainer
import numpy as np

from squeeze_net.weights.formats.layer_names import read_torch
from squeeze_net.weights.formats.matching import Layer, match
from squeeze_net.weights.formats.protobuf import parse
from squeeze_net.weights.network import arrays_of, build
from squeeze_net.weights.record import MAX_TENSOR_BYTES, Weights
from trainer.data.metadata import KEY
from trainer.errors import InputError

IR_VERSION, OPSET = 8, 13
MAX_TENSORS = 1 << 14
MAX_DIMS = 8
DTYPES = {1: '<f4', 10: '<f2', 11: '<f8', 16: '<u2'}  # of TensorProto: FLOAT, FLOAT16, DOUBLE, BFLOAT16
EPSILON = 2e-5  # of Chainer's batch normalisation
PREPROCESSING = 'preprocessing/'  # how the names of what `squeeze_net.deploy` puts before a network begin
QUANTISED = frozenset(
    {'QLinearConv', 'QLinearMatMul', 'ConvInteger', 'MatMulInteger', 'DynamicQuantizeLinear', 'QuantizeLinear'}
    | {'DequantizeLinear', 'QLinearAdd', 'QGemm', 'MatMulNBits'}
)


def import_onnx() -> ModuleType:
    """The package onnx.

    Raises:
        InputError: it is not installed.
    """
    try:
        import onnx
    except ModuleNotFoundError:
        raise InputError('.onnx files need the package onnx: pip install onnx') from None
    return onnx


# ---- reading ----


def read(raw: memoryview, folder: Path | None = None) -> Weights:
    """The weights of the graph: by this project's names if it wrote the file, else by the layers that use them.

    A graph that computes none of the published networks gives its tensors under their own names.

    Args:
        folder: of the file, for tensors that lie in files beside it.
    Raises:
        InputError: no such file, a broken one, a quantised one, or one whose tensors lie elsewhere.
    """
    model = parse(import_onnx().ModelProto, raw, 'an ONNX model')
    if not model.HasField('graph'):
        raise InputError('it holds no graph')
    texts = {entry.key: _text(entry.value) for entry in model.metadata_props}
    tensors: dict[str, np.ndarray] = {}
    budget = MAX_TENSOR_BYTES
    for name, proto in _tensor_protos(model.graph):
        if proto.data_type not in DTYPES:  # sizes and the like
            continue
        if KEY in texts and name.startswith(PREPROCESSING):
            continue
        tensor = _read_tensor(proto, name[:80], folder, budget)
        budget -= tensor.nbytes
        if len(tensors) == MAX_TENSORS or budget < 0:
            raise InputError(f'it holds more than {MAX_TENSORS} tensors or {MAX_TENSOR_BYTES >> 20} MB of them')
        if name in tensors:
            raise InputError(f'it holds the tensor {name[:80]!r} twice')
        tensors[name] = tensor
    kinds = {_text(node.op_type) for node in model.graph.node}
    if quantised := sorted(kinds & QUANTISED):
        raise InputError(f'it is quantised ({quantised[0]}), which is not read: give the file it was made from')
    if not tensors:
        raise InputError('its graph holds no weights')
    if KEY not in texts:
        found = _Walk(model.graph, tensors)
        if found.layers and (weights := match(found.layers, found.n_add)) is not None:
            return weights
    return read_torch(tensors, texts.get(KEY))


def _tensor_protos(graph: Any) -> Iterator[tuple[str, Any]]:
    for proto in graph.initializer:
        yield _text(proto.name), proto
    for node in graph.node:
        if node.op_type == 'Constant' and node.output:
            for attribute in node.attribute:
                if attribute.name == 'value' and attribute.HasField('t'):
                    yield _text(node.output[0]), attribute.t


def _text(value: str | bytes) -> str:
    """A string of a message, which comes as bytes if it is not UTF-8."""
    return value if isinstance(value, str) else value.decode('utf-8', 'replace')


def _read_tensor(proto: Any, name: str, folder: Path | None, budget: int) -> np.ndarray:
    """A tensor of at most `budget` bytes; bfloat16 as float32, to which it is exact."""
    onnx = import_onnx()
    if proto.external_data or proto.data_location == onnx.TensorProto.EXTERNAL:
        dtype = np.dtype(DTYPES[proto.data_type])
        n_bytes = math.prod(proto.dims) * dtype.itemsize
        if not all(n >= 0 for n in proto.dims) or n_bytes > budget or len(proto.dims) > MAX_DIMS:
            raise InputError(f'the tensor {name!r} declares the shape {str(list(proto.dims))[:60]}')
        tensor = np.frombuffer(_read_beside(proto, name, folder, n_bytes), dtype).reshape(proto.dims)
    else:
        try:
            tensor = onnx.numpy_helper.to_array(proto)
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError(f'the tensor {name!r} cannot be read ({" ".join(str(error).split())[:80]})') from None
    if proto.data_type == onnx.TensorProto.BFLOAT16:
        return (tensor.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return tensor


def _read_beside(proto: Any, name: str, folder: Path | None, n_bytes: int) -> bytes:
    """The bytes of a tensor in another file, which has to lie in the folder of the .onnx file, or below it."""
    where = {_text(entry.key): _text(entry.value) for entry in proto.external_data}
    location = where.get('location', '')
    shown = repr(location[:80])
    if folder is None:
        raise InputError(f'the tensor {name!r} lies in another file, {shown}, and only the .onnx file is at hand')
    try:
        offset, length = int(where.get('offset', 0)), int(where.get('length', n_bytes))
        path = (folder / location).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise InputError(
                f'the tensor {name!r} lies in {shown}, outside the folder of the .onnx file: copy it there'
            )
        if not path.is_file():
            raise InputError(f'its weights lie in the file {shown}, which is missing: put it beside the .onnx file')
        if length != n_bytes or not 0 <= offset <= path.stat().st_size - length:
            raise InputError(
                f'the tensor {name!r} of {n_bytes} bytes does not lie at {offset} .. {offset + length} of {shown}, '
                f'which has {path.stat().st_size} bytes'
            )
        with path.open('rb') as file:
            file.seek(offset)
            raw = file.read(length)
    except InputError:
        raise
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(f'the file {shown} cannot be read ({" ".join(str(error).split())[:80]})') from None
    if len(raw) < n_bytes:
        raise InputError(f'the file {shown} was cut short while it was read')
    return raw


class _Walk:
    """The layers of a graph in the order of computation, inputs of a node from the first to the last.

    Attributes:
        layers: what each convolution, linear layer and batch normalisation multiplies and adds; empty if one of them
            takes weights that are computed in a way not known here.
        n_add: additions of two maps.
    """

    def __init__(self, graph: Any, tensors: Mapping[str, np.ndarray]) -> None:
        self.layers: list[Layer] = []
        self.n_add = 0
        self._constants = dict(tensors)
        self._made_by: dict[str, Layer] = {}  # the name of a value -> the layer that computes it
        try:
            for node in _nodes_in_order(graph):
                self._visit(node)
        except (LookupError, ValueError):  # of a missing input, tensor or axis
            self.layers = []

    def _visit(self, node: Any) -> None:
        kind, inputs, output = _text(node.op_type), list(node.input), node.output[0]
        numbers = {attribute.name: attribute for attribute in node.attribute}
        if _text(node.domain) not in ('', 'ai.onnx') and kind != 'FusedConv':
            if kind == 'Conv':  # a runtime has laid out its weights in blocks
                raise LookupError(kind)
        elif kind in ('Conv', 'FusedConv'):
            self._put(output, self._constants[inputs[1]], inputs[2:3])
        elif kind == 'Gemm':
            scales = [numbers[name].f for name in ('alpha', 'beta') if name in numbers]
            if scales.count(1.0) != len(scales) or ('transA' in numbers and numbers['transA'].i):
                raise ValueError('a scaled product')
            B = self._constants[inputs[1]]
            self._put(output, B if 'transB' in numbers and numbers['transB'].i else B.T, inputs[2:3])
        elif kind == 'MatMul':
            self._put(output, self._constants[inputs[1]].T, [])
        elif kind in ('Add', 'Sum'):
            self._add(inputs, output)
        elif kind == 'BatchNormalization':
            gamma, beta, mean, variance = (self._constants[name] for name in inputs[1:5])
            epsilon = numbers['epsilon'].f if 'epsilon' in numbers else 1e-5
            # Chainer's links have another epsilon.
            variance = variance.astype(np.float64) + (epsilon - EPSILON)
            self.layers.append({'gamma': gamma, 'beta': beta, 'avg_mean': mean, 'avg_var': variance})
        elif kind in ('Identity', 'Cast', 'Transpose') and inputs[0] in self._constants:
            axes = list(numbers['perm'].ints) if 'perm' in numbers else None
            constant = self._constants[inputs[0]]
            self._constants[output] = constant.transpose(axes) if kind == 'Transpose' else constant
        elif kind in ('Identity', 'Cast') and inputs[0] in self._made_by:
            self._made_by[output] = self._made_by[inputs[0]]
        elif kind in ('Mul', 'Div', 'Sub') and any(name in self._made_by for name in inputs):
            raise ValueError('a scaled product')

    def _put(self, output: str, W: np.ndarray, bias: Sequence[str]) -> None:
        layer = {'W': W}
        if bias and bias[0]:
            layer['b'] = self._constants[bias[0]]
        self.layers.append(layer)
        self._made_by[output] = layer

    def _add(self, inputs: Sequence[str], output: str) -> None:
        """Of a bias to a layer that has none, or of two maps."""
        biases = [self._constants[name] for name in inputs if name in self._constants]
        layers = [self._made_by[name] for name in inputs if name in self._made_by]
        if not biases:
            self.n_add += 1
        elif len(biases) == len(layers) == 1 and 'b' not in layers[0] and layers[0]['W'].shape[:1] == (biases[0].size,):
            layers[0]['b'] = biases[0].reshape(-1)
            self._made_by[output] = layers[0]
        elif layers:
            raise ValueError('an addition of something else')


def _nodes_in_order(graph: Any) -> list[Any]:
    """The nodes that the outputs depend on, each after those that its inputs come from, the first input first."""
    producers = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    ordered: list[Any] = []
    seen: set[int] = set()
    stack: list[str | int] = [value.name for value in reversed(graph.output)]
    while stack:
        top = stack.pop()
        if isinstance(top, int):
            ordered.append(graph.node[top])
        elif (i := producers.get(top)) is not None and i not in seen:
            seen.add(i)
            stack.append(i)
            stack += reversed(graph.node[i].input)
    return ordered


# ---- writing ----


def write(weights: Weights) -> bytes:
    """The network in test mode: images (N, 3, size, size), as its preprocessing makes them, to logits (N, n_class).

    Raises:
        InputError: the network is not known, or computes something that is not known here; names the function.
    """
    helper = import_onnx().helper
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
        self.onnx = import_onnx()
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
    """Rounded up where Chainer does, not padded more on one side: some converters pad such maps twice."""
    shapes = zip(function.inputs[0].shape[2:], function.outputs[0]().shape[2:], strict=True)
    windows = zip(shapes, function.ksize, function.stride, function.pad, strict=True)
    is_up = any((n_out - 1) * stride + ksize > n + 2 * pad for (n, n_out), ksize, stride, pad in windows)
    attributes = {'kernel_shape': function.ksize, 'strides': function.stride, 'pads': [*function.pad] * 2}
    return 'MaxPool', attributes | ({'ceil_mode': 1} if is_up else {})


def _average_pooling(function: Any) -> tuple[str, dict[str, Any]]:
    """Of windows inside the map and its padding, which counts as zeros."""
    attributes = {'kernel_shape': [function.kh, function.kw], 'strides': [function.sy, function.sx]}
    return 'AveragePool', attributes | {'pads': [function.ph, function.pw] * 2, 'count_include_pad': 1}


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
    'AveragePooling2D': _average_pooling,
    'Concat': lambda f: ('Concat', {'axis': f.axis}),
    '_ + _': lambda f: ('Add', {}),
    'LocalResponseNormalization': _response_normalization,
}
