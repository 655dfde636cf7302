"""Small valid files of every format, for tests and for fuzzing; those no framework at hand writes, by their formats."""

import datetime
import io
import pickle
import struct
import zipfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import PurePosixPath

import numpy as np

from squeeze_net.weights import Weights
from squeeze_net.weights.formats import caffemodel, net, npz, safetensors
from squeeze_net.weights.formats.layer_names import to_torch
from trainer.data.metadata import Metadata
from trainer.data.preprocessing import PREPROCESSINGS

METADATA = Metadata('squeezenet_v1.1', 4, PREPROCESSINGS['caffe'], ('a', 'b', 'c', 'd'))


def tensors(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {'conv1/W': (4, 3, 3, 3), 'conv1/b': (4,), 'fire2/squeeze1x1/W': (2, 4, 1, 1), 'conv10/W': (4, 2, 1, 1)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def key(field, wire_type):
    """Of a field in the wire format of protocol buffers; wire types: 0 varint, 2 bytes, 5 32-bit."""
    return encoded(field << 3 | wire_type)


def encoded(value):
    """A varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def put(field, value):
    """A field with its key: a varint or bytes."""
    if isinstance(value, int):
        return key(field, 0) + encoded(value)
    raw = value.encode() if isinstance(value, str) else value
    return key(field, 2) + encoded(len(raw)) + raw


def weights():
    return Weights(tensors(), METADATA)


def caffe_v1(data_type='float'):
    """A NetParameter of the older form: `layers`, with num, channels, height and width in the place of a shape."""

    def blob(tensor):
        dims = (1,) * (4 - tensor.ndim) + tensor.shape
        legacy = b''.join(put(field, n) for field, n in enumerate(dims, 1))
        if data_type == 'double':
            return legacy + put(8, tensor.astype('<f8').tobytes())
        if data_type == 'unpacked':
            return legacy + b''.join(key(5, 5) + struct.pack('<f', x) for x in tensor.reshape(-1))
        return legacy + put(5, tensor.astype('<f4').tobytes())

    found = tensors()
    layers = []
    for layer in ('conv1', 'fire2/squeeze1x1', 'conv10'):
        blobs = [found[f'{layer}/{kind}'] for kind in 'Wb' if f'{layer}/{kind}' in found]
        layers.append(put(2, layer_v1(layer, [blob(tensor) for tensor in blobs])))
    return put(1, 'SqueezeNet') + b''.join(layers)


def layer_v1(name, blobs):
    return put(2, 'data') + put(3, name) + put(4, name) + put(5, 4) + b''.join(put(6, blob) for blob in blobs)


class _Storage:
    """Pickles as `torch.FloatStorage` does: a persistent id."""

    def __init__(self, values, kind='FloatStorage'):
        self.values, self.kind = values, kind


class _Global:
    def __init__(self, module, name):
        self.module, self.name = module, name


class _Pickler(pickle._Pickler):
    """Writes what `torch.save` writes of a state dict, without PyTorch: names are written, not looked up."""

    def __init__(self, file, storages):
        super().__init__(file, protocol=2)
        self.storages = storages

    def persistent_id(self, obj):
        if not isinstance(obj, _Storage):
            return None
        key = self.storages.setdefault(id(obj), (str(len(self.storages)), obj))[0]
        return 'storage', _Global('torch', obj.kind), key, 'cpu', len(obj.values)

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, _Global):
            self.write(b'c' + f'{obj.module}\n{obj.name}\n'.encode())
        elif isinstance(obj, _Call):
            self.save(obj.function)
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
        elif isinstance(obj, _Object):
            self.save(_Global(obj.module, obj.name))
            self.save(())
            self.write(pickle.NEWOBJ)
            self.save(obj.state)
            self.write(pickle.BUILD)
        elif isinstance(obj, _Tensor):
            self.save(_Global('torch._utils', '_rebuild_tensor_v2'))
            self.save((obj.storage, obj.offset, obj.size, obj.stride, False, OrderedDict()))
            self.write(b'R')
        else:
            super().save(obj, save_persistent_id)


class _Call:
    def __init__(self, function, arguments):
        self.function, self.arguments = function, arguments


class _Object:
    """Pickles as an object of any class with this state."""

    def __init__(self, module, name, state):
        self.module, self.name, self.state = module, name, state


class _Tensor:
    def __init__(self, storage, offset, size, stride):
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride


def state_dict(found):
    """As PyTorch pickles it: each tensor a view of a storage; the first one transposed, to have strides."""
    state = OrderedDict()
    for name, tensor in found.items():
        if tensor.ndim == 4:
            flat = np.ascontiguousarray(tensor.transpose(1, 0, 2, 3)).reshape(-1)
            n_out, _, kh, kw = tensor.shape
            stride = (kh * kw, n_out * kh * kw, kw, 1)
        else:
            flat, stride = tensor, (1,)
        state[to_torch(name)] = _Tensor(_Storage(flat), 0, tensor.shape, stride)
    return state


def renamed(state, prefix):
    return OrderedDict((f'{prefix}{name}', tensor) for name, tensor in state.items())


def module(state):
    """A whole module, as `torch.save(model, FILE)` pickles it: classes by name, and the tensors in their states."""
    root = {'training': True, '_parameters': {}, '_buffers': OrderedDict(), '_modules': OrderedDict()}
    for name, tensor in state.items():
        inner = root
        *path, kind = name.split('.')
        for part in path:
            empty = {'training': True, '_parameters': {'nothing': None}, '_buffers': {}, '_modules': OrderedDict()}
            inner = inner['_modules'].setdefault(part, _Object('somebody.models', 'Layer', empty)).state
        inner['_parameters'][kind] = tensor
    return _Object('somebody.models', 'SqueezeNet', root)


def foreign():
    """What people save beside the weights."""
    return {
        'args': Namespace(lr=0.1, out=PurePosixPath('runs'), at=datetime.datetime(2020, 1, 2), tags={'a', 'b'}),
        'best_acc1': np.float64(71.5),
        'epoch': 3,
        'optimizer': {'state': {0: {'momentum_buffer': _Tensor(_Storage(np.ones(2, np.float32)), 0, (2,), (1,))}}},
        'device': _Call(_Global('torch', 'device'), ('cpu',)),
        'dtype': _Global('torch', 'float32'),
        'callbacks': [_Object('lightning.callbacks', 'EarlyStopping', {'patience': 3})],
    }


def checkpoints(found):
    """Name -> what people pass to `torch.save`."""
    state = state_dict(found)
    other = state_dict({name: tensor + 1 for name, tensor in found.items()})
    return {
        'plain': state,
        'data parallel': renamed(state, 'module.'),
        'compiled': renamed(state, '_orig_mod.'),
        'both': renamed(state, 'module._orig_mod.'),
        'an attribute': renamed(state, 'squeezenet.'),
        'averaged': renamed(state, 'module.') | {'n_averaged': _Tensor(_Storage(np.ones(1, np.float32)), 0, (), ())},
        'model_state_dict': {'model_state_dict': state, 'loss': 0.5} | foreign(),
        'net': {'net': renamed(state, 'module.'), 'acc': 91.2} | foreign(),
        'model': {'model': state} | foreign(),
        'the moving average beside': {'state_dict_ema': other, 'state_dict': state} | foreign(),
        'only the moving average': {'ema': state} | foreign(),
        'lightning': {
            'state_dict': renamed(state, 'model.') | {'criterion.weight': next(iter(state.values()))},
            'hyper_parameters': {'lr': 0.1},
            'loops': {'fit_loop': {'state_dict': {}}},
        }
        | foreign(),
        'a whole module': module(state),
        'a whole module in a wrapper': {'model': module(renamed(state, 'module.'))} | foreign(),
        "a dictionary's subclass": _Object('somebody', 'Checkpoint', {'model': state}),
    }


def pth(state):
    """The zip that `torch.save` writes since PyTorch 1.6."""
    storages, raw = {}, io.BytesIO()
    _Pickler(raw, storages).dump(state)
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        archive.writestr('model/data.pkl', raw.getvalue())
        archive.writestr('model/byteorder', 'little')
        for key, storage in storages.values():
            archive.writestr(f'model/data/{key}', np.asarray(storage.values).tobytes())
        archive.writestr('model/version', '3\n')
    return file.getvalue()


def pth_legacy(state):
    """The pickles one after the other, and the storages behind them, of PyTorch before 1.6."""
    storages, file = {}, io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {'protocol_version': 1001, 'little_endian': True, 'type_sizes': {}}):
        pickle.dump(value, file, protocol=2)
    _Pickler(file, storages).dump(state)
    pickle.dump([key for key, _ in storages.values()], file, protocol=2)
    for _, storage in storages.values():
        file.write(struct.pack('<q', len(storage.values)) + np.asarray(storage.values).tobytes())
    return file.getvalue()


def npz_snapshot(prefix='updater/model:main/predictor/'):
    """What Chainer's `extensions.snapshot()` writes of a classifier in training."""
    arrays = {f'{prefix}{name}': tensor for name, tensor in tensors().items()}
    arrays |= {
        'updater/iteration': np.array(7),
        'updater/optimizer:main/predictor/conv1/W/v': np.ones(3),
        'updater/iterator:main/order': np.arange(4),
        'extensions/LogReport/_log': np.array('[]'),
        'extensions/odd': np.array(None, object),
    }
    np.savez(file := io.BytesIO(), **arrays)
    return file.getvalue()


def onnx():
    """Only what a reader of weights looks at: initializers, one of them a list of sizes."""
    found = tensors()

    def tensor(name, array, kind):
        return put(1, b''.join(map(encoded, array.shape))) + put(2, kind) + put(8, name) + put(9, array.tobytes())

    graph = b''.join(put(5, tensor(name, array, 1)) for name, array in found.items())
    graph += put(5, tensor('sizes', np.array([64, 64], np.int64), 7))
    return put(1, 8) + put(7, graph) + put(14, put(1, 'metadata') + put(2, METADATA.dumps()))


def net_layers(seed=0):
    rng = np.random.default_rng(seed)
    layers = []
    for shape in ((4, 3, 3, 3), (2, 4, 1, 1)):
        codes = rng.integers(0, 256, shape) * (rng.random(shape) < 0.3)
        codebook = np.concatenate(([0], rng.normal(size=255))).astype(np.float32)
        layers.append(net.CodedLayer(codebook, codes.astype(np.uint8), rng.normal(size=shape[0]).astype(np.float32)))
    return layers


def all_files():
    """Suffix and bytes of a valid file of each kind."""
    return {
        'npz': ('.npz', npz.write(weights())),
        'caffemodel': ('.caffemodel', caffemodel.write(weights())),
        'caffemodel_v1': ('.caffemodel', caffe_v1()),
        'safetensors': ('.safetensors', safetensors.write(weights())),
        'pth': ('.pth', pth(state_dict(tensors()))),
        'pth_legacy': ('.pth', pth_legacy(state_dict(tensors()))),
        'pth_checkpoint': ('.pth', pth(checkpoints(tensors())['lightning'])),
        'pth_module': ('.pth', pth(checkpoints(tensors())['a whole module in a wrapper'])),
        'npz_snapshot': ('.npz', npz_snapshot()),
        'onnx': ('.onnx', onnx()),
    }
