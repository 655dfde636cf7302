"""Sources of encoded images that need not fit in memory: lists, folders, tar shards, RecordIO."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from trainer.data.sources.class_list import ClassList, read_class_list
from trainer.data.sources.files import ClassFolders, Files, ImageList
from trainer.data.sources.record_io import RecordIO
from trainer.data.sources.shards import Shards
from trainer.data.sources.source import Source
from trainer.data.sources.subset import Subset
from trainer.errors import InputError

__all__ = [
    'SOURCES',
    'ClassFolders',
    'ClassList',
    'Files',
    'ImageList',
    'Kind',
    'RecordIO',
    'Shards',
    'Source',
    'Subset',
    'open_source',
    'read_class_list',
]


class Kind(NamedTuple):
    """A kind of source."""

    open: Callable[[Path, Path | None], Source]  # a place and a class list -> the source
    fits: Callable[[Path], bool]  # whether a place that exists is one
    suffix: str  # of the splits `train` and `val` in a folder
    text: str  # what messages call several of them


# By the name that `--dataset` knows; the first that fits a place opens it.
SOURCES = {
    'shards': Kind(Shards, lambda place: place.suffix == '.tar' or any(place.glob('*.tar')), '', 'tar shards'),
    'folder': Kind(ClassFolders, Path.is_dir, '', 'class folders'),
    'recordio': Kind(RecordIO, lambda place: place.suffix == '.rec', '.rec', 'RecordIO files'),
    'imagelist': Kind(ImageList, Path.exists, '.txt', 'image lists'),
}


def open_source(place: Path, root: Path | None = None, class_list: Path | None = None) -> Source:
    """The source that a path holds: a list (.txt, .lst), a .rec, a .tar or a folder of them, or a folder of classes.

    Args:
        place: the file or folder.
        root: of a list's paths; None for its folder.
        class_list: names the labels, and gives the folders of classes their order.
    Raises:
        InputError: nothing there, or nothing that can be read; says what was expected.
    """
    if not place.exists():
        raise InputError(f'{place} does not exist; expected a list, a .rec, a .tar or a folder of images')
    kind = next(kind for kind in SOURCES.values() if kind.fits(place))
    if root is None:
        return kind.open(place, class_list)
    if kind.open is not ImageList:
        raise InputError(f'{place} is not a list, so a root of its paths ({root}) has no meaning')
    return ImageList(place, class_list, root)
