import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer import InputError
from trainer.data import datasets
from trainer.data.datasets import Data, Split, load


def split(labels, side=4):
    """Images whose every value is their place in the split."""
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None]
    return Split(np.broadcast_to(images, (len(labels), 3, side, side)), np.array(labels, np.int32))


def build(train, test):
    return Data(name='few', train=train, test=test, classes=('a', 'b', 'c'), source='a test', is_jpeg=False)


def test_limited_keeps_the_first_of_every_class_in_order():
    data = build(split([2, 0, 0, 2, 1, 0, 2]), split([1, 1, 1]))
    few = data.limited(2)
    assert few.train.labels.tolist() == [2, 0, 0, 2, 1]
    assert few.train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert few.test.labels.tolist() == [1, 1]
    assert (few.classes, few.n_class, few.source) == (data.classes, 3, data.source)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.integers(1, 5))
def test_limited_equals_counting(labels, n):
    kept = [i for i, label in enumerate(labels) if labels[:i].count(label) < n]
    assert split(labels).limited(n).images[:, 0, 0, 0].tolist() == kept


GOOD = split([0, 1, 2])


@pytest.mark.parametrize(
    ('train', 'message'),
    [
        (Split(GOOD.images.astype(np.float32), GOOD.labels), r'images are float32 \(3, 3, 4, 4\)'),
        (Split(GOOD.images[:, :1], GOOD.labels), r'images are uint8 \(3, 1, 4, 4\)'),
        (Split(GOOD.images[0], GOOD.labels), r'images are uint8 \(3, 4, 4\)'),
        (Split(GOOD.images[:0], GOOD.labels[:0]), r'holds no image'),
        (Split(GOOD.images, GOOD.labels[:2]), r'labels are int32 \(2,\), expected int32 \(3,\)'),
        (Split(GOOD.images, GOOD.labels.astype(np.int64)), r'labels are int64'),
        (Split(GOOD.images, GOOD.labels + 1), r'labels are 1\.\.3, expected 0\.\.2'),
        (Split(GOOD.images, GOOD.labels - 1), r'labels are -1\.\.1, expected 0\.\.2'),
    ],
)
def test_faults_name_the_data_set_and_the_split(train, message):
    with pytest.raises(InputError, match=rf'^few, train split: {message}'):
        build(train, GOOD)


def test_splits_have_one_size():
    with pytest.raises(InputError, match=r'the train images have 4 × 4 px, the test images 5 × 5'):
        build(GOOD, split([0], side=5))


def test_unknown_names_are_refused():
    with pytest.raises(
        InputError, match=r"'cifar11' is not a data set; expected one of cifar10, cifar100, folder, shapes"
    ):
        load('cifar11')


def test_every_name_loads_or_says_what_it_needs(tmp_path):
    for name in datasets.DATASETS:
        with pytest.raises(InputError, match=str(tmp_path)):
            load(name, tmp_path)
