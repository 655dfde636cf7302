"""Weights as people have them, through the commands: other people's files, the wrong file, and the project's own."""

import json
import os
import subprocess
import sys

import chainer
import numpy as np
import pytest
import samples
from documents import ROOT
from substitutions import cifar, drawn_photo

import trainer
from squeeze_net import NETWORKS, infer, summary, validate, weights
from squeeze_net.compression import __main__ as compression
from squeeze_net.weights import Weights, tensors_of
from squeeze_net.weights import __main__ as convert

pytestmark = pytest.mark.journeys

OWN = sorted([*ROOT.glob('results/**/weights_*.npz'), *ROOT.glob('results/**/*.sqz')])
FIRES = (3, 4, 6, 7, 9, 10, 11, 12)  # what torchvision calls fire2 .. fire9 of v1.1


def run(*words, cwd, code=0, **variables):
    """stdout of a command that succeeds, stderr of one that refuses, which is one line."""
    paths = {'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])}
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=cwd, capture_output=True, text=True, env=os.environ | paths | variables
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert 'Traceback' not in done.stderr and (code == 0 or done.stderr.count('\n') == 1), done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.fixture
def network(tmp_path):
    """Tensors of a fresh SqueezeNet v1.1 of three classes; beside it a photo."""
    np.random.seed(0)
    drawn_photo(tmp_path / 'cat.jpg', np.random.default_rng(0))
    return tensors_of(NETWORKS['squeezenet_v1.1'](3))


def torchvision_names(tensors):
    """The keys of torchvision's state dict."""
    places = {'conv1': 'features.0', 'conv10': 'classifier.1', 'squeeze1x1': 'squeeze'}
    places |= {f'fire{i}': f'features.{n}' for i, n in enumerate(FIRES, 2)}
    return {'.'.join(places.get(part, part) for part in name.split('/')): t for name, t in tensors.items()}


def state_dict(tensors):
    return {
        name.replace('.W', '.weight').replace('.b', '.bias'): samples._Tensor(
            samples._Storage(tensor.reshape(-1)), 0, tensor.shape, tuple(s // 4 for s in tensor.strides)
        )
        for name, tensor in torchvision_names(tensors).items()
    }


def classify(path, folder, *flags):
    """The probabilities that `infer` gives the photo."""
    out = run('-m', 'squeeze_net.infer', 'cat.jpg', '-w', path, '--format', 'jsonl', *flags, cwd=folder)
    return json.loads(out)


def test_a_checkpoint_of_pytorch_answers_as_its_network(network, tmp_path):
    saved = {'state_dict': samples.renamed(state_dict(network), 'module.')} | samples.foreign()
    (tmp_path / 'checkpoint.pth.tar').write_bytes(samples.pth(saved))
    (tmp_path / 'lightning.ckpt').write_bytes(samples.pth({'model': samples.module(state_dict(network))}))
    weights.write(Weights(network), tmp_path / 'same.npz')
    expected = classify('same.npz', tmp_path, '--preprocess', 'torchvision')
    assert classify('checkpoint.pth.tar', tmp_path) == expected
    assert classify('lightning.ckpt', tmp_path) == expected


def test_a_snapshot_of_chainer_without_a_suffix(tmp_path):
    chain = NETWORKS['squeezenet_v1.1'](3)
    optimizer = chainer.optimizers.MomentumSGD().setup(chainer.links.Classifier(chain))
    iterator = chainer.iterators.SerialIterator([(np.zeros((3, 40, 40), np.float32), np.int32(0))], 1)
    updater = chainer.training.updaters.StandardUpdater(iterator, optimizer)
    training = chainer.training.Trainer(updater, (1, 'iteration'), out=tmp_path)
    training.extend(chainer.training.extensions.snapshot(), trigger=(1, 'iteration'))
    training.run()
    out = run('-m', 'squeeze_net.weights', 'snapshot_iter_1', 'out.npz', cwd=tmp_path)
    assert 'snapshot_iter_1: squeezenet_v1.1, 724,035 parameters, 3 classes' in out
    np.testing.assert_array_equal(weights.read(tmp_path / 'out.npz').tensors['conv10/W'], chain.conv10.W.array)


LFS = b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 5\n'
PAGE = b'\n<!DOCTYPE html>\n<html><head><title>weights</title></head></html>'
NOT_WEIGHTS = {
    'a Git LFS pointer': (LFS, 'is a Git LFS pointer, not the file: run git lfs pull'),
    'a page': (PAGE, 'is an HTML page, not the file: download the file itself'),
    'an error in XML': (b'<?xml version="1.0"?><Error>AccessDenied</Error>', 'is an XML or HTML text'),
    'an error in JSON': (b'{"message": "Not Found"}', 'is a JSON text'),
    'nothing': (b'', r'is empty \(0 bytes\): download or copy it again'),
    'a gzip archive': (b'\x1f\x8b\x08' + bytes(20), 'is a gzip archive: unpack it first'),
    'a tar archive': (b'a.pth'.ljust(257, b'\0') + b'ustar' + bytes(250), 'is a tar archive: unpack it first'),
    'a broken zip': (b'PK\3\4' + bytes(60), 'is cut short or broken'),
}


@pytest.mark.parametrize('kind', NOT_WEIGHTS)
@pytest.mark.parametrize('suffix', [*weights.FORMATS, '', '.txt'])
def test_what_is_not_a_weights_file_is_named(kind, suffix, tmp_path):
    raw, message = NOT_WEIGHTS[kind]
    (tmp_path / f'x{suffix}').write_bytes(raw)
    with pytest.raises(trainer.InputError, match=message):
        weights.read(tmp_path / f'x{suffix}')


def test_a_page_is_named_by_the_command(network, tmp_path):
    (tmp_path / 'squeezenet.pth').write_bytes(PAGE)
    words = ('-m', 'squeeze_net.infer', 'cat.jpg', '-w', 'squeezenet.pth')
    assert 'squeezenet.pth cannot be read as .pth: it is an HTML page' in run(*words, cwd=tmp_path, code=2)


def test_weights_of_another_network(network, tmp_path):
    weights.write(Weights(network), tmp_path / 'a.npz')
    words = ('-m', 'squeeze_net', '--dataset', 'shapes', '--size', '32', '-e', '1', '--limit', '2', '-b', '2')
    error = run(*words, '--pretrained', 'a.npz', cwd=tmp_path, code=2)
    assert 'these are weights of squeezenet_v1.1, not of squeezenet: give --model squeezenet_v1.1' in error
    words = ('-m', 'squeeze_net.infer', 'cat.jpg', '-w', 'a.npz')
    error = run(*words, '--network', 'squeezenet', cwd=tmp_path, code=2)
    assert 'these are weights of squeezenet_v1.1, not of squeezenet: give --network squeezenet_v1.1' in error


def test_a_published_name_without_a_network(network, tmp_path):
    """The address and the place are told; a file put there by hand is used."""
    words = ('-m', 'squeeze_net.infer', 'cat.jpg', '--format', 'jsonl', '-w')
    proxies = dict.fromkeys(('http_proxy', 'https_proxy', 'HTTPS_PROXY', 'all_proxy'), 'http://127.0.0.1:9')
    settings = proxies | {'CHAINER_DATASET_ROOT': str(tmp_path / 'cache')}
    error = run(*words, 'squeezenet_v1.1', cwd=tmp_path, code=2, **settings)
    place = tmp_path / 'cache/squeeze_net/weights/squeezenet_v1.1.caffemodel'
    assert 'https://raw.githubusercontent.com/forresti/SqueezeNet/' in error
    assert f'open the address in a browser and put the file at {place}' in error
    model = Weights(network).with_metadata(network='squeezenet_v1.1', n_class=3)
    weights.write(model, place)
    out = run(*words, 'squeezenet_v1.1', cwd=tmp_path, **settings)
    assert json.loads(out)['image'] == 'cat.jpg'
    error = run(*words, 'squeezenet_v1.1.caffemodel', cwd=tmp_path, code=2, **settings)
    assert 'squeezenet_v1.1.caffemodel does not exist; the name squeezenet_v1.1 downloads it' in error


# ---- what is under results/ opens in every command without another flag ----


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """A small CIFAR-10 and a photo."""
    folder = tmp_path_factory.mktemp('data')
    cifar(folder, n_test=20)
    drawn_photo(folder / 'cat.jpg', np.random.default_rng(0))
    return folder


def commands(path, data, folder):
    """Module, arguments and what the output has to hold."""
    found = weights.read(path)
    name = str(path)
    every = ['--top', len(found.metadata.classes)]  # which class comes first is not asked of a drawn photo
    yield 'squeeze_net.infer', [data / 'cat.jpg', '-w', name, '--format', 'csv', *every], found.metadata.classes[0]
    yield 'squeeze_net.validate', [name, '--dataset', 'cifar10', '--data', data, '--limit', '1', '--json'], '"top1"'
    yield 'squeeze_net.summary', [name], f'{found.n_parameters:,}'
    yield 'squeeze_net.weights', [name, folder / 'a.safetensors'], 'a.safetensors: '
    yield 'squeeze_net.compression', ['compress', name, '-o', folder / 'a.sqz', '--lossless'], 'a.sqz: '
    if path.suffix == '.sqz':
        yield 'squeeze_net.compression', ['inspect', name], 'conv10'
        yield 'squeeze_net.compression', ['decompress', name, folder / 'a.npz'], 'a.npz: '


MAINS = {
    'squeeze_net.infer': infer.main,
    'squeeze_net.validate': validate.main,
    'squeeze_net.summary': summary.main,
    'squeeze_net.weights': convert.main,
    'squeeze_net.compression': compression.main,
}


@pytest.mark.parametrize('path', OWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_own_weights_open_in_every_command(path, data, tmp_path, capsys):
    expected = weights.read(path).tensors
    for module, arguments, shown in commands(path, data, tmp_path):
        assert MAINS[module](list(map(str, arguments))) == 0
        assert shown in capsys.readouterr().out, module
    for written in tmp_path.iterdir():
        for name, tensor in weights.read(written).tensors.items():
            np.testing.assert_array_equal(tensor, expected[name], err_msg=f'{written} {name}')


@pytest.mark.parametrize('path', OWN[:1] + OWN[-1:], ids=lambda path: str(path.relative_to(ROOT)))
def test_own_weights_open_as_their_users_type_it(path, data, tmp_path):
    for module, arguments, shown in commands(path, data, tmp_path):
        assert shown in run('-m', module, *arguments, cwd=tmp_path), module
