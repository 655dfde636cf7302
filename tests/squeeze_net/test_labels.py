"""Names of classes find the network's, what may be meant twice is refused, and numbers that look wrong are told."""

import numpy as np
import pytest

from squeeze_net import labels
from squeeze_net.classifier import default_class_names
from trainer import InputError

IMAGENET = default_class_names(1000)
CIFAR = 'airplane', 'automobile', 'bird', 'cat'


def match(names, classes=IMAGENET, used=None, first_label=0):
    used = range(len(names)) if used is None else used
    return labels.match(np.array(used, np.int32), names, classes, 'photos', first_label)


@pytest.mark.parametrize(
    ('name', 'found'),
    [
        ('n01440764', 0),
        ('n01443537_goldfish', 1),
        ('N01443537 goldfish', 1),
        ('tench', 0),
        ('Tinca tinca', 0),
        ('tench, Tinca tinca', 0),
        ('Great_White-Shark', 2),
        ('man eater', 2),
        ('maillot, tank suit', 639),
        ('tank suit', 639),
        ('n02012849', 134),
        ('n03126707 crane', 517),
        ('sunglasses', 837),
    ],
)
def test_names_of_imagenet(name, found):
    matching = match([name, 'toilet tissue'])
    assert matching.class_of.tolist() == [found, 999] and matching.is_by_name
    assert matching.note.startswith("2 classes of photos found among the network's 1,000 by name")


def test_the_same_names_in_the_same_order_are_taken_as_they_are():
    assert match(CIFAR, CIFAR).note is None
    assert match(['Airplane', 'automobile', 'bird', 'cat'], CIFAR).class_of.tolist() == [0, 1, 2, 3]
    for names in IMAGENET, labels.imagenet().names, labels.imagenet().keys:  # with "crane" twice
        matching = match(names)
        assert matching.note is None and (matching.class_of == np.arange(1000)).all()


def test_another_order_is_found_by_name():
    assert match(['cat', 'bird', 'automobile', 'airplane'], CIFAR).class_of.tolist() == [3, 2, 1, 0]


def test_a_network_that_calls_its_classes_by_wordnets_numbers():
    assert match(['goldfish', 'tench'], ['n01440764', 'n01443537']).class_of.tolist() == [1, 0]


def test_classes_without_images_need_not_be_found():
    assert match(['tench', 'my cat'], used=[0]).class_of.tolist() == [0, -1]


@pytest.mark.parametrize(
    ('names', 'classes', 'words'),
    [
        (
            ['crane', 'tench'],
            IMAGENET,
            r"'crane', which may be 134 \(n02012849\) and 517 \(n03126707\)",
        ),
        (
            ['gold fishes', 'tench'],
            IMAGENET,
            "'gold fishes', which is not .*the nearest is 'goldfish'",
        ),
        (['n99999999', 'tench'], IMAGENET, "'n99999999', which is not one"),
        (['xyzzy', 'cat'], CIFAR, 'none is called alike'),
        (['cats', 'dogs', 'cows'], ['0', '1'], 'has 3 classes, the network 2, of which only the numbers are known'),
    ],
)
def test_what_is_not_clear_is_refused(names, classes, words):
    with pytest.raises(InputError, match=words):
        match(names, classes)


def test_a_network_without_names_is_matched_by_position_and_says_so():
    matching = match(['cats', 'dogs'], ['0', '1'])
    assert matching.class_of.tolist() == [0, 1] and 'are taken in their order' in matching.note


def test_numbers():
    assert match(None, IMAGENET, [0, 7, 999]).class_of[[0, 7, 999]].tolist() == [0, 7, 999]
    assert match(['0', '1', '10', '2'], IMAGENET).class_of.tolist() == [0, 1, 10, 2]  # folders sort as texts
    assert match(None, ['0', '1', '2'], [0, 1]).class_of.tolist() == [0, 1]
    assert match(None, CIFAR, [1, 4], first_label=1).class_of[[1, 4]].tolist() == [0, 3]
    with pytest.raises(InputError, match=r'classes 0\.\.3, and the labels are 1\.\.4: .* give --first_label 1'):
        match(None, CIFAR, [1, 2, 3, 4])
    with pytest.raises(InputError, match=r'has the label 9, but the network has classes 0\.\.3'):
        match(None, CIFAR, [0, 9])
    with pytest.raises(InputError, match=r'has the label 0, but the network has classes 1\.\.4'):
        match(None, CIFAR, [0, 1], first_label=1)
    with pytest.raises(InputError, match="the labels of photos are names, such as 'cat'"):
        match(['cat'], CIFAR, first_label=1)


def confusion(n_class, n, offset):
    """Of images whose label is by `offset` more than what the network says."""
    found = np.zeros((n_class, n_class), int)
    for i in range(n):
        found[(i + offset) % n_class, i % n_class] += 1
    return found


def test_numbers_that_look_wrong():
    assert labels.doubt(confusion(10, 60, 0)) is None
    assert '--first_label 1' in labels.doubt(confusion(100, 60, 1))
    assert 'one higher' in labels.doubt(confusion(100, 60, -1))
    assert '0 of 60 images are right, fewer than by chance' in labels.doubt(confusion(100, 60, 7))
    assert labels.doubt(confusion(100, 40, 7)) is None
