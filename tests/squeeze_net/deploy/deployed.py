"""Networks and real pictures for the tests of `squeeze_net.deploy`."""

import functools
import io
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from squeeze_net.classifier import Classifier, softmax
from squeeze_net.networks import make_network
from squeeze_net.weights import Weights, tensors_of
from trainer.data.metadata import Metadata
from trainer.data.preprocessing import Preprocessing

ROOT = Path(__file__).parents[3]
DATA = Path(os.environ.get('SQUEEZE_NET_DATA', ROOT.parent / 'shared' / 'data'))
CIFAR = ROOT / 'results/squeezenet_jpeg/weights_best.npz'
PUBLISHED = DATA / 'weights/squeezenet_v1.1.caffemodel'
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f'no published weights and images in {DATA}')


@functools.cache
def cifar_images(n=6):
    """Some real test images of CIFAR-10."""
    images = []
    with tarfile.open(DATA / 'cifar10-jpeg.tar.xz') as archive:
        for member in archive:
            if 'test/' in member.name and member.name.endswith('.jpg'):
                images.append(Image.open(io.BytesIO(archive.extractfile(member).read())).convert('RGB'))
            if len(images) == n:
                return images
    raise AssertionError(f'{DATA} holds fewer than {n} test images')


def photos(n=3):
    """The paths of some photos of ImageNet."""
    return sorted((DATA / 'imagenet-sample/images').iterdir())[:: 100 // n][:n]


def pictures_of(view, images):
    """(N, crop, crop, 3) uint8."""
    return np.stack([view.cut(image) for image in images])


def probabilities_of(classifier, pictures):
    return softmax(classifier(pictures.transpose(0, 3, 1, 2)))


def classifier_and_pictures(kind):
    """A network with real pictures as it expects them."""
    if kind == 'experiment':
        classifier, images = Classifier.open(CIFAR, preprocess=kind), cifar_images()
    else:
        classifier = Classifier.open(PUBLISHED, preprocess=kind)
        images = [Image.open(path).convert('RGB') for path in photos()]
    return classifier, pictures_of(classifier.preprocessing, images)


def random_weights(network='squeezenet', size=32, n_class=7):
    """Of a network as it is before training, with names for its classes."""
    np.random.seed(0)
    tensors = tensors_of(make_network(network, n_class, size))
    view = Preprocessing('experiment', 'squash', size, size)
    return Weights(tensors, Metadata(network, n_class, view, tuple('abcdefghij'[:n_class])))


def lines_of(readme, language='python'):
    """The blocks of a language, one after the other."""
    return '\n'.join(re.findall(rf'```{language}\n(.*?)```', readme, re.DOTALL))
