"""PyTorch's `.pth`: what `torch.save` writes, read without PyTorch and without running what it names.

Since PyTorch 1.6 the file is a zip of a pickle and of the storages, a member each; before, pickles one after the other
and then the storages. What a pickle names is never imported: tensors are made of their storages, and all other objects
(arguments, optimizers, dates, modules) are `Opaque`. The weights are then looked for: a dictionary whose keys are those
of a state dict, wherever it lies, or a whole module, whose state holds its tensors.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from squeeze_net.weights.formats.layer_names import TORCH_KINDS, from_torch, torchvision_network, unwrapped
from squeeze_net.weights.formats.npz import FAULTS
from squeeze_net.weights.record import MAX_TENSOR_BYTES, Weights
from trainer.data.datasets.archive import read_zip_member
from trainer.data.datasets.restricted_pickle import ADMITTED_OF_OBJECTS, DataUnpickler, Opaque
from trainer.data.datasets.restricted_pickle import FAULTS as PICKLE_FAULTS
from trainer.data.metadata import Metadata
from trainer.errors import InputError

STORAGES = {
    'FloatStorage': '<f4',
    'DoubleStorage': '<f8',
    'HalfStorage': '<f2',
    'BFloat16Storage': 'bfloat16',
    'LongStorage': '<i8',
    'IntStorage': '<i4',
    'ShortStorage': '<i2',
    'CharStorage': 'i1',
    'ByteStorage': 'u1',
    'BoolStorage': 'u1',
}
MAX_PICKLE, MAX_MEMBERS, MAX_DIMS = 16 << 20, 1 << 14, 8
MAX_KEYS = 3  # on the way to a state dict
MAX_DEPTH, MAX_NAME = 32, 100  # of modules inside modules; characters of the name of one
# Of several state dicts in a file, the weights proper have one of these keys; those with such a word are averages.
MAIN_KEYS = ('state_dict', 'model_state_dict', 'model', 'net', 'network', 'weights')
AVERAGES = ('ema', 'swa', 'avg', 'average')
# First words of what is in state dicts beside the network: a count of averages, weights of classes in a loss.
BESIDE = ('n_averaged', 'criterion', 'loss', 'loss_fn')
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class _Storage(NamedTuple):
    dtype: str  # a value of STORAGES
    key: str
    n: int  # values


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def fits(raw: memoryview) -> bool:
    """Whether the bytes begin as a zip or as a pickle."""
    return bytes(raw[:2]) == b'PK' or bytes(raw[:1]) == b'\x80'


def read(raw: memoryview) -> Weights:
    """The tensors of the state dict, or of the whole module, that a file holds, beside whatever else.

    Raises:
        InputError: not such a file, a broken one, or one without a state dict or with several.
    """
    try:
        value, load = _read_zip(raw) if bytes(raw[:2]) == b'PK' else _read_legacy(raw)
        state, note = _choose(_state_dicts(value))
        tensors = unwrapped(_load(state, load), '.')
    except InputError:
        raise
    except (*PICKLE_FAULTS, *FAULTS) as error:
        raise InputError(f'it is not a .pth of tensors ({" ".join(str(error).split())[:100]})') from None
    return Weights(from_torch(tensors), Metadata(network=torchvision_network(tensors)), note)


def _state_dicts(value: Any) -> dict[str, dict[str, Any]]:
    """The state dicts in what was pickled, by the keys on the way to them; each object is looked at once."""
    found: dict[str, dict[str, Any]] = {}
    waiting, seen = [('', _entries(value))], {id(_entries(value))}
    for path, entries in waiting:  # the nearest first
        if isinstance(entries.get('_modules'), dict):
            entries = dict(islice(_tensors_of_module(entries), MAX_MEMBERS))
        if any(_is_key(name) for name in entries):
            found[path or 'its pickle'] = entries
        elif path.count('.') < MAX_KEYS:
            for name, child in _new_children(entries, seen):
                waiting.append((f'{path}.{name}'.lstrip('.'), child))
    return found


def _entries(value: Any) -> dict[Any, Any]:
    """Of a dictionary, or of the state of an object; else none."""
    state = value.state if isinstance(value, Opaque) else value
    return state if isinstance(state, dict) else {}


def _new_children(entries: dict[Any, Any], seen: set[int]) -> Iterator[tuple[str, dict[Any, Any]]]:
    """The dictionaries among the values that are not in `seen`; then they are."""
    for name, value in entries.items():
        child = _entries(value)
        if _is_name(name) and child and id(child) not in seen:
            seen.add(id(child))
            yield name, child


def _is_name(key: Any) -> bool:
    return isinstance(key, str) and len(key) <= MAX_NAME


def _is_key(name: Any) -> bool:
    """Whether this is the key of a tensor in a state dict, 'features.0.weight'."""
    return isinstance(name, str) and '.' in name and name.rpartition('.')[2] in TORCH_KINDS


def _tensors_of_module(state: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    """What the state dict of a pickled module would hold."""
    waiting, seen = [('', state)], {id(state)}
    for prefix, module in waiting:
        children = dict(_new_children(module, seen))
        for kind in ('_parameters', '_buffers'):
            for name, value in children.get(kind, {}).items():
                if _is_name(name) and value is not None:
                    yield f'{prefix}{name}', value
        if prefix.count('.') < MAX_DEPTH:
            for name, child in _new_children(children.get('_modules', {}), seen):
                waiting.append((f'{prefix}{name}.', child))


def _choose(found: dict[str, dict[str, Any]]) -> tuple[dict[str, Any], str]:
    """The state dict that is meant, and a note if there are others."""
    if not found:
        raise InputError('it holds no state dict: write one by torch.save(model.state_dict(), FILE)')
    averages = {path for path in found if any(word in path.lower().replace('.', '_').split('_') for word in AVERAGES)}
    chosen = [path for path in found if path not in averages] or list(found)
    if len(chosen) > 1:
        main = [path for key in MAIN_KEYS for path in chosen if path.rpartition('.')[2] == key]
        if not main:
            names = ', '.join(repr(path[:40]) for path in chosen[:4])
            raise InputError(f'it holds {len(chosen)} state dicts ({names}): write the one that is meant to a file')
        chosen = main
    others = [path for path in found if path != chosen[0]]
    note = f'{chosen[0][:40]!r} was read, not {", ".join(repr(path[:40]) for path in others[:4])}' if others else ''
    return found[chosen[0]], note


def _load(state: dict[str, Any], load: Callable[[_Storage], np.ndarray]) -> dict[str, np.ndarray]:
    found, budget = {}, MAX_TENSOR_BYTES
    for name, tensor in state.items():
        if not isinstance(tensor, _Tensor) or not isinstance(name, str):
            if _is_key(name):
                raise InputError(f'it holds {name[:60]!r}, which is not a tensor, or one of numbers that are not read')
            continue
        if name.partition('.')[0] in BESIDE:
            continue
        values = load(tensor.storage)
        budget -= math.prod(tensor.size) * values.itemsize
        if budget < 0:
            raise InputError(f'its tensors take more than {MAX_TENSOR_BYTES >> 20} MB')
        found[name] = _strided(values, tensor, name)
    return found


def _strided(values: np.ndarray, tensor: _Tensor, name: str) -> np.ndarray:
    """A copy of the tensor, which has to lie inside its storage."""
    numbers = (tensor.offset, *tensor.size, *tensor.stride)
    if not all(type(n) is int and n >= 0 for n in numbers) or not len(tensor.size) == len(tensor.stride) <= MAX_DIMS:
        raise InputError(f'{name[:80]} has the size {str(tensor.size)[:60]} and strides {str(tensor.stride)[:60]}')
    n_value = math.prod(tensor.size)
    last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.size, tensor.stride, strict=True))
    if n_value and last >= values.size:
        raise InputError(f'{name[:80]} reaches beyond its storage of {values.size} values')
    if n_value > values.size:
        raise InputError(f'{name[:80]} has {n_value} values in a storage of {values.size}')
    if not n_value:
        return np.empty(tensor.size, values.dtype)
    strides = [step * values.itemsize for step in tensor.stride]
    return np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.size, strides).copy()


def _values(raw: bytes | memoryview, storage: _Storage) -> np.ndarray:
    """The values of a storage; bfloat16 as float32, to which it is exact."""
    dtype = np.dtype('<u2' if storage.dtype == 'bfloat16' else storage.dtype)
    if storage.n * dtype.itemsize != len(raw):
        raise InputError(f'a storage of {storage.n} values has {len(raw)} bytes')
    values = np.frombuffer(raw, dtype)
    return (values.astype(np.uint32) << 16).view(np.float32) if storage.dtype == 'bfloat16' else values


def _read_zip(raw: memoryview) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    archive = zipfile.ZipFile(io.BytesIO(raw))
    infos = {info.filename: info for info in archive.infolist()}
    if any(name.endswith(('/constants.pkl', '/code/__torch__.py')) for name in infos):
        raise InputError('it is TorchScript: convert it by torch.save(torch.jit.load(FILE).state_dict(), NEW)')
    pickles = [name for name in infos if name.rpartition('/')[2] == 'data.pkl']
    if len(infos) > MAX_MEMBERS or len(pickles) != 1:
        raise InputError(f'it holds {len(infos)} members, of which {len(pickles)} are called data.pkl, expected one')
    folder = pickles[0].rpartition('/')[0]
    byteorder = infos.get(f'{folder}/byteorder')
    if byteorder is not None and (byteorder.file_size > 16 or read_zip_member(archive, byteorder)[:6] != b'little'):
        raise InputError('its numbers are big-endian, expected little-endian')
    if infos[pickles[0]].file_size > MAX_PICKLE:
        raise InputError(f'its pickle has {infos[pickles[0]].file_size} bytes, more than {MAX_PICKLE >> 20} MB')
    loaded: dict[_Storage, np.ndarray] = {}
    budget = [MAX_TENSOR_BYTES]

    def load(storage: _Storage) -> np.ndarray:
        if storage not in loaded:
            info = infos[f'{folder}/data/{storage.key}']
            budget[0] -= info.file_size
            if budget[0] < 0 or info.file_size > len(raw):  # storages are not compressed
                raise InputError(f'the storage {storage.key[:40]!r} declares {info.file_size} bytes')
            loaded[storage] = _values(read_zip_member(archive, info), storage)
        return loaded[storage]

    return _TensorUnpickler(io.BytesIO(read_zip_member(archive, infos[pickles[0]]))).load(), load


def _read_legacy(raw: memoryview) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    file = io.BytesIO(raw[: MAX_PICKLE + 1])
    if _TensorUnpickler(file).load() != LEGACY_MAGIC or _TensorUnpickler(file).load() != LEGACY_PROTOCOL:
        raise InputError('it is neither a zip nor begins as PyTorch files did before 1.6')
    system = _TensorUnpickler(file).load()
    if not isinstance(system, dict) or system.get('little_endian') is not True:
        raise InputError('its numbers are big-endian, expected little-endian')
    unpickler = _TensorUnpickler(file)
    state = unpickler.load()
    keys = _TensorUnpickler(file).load()
    at, places = file.tell(), {}
    if not isinstance(keys, list) or len(keys) > MAX_MEMBERS:
        raise InputError('it has no list of storages')
    for key in keys:
        storage = unpickler.storages[key]
        places[storage] = at + 8
        if len(raw) - at < 8 or struct.unpack('<q', raw[at : at + 8])[0] != storage.n:
            raise InputError(f'the storage {key[:40]!r} is cut short, or of another length than its tensors say')
        at += 8 + storage.n * np.dtype('<u2' if storage.dtype == 'bfloat16' else storage.dtype).itemsize

    def load(storage: _Storage) -> np.ndarray:
        itemsize = np.dtype('<u2' if storage.dtype == 'bfloat16' else storage.dtype).itemsize
        start = places[storage]
        return _values(raw[start : start + storage.n * itemsize], storage)

    return state, load


class _TensorUnpickler(DataUnpickler):
    """Makes `_Tensor`s of `_Storage`s, which lie after the pickle or beside it."""

    names = frozenset(
        {
            ('collections', 'OrderedDict'),
            ('torch._utils', '_rebuild_tensor'),  # before 0.4
            ('torch._utils', '_rebuild_tensor_v2'),
            ('torch._utils', '_rebuild_parameter'),
            ('torch._utils', '_rebuild_parameter_with_state'),
        }
    )
    admitted = ADMITTED_OF_OBJECTS

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module in ('torch', 'torch.cuda') and name in STORAGES:
            return STORAGES[name]
        return super().find_class(module, name) if (module, name) in self.names else Opaque

    def call(self, function: str, arguments: tuple[Any, ...]) -> Any:
        match function.rpartition('.')[2], arguments:
            case 'OrderedDict', ():
                return OrderedDict()  # unlike a dict, it takes the attribute `_metadata`, which nobody needs
            case 'OrderedDict', (list() as items,):  # from Python 2
                return OrderedDict(items)
            case '_rebuild_tensor' | '_rebuild_tensor_v2', (
                _Storage() as storage,
                offset,
                tuple() as size,
                tuple() as stride,
                *_,
            ):
                return _Tensor(storage, offset, size, stride)
            case '_rebuild_parameter' | '_rebuild_parameter_with_state', (_Tensor() as tensor, *_):
                return tensor
        return Opaque()

    def persistent_load(self, identity: Any) -> Any:
        match identity:
            case ('storage', str() as dtype, str() as key, str(), int() as n, *_) if (
                dtype in STORAGES.values() and n >= 0
            ):
                self.storages[key] = _Storage(dtype, key, n)
                return self.storages[key]
            case ('storage', _, str(), *_):  # of numbers that no network here has
                return Opaque()
            case ('module', *_):  # a class with its source, before 1.6
                return Opaque
        raise InputError('its pickle refers to something that is not a storage')
