"""How evenly the training images are spread over the classes, and the loss weights that make up for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MAX_SKEW = 5  # the largest class has at most so many times the images of the smallest, or a line says so


def balanced_weights(labels: np.ndarray, n_class: int) -> np.ndarray:
    """N / (number of classes with images * images of the class), whose mean over the images is 1.

    Args:
        labels: (N,) int32.
        n_class: number of classes.
    Returns:
        (n_class,) float32; 1 for a class without images.
    """
    count = np.bincount(labels, minlength=n_class)
    has_images = count > 0
    weights = len(labels) / (has_images.sum() * np.maximum(count, 1))
    return np.where(has_images, weights, 1).astype(np.float32)


def is_skewed(labels: np.ndarray) -> bool:
    """Whether the largest class has more than MAX_SKEW times the images of the smallest that has any."""
    count = np.bincount(labels)
    return bool(count.max() > MAX_SKEW * count[count > 0].min())


def describe_skew(labels: np.ndarray, classes: Sequence[str]) -> str:
    """`class 'x' has 500 images, 'y' 20`: the largest class and the smallest one that has images."""
    count = np.bincount(labels, minlength=len(classes))
    largest, smallest = int(count.argmax()), int(np.where(count > 0, count, count.max() + 1).argmin())
    if count[largest] == count[smallest]:
        return f'the classes have {count[largest]:,} images each'
    return f'class {classes[largest]!r} has {count[largest]:,} images, {classes[smallest]!r} {count[smallest]:,}'
