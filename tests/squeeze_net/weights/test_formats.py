"""Every format against real files, against the others, and against what its description says.

No Caffe model of the older form is at hand: `samples` makes it as the format prescribes, and files of PyTorch, which is
not needed here; where SQUEEZE_NET_TORCH_PYTHON names a Python that has it, its own files are read, too.
"""

import io
import os
import subprocess
import zipfile
from pathlib import Path

import chainer
import numpy as np
import pytest
import samples
from hypothesis import given, settings
from hypothesis import strategies as st

import trainer
from squeeze_net import NETWORKS, weights
from squeeze_net.weights import Weights, tensors_of
from squeeze_net.weights import io as weights_io
from squeeze_net.weights.__main__ import main
from squeeze_net.weights.formats import net
from trainer.data.metadata import Metadata
from trainer.data.preprocessing import Preprocessing

DATA = Path(os.environ.get('SQUEEZE_NET_DATA', Path(__file__).parents[4] / 'shared' / 'data')) / 'weights'
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f'no published weights in {DATA}')


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], expected[name])


def parse(raw, suffix):
    return weights_io.parse(memoryview(raw), suffix, 'file')


@needs_data
@pytest.mark.parametrize(
    ('model', 'reference', 'network'),
    [
        ('squeezenet_v1.0.caffemodel', 'squeezenet_v1.0_dense.npz', 'squeezenet_v1.0'),
        ('squeezenet_v1.1.caffemodel', 'squeezenet_v1.1_caffe.npz', 'squeezenet_v1.1'),
    ],
)
def test_published_values_survive_every_format(model, reference, network, tmp_path):
    first = weights.read(DATA / model)
    assert first.metadata.network == network and first.metadata.n_class == 1000
    assert first.metadata.preprocessing.name == 'caffe'
    assert_same(weights.read(DATA / reference).tensors, first.tensors)
    found = first
    for name in ('a.npz', 'b.safetensors', 'c.onnx', 'd.npz', 'e.caffemodel'):
        weights.write(found, tmp_path / name)
        found = weights.read(tmp_path / name)
        assert_same(found.tensors, first.tensors)
        assert found.metadata == first.metadata
    with np.load(tmp_path / 'd.npz') as arrays:  # as Chainer reads it
        model = NETWORKS[network](1000)
        chainer.serializers.NpzDeserializer(arrays).load(model)
    np.testing.assert_array_equal(model.fire9.expand3x3.W.array, first.tensors['fire9/expand3x3/W'])


@needs_data
def test_deep_compression_byte_for_byte():
    raw = (DATA / 'compressed_SqueezeNet.net').read_bytes()
    layers = net.decode(raw, net.published_shapes())
    assert net.encode(layers) == raw
    counts = [int((layer.codes != 0).sum()) for layer in layers]
    assert (counts[0], counts[3], counts[-1], sum(counts)) == (13902, 3039, 102323, 415921)  # by the file's description


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.integers(1, 400))
def test_net_round_trip(seed, density, n):
    rng = np.random.default_rng(seed)
    shape = (n, 2, 1, 3)
    codes = (rng.integers(1, 256, shape) * (rng.random(shape) < density**4)).astype(np.uint8)  # long runs of zeros, too
    codebook = np.concatenate(([0], rng.normal(size=255))).astype(np.float32)
    layer = net.CodedLayer(codebook, codes, rng.normal(size=n).astype(np.float32))
    (found,) = net.decode(raw := net.encode([layer]), [shape])
    np.testing.assert_array_equal(found.codes, codes)
    np.testing.assert_array_equal(found.weights, codebook[codes])
    np.testing.assert_array_equal(found.bias, layer.bias)
    assert net.encode([found]) == raw
    stored, gaps = net.entries(codes.reshape(-1))
    assert gaps.max(initial=0) <= 15 and (gaps[stored == 0] == 15).all()


@pytest.mark.parametrize('kind', ['float', 'double', 'unpacked'])
def test_caffe_of_the_older_form(kind):
    assert_same(parse(samples.caffe_v1(kind), '.caffemodel').tensors, samples.tensors())


CHECKPOINTS = samples.checkpoints(samples.tensors())


