import numpy as np
import pytest

from trainer.data.balance import balanced_weights, describe_skew, is_skewed

LABELS = np.repeat(np.array([0, 1, 3], np.int32), (50, 10, 4))


def test_balanced_weights_give_every_class_the_same_sum():
    weights = balanced_weights(LABELS, 4)
    assert weights.dtype == np.float32
    assert weights[2] == 1
    count = np.bincount(LABELS)
    np.testing.assert_allclose((weights * count)[[0, 1, 3]], len(LABELS) / 3, rtol=1e-6)
    assert weights[LABELS].mean() == pytest.approx(1)


def test_skew_is_told_of_classes_with_images():
    assert is_skewed(LABELS)
    assert describe_skew(LABELS, 'abcd') == "class 'a' has 50 images, 'd' 4"
    assert not is_skewed(LABELS[40:])  # 10, 10 and 4
    assert describe_skew(LABELS[40:60], 'abcd') == 'the classes have 10 images each'
