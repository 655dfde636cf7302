"""One interface for pictures: what training and other programs see of a data set, in memory or streamed."""

import os

import numpy as np
import pytest
from PIL import Image

from trainer.data.augmentation import Sizes
from trainer.data.datasets import load, make_shapes
from trainer.data.order import Batch, EpochIterator


@pytest.fixture(scope='module', params=['in memory', 'streamed'])
def data(request, tmp_path_factory):
    if request.param == 'in memory':
        return make_shapes(n_train=2, n_test=2)
    folder = tmp_path_factory.mktemp('images')
    rng = np.random.default_rng(0)
    for i in range(9):
        Image.fromarray(rng.integers(0, 256, (40, 50 + i, 3), np.uint8)).save(folder / f'{i}.png')
    for name in ('train.txt', 'val.txt'):
        (folder / name).write_text(''.join(f'{i}.png {i % 3}\n' for i in range(9)))
    return load('imagelist', folder)


def one_process(n):
    return range(n)


@pytest.mark.parametrize('preprocess', ['experiment', 'torchvision'])
@pytest.mark.parametrize('fixed_size', [False, True])
def test_training_tests_on_what_other_programs_see(data, preprocess, fixed_size):
    pictures = data.pictures(Sizes.of(40, fixed_size), preprocess, workers=0)
    x, t = pictures.test(np.arange(9))
    batches = list(data.test_batches(pictures.preprocessing, 4, workers=0))
    pixels, labels = (np.concatenate(column)[:9] for column in zip(*(batch[:2] for batch in batches), strict=True))
    np.testing.assert_array_equal(labels, t)
    np.testing.assert_allclose(pictures.preprocessing.colours(pixels), x, atol=1e-5)
    pictures.close()


def test_pictures_depend_on_seed_epoch_and_image_alone(data):
    rows = Batch(np.array([0, 1, 1]), np.array([3, 3, 5]))
    found = []
    for seed in (1, 1, 2):
        pictures = data.pictures(Sizes.of(32), 'experiment', seed, workers=0)
        pictures.decode_ahead(EpochIterator(len(data.train.labels), 3, seed), one_process)
        found.append(pictures.train(rows)[0])
        assert list(pictures.new_faults(lambda value: [value])) == []
        pictures.close()
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
    assert not np.array_equal(found[0][0], found[0][1])


def test_checksums_differ_where_images_do(data):
    assert data.checksums() == data.checksums()
    fewer = data.limited(1)
    assert fewer.checksums()['training images'] != data.checksums()['training images']
    assert fewer.checksums()['training images'].startswith(f'{data.n_class} of checksum')


def test_validation_images_are_held_out_of_training(data):
    split = data.with_validation('4', seed=1)
    n = len(data.train.labels)
    assert (len(split.train.labels), len(split.validation.labels), split.test) == (n - 4, 4, data.test)
    again, other = data.with_validation('4', seed=1), data.with_validation('4', seed=2)
    assert split.checksums() == again.checksums() != other.checksums()
    assert split.checksums().keys() == {'training images', 'validation images', 'test images'}
    pictures = split.pictures(Sizes.of(40), 'torchvision', workers=0)
    whole = data.pictures(Sizes.of(40), 'torchvision', workers=0)
    np.testing.assert_array_equal(pictures.validation(np.arange(4))[1], split.validation.labels)
    assert whole.validation is None
    assert len(split.limited(1).validation.labels) == len(np.unique(split.validation.labels))
    pictures.close()
    whole.close()


def test_checksums_of_names_that_are_not_utf8(tmp_path):
    for name in ('a/1.png', 'a/2.png', 'b/1.png', os.fsdecode(b'b/caf\xe9.png')):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new('RGB', (9, 9)).save(tmp_path / name)
    found = load('folder', tmp_path, preprocess='caffe')
    assert found.checksums()['training images'].startswith('3 of checksum')
