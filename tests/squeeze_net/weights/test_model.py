"""Every tensor has its place: what is missing, left over or of another shape is named, and nothing changes."""

import numpy as np
import pytest

import trainer
from squeeze_net import NETWORKS, weights
from squeeze_net.weights import Weights, tensors_of
from squeeze_net.weights.network import classifier_of, fill, identify, misfit
from trainer.data.metadata import Metadata


@pytest.fixture
def model():
    np.random.seed(0)
    return NETWORKS['squeezenet_v1.1'](10)


def changed(model, change):
    found = tensors_of(model)
    change(found)
    return found


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda t: t.pop('fire3/expand1x1/b'), 'fire3/expand1x1/b is missing'),
        (lambda t: t.update({'fc/W': t['conv1/W']}), 'fc/W has no place'),
        (lambda t: t.update({'conv1/b': t['conv1/b'][:5]}), r'conv1/b has the shape \(5,\), the network \(64,\)'),
        (lambda t: t['conv1/b'].fill(np.nan), 'conv1/b holds numbers that are not finite'),
        (lambda t: [t.pop(name) for name in list(t)[:6]], 'and 3 more'),
    ],
)
def test_faults_are_named_and_nothing_changes(model, change, message):
    tensors = changed(model, change)
    for name in tensors:
        if np.isfinite(tensors[name]).all():
            tensors[name] = tensors[name] + 1
    before = tensors_of(model)
    with pytest.raises(trainer.InputError, match=message):
        fill(model, tensors)
    for name, tensor in tensors_of(model).items():
        np.testing.assert_array_equal(tensor, before[name])


@pytest.mark.parametrize('network', NETWORKS)
def test_networks_are_identified(network):
    size = 64 if network == 'alexnet' else 122
    found = identify(Weights(tensors_of(NETWORKS[network](6, size))))
    expected = network.replace('_simple', '')  # a bypass without weights does not show
    assert (found.metadata.network, found.metadata.n_class) == (expected, 6)


def test_the_classifier_is_what_depends_on_the_classes():
    assert classifier_of('squeezenet_v1.0') == {'conv10/W', 'conv10/b'}
    assert classifier_of('squeezenet') == {'conv10/conv/W', 'conv10/conv/b'}
    assert classifier_of('alexnet') == {'fc8/W', 'fc8/b'}


def test_a_fresh_classifier(model):
    other = NETWORKS['squeezenet_v1.1'](3)
    classifier = other.conv10.W.array.copy()
    found = Weights(tensors_of(model), Metadata('squeezenet_v1.1', 10))
    with pytest.raises(trainer.InputError, match=r'of 10 classes, the data of 3.*--reset-classifier'):
        weights.start_from(other, 'squeezenet_v1.1', found, reset_classifier=False)
    weights.start_from(other, 'squeezenet_v1.1', found, reset_classifier=True)
    np.testing.assert_array_equal(other.conv10.W.array, classifier)
    np.testing.assert_array_equal(other.fire5.expand3x3.W.array, model.fire5.expand3x3.W.array)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda t: {'a/W': np.zeros((2, 2), np.float32)}, 'of no network here: none has tensors called a/W'),
        (lambda t: t | {'a/W': t['conv1/W']}, r'closest is squeezenet_v1\.1, but a/W has no place in the network$'),
        (lambda t: {name: t[name] for name in list(t)[3:]}, r'closest is squeezenet_v1\.1, but .* missing; .* missing'),
    ],
)
def test_of_what_fits_no_network_the_closest_is_named(model, change, message, tmp_path):
    weights.write(Weights(change(tensors_of(model))), tmp_path / 'a.npz')
    with pytest.raises(trainer.InputError, match=message):
        weights.load_model(tmp_path / 'a.npz')


def test_weights_of_another_network_are_called_by_its_name(model):
    other = NETWORKS['squeezenet_v1.0'](10)
    with pytest.raises(trainer.InputError, match=r'of squeezenet_v1\.1, not of squeezenet_v1\.0: give --model squeez'):
        weights.start_from(other, 'squeezenet_v1.0', Weights(tensors_of(model)), reset_classifier=True)
    simple = NETWORKS['squeezenet_v1.1_simple'](10)  # its bypasses have no weights
    weights.start_from(simple, 'squeezenet_v1.1_simple', Weights(tensors_of(model)), reset_classifier=False)
    np.testing.assert_array_equal(simple.conv1.W.array, model.conv1.W.array)


def test_statistics_and_counts_go_along():
    model = NETWORKS['squeezenet_v1.1_bn'](4)
    model.conv1_bn.avg_mean[...] = 3
    model.conv1_bn.N = 17
    other = NETWORKS['squeezenet_v1.1_bn'](4)
    fill(other, tensors_of(model))
    assert (other.conv1_bn.avg_mean == 3).all() and other.conv1_bn.N == 17


@pytest.mark.parametrize('network', ['squeezenet_v1.1', 'squeezenet_v1.1_simple'])
def test_weights_without_a_classifier_are_of_either_network_of_their_shapes(network):
    tensors = tensors_of(NETWORKS['squeezenet_v1.1'](10))
    del tensors['conv10/W']
    assert misfit(tensors, network) is None
    assert 'not of squeezenet' in misfit(tensors, 'squeezenet') or 'closest is squeezenet_v1.1' in misfit(tensors)
