import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.data.augmentation import normalise
from trainer.data.preprocessing import PREPROCESSINGS, Preprocessing, find
from trainer.errors import InputError

DATA = Path(os.environ.get('SQUEEZE_NET_DATA', Path(__file__).parents[4] / 'shared' / 'data')) / 'imagenet-sample'
X = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 4), np.uint8)


@pytest.mark.skipif(not DATA.is_dir(), reason=f'no sample images in {DATA}')
@pytest.mark.parametrize(
    ('name', 'reference', 'n_equal'),
    # Where a value lies between two grey levels, the reference rounds the other way in two images.
    [('caffe', 'squash256_pil', 100), ('five-crop', 'short256_pil', 100), ('caffe-opencv', 'squash256_cv', 98)],
)
def test_crops_are_those_of_an_independent_implementation(name, reference, n_equal):
    images = json.loads((DATA / 'reference.json').read_text())['images']
    crops = [PREPROCESSINGS[name].cut(Image.open(DATA / 'images' / i['file']).convert('RGB')) for i in images]
    hashes = [hashlib.sha256(crop.tobytes()).hexdigest() for crop in crops]
    assert sum(a == b['crop_rgb_sha256'][reference] for a, b in zip(hashes, images, strict=True)) >= n_equal


@pytest.mark.parametrize('name', PREPROCESSINGS)
@pytest.mark.parametrize('size', [(500, 333), (1, 9), (227, 600), (256, 256)])
def test_every_image_becomes_one_size(name, size):
    preprocessing = PREPROCESSINGS[name]
    assert preprocessing.cut(Image.new('RGB', size, (9, 99, 200))).shape == (preprocessing.crop, preprocessing.crop, 3)


def test_linear_is_exact_where_the_size_stays_and_halves_between_two_pixels():
    linear = Preprocessing('caffe-opencv', 'squash', 4, 4, 'linear')
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert np.array_equal(linear.cut(Image.fromarray(image)), image)
    two = np.array([[[0, 0, 0], [100, 40, 8]]] * 2, np.uint8)
    assert linear.cut(Image.fromarray(two))[0].tolist() == [[0] * 3, [25, 10, 2], [75, 30, 6], [100, 40, 8]]


def test_colours():
    caffe = PREPROCESSINGS['caffe'].colours(X)
    assert caffe.dtype == np.float32
    np.testing.assert_array_equal(caffe[:, 0], X[:, 2].astype(np.float32) - 104)
    np.testing.assert_array_equal(caffe[:, 2], X[:, 0].astype(np.float32) - 123)
    scaled = (X / 255 - np.reshape([0.485, 0.456, 0.406], (3, 1, 1))) / np.reshape([0.229, 0.224, 0.225], (3, 1, 1))
    np.testing.assert_allclose(PREPROCESSINGS['torchvision'].colours(X), scaled, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(PREPROCESSINGS['experiment'].colours(X), normalise(X.astype(np.float32)))


@pytest.mark.parametrize('preprocessing', PREPROCESSINGS.values(), ids=PREPROCESSINGS)
def test_survives_json(preprocessing):
    assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.as_dict()))) == preprocessing


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'resize': 'stretch'}, "resize is 'stretch'"),
        ({'side': 10**9}, 'side 1000000000'),
        ({'crop': 300}, 'crop 300 of side 256'),
        ({'crop': 1.5}, r'crop 1\.5'),
        ({'order': ['B']}, r"order is \['B'\]"),
        ({'mean': 'grey'}, "mean is 'grey'"),
        ({'mean': [1, 2]}, r'mean is \[1, 2\], expected three numbers'),
        ({'std': [1, 0, 1]}, 'std is'),
        ({'name': 7}, 'name is 7'),
        ({'shear': 2}, 'is not a preprocessing'),
    ],
)
def test_what_a_foreign_file_says_is_checked(change, message):
    with pytest.raises(InputError, match=message):
        Preprocessing.from_dict(PREPROCESSINGS['caffe'].as_dict() | change)
    with pytest.raises(InputError, match='is not a preprocessing'):
        Preprocessing.from_dict(change | {'name': 'caffe'})


def test_unknown_name():
    with pytest.raises(InputError, match="'cafe' is not a preprocessing; expected one of experiment, caffe"):
        find('cafe')


def test_that_of_a_network_is_found_at_its_own_size():
    own = PREPROCESSINGS['experiment'].sized(102)
    assert find('experiment', own) == own
    assert find('caffe', own) == PREPROCESSINGS['caffe']
