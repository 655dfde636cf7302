"""Sources of encoded images that need not fit in memory: lists, folders, tar shards, RecordIO."""

from __future__ import annotations

from pathlib import Path

from trainer.data.sources.class_list import ClassList, read_class_list
from trainer.data.sources.files import ClassFolders, ImageList
from trainer.data.sources.record_io import RecordIO
from trainer.data.sources.shards import Shards
from trainer.data.sources.source import Source
from trainer.data.sources.subset import Subset
from trainer.errors import InputError

__all__ = [
    'ClassFolders',
    'ClassList',
    'ImageList',
    'RecordIO',
    'Shards',
    'Source',
    'Subset',
    'open_source',
    'read_class_list',
]


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
    if root is not None and (place.is_dir() or place.suffix in ('.rec', '.tar')):
        raise InputError(f'{place} is no list, so a root of its paths ({root}) has no place')
    if place.is_dir():
        return Shards(place, class_list) if any(place.glob('*.tar')) else ClassFolders(place, class_list)
    if place.suffix == '.rec':
        return RecordIO(place, class_list)
    if place.suffix == '.tar':
        return Shards(place, class_list)
    return ImageList(place, root, class_list)
