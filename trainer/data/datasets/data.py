"""What every data set is once read: two splits of uint8 images in memory, and where they come from."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from trainer.data.augmentation import Sizes, TestView, TrainView, draw_test, warp
from trainer.data.holdout import split_off
from trainer.data.pictures import Pictures
from trainer.data.preprocessing import Preprocessing, find
from trainer.errors import InputError

IMAGES_OF = {'train': 'training images', 'validation': 'validation images', 'test': 'test images'}


def first_of_each_class(labels: np.ndarray, n: int) -> np.ndarray:
    """The indices of the first `n` of every label, rising."""
    order = np.argsort(labels, kind='stable')
    sorted_labels = labels[order]
    rank = np.arange(len(order)) - np.searchsorted(sorted_labels, sorted_labels)  # among those of its class
    return np.sort(order[rank < n])


def checksum(labels: np.ndarray, content: np.ndarray) -> str:
    """One line: how many images, and a checksum of their labels and of what tells them from others."""
    total = zlib.crc32(np.ascontiguousarray(content).data, zlib.crc32(labels.tobytes()))
    return f'{len(labels)} of checksum {total:08x}'


class Split(NamedTuple):
    """Images and their labels."""

    images: np.ndarray  # (N, 3, H, W) uint8, RGB
    labels: np.ndarray  # (N,) int32, 0 .. n_class - 1

    def limited(self, n: int) -> Split:
        """The first `n` images of every class, in their order."""
        return self.at(first_of_each_class(self.labels, n))

    def at(self, index: np.ndarray) -> Split:
        """The images `index`, in that order."""
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True, eq=False)
class Data:
    """A data set of two splits.

    Attributes:
        name: what messages and records call it, 'cifar10'.
        train, test: the splits, of one image size.
        classes: the name of each label.
        source: one line that says where the pixels come from; belongs beside every accuracy measured on them.
        is_jpeg: whether the pixels went through JPEG, which costs accuracy against the lossless originals.
        validation: images that choose the best epoch, so that the test images choose nothing; None if there are none.
        notes: lines about what was taken for what, and what was left out.
    Raises:
        InputError: at construction, when the arrays are not what Split says; names the data set and the fault.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    source: str
    is_jpeg: bool
    validation: Split | None = None
    notes: tuple[str, ...] = ()

    capture_obstacle = None  # to training iterations on these images: they lie in the memory of the GPU

    def __post_init__(self) -> None:
        for split_name, split in self.splits.items():
            if fault := _fault(split, len(self.classes)):
                raise InputError(f'{self.name}, {split_name} split: {fault}')
            if self.train.images.shape[1:] != split.images.shape[1:]:
                sizes = [' × '.join(map(str, one.images.shape[2:])) for one in (self.train, split)]
                raise InputError(
                    f'{self.name}: the train images have {sizes[0]} px, the {split_name} images {sizes[1]}'
                )

    @property
    def n_class(self) -> int:
        return len(self.classes)

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that there are, by name."""
        splits = {'train': self.train, 'validation': self.validation, 'test': self.test}
        return {name: split for name, split in splits.items() if split is not None}

    def pictures(
        self, sizes: Sizes, preprocess: str, seed: int = 0, workers: int | None = None, unreadable: str = 'fail'
    ) -> Pictures:
        """What a network sees of the images.

        Args:
            sizes: of the pictures.
            preprocess: a preprocessing by name, which says how pixels become numbers.
            seed: of the random crops, 0 .. 2**64 - 1.
            workers, unreadable: for `Stream`s.
        """
        view = sizes.preprocessing(find(preprocess))
        validation = None if self.validation is None else TestView(self.validation, sizes, view)
        return Pictures(TrainView(self.train, sizes, seed, view), TestView(self.test, sizes, view), view, validation)

    def test_batches(
        self, view: Preprocessing, batch: int, workers: int | None = None, unreadable: str = 'fail'
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The test images, as a training evaluates them: pixels (B, 3, crop, crop) float32, labels (B,) int32.

        Args:
            view: what the network expects.
            batch: B; the last batch may have fewer.
            workers, unreadable: for `Stream`s.
        """
        images, labels = self.test
        sizes = Sizes(view.crop, view.side, view.side, view.side, view.crop)
        for start in range(0, len(labels), batch):
            part = slice(start, start + batch)
            draws = draw_test(len(labels[part]), sizes)
            yield warp(images[part], draws, view.crop, (view.side, view.side)), labels[part]

    def checksums(self) -> dict[str, str]:
        """One line for each split, which is the same where the images are."""
        return {IMAGES_OF[name]: checksum(split.labels, split.images) for name, split in self.splits.items()}

    def limited(self, n: int) -> Data:
        """The same with only the first `n` images of every class in each split."""
        splits: dict[str, Any] = {name: split.limited(n) for name, split in self.splits.items()}
        return replace(self, **splits)

    def with_validation(self, amount: str, seed: int) -> Data:
        """The same with some training images held out for validation, of each class the same share.

        Args:
            amount: how many, `500` or `10%`.
            seed: 0 .. 2**64 - 1.
        Raises:
            InputError: `amount` is malformed or out of range.
        """
        kept, held = split_off(self.train.labels, amount, seed)
        return replace(self, train=self.train.at(kept), validation=self.train.at(held))


def _fault(split: Split, n_class: int) -> str | None:
    images, labels = split
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != np.uint8:
        return f'images are {images.dtype} {images.shape}, expected uint8 (N, 3, H, W)'
    if len(images) == 0:
        return 'holds no image'
    if labels.shape != (len(images),) or labels.dtype != np.int32:
        return f'labels are {labels.dtype} {labels.shape}, expected int32 ({len(images)},)'
    if labels.min() < 0 or labels.max() >= n_class:
        return f'labels are {labels.min()}..{labels.max()}, expected 0..{n_class - 1}'
    return None
