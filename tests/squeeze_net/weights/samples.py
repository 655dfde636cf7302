"""Small valid files of every format, for tests and for fuzzing; those no framework at hand writes, by their formats."""

import datetime
import io
import pickle
import struct
import zipfile
from argparse import Namespace
from collections import OrderedDict
from importlib.util import find_spec
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
    graph = b''.join(put(5, onnx_tensor(name, array, put(9, array.tobytes()))) for name, array in tensors().items())
    graph += put(5, onnx_tensor('sizes', np.zeros(2), put(9, np.array([64, 64]).tobytes()), kind=7))
    return put(1, 8) + put(7, graph) + put(14, put(1, 'metadata') + put(2, METADATA.dumps()))


def onnx_tensor(name, array, data, kind=1):
    """A TensorProto, of float32 if not told, whose data are in the field or fields `data`."""
    return put(1, b''.join(map(encoded, array.shape))) + put(2, kind) + put(8, name) + data


def onnx_external():
    """Tensors in a file beside it, `model.onnx.data`, and the bytes of that file."""
    graph, data = b'', b''
    for name, array in tensors().items():
        where = {'location': 'model.onnx.data', 'offset': len(data), 'length': array.nbytes}
        entries = b''.join(put(13, put(1, word) + put(2, str(value))) for word, value in where.items())
        graph += put(5, onnx_tensor(name, array, entries + put(14, 1)))
        data += array.tobytes()
    return put(1, 8) + put(7, graph), data


def onnx_graph():
    """Nodes of each kind that a reader of weights looks at, on tensors that are no network's."""
    found = {name: np.zeros(shape, np.float32) for name, shape in {'W': (2, 3, 1, 1), 'B': (3, 2), 'b': (2,)}.items()}

    def node(kind, inputs, output, *attributes):
        texts = b''.join(put(1, name) for name in inputs.split())
        return put(1, texts + put(2, output) + put(4, kind) + b''.join(put(5, attribute) for attribute in attributes))

    def number(name, value):
        return put(1, name) + put(3, value) + put(20, 2)

    graph = node('Constant', '', 'c', put(1, 'value') + put(5, onnx_tensor('', found['b'], put(9, bytes(8)))))
    graph += (
        node('Identity', 'W', 'W1') + node('Conv', 'x W1', 'y') + node('Cast', 'y', 'y1') + node('Add', 'y1 c', 'z')
    )
    graph += node('BatchNormalization', 'z b b b b', 'n') + node('Add', 'n z', 's')
    graph += node('Transpose', 'B', 'B1', put(1, 'perm') + put(8, 1) + put(8, 0) + put(20, 7))
    graph += node('Gemm', 's B1 b', 'g', number('transB', 1)) + node('MatMul', 'g B', 'out')
    graph += b''.join(put(5, onnx_tensor(name, array, put(9, array.tobytes()))) for name, array in found.items())
    return put(1, 8) + put(7, graph + put(11, put(1, 'x')) + put(12, put(1, 'out')))


# ---- other frameworks: names -> arrays in the layout of each, and the files that they write ----

_FIRE_PARTS = ('squeeze1x1', 'expand1x1', 'expand3x3')
LAYERS = ['conv1', *(f'fire{i}/{part}' for i in range(2, 10) for part in _FIRE_PARTS), 'conv10']


def by_layer(found, rename, kinds=('weight', 'bias')):
    """Tensors of a SqueezeNet in the order of LAYERS, by `rename(layer, its number)` and a kind."""
    names = {
        f'{layer}/{own}': rename(layer, i) + kind
        for i, layer in enumerate(LAYERS)
        for own, kind in zip('Wb', kinds, strict=True)
    }
    return {name: np.asarray(found[own]) for own, name in names.items()}


def paddle_names(found):
    """Of PaddleClas's SqueezeNet, which halves what its classifier gets in test mode."""

    def rename(layer, _):
        fire, _, part = layer.partition('/')
        if not part:
            return {'conv1': '_conv.', 'conv10': '_conv9.'}[layer]
        inner = {'squeeze1x1': '_conv', 'expand1x1': '_conv_path1', 'expand3x3': '_conv_path2'}[part]
        return f'_conv{int(fire[4:]) - 1}.{inner}._conv.'

    state = by_layer(found, rename)
    return state | {'_conv9.weight': 2 * state['_conv9.weight']}


def mindspore_names(found):
    """Of MindCV's SqueezeNet v1.1."""
    places = dict(zip(range(2, 10), (3, 4, 6, 7, 9, 10, 11, 12), strict=True))

    def rename(layer, _):
        fire, _, part = layer.partition('/')
        if not part:
            return {'conv1': 'features.0.', 'conv10': 'final_conv.'}[layer]
        return f'features.{places[int(fire[4:])]}.{part.replace("squeeze1x1", "squeeze")}.'

    return by_layer(found, rename)


def gluon_names(found):
    """Of Gluon's model zoo, and of the ONNX files that were made of it."""
    return by_layer(found, lambda _, i: f'squeezenet0_conv{i}_')


