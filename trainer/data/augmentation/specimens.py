"""The few images that a sheet shows: of an image file or of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from trainer.data.images import decode_named, squash
from trainer.data.sources.source import read_file


class Specimens(NamedTuple):
    """Images to look at, as they are and as training keeps them."""

    title: str
    source: str  # one line: where the pixels come from; '' for a file, whose title says it
    names: list[str]
    originals: list[np.ndarray]  # (height, width, 3) uint8, RGB
    images: np.ndarray  # (N, 3, H, W) uint8, RGB


def read_image(path: Path, max_side: int) -> Specimens:
    """An image file: one specimen, squashed to at most max_side x max_side px.

    Raises:
        InputError: the file is missing, too large, or not an image that can be decoded; names it.
    """
    image = np.asarray(decode_named(read_file(path), str(path)))
    height, width, _ = image.shape
    small = squash(image, min(width, max_side), min(height, max_side))
    return Specimens(path.name, '', [path.stem], [image], small.transpose(2, 0, 1)[None])


def read_dataset(name: str, directory: Path | None, n: int, max_side: int) -> Specimens:
    """The first training images of a data set, of as many classes as `n` allows.

    Args:
        name, directory: as for `trainer.datasets.load`.
        n: specimens; fewer where the data set has fewer.
        max_side: larger images are squashed to this, px.
    Raises:
        InputError: the data set cannot be read.
    """
    from trainer.data import datasets

    data = datasets.load(name, directory, limit=1, max_side=max_side)
    if len(data.train.labels) < n:
        data = datasets.load(name, directory, limit=-(-n // data.n_class), max_side=max_side)
    first = np.argsort(data.train.labels, kind='stable')[:n].tolist()
    names = [data.classes[data.train.labels[i]] for i in first]
    if isinstance(data, datasets.Stream):
        read, name_of = data.train.read, data.train.name
        whole = [np.asarray(decode_named(read(i), name_of(i))) for i in first]
        images = np.stack([squash(image, max_side, max_side).transpose(2, 0, 1) for image in whole])
        return Specimens(data.name, data.source, names, whole, images)
    images = data.train.images[first]
    return Specimens(data.name, data.source, names, list(images.transpose(0, 2, 3, 1)), images)
