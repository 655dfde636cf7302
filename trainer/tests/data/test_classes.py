"""Classes without images are told."""

import numpy as np

from trainer.data.classes import describe_gaps


def test_gaps():
    classes = 'abcd'
    assert describe_gaps(np.arange(4), np.arange(4), classes) is None
    assert describe_gaps(np.arange(1, 4), np.arange(1, 4), classes) == (
        '1 of 4 classes have no training image (a); labels begin at 0: are these numbered from 1?'
    )
    assert describe_gaps(np.array([0, 2]), np.array([0, 1, 3, 3]), classes) == (
        '2 of 4 classes have no training image (b, d); 3 test images are of these, and cannot be right'
    )
    assert '(0, 1, 2, 3, 4, ...)' in describe_gaps(np.array([9]), np.array([9]), list(map(str, range(10))))
