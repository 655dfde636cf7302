"""Data sets that need not fit in memory: two sources of encoded images, read and decoded as they are needed."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.augmentation.sizes import Sizes
from trainer.data.augmentation.stream import StreamTestView, StreamTrainView
from trainer.data.datasets.data import IMAGES_OF, checksum, first_of_each_class
from trainer.data.decode import Batches, batches
from trainer.data.holdout import split_off
from trainer.data.images import FORMATS, format_of
from trainer.data.pictures import Pictures
from trainer.data.preprocessing import Preprocessing, find
from trainer.data.sources import Kind, Source, Subset
from trainer.errors import InputError

CLASS_LISTS = ('synset_words.txt', 'classes.txt')


@dataclass(frozen=True, eq=False)
class Stream:
    """A data set of two sources; `trainer.train` takes it as it takes `Data`.

    Attributes:
        name: what messages and records call it.
        train, test: the sources.
        classes: the name of each label.
        source: one line that says where the pixels come from.
        is_jpeg: whether the images are JPEGs.
        validation: images that choose the best epoch, so that the test images choose nothing; None if there are none.
        notes: lines about what was taken for what, and what was left out.
    Raises:
        InputError: at construction, for a label without a class.
    """

    name: str
    train: Source
    test: Source
    classes: tuple[str, ...]
    source: str
    is_jpeg: bool
    validation: Source | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for split in self.splits.values():
            if (label := int(split.labels.max())) >= self.n_class:
                raise InputError(f'{split.place}: the label {label} is outside 0..{self.n_class - 1}')

    @property
    def n_class(self) -> int:
        return len(self.classes)

    @property
    def splits(self) -> dict[str, Source]:
        """The sources that there are, by name."""
        splits = {'train': self.train, 'validation': self.validation, 'test': self.test}
        return {name: split for name, split in splits.items() if split is not None}

    @property
    def capture_obstacle(self) -> str:
        """Why a GPU cannot capture training iterations on these images: it looks for them in its memory."""
        return f'{self.name} is read from files'

    def pictures(
        self, sizes: Sizes, preprocess: str, seed: int = 0, workers: int | None = None, unreadable: str = 'fail'
    ) -> Pictures:
        """What a network sees of the images; arguments as for `Data.pictures`.

        Args:
            workers: processes that decode; 0 for none, None for as many as cores.
            unreadable: 'fail', or 'skip' to go on without images that cannot be read.
        """
        for flag, is_given in (('--progressive_size', sizes.smaller), ('--pad', sizes.pad)):
            if is_given:
                raise InputError(f'{flag} goes with images in memory; these are read from their files')
        train = find(preprocess).sized(sizes.crop)
        test = sizes.preprocessing(train) if train.name == 'experiment' else train
        train_view = StreamTrainView(self.train, train, seed, workers=workers, unreadable=unreadable)
        validation = None if self.validation is None else StreamTestView(self.validation, test, workers, unreadable)
        return Pictures(train_view, StreamTestView(self.test, test, workers, unreadable), test, validation)

    def test_batches(
        self, view: Preprocessing, batch: int, workers: int | None = None, unreadable: str = 'fail'
    ) -> Batches:
        """The test images, as `trainer.data.decode.batches` gives them."""
        return batches(self.test, view, batch, workers, unreadable)

    def checksums(self) -> dict[str, str]:
        """One line for each split, which is the same where labels and the names of images are."""
        return {IMAGES_OF[name]: _checksum(split) for name, split in self.splits.items()}

    def limited(self, n: int) -> Stream:
        """The same with only the first `n` images of every class in each source."""
        splits: dict[str, Any] = {
            name: Subset(split, first_of_each_class(split.labels, n)) for name, split in self.splits.items()
        }
        return replace(self, **splits)

    def with_validation(self, amount: str, seed: int) -> Stream:
        """The same with some training images held out for validation; arguments as for `Data.with_validation`."""
        kept, held = split_off(self.train.labels, amount, seed)
        return replace(self, train=Subset(self.train, kept), validation=Subset(self.train, held))


def read_splits(place: Path, kind: Kind, limit: int | None = None, needs_train: bool = True) -> Stream:
    """`train`, `val` and `test` of a folder, with the names of `synset_words.txt` or `classes.txt` in it, if there.

    Without a test, the validation images are the test; so they are beside a test without labels, as Caffe's test.txt.

    Args:
        place: the folder.
        kind: of the sources.
        limit: only the first `limit` images of each class, in every split.
        needs_train: whether there must be training images; without, the test images stand in for them.
    Raises:
        InputError: a split is missing or cannot be read, or two have different classes; says which.
    """
    paths = {name: place / f'{name}{kind.suffix}' for name in ('train', 'val', 'test')}
    found = {name: path for name, path in paths.items() if path.exists()}
    if not found.keys() & {'val', 'test'} or (needs_train and 'train' not in found):
        missing = paths['val' if 'train' in found or not needs_train else 'train']
        wanted = f'{paths["train"].name} and {paths["val"].name} or {paths["test"].name}'
        raise InputError(f'{missing} does not exist; a folder of {kind.text} holds {wanted}')
    class_list = class_list_in(place)
    # `pack` leaves a list with each split; two that differ are refused below.
    splits = {name: kind.open(path, class_list_in(path) or class_list) for name, path in found.items()}
    named = {name: split.classes for name, split in splits.items() if split.classes is not None}
    for (name, classes), (other, expected) in pairwise(named.items()):
        if classes != expected:
            odd = sorted(set(classes) ^ set(expected))
            which = f'the class {odd[0]!r} is in only one' if odd else 'the classes have another order in one'
            both = f'{paths[name].name} and {paths[other].name}'
            raise InputError(f'{place}: {which} of {both}; both need the same classes')
    notes = []
    if {'val', 'test'} <= splits.keys() and len(np.unique(splits['test'].labels)) == 1:
        notes.append(f'{paths["test"].name} is left out: all its labels are {splits.pop("test").labels[0]}')
    n_class = max(int(split.labels.max()) for split in splits.values()) + 1
    test = 'test' if 'test' in splits else 'val'
    data = Stream(
        name=place.resolve().name,
        train=splits.get('train', splits[test]),
        test=splits[test],
        classes=next(iter(named.values()), tuple(map(str, range(n_class)))),
        source=f'{kind.text} of {place.resolve().name}',
        is_jpeg=any(map(_is_jpeg, splits.values())),
        validation=splits.get('val') if test == 'test' else None,
        notes=tuple(notes),
    )
    return data if limit is None else data.limited(limit)


def class_list_in(place: Path) -> Path | None:
    """The list of classes in a folder, or in one of those in it."""
    if not place.is_dir():
        return None
    folders = (place, *sorted(path for path in place.iterdir() if path.is_dir()))
    return next((path for folder in folders for name in CLASS_LISTS if (path := folder / name).is_file()), None)


def _checksum(source: Source) -> str:
    names = '\n'.join(os.path.basename(source.name(i)) for i in range(len(source)))  # noqa: PTH119 - of millions
    return checksum(source.labels, np.frombuffer(os.fsencode(names), np.uint8))


def _is_jpeg(source: Source) -> bool:
    """By the first image that can be read of a few."""
    for i in range(min(len(source), 10)):
        try:
            return format_of(source.read(i)) == FORMATS[0]
        except InputError:
            continue
    return False
