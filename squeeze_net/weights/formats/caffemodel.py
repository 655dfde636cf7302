"""Caffe's models: `.caffemodel` in its modern form (`layer`) and the older one (`layers`), and the prototxt beside it.

Source: Jia et al., "Caffe" (2014), `caffe.proto`: NetParameter, LayerParameter, V1LayerParameter, BlobProto.
"""

from __future__ import annotations

import math

import numpy as np

from squeeze_net.weights.file import Weights
from squeeze_net.weights.formats import wire
from trainer.data.metadata import Metadata
from trainer.errors import InputError

NET_NAME, V1_LAYERS, LAYERS = 1, 2, 100  # NetParameter
MAX_LAYERS, MAX_BLOBS, MAX_DIMS = 4096, 8, 8


def read(raw: memoryview) -> Weights:
    """The blobs of every layer that has some, as '<layer>/W' and '<layer>/b'; more are '<layer>/2', ...

    Raises:
        InputError: not such a file, cut short, or with blobs whose data do not fill their shape.
    """
    tensors: dict[str, np.ndarray] = {}
    network, n_layer = None, 0
    for field, _, value in wire.fields(raw):
        if field == NET_NAME:
            network = wire.text(value)
        elif field in (LAYERS, V1_LAYERS):
            n_layer += 1
            if n_layer > MAX_LAYERS:
                raise InputError(f'it has more than {MAX_LAYERS} layers')
            name, blobs = _read_layer(wire.message(value), is_v1=field == V1_LAYERS)
            for i, blob in enumerate(blobs):
                path = f'{name}/{("W", "b")[i] if i < 2 else i}'
                if path in tensors:
                    raise InputError(f'it holds the layer {name!r} twice')
                tensors[path] = blob.reshape(-1) if i == 1 else blob
    if not tensors:
        raise InputError('it holds no layer with weights')
    return Weights(tensors, Metadata(network=network))


def _read_layer(layer: memoryview, is_v1: bool) -> tuple[str, list[np.ndarray]]:
    name_field, blobs_field = (4, 6) if is_v1 else (1, 7)
    name = ''
    blobs: list[np.ndarray] = []
    for field, _, value in wire.fields(layer):
        if field == name_field:
            name = wire.text(value)
        elif field == blobs_field:
            if len(blobs) == MAX_BLOBS:
                raise InputError(f'the layer {name[:80]!r} has more than {MAX_BLOBS} blobs')
            blobs.append(_read_blob(wire.message(value)))
    if blobs and not 0 < len(name) <= 200:
        raise InputError(f'a layer with weights has the name {name[:60]!r}')
    return name, blobs


def _read_blob(blob: memoryview) -> np.ndarray:
    legacy = [1, 1, 1, 1]  # num, channels, height, width
    shape: list[int] | None = None
    data, double_data = wire.Floats('<f4'), wire.Floats('<f8')
    for field, _, value in wire.fields(blob):
        if 1 <= field <= 4:
            legacy[field - 1] = wire.number(value)
        elif field == 5:
            data.add(value)
        elif field == 7:
            shape = _read_shape(wire.message(value))
        elif field == 8:
            double_data.add(value)
    values = double_data.array().astype(np.float32) if double_data else data.array()
    shape = legacy if shape is None else shape
    if math.prod(shape) != values.size:
        raise InputError(f'a blob of the shape {shape} holds {values.size} numbers')
    return values.reshape(shape)


def _read_shape(message: memoryview) -> list[int]:
    dims: list[int] = []
    for field, kind, value in wire.fields(message):
        if field == 1:
            dims += [wire.number(value)] if kind == wire.VARINT else wire.varints(wire.message(value), MAX_DIMS)
        if len(dims) > MAX_DIMS:
            raise InputError(f'a blob has more than {MAX_DIMS} dimensions')
    return dims


def write(weights: Weights) -> bytes:
    """A NetParameter of the layers that have weights; Caffe takes them by name into the net of the prototxt.

    Raises:
        InputError: tensors that Caffe's layers do not have (batch normalisation).
    """
    parts = [wire.put(NET_NAME, weights.metadata.network or 'network')]
    layers = dict.fromkeys(name.rpartition('/')[0] for name in weights.tensors)
    for layer in layers:
        own = [name for name in weights.tensors if name.rpartition('/')[0] == layer]
        if [name.rpartition('/')[2] for name in own] not in (['W', 'b'], ['W']):
            raise InputError(f'.caffemodel files are written of convolutions and linear layers, but {layer} is neither')
        kind = 'Convolution' if weights.tensors[own[0]].ndim == 4 else 'InnerProduct'
        blobs = b''.join(wire.put(7, _blob(weights.tensors[name])) for name in own)
        parts.append(wire.put(LAYERS, wire.put(1, layer) + wire.put(2, kind) + blobs))
    return b''.join(parts)


def _blob(tensor: np.ndarray) -> bytes:
    dims = b''.join(map(wire.encoded, tensor.shape))
    return wire.put(7, wire.put(1, dims)) + wire.put(5, np.ascontiguousarray(tensor, '<f4').tobytes())
