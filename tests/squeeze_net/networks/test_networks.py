"""Every network of the table: parameter counts, layer shapes, gradients; against the papers and DESIGN's tables."""

import chainer
import chainer.functions as F
import numpy as np
import pytest

import trainer.functions
import trainer.links as L
from squeeze_net import NETWORKS, Airbench94, AlexNet, PreActivationFire, SqueezeNet, make_network
from squeeze_net.networks.airbench import DEVIATIONS
from squeeze_net.summary import summarise
from squeeze_net.weights import Weights, tensors_of
from squeeze_net.weights.network import build
from trainer import InputError
from trainer.data.metadata import Metadata
from trainer.data.preprocessing import Preprocessing
from trainer.step.parameters import is_match, read_multipliers, read_patterns


def images(n, size, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 3, size, size)).astype(np.float32)


def output_shapes(model, x):
    """Shapes of the outputs of the direct children, by name."""
    shapes = {}

    class Watch(chainer.LinkHook):
        def forward_postprocess(self, args):
            if args.link in watched:
                shapes[args.link.name] = args.out.shape[1:]

    watched = list(model.children())
    with Watch(), chainer.using_config('train', False):
        model(x)
    return shapes


def test_squeezenet_has_the_parameters_and_shapes_of_the_experiment():
    model = SqueezeNet()
    assert model.count_params() == 747_146
    assert output_shapes(model, images(1, 122)) == {
        'conv1': (96, 60, 60),
        'fire2': (128, 31, 31),
        'fire3': (128, 31, 31),
        'fire4': (256, 31, 31),
        'fire5': (256, 16, 16),
        'fire6': (384, 16, 16),
        'fire7': (384, 16, 16),
        'fire8': (512, 16, 16),
        'fire9': (512, 9, 9),
        'conv10': (10, 9, 9),
    }


def test_squeezenet_at_32_px():
    heights = [shape[1] for shape in output_shapes(SqueezeNet(), images(1, 32)).values()]
    assert heights == [15, 8, 8, 8, 5, 5, 5, 5, 3, 3]


def test_bypasses_are_at_3_5_7_and_9_and_add_the_input():
    model = SqueezeNet()
    assert [n for n in range(2, 10) if model[f'fire{n}'].bypass] == [3, 5, 7, 9]
    fire = model.fire3
    x = np.random.default_rng(0).standard_normal((2, 128, 4, 4)).astype(np.float32)
    with chainer.using_config('train', False):
        y = fire(x).array
        fire.bypass = False
        np.testing.assert_allclose(y, fire(x).array + x, rtol=1e-6)


def test_fire_is_three_pre_activated_convolutions():
    np.random.seed(0)
    fire = PreActivationFire(6, 2, 3, 5)
    x = np.random.default_rng(0).standard_normal((2, 6, 4, 4)).astype(np.float32)

    def bn_relu_conv(layer, x):
        h = F.relu(F.batch_normalization(x, layer.bn.gamma, layer.bn.beta))
        return F.convolution_2d(h, layer.conv.W, layer.conv.b, pad=layer.conv.pad)

    s = bn_relu_conv(fire.squeeze1x1, x)
    expected = F.concat((bn_relu_conv(fire.expand1x1, s), bn_relu_conv(fire.expand3x3, s)))
    np.testing.assert_allclose(fire(x).array, expected.array, rtol=1e-5, atol=1e-5)


def test_fire_with_a_bypass_between_different_channels_is_refused():
    with pytest.raises(ValueError, match=r'96 channels to 64 \+ 64'):
        PreActivationFire(96, 16, 64, 64, bypass=True)


@pytest.mark.parametrize(
    ('n_class', 'size', 'expected'),
    [(10, 122, 28_597_642), (1000, 227, 60_965_224)],
    ids=['docstring', 'paper'],
)
def test_alexnet_has_the_parameters_of_its_docstring_and_of_the_paper(n_class, size, expected):
    assert AlexNet(n_class, size).count_params() == expected


def test_alexnet_shapes_at_122_px():
    assert output_shapes(AlexNet(), images(1, 122)) == {
        'conv1': (96, 31, 31),
        'conv2': (256, 15, 15),
        'conv3': (384, 7, 7),
        'conv4': (384, 7, 7),
        'conv5': (256, 7, 7),
        'fc6': (4096,),
        'fc7': (4096,),
        'fc8': (10,),
    }


def test_vgg_bn_parameters():
    assert NETWORKS['vgg_bn']().count_params() == 14_991_946


