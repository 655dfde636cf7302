"""`.safetensors`: tensors by PyTorch's names, parsed by the `safetensors` library."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

from squeeze_net.weights.formats.layer_names import read_torch, to_torch
from squeeze_net.weights.record import Weights
from trainer.data.metadata import KEY
from trainer.errors import InputError

MAX_HEADER = 8 << 20  # of JSON, which takes some ten times that once read
DTYPES = {'F64': '<f8', 'F32': '<f4', 'F16': '<f2', 'I64': '<i8', 'I32': '<i4', 'I16': '<i2', 'I8': 'i1', 'U8': 'u1'}


def read(raw: memoryview) -> Weights:
    """The tensors; bfloat16 as float32, to which it is exact.

    Raises:
        InputError: not such a file, a broken one, or one of numbers that NumPy has no dtype for.
    """
    import safetensors

    if len(raw) < 8 or struct.unpack('<Q', raw[:8])[0] > min(MAX_HEADER, len(raw) - 8):
        raise InputError(f'it does not begin with the length of a header of at most {MAX_HEADER >> 20} MB')
    try:
        entries = safetensors.deserialize(bytes(raw))
        header = json.loads(bytes(raw[8 : 8 + struct.unpack('<Q', raw[:8])[0]]))
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise InputError(f'it is not a .safetensors file ({" ".join(str(error).split())[:100]})') from None
    tensors = {name: _array(spec, name) for name, spec in entries}
    if not tensors:
        raise InputError('it holds no tensor')
    return read_torch(tensors, (header.get('__metadata__') or {}).get(KEY))


def _array(spec: Any, name: str) -> np.ndarray:
    dtype, shape, data = spec['dtype'], spec['shape'], spec['data']
    if dtype == 'BF16':  # the upper half of a float32
        return (np.frombuffer(data, '<u2').astype(np.uint32) << 16).view(np.float32).reshape(shape)
    if dtype not in DTYPES:
        raise InputError(f'{name[:80]} holds {dtype} values, expected one of BF16, {", ".join(DTYPES)}')
    return np.frombuffer(data, DTYPES[dtype]).reshape(shape)


def write(weights: Weights) -> bytes:
    """The bytes of a `.safetensors` file, tensors under their own names."""
    from safetensors.numpy import save

    tensors = {to_torch(name): np.array(tensor, order='C') for name, tensor in weights.tensors.items()}
    return save(tensors, {KEY: weights.metadata.dumps()})
