"""CIFAR-10 and CIFAR-100 in Parquet files, as Hugging Face hosts them: a column of encoded images, and labels."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.data.datasets.archive import impostor
from trainer.data.datasets.data import Data, Split
from trainer.data.datasets.editions import Edition
from trainer.data.images import FORMATS, decode_named, format_of
from trainer.errors import InputError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

SUFFIX = '.parquet'
MAX_FILE_BYTES = 1 << 30
MAX_ROWS = 200_000  # of a file
MAX_IMAGE_BYTES = 1 << 16  # a PNG of 32 x 32 px has some 3,000
MAX_HEADER_BYTES = 1 << 20  # of a text or list in the file's own description
BATCH = 1000  # rows
_SPLIT = re.compile(r'(?:^|[-_.])(train|test)(?:[-_.]|$)')
_SHARD = re.compile(r'-\d+-of-0*(\d+)\.parquet$')
_TYPOS = {'cra': 'crab'}  # so the published files of CIFAR-100 name it


def find_parquet(place: Path) -> dict[str, list[Path]]:
    """The Parquet files of each split: those in a folder, up to two folders down, or beside a given one of them.

    `train` and `test` stand in their names or in those of their folders: `plain_text/train-00000-of-00001.parquet`,
    `train/0000.parquet`.
    """
    if place.is_file():
        if place.suffix != SUFFIX:
            return {}
        is_in_folder_of_split = not _SPLIT.search(place.name) and _SPLIT.search(place.parent.name)
        place = place.parent.parent if is_in_folder_of_split else place.parent
    found: dict[str, list[Path]] = {}
    for pattern in ('', '*/', '*/*/'):
        for path in sorted(place.glob(f'{pattern}*{SUFFIX}')):
            parts = reversed(path.relative_to(place).parts)
            if split := next((match[1] for match in map(_SPLIT.search, parts) if match), None):
                found.setdefault(split, []).append(path)
    return found


def read_parquet(edition: Edition, place: Path) -> Data:
    """Read the set from Parquet files.

    Images whose labels and pixels are the official ones come in the order of the official files, whatever the order of
    the batches in these.

    Args:
        edition: CIFAR10 or CIFAR100.
        place: for `find_parquet`.
    Returns:
        Images of 32 × 32 px; `source` says whether they are the official ones, by their SHA-1.
    Raises:
        InputError: a split is missing, pyarrow is not installed, or a file cannot be read or holds anything else; says
            which, and what was expected.
    """
    files = find_parquet(place)
    for split in ('train', 'test'):
        if split not in files:
            raise InputError(f'{place} has no {split}*{SUFFIX}; {edition.name} needs train and test files')
        _check_shards(files[split])
    classes = _classes(edition, files['train'][0])
    train, test = (_Rows(edition, files[split]) for split in ('train', 'test'))
    is_official = train.sort(edition, edition.train) and test.sort(edition, edition.test)
    is_jpeg = train.is_jpeg or test.is_jpeg
    if is_official:
        source = f'{edition.name}, Parquet files of the official labels and pixels'
    else:
        source = f'{"JPEG re-encoding of " if is_jpeg else ""}{edition.name}, Parquet files of unknown origin'
    return Data(edition.name, train.split(), test.split(), classes, source, is_jpeg)


class _Rows:
    """The images of a split, in the order of its files.

    Attributes:
        labels: (N, number of label columns) int32; the last is the label, and a coarse one may be missing (-1).
        images: (N, 3, 32, 32) uint8.
        is_jpeg: whether an image is a JPEG.
    """

    def __init__(self, edition: Edition, paths: list[Path]) -> None:
        labels, images = [], []
        self.is_jpeg = False
        for path in paths:
            for row_labels, raw, name in _read(edition, path):
                labels.append(row_labels)
                images.append(_pixels(raw, name))
                self.is_jpeg |= format_of(raw) == FORMATS[0]
        if not images:
            raise InputError(f'{paths[0]} holds no image')
        self.labels, self.images = np.array(labels, np.int32), np.stack(images)

    def sort(self, edition: Edition, batches: dict[str, str]) -> bool:
        """Put the official batches into their order; False where these are others."""
        known = {edition.sha1[f'{name}.bin']: i for i, name in enumerate(batches)}
        size = len(self.images) // len(batches)
        if size * len(batches) != len(self.images) or self.labels.min() < 0:
            return False
        order: dict[int, slice] = {}
        for start in range(0, len(self.images), size):
            part = slice(start, start + size)
            rows = [self.labels[part].astype(np.uint8), self.images[part].reshape(size, -1)]
            digest = hashlib.sha1(np.concatenate(rows, axis=1).tobytes(), usedforsecurity=False).hexdigest()
            order[known.get(digest, -1)] = part
        if sorted(order) != list(range(len(batches))):
            return False
        self.labels = np.concatenate([self.labels[order[i]] for i in range(len(batches))])
        self.images = np.concatenate([self.images[order[i]] for i in range(len(batches))])
        return True

    def split(self) -> Split:
        return Split(self.images, np.ascontiguousarray(self.labels[:, -1]))


def _pixels(raw: bytes, name: str) -> np.ndarray:
    """(3, 32, 32) uint8, RGB."""
    if len(raw) > MAX_IMAGE_BYTES:
        raise InputError(f'{name} has {len(raw)} bytes, more than {MAX_IMAGE_BYTES}')
    image = np.asarray(decode_named(raw, name))
    if image.shape != (32, 32, 3):
        raise InputError(f'{name} has {image.shape[1]} x {image.shape[0]} px, expected 32 x 32')
    return image.transpose(2, 0, 1)


def _read(edition: Edition, path: Path) -> Iterator[tuple[list[int], bytes, str]]:
    """The labels and the encoded image of each row, and what to call it."""
    label_column = edition.label_columns[-1]
    with _opened(path) as file:
        columns = file.schema_arrow.names
        image_column = next((name for name in ('img', 'image') if name in columns), 'img')
        if missing := [name for name in (image_column, label_column) if name not in columns]:
            raise InputError(
                f'{path} has the columns {", ".join(columns)[:200]}, but not {" and ".join(missing)} of {edition.name}'
            )
        label_columns = [name for name in edition.label_columns if name in columns]
        if file.metadata.num_rows > MAX_ROWS:
            raise InputError(f'{path} has {file.metadata.num_rows:,} rows, more than {MAX_ROWS:,}')
        row = 0
        for batch in file.iter_batches(BATCH, columns=[image_column, *label_columns], use_threads=False):
            values = batch.to_pydict()
            for i in range(batch.num_rows):
                name = f'{path}, row {row}'
                label, image = values[label_column][i], values[image_column][i]
                raw = image.get('bytes') if isinstance(image, dict) else image
                if not isinstance(raw, bytes):
                    raise InputError(f'{name}: {image_column} holds no bytes of an image')
                if type(label) is not int or not 0 <= label < edition.n_class:
                    raise InputError(f'{name}: {label_column} is {label!r}, expected 0..{edition.n_class - 1}')
                others = [values[name][i] if name in label_columns else -1 for name in edition.label_columns[:-1]]
                yield [*(one if type(one) is int and 0 <= one < 256 else -1 for one in others), label], raw, name
                row += 1


def _classes(edition: Edition, path: Path) -> tuple[str, ...]:
    """The class names that the file gives, or the official ones where it gives none."""
    with _opened(path) as file:
        text = (file.schema_arrow.metadata or {}).get(b'huggingface', b'')
    try:
        names: Any = json.loads(text)['info']['features'][edition.label_columns[-1]]['names']
    except (ValueError, LookupError, TypeError, RecursionError):
        return edition.classes
    if not isinstance(names, list) or len(names) != edition.n_class or not all(isinstance(n, str) for n in names):
        return edition.classes
    return tuple(_TYPOS.get(name) or name for name in names)


def _check_shards(paths: list[Path]) -> None:
    """Refuse `train-00000-of-00002.parquet` without the other."""
    for path in paths:
        match = _SHARD.search(path.name)
        if match and int(match[1]) != (n := sum(_SHARD.search(other.name) is not None for other in paths)):
            raise InputError(f'{path} is one of {int(match[1])} files, of which {n} are there: download the others')


@contextmanager
def _opened(path: Path) -> Iterator[ParquetFile]:
    """An open Parquet file; whatever pyarrow raises for a bad one becomes an InputError."""
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise InputError(
            f'{path}: Parquet files need the package pyarrow, which is not installed: pip install pyarrow'
        ) from None
    try:
        if (n_bytes := path.stat().st_size) > MAX_FILE_BYTES:
            raise InputError(f'{path} has {n_bytes:,} bytes, more than {MAX_FILE_BYTES:,}')
        with ParquetFile(
            path, thrift_string_size_limit=MAX_HEADER_BYTES, thrift_container_size_limit=MAX_HEADER_BYTES
        ) as file:
            yield file
    except InputError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, LookupError, MemoryError) as error:
        reason = impostor(path) or ' '.join(str(error).split())[:200]
        raise InputError(f'{path} cannot be read as a Parquet file: {reason}') from None
