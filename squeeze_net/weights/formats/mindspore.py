"""MindSpore's `.ckpt`: a protocol buffer of tensors.

Source: `checkpoint.proto` of MindSpore: Checkpoint, Value, TensorProto.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from squeeze_net.weights.formats.matching import read_named
from squeeze_net.weights.formats.protobuf import define, parse
from squeeze_net.weights.record import Weights
from trainer.errors import InputError

MAX_DIMS = 8
DTYPES = {b'Float32': '<f4', b'Float16': '<f2', b'Float64': '<f8'}
CHECKSUM, N_CHECKSUM = b'crc_num', 17  # bytes, after the message, of newer versions if asked
MESSAGES = {
    'TensorProto': {'dims': (1, 'int64*'), 'tensor_type': (2, 'bytes'), 'tensor_content': (3, 'bytes')},
    'Value': {'tag': (1, 'bytes'), 'tensor': (2, 'TensorProto')},
    'Checkpoint': {'value': (1, 'Value*')},
}
Checkpoint = define('mindspore', MESSAGES, 'Checkpoint')


def fits(raw: memoryview) -> bool:
    """Whether the bytes begin as the first `value` of a Checkpoint."""
    return bytes(raw[:1]) == b'\x0a'


def read(raw: memoryview) -> Weights:
    """The floating-point tensors, without the optimizer's copies of them ('moments.conv1.weight').

    Raises:
        InputError: not such a file, cut short, encrypted, or with tensors whose data do not fill their shape.
    """
    if bytes(raw[-N_CHECKSUM:]).startswith(CHECKSUM):
        raw = raw[:-N_CHECKSUM]
    tensors: dict[str, np.ndarray] = {}
    for value in parse(Checkpoint, raw, 'a MindSpore checkpoint').value:
        name = value.tag.decode('utf-8', 'replace')
        if value.tensor.tensor_type in DTYPES:
            if name in tensors:
                raise InputError(f'it holds the tensor {name[:80]!r} twice')
            tensors[name] = _read_tensor(value.tensor, name[:80])
    return read_named({name: tensors[name] for name in tensors if name.partition('.')[2] not in tensors})


def _read_tensor(proto: Any, name: str) -> np.ndarray:
    values = np.frombuffer(proto.tensor_content, np.uint8)
    dtype = np.dtype(DTYPES[proto.tensor_type])
    shape = tuple(proto.dims)
    if shape == (0,):  # how a single number is written
        shape = ()
    if len(shape) > MAX_DIMS or any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != values.size:
        raise InputError(f'the tensor {name!r} of the shape {str(shape)[:60]} has {values.size} bytes')
    return values.view(dtype).reshape(shape)
