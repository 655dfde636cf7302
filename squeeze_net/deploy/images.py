"""The images of --data: some training images to calibrate on, and the test images to score on."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from squeeze_net import classifier, labels
from trainer.data.datasets import Data, Stream
from trainer.data.preprocessing import Preprocessing
from trainer.data.sources import Subset
from trainer.errors import InputError

N_CALIBRATION = 256
BATCH = 32


class Images(NamedTuple):
    """Pictures as the network sees them in tests.

    Attributes:
        calibration: (M, 3, crop, crop) uint8, RGB; training images, from all over the data set.
        test: batches of pictures (B, 3, crop, crop) uint8 and their classes (B,).
        n_test: test images.
        source: where they come from.
    """

    calibration: np.ndarray
    test: Iterable[tuple[np.ndarray, np.ndarray]]
    n_test: int
    source: str


def load_images(args: argparse.Namespace, view: Preprocessing, classes: tuple[str, ...]) -> Images:
    """The images that the flags --dataset, --data, --limit, --seed, --workers and --unreadable ask for.

    Args:
        view: what the network expects.
        classes: of the network, as `squeeze_net.labels.match` finds those of the data set among them.
    Raises:
        InputError: data that cannot be read, without training images, or of other classes.
    """
    data = classifier.load_data(args, view)
    matching = labels.match(data.test.labels, data.classes, classes, data.source)
    test = ((pictures, matching.class_of[t]) for pictures, t in _pictures(data, view, args))
    calibration = [pictures for pictures, _ in _pictures(_some_training_images(data), view, args)]
    if not calibration:
        raise InputError(f'{data.source} holds no training image that can be read')
    return Images(np.concatenate(calibration), test, len(data.test.labels), data.source)


def _some_training_images(data: Data | Stream) -> Data | Stream:
    """The same data set with training images in the place of its test images: they are cut as those are."""
    index = np.unique(np.linspace(0, len(data.train.labels) - 1, N_CALIBRATION).astype(np.int64))
    if isinstance(data, Data):
        return replace(data, test=data.train.at(index))
    return replace(data, test=Subset(data.train, index))


def _pictures(
    data: Data | Stream, view: Preprocessing, args: argparse.Namespace
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for pictures, t, *_ in data.test_batches(view, BATCH, args.workers, args.unreadable):
        yield np.rint(pictures).astype(np.uint8), t