@pytest.mark.parametrize('write', [samples.pth, samples.pth_legacy])
@pytest.mark.parametrize('kind', CHECKPOINTS)
def test_pytorch(kind, write):
    found = parse(write(CHECKPOINTS[kind]), '.pth')
    assert_same(found.tensors, samples.tensors())
    assert ('state_dict_ema' in found.note) == (kind == 'the moving average beside')


@pytest.mark.parametrize('suffix', ['.pt', '.tar', '.ckpt', '.bin'])
def test_suffixes_of_pytorch(suffix):
    assert_same(parse(samples.pth(CHECKPOINTS['lightning']), suffix).tensors, samples.tensors())


@pytest.mark.parametrize('write', [samples.pth, samples.pth_legacy])
@pytest.mark.parametrize('payload', [('os', 'system'), ('builtins', 'eval'), ('posix', '_exit')])
def test_pytorch_calls_nothing(write, payload, tmp_path):
    """What a call in a pickle was to do does not happen."""
    call = samples._Call(samples._Global(*payload), (f'touch {tmp_path}/ran',))
    raw = write({'state_dict': CHECKPOINTS['plain'], 'args': call})
    assert_same(parse(raw, '.pth').tensors, samples.tensors())
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize(
    ('state', 'message'),
    [
        ({'teacher': CHECKPOINTS['plain'], 'student': CHECKPOINTS['compiled']}, "2 state dicts .'teacher', 'student'"),
        (samples.foreign(), r'no state dict: write one by torch\.save\(model\.state_dict\(\), FILE\)'),
        ({'conv1.weight': samples._Global('torch', 'nn')}, "'conv1.weight', which is not a tensor"),
        ([1, 2], 'no state dict'),
    ],
)
def test_pytorch_without_one_state_dict(state, message):
    with pytest.raises(trainer.InputError, match=message):
        parse(samples.pth(state), '.pth')


def test_torchscript_is_named():
    with zipfile.ZipFile(file := io.BytesIO(), 'w') as archive:
        archive.writestr('script/data.pkl', b'\x80\x02N.')
        archive.writestr('script/constants.pkl', b'\x80\x02).')
    with pytest.raises(trainer.InputError, match=r'TorchScript: .*torch\.jit\.load'):
        parse(file.getvalue(), '.pt')


TORCH_PYTHON = os.environ.get('SQUEEZE_NET_TORCH_PYTHON', '')


@pytest.mark.skipif(not TORCH_PYTHON, reason='SQUEEZE_NET_TORCH_PYTHON names no Python that has PyTorch')
def test_files_of_pytorch_itself(tmp_path):
    subprocess.run([TORCH_PYTHON, Path(__file__).with_name('write_checkpoints.py'), tmp_path], check=True)
    with np.load(tmp_path / 'expected.npz') as expected:
        expected = dict(expected)
    files = [path for path in sorted(tmp_path.iterdir()) if path.suffix != '.npz']
    assert len(files) > 20
    for path in files:
        model, found = weights.load_model(path)
        assert (found.metadata.network, found.metadata.n_class) == ('squeezenet_v1.1', 10), path
        atol = 0.01 if path.stem.endswith('half') else 0
        np.testing.assert_allclose(model.conv1.W.array, expected['features.0.weight'], atol=atol, err_msg=str(path))
        np.testing.assert_allclose(model.conv10.b.array, expected['classifier.1.bias'], atol=atol, err_msg=str(path))


@pytest.mark.parametrize('prefix', ['', 'predictor/', 'updater/model:main/predictor/', 'updater/model:main/'])
def test_snapshots_of_chainer(prefix):
    raw = samples.npz_snapshot(prefix)
    if not prefix.startswith('updater'):
        np.savez(file := io.BytesIO(), **{f'{prefix}{name}': tensor for name, tensor in samples.tensors().items()})
        raw = file.getvalue()
    assert_same(parse(raw, '.npz').tensors, samples.tensors())


def test_torchvisions_numbers():
    numbers = {'squeezenet_v1.0': (3, 4, 5, 7, 8, 9, 10, 12), 'squeezenet_v1.1': (3, 4, 6, 7, 9, 10, 11, 12)}
    for network, places in numbers.items():
        expected = tensors_of(NETWORKS[network](5, 64))
        state = {}
        for name, tensor in expected.items():
            layer, _, kind = name.rpartition('/')
            if layer in ('conv1', 'conv10'):
                path = {'conv1': 'features.0', 'conv10': 'classifier.1'}[layer]
            else:
                fire, part = layer.split('/')
                path = f'features.{places[int(fire[4:]) - 2]}.{part.replace("squeeze1x1", "squeeze")}'
            state[f'{path}/{kind}'.replace('/', '.')] = tensor
        state = {name.replace('.W', '.weight').replace('.b', '.bias'): value for name, value in state.items()}
        raw = samples.pth(_as_state(state))
        found = parse(raw, '.pth')
        assert_same(found.tensors, expected)
        assert (found.metadata.network, found.metadata.n_class) == (network, 5)
        assert found.metadata.preprocessing.name == 'torchvision'


