"""A network and the weights of its run name what is on a photo; weights that do not say how are refused."""

from types import SimpleNamespace

import chainer
import numpy as np
import pytest
from chainer import Sequential
from PIL import Image

import trainer
import trainer.functions as F
import trainer.links as L
from trainer.data.images import to_rgb
from trainer.data.metadata import Metadata
from trainer.data.preprocessing import PREPROCESSINGS
from trainer.run.checkpoint import save_weights

CLASSES = ('red', 'green', 'blue')
VIEW = PREPROCESSINGS['torchvision'].sized(24)


def make_net(n_class=3):
    return Sequential(L.Convolution2D(None, 3, 1), lambda h: F.mean(h, (2, 3)), L.Linear(None, n_class))


def write(path, metadata):
    """Weights with which the largest logit is that of the brightest channel."""
    net = make_net()
    net(np.zeros((1, 3, 8, 8), np.float32))
    net[0].W.array[...] = np.eye(3)[:, :, None, None]
    net[2].W.array[...] = np.eye(3)
    save_weights(path, net, metadata)
    return path


@pytest.fixture
def weights(tmp_path):
    return write(tmp_path / 'weights_best.npz', Metadata('own', 3, VIEW, CLASSES))


@pytest.mark.parametrize('colour', CLASSES)
def test_files_and_images_of_any_size_and_mode_are_named(weights, colour, tmp_path):
    classifier = trainer.load_classifier(make_net(), weights)
    photo = Image.new('RGB', (70, 31), colour)
    photo.save(tmp_path / 'photo.png')
    for image in (
        tmp_path / 'photo.png',
        str(tmp_path / 'photo.png'),
        photo,
        photo.convert('RGBA'),
        photo.convert('P'),
    ):
        answer = classifier.classify(image)
        assert answer[0][0] == colour and sorted(name for name, _ in answer) == sorted(CLASSES)
        assert sum(probability for _, probability in answer) == pytest.approx(1)
        assert [probability for _, probability in answer] == sorted((p for _, p in answer), reverse=True)


def test_the_pixels_are_those_of_the_preprocessing(weights):
    net = make_net()
    photo = Image.effect_noise((40, 30), 80).convert('RGB')
    name, probability = trainer.load_classifier(net, weights).classify(photo)[0]
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        y = net(VIEW.colours(VIEW.cut(photo).transpose(2, 0, 1)[None])).array[0]
    assert CLASSES[y.argmax()] == name
    assert np.exp(y.max()) / np.exp(y).sum() == pytest.approx(probability, rel=1e-4)


@pytest.mark.parametrize('metadata', [Metadata(), Metadata('own', 3, VIEW), Metadata('own', 3, None, CLASSES)])
def test_weights_that_do_not_say_what_they_expect_are_refused(tmp_path, metadata):
    path = write(tmp_path / 'plain.npz', metadata)
    with pytest.raises(
        trainer.InputError, match=r'plain\.npz does not say what images and classes .* weights_best\.npz'
    ):
        trainer.load_classifier(make_net(), path)


def test_what_does_not_fit_is_refused(weights, tmp_path):
    with pytest.raises(trainer.InputError, match=r'returned \(1, 4\); logits \(1, 3\) are expected'):
        trainer.load_classifier(make_net(4), weights)
    with pytest.raises(trainer.InputError, match='does not fit the network'):
        trainer.load_classifier(Sequential(lambda h: F.mean(h, (2, 3)), L.Linear(3, 3)), weights)
    with pytest.raises(trainer.InputError, match='does not exist'):
        trainer.load_classifier(make_net(), tmp_path / 'missing.npz')
    (tmp_path / 'photo.jpg').write_text('<html>')
    with pytest.raises(trainer.InputError, match=r'photo\.jpg cannot be read as an image'):
        trainer.load_classifier(make_net(), weights).classify(tmp_path / 'photo.jpg')


def test_an_image_of_pillow_is_named_as_its_file_is(weights, tmp_path):
    classifier = trainer.load_classifier(make_net(), weights)
    transparent = Image.effect_noise((40, 30), 80).convert('RGBA')
    transparent.putalpha(90)
    deep = Image.fromarray((np.arange(1200).reshape(30, 40) * 50).astype(np.uint16))
    for number, image in enumerate((transparent, deep)):
        path = tmp_path / f'{number}.png'
        image.save(path)
        assert classifier.classify(image) == classifier.classify(path) != classifier.classify(image.convert('RGB'))
        with Image.open(path) as opened:
            assert classifier.classify(opened) == classifier.classify(path)


def test_a_photo_is_turned_once(weights, tmp_path):
    classifier = trainer.load_classifier(make_net(), weights)
    seen = []
    classifier.preprocessing = SimpleNamespace(cut=lambda image: seen.append(image.size) or VIEW.cut(image))
    classifier.preprocessing.colours = VIEW.colours
    exif = Image.Exif()
    exif[0x0112] = 6  # it lies on its side
    Image.effect_noise((40, 30), 80).convert('RGB').save(tmp_path / 'photo.jpg', exif=exif)
    with Image.open(tmp_path / 'photo.jpg') as opened:
        for image in (tmp_path / 'photo.jpg', opened, to_rgb(opened)):
            classifier.classify(image)
    assert seen == [(30, 40)] * 3
