"""The few images that a sheet shows: of an image file or of a data set."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trainer.errors import InputError


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
        InputError: the file is missing, no image, broken, or larger than Pillow's limit of 89 million pixels.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter('error', Image.DecompressionBombWarning)
            with Image.open(path) as file:
                image = ImageOps.exif_transpose(file).convert('RGB')
    except FileNotFoundError:
        raise InputError(f'{path}: no such file') from None
    except Exception as error:  # each of Pillow's many readers has its own kinds
        raise InputError(f'{path}: cannot be read as an image ({error})') from None
    small = image.resize((min(image.width, max_side), min(image.height, max_side)), Image.Resampling.BICUBIC)
    pixels = np.asarray(small).transpose(2, 0, 1)[None]
    return Specimens(path.name, '', [path.stem], [np.asarray(image)], np.ascontiguousarray(pixels))


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
    first = np.argsort(data.train.labels, kind='stable')[:n]
    names = [data.classes[label] for label in data.train.labels[first]]
    if isinstance(data, datasets.Stream):
        originals, images = _decode(data.train, first, max_side)
    else:
        images = data.train.images[first]
        originals = list(images.transpose(0, 2, 3, 1))
    return Specimens(data.name, data.source, names, originals, images)


def _decode(source: Any, index: Any, side: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Images of a source as they are, and squashed to side x side px."""
    from PIL import Image

    from trainer.data.decode import decode

    whole = []
    for i in map(int, index):
        try:
            whole.append(decode(source.read(i)))
        except InputError as error:
            raise InputError(f'{source.name(i)} cannot be read as an image: {error}') from None
    squashed = [np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)) for image in whole]
    return [np.asarray(image) for image in whole], np.stack(squashed).transpose(0, 3, 1, 2)
