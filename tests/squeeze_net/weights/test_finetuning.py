"""What the weights of `--finetune` say of the network and the images that they are trained on with."""

import numpy as np
import pytest

from squeeze_net import Airbench94, make_network, weights
from squeeze_net.weights import Weights
from trainer import InputError
from trainer.data.augmentation import Sizes
from trainer.data.metadata import Metadata
from trainer.data.preprocessing import PREPROCESSINGS


def file_of(folder, network, size=64, **metadata):
    """Weights of 3 classes, as a file."""
    path = folder / 'w.npz'
    weights.write(Weights(weights.tensors_of(make_network(network, 3, size)), Metadata(**metadata)), path)
    return str(path)


def settings_of(path, **given):
    return weights.finetuning({'finetune': str(path)} | given)


@pytest.mark.parametrize('size', [32, 64, 122])
def test_the_size_of_the_training(tmp_path, size):
    view = Sizes.of(size).preprocessing(PREPROCESSINGS['experiment'])
    path = file_of(tmp_path, 'squeezenet', preprocessing=view)
    expected = {'model': 'squeezenet', 'preprocess': 'experiment'} | ({'size': size} if size != 122 else {})
    assert settings_of(path) == expected


@pytest.mark.parametrize(('crop', 'size'), [(227, {}), (90, {'size': 90})])
def test_the_size_of_a_training_on_images_from_files(tmp_path, crop, size):
    path = file_of(tmp_path, 'squeezenet_v1.1', preprocessing=PREPROCESSINGS['caffe'].sized(crop))
    assert settings_of(path) == {'model': 'squeezenet_v1.1', 'preprocess': 'caffe'} | size


def test_a_network_of_a_fixed_size_keeps_it(tmp_path, monkeypatch):
    monkeypatch.setattr(Airbench94, 'fixed_size', True)
    view = Sizes.of(32, fixed_size=True).preprocessing(PREPROCESSINGS['experiment'])
    path = file_of(tmp_path, 'airbench94', size=32, preprocessing=view)
    assert settings_of(path) == {'model': 'airbench94', 'preprocess': 'experiment', 'size': 32}


def test_a_bypass_without_weights_may_be_added(tmp_path):
    path = file_of(tmp_path, 'squeezenet_v1.1')
    assert settings_of(path, preprocess='caffe') == {'model': 'squeezenet_v1.1'}
    assert settings_of(path, model='squeezenet_v1.1_simple', preprocess='caffe') == {'model': 'squeezenet_v1.1_simple'}
    with pytest.raises(
        InputError, match=r'holds the weights of squeezenet_v1\.1, not of --model alexnet: leave --model'
    ):
        settings_of(path, model='alexnet')


def test_weights_of_an_unknown_network(tmp_path):
    path = tmp_path / 'w.npz'
    np.savez(path, **{'layer/W': np.zeros((3, 2), np.float32)})
    with pytest.raises(InputError, match=r'does not say of which network it is: add --model, one of squeezenet, '):
        settings_of(path)


def test_weights_that_do_not_say_which_images_they_expect(tmp_path):
    path = file_of(tmp_path, 'squeezenet_v1.1')
    with pytest.raises(
        InputError, match=r'does not say which images it expects: add --preprocess, one of experiment, '
    ):
        settings_of(path)
    assert settings_of(path, preprocess='torchvision') == {'model': 'squeezenet_v1.1'}
