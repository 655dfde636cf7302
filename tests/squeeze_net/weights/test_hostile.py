"""Files that are cut short, of the wrong kind, or lie: one clear error, and memory in proportion to the file."""

import io
import json
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import samples
from samples import encoded, key, put

import trainer
from squeeze_net.weights import io as weights_io
from squeeze_net.weights.formats import FORMATS, net

ROOT = Path(__file__).parents[3]
MAX_MEMORY = 64 << 20  # bytes, for files of some kilobytes
VALID = samples.all_files()


def parse(raw, suffix):
    return weights_io.parse(memoryview(raw), suffix, 'the file')


@pytest.fixture(scope='module', autouse=True)
def shapes_of_the_networks():
    """Made once a process, by whichever file comes first, and no file's memory."""
    for suffix, raw in VALID.values():
        parse(raw, suffix)


def refuse(raw, suffix, match=None):
    tracemalloc.start()
    try:
        with pytest.raises(trainer.InputError, match=match) as caught:
            parse(raw, suffix)
        assert tracemalloc.get_traced_memory()[1] < MAX_MEMORY
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(f'the file cannot be read as {suffix}: ')
    assert '\n' not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize('kind', VALID)
def test_cut_short_at_any_place(kind):
    suffix, raw = VALID[kind]
    whole = parse(raw, suffix)
    for n in [*range(0, len(raw), max(1, len(raw) // 150)), len(raw) - 1]:
        try:
            found = parse(raw[:n], suffix)
        except trainer.InputError:
            continue
        # A list of messages cut between two of them is a shorter list; what is missing then shows at the network.
        assert found.tensors.keys() < whole.tensors.keys() or kind.startswith('onnx')
        for name, tensor in found.tensors.items():
            np.testing.assert_array_equal(tensor, whole.tensors[name])


@pytest.mark.parametrize('kind', VALID)
@pytest.mark.parametrize('suffix', sorted({suffix for suffix, _ in VALID.values()} | {'.net'}))
def test_of_the_wrong_kind(kind, suffix):
    own, raw = VALID[kind]
    if not set(FORMATS[own]) & set(FORMATS[suffix]):  # some suffixes are names of one format
        refuse(raw, suffix)


def npz_of(header):
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        raw = repr(header).encode() + b'\n'
        archive.writestr('conv1/W.npy', b'\x93NUMPY\x01\x00' + struct.pack('<H', len(raw)) + raw + b'\0' * 16)
    return file.getvalue()


def zip_bomb(name='conv1/W.npy', n_mib=385, method=zipfile.ZIP_DEFLATED, **others):
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', method, compresslevel=1) as archive:
        for beside, raw in others.items():
            archive.writestr(beside, raw)
        with archive.open(name, 'w') as member:
            for _ in range(n_mib):
                member.write(bytes(1 << 20))
    return file.getvalue()


def lying(raw, n_bytes=1000):
    """A zip of one file whose directory says that it has `n_bytes`."""
    at = raw.rindex(b'PK\1\2') + 24
    return raw[:at] + struct.pack('<I', n_bytes) + raw[at + 4 :]


def safetensors_of(header, data=b'\0' * 16):
    raw = json.dumps(header).encode()
    return struct.pack('<Q', len(raw)) + raw + data


def tensor_of(shape, raw=b'\0' * 16):
    return put(1, b''.join(map(encoded, shape))) + put(2, 1) + put(8, 'conv1/W') + put(9, raw)


def pth_of(size, stride, n=4):
    return samples.pth({'conv1.weight': samples._Tensor(samples._Storage(np.zeros(n, np.float32)), 0, size, stride)})


def mindspore_of(dims, content=bytes(16)):
    tensor = b''.join(put(1, n) for n in dims) + put(2, 'Float32') + put(3, content)
    return put(1, put(1, 'conv1.weight') + put(2, tensor))


def mxnet_of(n=1, magic=0xF993FAC9, stype=0, shape=(2, 2), kind=0, data=bytes(16), n_names=1, length=1):
    array = struct.pack(f'<IiI{len(shape)}qiii', magic, stype, len(shape), *shape, 1, 0, kind) + data
    return struct.pack('<QQQ', 0x112, 0, n) + array + struct.pack('<QQ', n_names, length) + b'a'


def hdf5_of(change):
    h5py = pytest.importorskip('h5py')
    with h5py.File(file := io.BytesIO(), 'w') as root:
        change(h5py, root)
    return file.getvalue()


def external_values(h5py, root):
    space = h5py.h5s.create_simple((4,))
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_external(b'/etc/hostname', 0, 16)
    h5py.h5d.create(root.id, b'a', h5py.h5t.IEEE_F32LE, space, properties)


def virtual_values(h5py, root):
    layout = h5py.VirtualLayout((4,), 'f4')
    layout[:] = h5py.VirtualSource('/etc/hostname', 'a', (4,))
    root.create_virtual_dataset('a', layout)


def itself(h5py, root):
    for i in range(5):
        root[f'g{i}'] = root


HDF5_LIES = {
    'a link to a file': (lambda h5py, root: root.update(a=h5py.ExternalLink('/etc/hostname', 'x')), 'is a link'),
    'a soft link': (lambda h5py, root: root.update(a=h5py.SoftLink('/b')), 'is a link'),
    'values of another file': (external_values, 'lies in another file'),
    'values gathered from another file': (virtual_values, 'lies in another file'),
    'a group in itself': (itself, 'more than'),
    'a bomb': (lambda h5py, root: root.create_dataset('a', (1 << 40,), 'f4', chunks=(1 << 20,)), '384 MB'),
    'texts': (lambda h5py, root: root.update(a=['x']), 'no weights'),
}


@pytest.mark.parametrize('lie', HDF5_LIES)
def test_lies_of_hdf5(lie):
    change, match = HDF5_LIES[lie]
    refuse(hdf5_of(change), '.h5', match)


def pickled_loop():
    loop = []
    loop.append(loop)
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        archive.writestr('model/data.pkl', pickle.dumps({'conv1.weight': loop}, protocol=2))
    return file.getvalue()


HUGE = 1 << 40
LIES = {
    'npz, a huge shape': ('.npz', npz_of({'descr': '<f4', 'fortran_order': False, 'shape': (HUGE, HUGE)}), 'declares'),
    'npz, objects': ('.npz', npz_of({'descr': '|O', 'fortran_order': False, 'shape': (2,)}), None),
    'npz, a header that is code': ('.npz', npz_of('__import__("os").abort()'), None),
    'npz, a bomb': ('.npz', zip_bomb(), 'take more than 384 MB'),
    'npz, a bomb that lies': ('.npz', lying(zip_bomb(n_mib=100)), None),
    'npz, packed without bounds': ('.npz', lying(zip_bomb(n_mib=1, method=zipfile.ZIP_BZIP2)), 'by method 12 of zip'),
    'safetensors, a huge header': ('.safetensors', struct.pack('<Q', 1 << 62) + b'{}', 'length of a header'),
    'safetensors, a huge shape': (
        '.safetensors',
        safetensors_of({'a/W': {'dtype': 'F32', 'shape': [HUGE, HUGE], 'data_offsets': [0, 16]}}),
        'is not a .safetensors',
    ),
    'safetensors, beyond the end': (
        '.safetensors',
        safetensors_of({'a/W': {'dtype': 'F32', 'shape': [1000], 'data_offsets': [0, 4000]}}),
        'is not a .safetensors',
    ),
    'safetensors, deep JSON': ('.safetensors', struct.pack('<Q', 20000) + b'[' * 20000, 'is not a .safetensors'),
    'onnx, a huge shape': ('.onnx', put(7, put(5, tensor_of((HUGE, HUGE)))), 'cannot be read'),
    'onnx, many dimensions': ('.onnx', put(7, put(5, tensor_of([1] * 5000))), None),
    'onnx, a tensor elsewhere': (
        '.onnx',
        put(7, put(5, tensor_of([4], b'') + put(13, put(1, 'location') + put(2, 'x')))),
        'another file',
    ),
    'onnx, a huge shape elsewhere': (
        '.onnx',
        put(7, put(5, put(1, HUGE) * 2 + put(2, 1) + put(8, 'a') + put(13, put(1, 'location') + put(2, 'x')))),
        'declares the shape',
    ),
    'onnx, nodes in a circle': (
        '.onnx',
        put(7, put(1, put(1, 'a') + put(2, 'b')) + put(1, put(1, 'b') + put(2, 'a')) + put(12, put(1, 'a'))),
        'no weights',
    ),
    'pdparams, a command': ('.pdparams', b'cos\nsystem\n(S"echo"\ntR.', 'plain arrays'),
    'pdparams, a list': ('.pdparams', pickle.dumps([1], protocol=2), 'no dictionary'),
    'pdparams, no arrays': ('.pdparams', pickle.dumps({'a': 1}, protocol=2), 'no weights'),
    'mindspore, a huge shape': ('.ckpt', mindspore_of((HUGE, HUGE)), 'has 16 bytes'),
    'mindspore, a negative shape': ('.ckpt', mindspore_of(((1 << 64) - 2, (1 << 64) - 2)), 'has 16 bytes'),
    'mindspore, many dimensions': ('.ckpt', mindspore_of([1] * 5000, bytes(4)), 'has 4 bytes'),
    'mindspore, twice': ('.ckpt', mindspore_of((4,)) * 2, 'twice'),
    'mindspore, empty values': ('.ckpt', put(1, b'') * 300_000, 'more parts'),
    'mxnet, a huge shape': ('.params', mxnet_of(shape=(HUGE, HUGE)), 'beyond its end'),
    'mxnet, a negative shape': ('.params', mxnet_of(shape=(-2, -2)), 'type 0 and the shape'),
    'mxnet, a huge empty shape': ('.params', mxnet_of(shape=(HUGE, HUGE, HUGE, 0), data=b''), None),
    'mxnet, many dimensions': ('.params', mxnet_of(shape=(1,) * 9), '9 dimensions'),
    'mxnet, another type': ('.params', mxnet_of(kind=99), 'the type 99'),
    'mxnet, sparse': ('.params', mxnet_of(stype=1), 'sparse'),
    'mxnet, many arrays': ('.params', mxnet_of(n=HUGE), 'at most 16384'),
    'mxnet, no names': ('.params', mxnet_of(n_names=0), '1 arrays and 0 names'),
    'mxnet, a long name': ('.params', mxnet_of(length=HUGE), 'a name of'),
    'caffemodel, a huge length': ('.caffemodel', key(100, 2) + encoded(1 << 62), 'cut short'),
    'caffemodel, a huge blob': (
        '.caffemodel',
        put(100, put(1, 'conv1') + put(7, put(7, put(1, encoded(HUGE) * 2)) + put(5, b'\0' * 16))),
        'holds 4 numbers',
    ),
    'caffemodel, many layers': ('.caffemodel', put(100, put(1, 'a')) * 5000, 'more than 4096 layers'),
    'caffemodel, an endless number': ('.caffemodel', b'\xff' * 200, 'not a NetParameter'),
    'caffemodel, empty layers': ('.caffemodel', put(100, b'') * 300_000, 'more parts'),
    'caffemodel, empty blobs': ('.caffemodel', put(100, put(7, b'') * 300_000), 'more parts'),
    'onnx, empty nodes': ('.onnx', put(7, put(1, b'') * 300_000), 'more parts'),
    'onnx, empty texts': ('.onnx', put(7, put(1, put(1, b'') * 6_000_000)), 'more parts'),
    'pth, a huge tensor of one value': ('.pth', pth_of((1 << 10, 1 << 10), (0, 0)), 'in a storage of 4'),
    'pth, beyond its storage': ('.pth', pth_of((2, 2), (2, 4)), 'beyond its storage'),
    'pth, before its storage': ('.pth', pth_of((2, 2), (-2, 1)), 'strides'),
    'pth, a loop': ('.pth', pickled_loop(), 'is not a tensor'),
    'pth, a bomb': ('.pth', zip_bomb('model/data.pkl', 17), 'more than 16 MB'),
    'pth, a bomb that lies': ('.pth', lying(zip_bomb('model/data.pkl', 100)), None),
    'pth, a bomb beside': (
        '.pth',
        zip_bomb('model/byteorder', 100, **{'model/data.pkl': pickle.dumps({}, protocol=2)}),
        'big-endian',
    ),
    'net, huge counts': ('.net', b'\xff' * 4 * 26, 'its header says'),
}


# Many parts are counted.
SLOW = {
    'onnx, empty texts',
    'onnx, empty nodes',
    'caffemodel, empty blobs',
    'caffemodel, empty layers',
    'mindspore, empty values',
}


@pytest.mark.parametrize('lie', [pytest.param(lie, marks=pytest.mark.long if lie in SLOW else ()) for lie in LIES])
def test_lies(lie):
    suffix, raw, match = LIES[lie]
    refuse(raw, suffix, match)


def test_storages_shared_by_many_tensors_do_not_add_up():
    values = samples._Storage(np.zeros(1 << 18, np.float32))  # 1 MB
    state = {f'layer{i}.weight': samples._Tensor(values, 0, (1 << 18,), (1,)) for i in range(400)}
    with pytest.raises(trainer.InputError, match='take more than 384 MB'):
        parse(samples.pth(state), '.pth')


def test_numbers_one_by_one_take_no_more_than_the_file():
    raw = samples.caffe_v1('unpacked')
    tracemalloc.start()
    parse(raw, '.caffemodel')
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_entries_outside_their_layer():
    (layer,) = net.decode(raw := net.encode(samples.net_layers()[:1]), [(4, 3, 3, 3)])
    assert layer.codes.any()
    lying = bytearray(raw)
    lying[-20:] = b'\xff' * 20
    with pytest.raises(trainer.InputError, match='lies at place'):
        net.decode(bytes(lying), [(4, 3, 3, 3)])


@pytest.mark.long
def test_a_little_fuzzing():
    """What `make fuzz` does with 100,000 files a reader, with 100."""
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tests/fuzz/fuzz.py'), '-n', '100', '--seed', '99'], capture_output=True, text=True
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert len(results) >= 13 and all(result['refused'] > 0 for result in results if result['reader'] != 'image')
