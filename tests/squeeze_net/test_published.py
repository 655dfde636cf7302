"""SqueezeNet v1.0 and v1.1 against the paper, and with the published weights against an independent implementation."""

import json
import os
from pathlib import Path

import chainer
import numpy as np
import pytest
from PIL import Image

from squeeze_net import NETWORKS, Fire, SqueezeNetV10, SqueezeNetV11

DATA = Path(os.environ.get('SQUEEZE_NET_DATA', Path(__file__).parents[3] / 'shared' / 'data'))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f'no published weights and images in {DATA}')
WEIGHTS = {
    'v1.0_dense': (SqueezeNetV10, 'squeezenet_v1.0_dense.npz'),
    'v1.1_caffe': (SqueezeNetV11, 'squeezenet_v1.1_caffe.npz'),
}


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
    with pytest.raises(ValueError, match='they must be as many'):
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


def sample_images():
    """The 100 images as Caffe's models want them: squashed to 256 x 256, the central 227, BGR, less the means."""
    facts = json.loads((DATA / 'imagenet-sample' / 'reference.json').read_text())
    for image in facts['images']:
        picture = Image.open(DATA / 'imagenet-sample' / 'images' / image['file']).convert('RGB')
        pixels = np.asarray(picture.resize((256, 256), Image.BILINEAR))[14:241, 14:241, ::-1]
        yield (pixels.astype(np.float32) - np.float32((104, 117, 123))).transpose(2, 0, 1)


@needs_data
@pytest.mark.parametrize('name', WEIGHTS)
def test_published_weights_give_the_published_answers(name):
    network, file = WEIGHTS[name]
    model = network()
    with np.load(DATA / 'weights' / file) as weights:
        left = set(weights.files)
        for path, parameter in model.namedparams():
            layer, kind = path[1:].rsplit('/', 1)
            parameter.array[...] = weights[f'{layer}.{kind}']
            left.remove(f'{layer}.{kind}')
    assert not left
    x = np.stack(list(sample_images()))
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        logits = np.concatenate([model(x[start : start + 20]).array for start in range(0, 100, 20)])
    reference = np.load(DATA / 'imagenet-sample' / 'reference_logits.npz')[f'{name}.squash256_pil']
    np.testing.assert_allclose(logits, reference, atol=1e-2)
    assert (logits.argmax(1) == reference.argmax(1)).sum() >= 99
    top5 = [set(np.argsort(row)[-5:]) for row in logits]
    assert sum(a == set(np.argsort(row)[-5:]) for a, row in zip(top5, reference, strict=True)) >= 97