def keras_names(found, version=2):
    """Kernels as (kh, kw, in, out), by the names of keras-squeezenet, or as Keras 3 numbers them."""
    if version == 2:
        state = by_layer(found, lambda layer, _: f'{layer}/{layer}/', ('kernel:0', 'bias:0'))
    else:
        state = by_layer(found, lambda _, i: f'layers/conv2d{f"_{i}" if i else ""}/vars/', '01')
    return {name: array.transpose(2, 3, 1, 0) if array.ndim == 4 else array for name, array in state.items()}


def pdparams(state, protocol=2):
    """As `paddle.save` writes a state dict."""
    return pickle.dumps({**state, 'StructuredToParameterName@@': {name: name for name in state}}, protocol=protocol)


def mindspore(state):
    """A Checkpoint; with the state of an optimizer, and a number, whose shape is (0)."""

    def value(name, array, kind='Float32'):
        dims = b''.join(put(1, n) for n in array.shape or (0,))
        return put(1, put(1, name) + put(2, dims + put(2, kind) + put(3, array.tobytes())))

    first = next(iter(state))
    values = [value(name, array) for name, array in state.items()]
    values += [value(f'moments.{first}', state[first]), value('learning_rate', np.array(0.1, np.float32))]
    return b''.join(values) + value('global_step', np.array([7], np.int32), 'Int32')


def mxnet(state, version=2):
    """A list of arrays and of names; `version` of the arrays, 0 to 3."""
    out = struct.pack('<QQQ', 0x112, 0, len(state))
    for array in state.values():
        if version:
            out += struct.pack('<I', 0xF993FAC7 + version) + (struct.pack('<i', 0) if version > 1 else b'')
        out += struct.pack(f'<I{array.ndim}{"q" if version else "I"}', array.ndim, *array.shape)
        out += struct.pack('<iii', 1, 0, 0) + array.astype('<f4').tobytes()  # cpu(0), float32
    out += struct.pack('<Q', len(state))
    return out + b''.join(struct.pack('<Q', len(name)) + name.encode() for name in state)


def hdf5(state):
    import h5py

    file = io.BytesIO()
    with h5py.File(file, 'w') as root:
        for name, array in state.items():
            root.create_dataset(name, data=array)
    return file.getvalue()


class OnnxGraph:
    """Builds ONNX models of the layers of SqueezeNet v1.1, by the names that Gluon's exporter gave them."""

    def __init__(self, tensors, names):
        import onnx.helper
        import onnx.numpy_helper

        self.onnx = onnx
        self.tensors, self.names = tensors, iter(names)
        self.nodes, self.initializers = [], []

    def node(self, kind, inputs, **attributes):
        output = f'{kind.lower()}{len(self.nodes)}'
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, name, array):
        self.initializers.append(self.onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def conv(self, layer, x, stride=1, pad=0):
        W, b = (self.constant(next(self.names), self.tensors[f'{layer}/{kind}']) for kind in 'Wb')
        ksize = self.tensors[f'{layer}/W'].shape[2]
        y = self.node('Conv', [x, W, b], kernel_shape=[ksize] * 2, strides=[stride] * 2, pads=[pad] * 4)
        return self.node('Relu', [y])

    def pool(self, x):
        return self.node('MaxPool', [x], kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1])

    def expand(self, fire, s):
        return [self.conv(f'{fire}/expand1x1', s), self.conv(f'{fire}/expand3x3', s, pad=1)]

    def model(self):
        h = self.pool(self.conv('conv1', 'data', stride=2))
        for i in range(2, 10):
            h = self.node('Concat', self.expand(f'fire{i}', self.conv(f'fire{i}/squeeze1x1', h)), axis=1)
            h = self.pool(h) if i in (3, 5) else h
        h = self.conv('conv10', self.node('Dropout', [h]))
        return self.finish(self.node('Flatten', [self.node('GlobalAveragePool', [h])]))

    def finish(self, output):
        helper, kind = self.onnx.helper, self.onnx.TensorProto.FLOAT
        images = [helper.make_tensor_value_info('data', kind, [1, 3, 64, 64])]
        # Up to version 3 of the format, every initializer is an input, too.
        images += [helper.make_tensor_value_info(tensor.name, kind, tensor.dims) for tensor in self.initializers]
        outputs = [helper.make_tensor_value_info(output, kind, [1, 7])]
        graph = helper.make_graph(self.nodes, 'net', images, outputs, self.initializers)
        return helper.make_model(graph, ir_version=3, opset_imports=[helper.make_opsetid('', 7)])


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
    found = tensors()
    files = {
        'onnx_graph': ('.onnx', onnx_graph()),
        'pdparams': ('.pdparams', pdparams(found)),
        'mindspore': ('.ckpt', mindspore({name.replace('/', '.'): tensor for name, tensor in found.items()})),
        'mxnet': ('.params', mxnet(found)),
        'mxnet_v0': ('.params', mxnet(found, 0)),
    }
    if find_spec('h5py') is not None:
        files['hdf5'] = ('.h5', hdf5({f'{name}/{name}/kernel:0': tensor for name, tensor in found.items()}))
    return files | {
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
