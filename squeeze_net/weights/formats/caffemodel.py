"""Caffe's models: `.caffemodel` in its modern form (`layer`) and the older one (`layers`), and the prototxt beside it.

Source: Jia et al., "Caffe" (2014), `caffe.proto`: NetParameter, LayerParameter, V1LayerParameter, BlobProto.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

import trainer.links as L
from squeeze_net.networks.squeezenet import PublishedSqueezeNet
from squeeze_net.weights.formats.layer_names import from_caffe
from squeeze_net.weights.formats.protobuf import define, parse
from squeeze_net.weights.network import build
from squeeze_net.weights.record import Weights
from trainer.errors import InputError

MAX_LAYERS, MAX_BLOBS, MAX_NAME = 4096, 8, 200

# The fields of `caffe.proto` that hold weights.
MESSAGES = {
    'BlobShape': {'dim': (1, 'int64*')},
    'BlobProto': {
        'num': (1, 'int32'),
        'channels': (2, 'int32'),
        'height': (3, 'int32'),
        'width': (4, 'int32'),
        'data': (5, 'float*'),
        'shape': (7, 'BlobShape'),
        'double_data': (8, 'double*'),
    },
    'LayerParameter': {'name': (1, 'bytes'), 'type': (2, 'bytes'), 'blobs': (7, 'BlobProto*')},
    'V1LayerParameter': {'name': (4, 'bytes'), 'blobs': (6, 'BlobProto*')},
    'NetParameter': {'name': (1, 'bytes'), 'layers': (2, 'V1LayerParameter*'), 'layer': (100, 'LayerParameter*')},
}


NetParameter = define('caffe', MESSAGES, 'NetParameter')


# ---- reading ----


def read(raw: memoryview) -> Weights:
    """The blobs of every layer that has some, as '<layer>/W' and '<layer>/b'; more are '<layer>/2', ...

    Raises:
        InputError: not such a file, cut short, or with blobs whose data do not fill their shape.
    """
    net = parse(NetParameter, raw, 'a NetParameter')
    if len(net.layers) + len(net.layer) > MAX_LAYERS:
        raise InputError(f'it has more than {MAX_LAYERS} layers')
    tensors: dict[str, np.ndarray] = {}
    for layer in [*net.layers, *net.layer]:
        name = layer.name.decode('utf-8', 'replace')
        if layer.blobs and not (0 < len(name) <= MAX_NAME and len(layer.blobs) <= MAX_BLOBS):
            raise InputError(f'a layer called {name[:60]!r} has {len(layer.blobs)} blobs')
        for i, blob in enumerate(layer.blobs):
            path = f'{name}/{("W", "b")[i] if i < 2 else i}'
            if path in tensors:
                raise InputError(f'it holds the layer {name!r} twice')
            tensor = _read_blob(blob)
            tensors[path] = tensor.reshape(-1) if i == 1 else tensor
    if not tensors:
        raise InputError('it holds no layer with weights')
    return Weights(from_caffe(tensors))


def _read_blob(blob: Any) -> np.ndarray:
    if blob.double_data:
        values = np.fromiter(blob.double_data, np.float64, len(blob.double_data)).astype(np.float32)
    else:
        values = np.fromiter(blob.data, np.float32, len(blob.data))
    legacy = [getattr(blob, name) if blob.HasField(name) else 1 for name in ('num', 'channels', 'height', 'width')]
    shape = list(blob.shape.dim) if blob.HasField('shape') else legacy
    if any(n < 0 for n in shape) or len(shape) > 8 or math.prod(shape) != values.size:
        raise InputError(f'a blob of the shape {str(shape)[:60]} holds {values.size} numbers')
    return values.reshape(shape)


# ---- writing ----


def write(weights: Weights) -> bytes:
    """A NetParameter of the layers that have weights; Caffe takes them by name into the net of the prototxt.

    Raises:
        InputError: tensors that Caffe's layers do not have (batch normalisation).
    """
    net = NetParameter(name=(weights.metadata.network or 'network').encode())
    for layer in dict.fromkeys(name.rpartition('/')[0] for name in weights.tensors):
        own = {name: tensor for name, tensor in sorted(weights.tensors.items()) if name.rpartition('/')[0] == layer}
        if [name.rpartition('/')[2] for name in own] not in (['W', 'b'], ['W']):
            raise InputError(f'.caffemodel files are written of convolutions and linear layers, but {layer} is neither')
        kind = b'Convolution' if own[f'{layer}/W'].ndim == 4 else b'InnerProduct'
        written = net.layer.add(name=layer.encode(), type=kind)
        for tensor in own.values():
            blob = written.blobs.add()
            blob.shape.dim.extend(tensor.shape)
            blob.data.extend(tensor.reshape(-1).tolist())
    return net.SerializeToString()


def write_prototxt(weights: Weights) -> bytes:
    """The deploy net as text: input `data`, output `prob`, layers by the names of the published models.

    Raises:
        InputError: another network than a published SqueezeNet without batch normalisation.
    """
    model, size = build(weights, 'a .caffemodel')
    network = weights.metadata.network
    if not isinstance(model, PublishedSqueezeNet) or model.has_norm:
        raise InputError(f'a .caffemodel is written of the published SqueezeNets, not of {network}: use .onnx')
    net = _Prototxt()
    net.add('data', 'Input', [], 'data', f'input_param {{ shape {{ dim: 1 dim: 3 dim: {size} dim: {size} }} }}')
    h = net.pool(model, 'conv1', net.convolution('conv1', model.conv1, 'data'), number='1')
    for name in model.fires:
        fire, x = model[name], h
        s = net.convolution(f'{name}/squeeze1x1', fire.squeeze1x1, x)
        halves = [net.convolution(f'{name}/{part}', fire[part], s) for part in ('expand1x1', 'expand3x3')]
        h = net.add(f'{name}/concat', 'Concat', halves)
        if fire.bypass == 'complex':
            x = net.convolution(f'{name}/bypass1x1', fire.bypass1x1, x, relu=False)
        if fire.bypass != 'none':
            h = net.add(f'{name}/bypass', 'Eltwise', [h, x], parameters='eltwise_param { operation: SUM }')
        h = net.pool(model, name, h, number=name.removeprefix('fire'))
    h = net.add('drop9', 'Dropout', [h], h, f'dropout_param {{ dropout_ratio: {model.dropout} }}')
    h = net.convolution('conv10', model.conv10, h)
    h = net.add('pool10', 'Pooling', [h], parameters='pooling_param { pool: AVE global_pooling: true }')
    net.add('prob', 'Softmax', [h])
    return '\n'.join([f'name: "{network}"', *net.lines, '']).encode()


class _Prototxt:
    """Layers as text; each method returns the name of what the layer computes."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, name: str, kind: str, bottoms: Iterable[str], top: str | None = None, parameters: str = '') -> str:
        top = top or name
        fields = [f'name: "{name}"', f'type: "{kind}"', *(f'bottom: "{bottom}"' for bottom in bottoms), f'top: "{top}"']
        fields += [parameters] if parameters else []
        self.lines += ['layer {', *(f'  {field}' for field in fields), '}']
        return top

    def convolution(self, name: str, link: L.Convolution2D, bottom: str, relu: bool = True) -> str:
        out_channels, _, ksize, _ = link.W.shape
        words = [f'num_output: {out_channels}', f'kernel_size: {ksize}']
        words += [f'stride: {link.stride[0]}'] if link.stride[0] > 1 else []
        words += [f'pad: {link.pad[0]}'] if link.pad[0] else []
        top = self.add(name, 'Convolution', [bottom], parameters=f'convolution_param {{ {" ".join(words)} }}')
        if relu:
            folder, _, own = name.rpartition('/')
            self.add('/'.join(filter(None, [folder, f'relu_{own}'])), 'ReLU', [top], top)
        return top

    def pool(self, model: PublishedSqueezeNet, after: str, bottom: str, number: str) -> str:
        """Caffe rounds the size of a pooled map up, as the published networks do."""
        if after not in model.pooled:
            return bottom
        parameters = 'pooling_param { pool: MAX kernel_size: 3 stride: 2 }'
        return self.add(f'pool{number}', 'Pooling', [bottom], parameters=parameters)