@pytest.mark.parametrize('factor', [2, 3])
def test_airbench_sees_enlarged_images_as_they_were(factor):
    np.random.seed(0)
    model = Airbench94()
    assert model.count_params() == 1_972_802
    small = images(4, 32)
    large = small.repeat(factor, 2).repeat(factor, 3)
    with chainer.using_config('train', False):
        np.testing.assert_allclose(model(large).array, model(small).array, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('size', [32, 58, 64, 90, 122])
def test_airbench_averages_the_larger_images_of_tests_like_those_of_the_training(size, monkeypatch):
    factors = []
    pool = trainer.functions.average_pooling_2d
    monkeypatch.setattr(
        trainer.functions, 'average_pooling_2d', lambda x, n, **options: factors.append(n) or pool(x, n, **options)
    )
    model = Airbench94(size=size)
    with chainer.using_config('train', False):
        for length in (size, size + 6):
            model(images(1, length))
    assert factors == [size // 32] * 2 * (size >= 64)


def test_airbench_begins_with_an_orthogonal_transform_of_patches_and_its_negative():
    W = Airbench94().conv1.W.array.reshape(2, 12, 12)
    np.testing.assert_array_equal(W[1], -W[0])
    basis = W[0] * np.reshape(DEVIATIONS, (12, 1))
    np.testing.assert_allclose(basis @ basis.T, np.eye(12), atol=1e-5)
    np.testing.assert_allclose(basis[0], 12**-0.5, rtol=1e-5)  # the mean, which varies most, first
    assert DEVIATIONS[0][0] == np.max(DEVIATIONS)


@pytest.mark.parametrize('name', NETWORKS)
@pytest.mark.parametrize('n_class', [2, 100])
def test_logits_and_gradients_of_every_network(name, n_class):
    np.random.seed(0)
    model = make_network(name, n_class, 32)
    y = model(images(3, 32))
    assert y.shape == (3, n_class)
    model.cleargrads()
    F.softmax_cross_entropy(y, np.array([0, 1, 1], np.int32)).backward()
    assert all(np.isfinite(p.grad).all() for p in model.params())
    assert all(p.grad.any() for p in model.params() if p.name in ('W', 'gamma'))


@pytest.mark.parametrize('name', ['squeezenet', 'alexnet', 'vgg_bn'])
def test_weights_start_from_he_and_biases_from_zero(name):
    np.random.seed(0)
    for path, parameter in NETWORKS[name](10, 32).namedparams():
        W = parameter.array
        if path.endswith('/b'):
            assert not W.any()
        elif path.endswith('/W') and W.size > 10_000:
            assert W.std() == pytest.approx(np.sqrt(2 / np.prod(W.shape[1:])), rel=0.05), path


def test_same_seed_same_weights():
    models = []
    for seed in (1, 1, 2):
        np.random.seed(seed)
        models.append(SqueezeNet().fire2.squeeze1x1.conv.W.array)
    assert (models[0] == models[1]).all()
    assert (models[0] != models[2]).any()


@pytest.mark.parametrize(('name', 'smallest'), [('squeezenet', 3), ('alexnet', 29), ('airbench94', 9)])
def test_an_image_too_small_is_refused_with_the_smallest_size(name, smallest):
    NETWORKS[name](10, smallest)
    with pytest.raises(ValueError, match=f'needs {smallest} px or more'):
        NETWORKS[name](10, smallest - 1)


class Lazy(chainer.Chain):
    """As Chainer's users write networks: shapes are left open, no size, no dropout."""

    def __init__(self, n_class):
        super().__init__()
        with self.init_scope():
            self.conv = L.Convolution2D(None, 4, 3)
            self.fc = L.Linear(None, n_class)

    def forward(self, x):
        return self.fc(trainer.functions.sigmoid(self.conv(x)))  # a function that trainer.functions does not define


def test_a_network_with_open_shapes_is_described_and_opens_again(monkeypatch):
    monkeypatch.setitem(NETWORKS, 'lazy', Lazy)
    model = make_network('lazy', 3, 32)
    assert model.count_params() == 4 * 3 * 9 + 4 + 4 * 30 * 30 * 3 + 3
    assert summarise('lazy', 32, 3).parameters == model.count_params()
    view = Preprocessing('experiment', 'squash', 32, 32)
    again, size = build(Weights(tensors_of(model), Metadata('lazy', 3, view)), 'a test')
    assert size == 32
    x = np.zeros((2, 3, 32, 32), np.float32)
    np.testing.assert_array_equal(again(x).array, model(x).array)
    with pytest.raises(InputError, match=r'--dropout 0\.3: lazy has no dropout'):
        make_network('lazy', 3, 32, dropout=0.3)


@pytest.mark.parametrize('name', NETWORKS)
def test_fine_tuning_freezes_the_lower_layers_alone(name):
    recipe = NETWORKS[name].finetuning
    paths = [path[1:] for path, _ in make_network(name, 2, 32 if name == 'vgg_bn' else 63).namedparams()]
    patterns = read_patterns(recipe['freeze'])
    assert all(any(is_match(path, pattern) for path in paths) for pattern in patterns)
    frozen = {path for path in paths if any(is_match(path, pattern) for pattern in patterns)}
    tops = {path.split('/')[0] for path in frozen}
    assert {path.split('/')[0] for path in paths if path not in frozen}.isdisjoint(tops)  # a layer is frozen as a whole
    assert tops.isdisjoint({'conv10', 'fire9', 'fc6', 'fc7', 'fc8', 'fc1', 'fc2'})
    assert ('conv1_bn' in tops) == any(path.startswith('conv1_bn/') for path in paths)
    assert all(any(is_match(path, one) for path in paths) for one, _ in read_multipliers(recipe.get('lr_multiplier')))
