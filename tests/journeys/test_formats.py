"""Weights of other frameworks through the commands: a real photo gets the same answer as from the published file."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import samples
from substitutions import DATA

from squeeze_net import weights

pytestmark = [
    pytest.mark.journeys,
    pytest.mark.skipif(not DATA.is_dir(), reason=f'no published weights: {DATA} is not there'),
]
PHOTO = DATA / 'imagenet-sample/images/n01440764_tench.JPEG'
PUBLISHED = DATA / 'weights/squeezenet_v1.1.caffemodel'


def command(*arguments, code=0):
    done = subprocess.run([sys.executable, '-m', *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert done.returncode == code and 'Traceback' not in done.stderr, (done.stdout, done.stderr)
    return done.stdout if code == 0 else done.stderr


def answer(path, *flags):
    (line,) = command('squeeze_net.infer', PHOTO, '-w', path, '--format', 'jsonl', *flags).splitlines()
    return json.loads(line)


@pytest.fixture(scope='module')
def tensors():
    return weights.read(PUBLISHED).tensors


@pytest.fixture(scope='module')
def published():
    return answer(PUBLISHED)


def put_onnx(tensors, path):
    """With the tensors in a file beside it."""
    model = samples.OnnxGraph(tensors, samples.gluon_names(tensors)).model()
    onnx.save(model, path, save_as_external_data=True, location='model.onnx.data', size_threshold=0)


def writer(write, names):
    return lambda tensors, path: path.write_bytes(write(names(tensors)))


FILES = {
    'model.onnx': put_onnx,
    'SqueezeNet1_1_pretrained.pdparams': writer(samples.pdparams, samples.paddle_names),
    'squeezenet_1.1_224.ckpt': writer(samples.mindspore, samples.mindspore_names),
    'squeezenet1.1-0000.params': writer(samples.mxnet, samples.gluon_names),
    'squeezenet_weights_tf_dim_ordering_tf_kernels.h5': writer(samples.hdf5, samples.keras_names),
}


@pytest.fixture(params=FILES)
def path(request, tensors, tmp_path):
    if request.param.endswith('.h5'):
        pytest.importorskip('h5py')
    FILES[request.param](tensors, tmp_path / request.param)
    return tmp_path / request.param


def test_the_same_answer(path, published):
    found = answer(path, '--preprocess', 'caffe')
    assert found == published and found['top'][0]['name'] == 'tench'


def test_the_same_values(path, tensors, tmp_path):
    said = command('squeeze_net.weights', path, tmp_path / 'converted.npz', '--preprocess', 'caffe')
    assert 'squeezenet_v1.1, 1,235,496 parameters, 1,000 classes' in said
    again = weights.read(tmp_path / 'converted.npz')
    assert again.metadata.preprocessing.name == 'caffe'
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(again.tensors[key], tensor, err_msg=key)


def test_what_is_missing_is_said(tensors, tmp_path):
    put_onnx(tensors, tmp_path / 'model.onnx')
    (tmp_path / 'model.onnx.data').unlink()
    said = command('squeeze_net.infer', PHOTO, '-w', tmp_path / 'model.onnx', '--preprocess', 'caffe', code=2)
    assert "its weights lie in the file 'model.onnx.data', which is missing: put it beside the .onnx file" in said
    path = tmp_path / 'a.params'
    path.write_bytes(samples.mxnet(samples.gluon_names(tensors)))
    said = command('squeeze_net.infer', PHOTO, '-w', path, code=2)
    assert '--preprocess' in said
    path.write_bytes(samples.mxnet({'conv_weight': tensors['conv1/W']}))
    said = command('squeeze_net.infer', PHOTO, '-w', path, '--preprocess', 'caffe', code=2)
    assert 'the weights are of no network here' in said
    if importlib.util.find_spec('h5py') is None:
        (tmp_path / 'a.h5').write_bytes(b'\x89HDF\r\n\x1a\n')
        assert 'pip install h5py' in command('squeeze_net.weights', tmp_path / 'a.h5', code=2)
