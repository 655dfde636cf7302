"""SqueezeNet v1.0 and v1.1 against the paper, and with the published weights against an independent implementation."""

import functools
import os
from pathlib import Path

import chainer
import numpy as np
import pytest
from PIL import Image

from squeeze_net import NETWORKS, Fire, SqueezeNetV10, SqueezeNetV11
from squeeze_net.classifier import Classifier

DATA = Path(os.environ.get('SQUEEZE_NET_DATA', Path(__file__).parents[3] / 'shared' / 'data'))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f'no published weights and images in {DATA}')
WEIGHTS = {
    'v1.0_dense': 'squeezenet_v1.0.caffemodel',
    'v1.0_dc': 'compressed_SqueezeNet.net',
    'v1.1_caffe': 'squeezenet_v1.1.caffemodel',
}
REFERENCES = {'caffe': 'squash256_pil', 'five-crop': 'short256_pil', 'caffe-opencv': 'squash256_cv'}
FIRST, *OTHERS = REFERENCES


@pytest.mark.parametrize(
    ('network', 'options', 'n_parameters'),
    [
        (SqueezeNetV10, {}, 1_248_424),
        (SqueezeNetV11, {}, 1_235_496),
        (SqueezeNetV10, {'bypass': 'simple'}, 1_248_424),
        (SqueezeNetV10, {'bypass': 'complex'}, 1_589_672),
        (SqueezeNetV10, {'n_class': 10}, 1_248_424 - 990 * 513),
        (SqueezeNetV10, {'batch_norm': True}, 1_248_424 + 2 * (96 + 9 * 320)),  # squeezed 320, expanded 8 times that
    ],
)
def test_parameters_are_the_papers(network, options, n_parameters):
    assert network(**options).count_params() == n_parameters


@pytest.mark.parametrize(('network', 'side'), [(SqueezeNetV10, 13), (SqueezeNetV11, 14)])
def test_map_sizes_are_the_papers(network, side):
    model = network()
    sizes = []
    model.conv10.forward = lambda x: sizes.append(x.shape) or chainer.Variable(np.zeros((1, 1000, 1, 1), 'f'))
    with chainer.using_config('train', False):
        model(np.zeros((1, 3, 227, 227), np.float32))
    assert sizes == [(1, 512, side, side)]


@pytest.mark.parametrize('network', [SqueezeNetV10, SqueezeNetV11])
def test_the_smallest_size_leaves_a_map_and_one_less_does_not(network):
    smallest = network.smallest_size()
    model = network(5, smallest)
    with chainer.using_config('train', False):
        assert model(np.zeros((2, 3, smallest, smallest), np.float32)).shape == (2, 5)
    with pytest.raises(ValueError, match=f'needs {smallest} px or more'):
        network(5, smallest - 1)


def test_bypasses():
    simple, complex_ = SqueezeNetV10(bypass='simple'), SqueezeNetV10(bypass='complex')
    kinds = [simple[f'fire{n}'].bypass for n in range(2, 10)]
    assert kinds == ['none', 'simple'] * 4
    assert [complex_[f'fire{n}'].bypass for n in range(2, 10)] == ['complex', 'simple'] * 4
    x = np.random.default_rng(0).normal(size=(2, 128, 5, 5)).astype(np.float32)
    fire = simple.fire3
    y = fire(x).array
    fire.bypass = 'none'
    np.testing.assert_allclose(y, fire(x).array + x, rtol=1e-5)
    with pytest.raises(ValueError, match='they must be equal'):
        Fire(96, 16, 64, 64, bypass='simple')
    with pytest.raises(ValueError, match=r"'both'.*none, simple, complex"):
        SqueezeNetV10(bypass='both')


@pytest.mark.parametrize('name', [name for name in NETWORKS if '_v1' in name])
def test_every_variant_trains(name):
    model = NETWORKS[name](4, 40)
    x = np.random.default_rng(0).normal(size=(4, 3, 40, 40)).astype(np.float32)
    model.cleargrads()
    loss = chainer.functions.softmax_cross_entropy(model(x), np.arange(4, dtype=np.int32))
    loss.backward()
    assert all(np.isfinite(p.grad).all() for p in model.params())
    assert sum(bool(p.grad.any()) for p in model.params()) > 0.9 * len(list(model.params()))


def test_initialisation_is_caffes():
    model = SqueezeNetV10()
    for layer in (model.conv1, model.fire5.expand3x3):
        bound = np.sqrt(3 / np.prod(layer.W.shape[1:]))
        assert 0.95 * bound < np.abs(layer.W.array).max() <= bound
        assert not layer.b.array.any()
    assert model.conv10.W.array.std() == pytest.approx(0.01, rel=0.02)


@pytest.fixture(scope='module')
def photos():
    lines = (DATA / 'imagenet-sample' / 'val.txt').read_text().splitlines()
    return [Image.open(DATA / 'imagenet-sample' / line.split()[0]).convert('RGB') for line in lines]


@pytest.fixture(scope='module')
def cut(photos):
    """Cuts all photos as a preprocessing prescribes, each only once."""
    return functools.cache(lambda preprocessing: np.stack([preprocessing.cut(photo) for photo in photos]))


@needs_data
@pytest.mark.parametrize('preprocess', [FIRST, *(pytest.param(name, marks=pytest.mark.long) for name in OTHERS)])
@pytest.mark.parametrize('name', [pytest.param('v1.0_dense', marks=pytest.mark.long), 'v1.0_dc', 'v1.1_caffe'])
def test_published_weights_give_the_published_answers(name, preprocess, cut):
    classifier = Classifier.open(DATA / 'weights' / WEIGHTS[name], preprocess=preprocess, batch=50)
    logits = classifier(cut(classifier.preprocessing).transpose(0, 3, 1, 2))
    reference = np.load(DATA / 'imagenet-sample' / 'reference_logits.npz')[f'{name}.{REFERENCES[preprocess]}']
    np.testing.assert_allclose(logits, reference, atol=1e-2)
    assert (logits.argmax(1) == reference.argmax(1)).sum() >= 99
    top5 = [set(np.argsort(row)[-5:]) for row in logits]
    assert sum(a == set(np.argsort(row)[-5:]) for a, row in zip(top5, reference, strict=True)) >= 97
