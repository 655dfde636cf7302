"""The few images that a sheet shows: of an image file or of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from trainer.data.images import decode_named
from trainer.data.sources.source import read_file

if TYPE_CHECKING:
    from PIL.Image import Image


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
    image = decode_named(read_file(path), str(path))
    small = _squashed(image, min(image.width, max_side), min(image.height, max_side))
    return Specimens(path.name, '', [path.stem], [np.asarray(image)], small[None])


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
        whole = [decode_named(data.train.read(i), data.train.name(i), upright=False) for i in first]
        images = np.stack([_squashed(image, max_side, max_side) for image in whole])
        return Specimens(data.name, data.source, names, list(map(np.asarray, whole)), images)
    images = data.train.images[first]
    return Specimens(data.name, data.source, names, list(images.transpose(0, 2, 3, 1)), images)


def _squashed(image: Image, width: int, height: int) -> np.ndarray:
    """(3, height, width) uint8."""
    from PIL import Image as PILImage

    pixels = np.asarray(image.resize((width, height), PILImage.Resampling.BICUBIC))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