def _as_state(arrays):
    return {
        name: samples._Tensor(samples._Storage(array.reshape(-1)), 0, array.shape, tuple(s // 4 for s in array.strides))
        for name, array in arrays.items()
    }


def test_half_precisions_of_safetensors():
    import struct

    values = np.array([1.5, -2.25, 0.0078125], np.float32)
    bf16 = (values.view(np.uint32) >> 16).astype('<u2').tobytes()
    header = b'{"conv1/W":{"dtype":"BF16","shape":[3],"data_offsets":[0,6]}}'
    found = parse(struct.pack('<Q', len(header)) + header + bf16, '.safetensors')
    np.testing.assert_array_equal(found.tensors['conv1/W'], values)


@pytest.mark.parametrize(
    ('network', 'size'),
    [
        ('squeezenet', 40),
        ('squeezenet_v1.0', 64),
        ('squeezenet_v1.1_complex_bn', 64),
        ('squeezenet_v1.0_simple', 65),
        ('airbench94', 64),  # which it averages to 32
        pytest.param('alexnet', 64, marks=pytest.mark.long),
        pytest.param('vgg_bn', 32, marks=pytest.mark.long),
    ],
)
def test_onnx_runtime_computes_the_same(network, size, tmp_path):
    onnx, runtime = pytest.importorskip('onnx'), pytest.importorskip('onnxruntime')
    np.random.seed(0)
    model = NETWORKS[network](7, size)
    rng = np.random.default_rng(0)
    for link in model.links():
        if hasattr(link, 'avg_mean'):
            link.avg_mean[...] = rng.normal(size=link.avg_mean.shape)
            link.avg_var[...] = rng.uniform(0.5, 2, link.avg_var.shape)
    view = Preprocessing('experiment', 'squash', size, size)
    weights.write(Weights(tensors_of(model), Metadata(network, 7, view)), tmp_path / 'net.onnx')
    onnx.checker.check_model(onnx.load(tmp_path / 'net.onnx'), full_check=True)
    session = runtime.InferenceSession(tmp_path / 'net.onnx', providers=['CPUExecutionProvider'])
    for n in (1, 3):
        x = rng.normal(size=(n, 3, size, size)).astype(np.float32)
        with chainer.using_config('train', False):
            expected = model(x).array
        (found,) = session.run(None, {'images': x})
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    again, _ = weights.load_model(tmp_path / 'net.onnx')
    for (name, a), (_, b) in zip(sorted(again.namedparams()), sorted(model.namedparams()), strict=True):
        np.testing.assert_array_equal(a.array, b.array, err_msg=name)


def test_prototxt_tells_the_table(tmp_path):
    model = NETWORKS['squeezenet_v1.0_complex'](1000)
    found = Weights(tensors_of(model), Metadata('squeezenet_v1.0_complex', 1000))
    written = weights.write(found, tmp_path / 'net.caffemodel')
    text = next(path for path in written if path.suffix == '.prototxt').read_text()
    assert text.count('type: "Convolution"') == 26 + 4 and text.count('type: "Eltwise"') == 8
    assert 'num_output: 96 kernel_size: 7 stride: 2' in text and 'num_output: 1000 kernel_size: 1 pad: 1' in text
    assert text.count('{') == text.count('}')
    bn = NETWORKS['squeezenet_v1.0_bn'](10)
    with pytest.raises(trainer.InputError, match='published SqueezeNets'):
        weights.write(Weights(tensors_of(bn), Metadata('squeezenet_v1.0_bn', 10)), tmp_path / 'bn.caffemodel')
    assert not (tmp_path / 'bn.caffemodel').exists()


def test_checkpoints_hold_weights(tmp_path):
    config = trainer.Config(
        model='squeezenet', dataset='shapes', size=32, epoch=1, batch=10, save_path=str(tmp_path), run='r'
    )
    data = trainer.datasets.load('shapes', limit=2)
    model = NETWORKS['squeezenet'](data.n_class, 32)
    trainer.train(model, data, config)
    for name in ('weights_last.npz', 'checkpoint_last.npz'):
        found = weights.read(tmp_path / 'results' / 'r' / name)
        view = found.metadata.preprocessing
        assert found.metadata.network == 'squeezenet' and found.metadata.classes == data.classes
        assert (view.name, view.resize, view.side, view.crop) == ('experiment', 'squash', 32, 32)
        assert_same(
            {k: v for k, v in found.tensors.items() if not k.endswith('/N')},
            {k: v for k, v in tensors_of(model).items() if not k.endswith('/N')},
        )


def test_command(tmp_path, capsys):
    model = NETWORKS['squeezenet_v1.1'](10)
    weights.write(Weights(tensors_of(model)), tmp_path / 'a.npz')
    names = tmp_path / 'names.txt'
    names.write_text('\n'.join(f'class{i}' for i in range(4)))
    argv = [str(tmp_path / 'a.npz'), str(tmp_path / 'b.safetensors'), '--reset-classifier', '4']
    assert main([*argv, '--preprocess', 'torchvision', '--classes', str(names)]) == 0
    assert 'wrote' in capsys.readouterr().out
    found = weights.read(tmp_path / 'b.safetensors')
    assert found.metadata.n_class == 4 and found.metadata.classes == tuple(f'class{i}' for i in range(4))
    assert found.tensors['conv10/W'].shape == (4, 512, 1, 1)
    np.testing.assert_array_equal(found.tensors['conv1/W'], model.conv1.W.array)
    assert main([str(tmp_path / 'b.safetensors')]) == 0
    assert 'preprocessing torchvision, 224 px' in capsys.readouterr().out
    for argv, message in (
        ([str(tmp_path / 'no.npz')], 'does not exist; expected a weights file, or a published one'),
        ([str(tmp_path / 'a.npz'), str(tmp_path / 'x.h5')], r'expected a name that ends in \.npz'),
        ([str(names)], 'is not a weights file'),
        ([str(tmp_path / 'a.npz'), '--reset-classifier', '0'], 'must be 1 or more'),
        ([str(tmp_path / 'a.npz'), '--network', 'squeezenet'], 'weights of squeezenet_v1.1, not of squeezenet: give'),
    ):
        with pytest.raises(trainer.InputError, match=message):
            main(argv)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / 'a.onnx'
    path.write_bytes(b'old')
    with pytest.raises(trainer.InputError):
        weights.write(Weights({'x/W': np.zeros((1, 1, 1, 1), np.float32)}), path)
    assert path.read_bytes() == b'old' and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize('name', ['file', 'allow_pickle', 'metadata', 'config'])
def test_names_that_npz_cannot_hold(name, tmp_path):
    with pytest.raises(trainer.InputError, match=f"a tensor called '{name}' cannot be written to .npz"):
        weights.write(Weights({name: np.zeros(3, np.float32)}), tmp_path / 'a.npz')
    assert not list(tmp_path.iterdir())


def test_other_arrays_of_npz():
    file = io.BytesIO()
    np.savez(file, a=np.array(['x']))
    with pytest.raises(trainer.InputError, match='expected numbers'):
        parse(file.getvalue(), '.npz')
    np.savez(file := io.BytesIO(), a=np.array([{}], object))
    with pytest.raises(trainer.InputError):
        parse(file.getvalue(), '.npz')


def test_a_caffemodel_is_written_whatever_the_order_of_the_tensors(tmp_path, capsys):
    path = Path(__file__).parents[3] / 'results/squeezenet_v1.1_finetuned/weights_best.npz'
    whole = weights.read(path)
    turned = Weights(dict(reversed(whole.tensors.items())), whole.metadata)
    weights.write(turned, tmp_path / 'x.caffemodel')
    again = weights.read(tmp_path / 'x.caffemodel').tensors
    assert again.keys() == whole.tensors.keys()
    assert all(np.array_equal(again[name], tensor) for name, tensor in whole.tensors.items())
    assert main([str(path), str(tmp_path / 'y.caffemodel')]) == 0
    assert 'note: .caffemodel does not keep the names of the classes and which images' in capsys.readouterr().out
