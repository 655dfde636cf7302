"""HDF5 files of Keras (`.h5`, `.weights.h5`) and of Chainer's `save_hdf5`, through the package h5py.

Source: Keras 2, `save_weights` and `save` (groups of layers, `conv1/conv1/kernel:0`), Keras 3 (`layers/conv2d/vars/0`).
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from squeeze_net.weights.formats.matching import read_named
from squeeze_net.weights.record import MAX_TENSOR_BYTES, Weights
from trainer.errors import InputError

MAX_ITEMS, MAX_DEPTH = 1 << 14, 12
OPTIMIZER = ('optimizer_weights', 'optimizer')  # the groups of Keras 2 and 3
VARIABLES = ('kernel', 'bias'), ('gamma', 'beta', 'moving_mean', 'moving_variance')  # of Keras 3, which numbers them


def read(raw: memoryview) -> Weights:
    """The arrays; those of Keras, whose kernels are (kh, kw, in, out), in the order of this project.

    Raises:
        InputError: h5py is not installed; no such file, a broken one, or one that refers to others.
    """
    try:
        import h5py
    except ModuleNotFoundError:
        raise InputError('HDF5 files need the package h5py: pip install h5py') from None
    try:
        with h5py.File(io.BytesIO(raw), 'r') as file:
            arrays = dict(_arrays(h5py, file, file, '', [MAX_TENSOR_BYTES]))
    except InputError:
        raise
    except Exception as error:  # h5py turns each fault of the C library into one of a dozen kinds
        raise InputError(f'it is not an HDF5 file of weights ({" ".join(str(error).split())[:100]})') from None
    arrays = {_named(name, arrays): array for name, array in arrays.items()}
    is_keras = any(name.endswith(('/kernel', '/kernel:0')) for name in arrays)
    return read_named({name: _turned(array) for name, array in arrays.items()} if is_keras else arrays)


def _arrays(h5py: Any, file: Any, group: Any, path: str, budget: list[int]) -> Iterator[tuple[str, np.ndarray]]:
    """Names and values of the arrays of floating-point numbers in a group, without those of an optimizer."""
    for name in group:
        budget[0] -= MAX_TENSOR_BYTES // MAX_ITEMS
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise InputError(f'{path}{name[:80]} is a link, which is not followed')
        item, where = group[name], f'{path}{name}'
        if isinstance(item, h5py.Group):
            if where in OPTIMIZER:
                continue
            if path.count('/') == MAX_DEPTH:
                raise InputError(f'it has more than {MAX_DEPTH} groups in one another')
            yield from _arrays(h5py, file, item, f'{where}/', budget)
        elif item.shape is not None and item.dtype.kind == 'f':
            if item.external or item.is_virtual:
                raise InputError(f'{where[:80]} lies in another file, which is not read')
            budget[0] -= max(item.size, math.prod(item.chunks or ())) * item.dtype.itemsize  # chunks are unpacked whole
            _check(budget[0])
            yield where, item[()]
        _check(budget[0])  # a group may hold itself


def _check(budget: int) -> None:
    if budget < 0:
        raise InputError(f'it holds more than {MAX_ITEMS} groups and tensors, or {MAX_TENSOR_BYTES >> 20} MB')


def _named(name: str, arrays: Mapping[str, np.ndarray]) -> str:
    """`layers/conv2d/vars/0` as `layers/conv2d/kernel`, and any other name as it is."""
    layer, _, number = name.rpartition('/')
    words = VARIABLES[f'{layer}/2' in arrays]
    if not layer.endswith('/vars') or number not in map(str, range(len(words))):
        return name
    return f'{layer.removesuffix("/vars")}/{words[int(number)]}'


def _turned(array: np.ndarray) -> np.ndarray:
    return array.transpose({2: (1, 0), 4: (3, 2, 0, 1)}.get(array.ndim))
