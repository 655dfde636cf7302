"""Files that are whole or absent, written beside and then renamed; and never over a file of somebody else."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import IO

from trainer.errors import InputError

SOFTWARE = 'chainer-image-trainer'  # in the pictures and pages of training and reports


@contextmanager
def atomic_write(path: Path, mode: str = 'wb') -> Iterator[IO]:
    """Open a file beside `path` for writing and rename it over `path` when the block ends well.

    A process killed at any moment leaves the old `path`, or the new one, never a torn one.  When the block raises
    (a full disk), the part file is removed and the old `path` stays.

    Args:
        path: the file to replace or create; its folder must exist.
        mode: 'wb' or 'w' (UTF-8).
    """
    part = _beside(path, f'{os.getpid()}.part')
    try:
        # In a text may be names of files that are not UTF-8.
        encoding, errors = (None, None) if 'b' in mode else ('utf-8', 'backslashreplace')
        with part.open(mode, encoding=encoding, errors=errors) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:  # that of a full disk names no file
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        part.unlink(missing_ok=True)


def _beside(path: Path, suffix: str) -> Path:
    """A hidden file in the same folder; its name is short enough for any disk, also where that of `path` is long."""
    return path.with_name(f'.{path.name[-50:]}.{suffix}')


def make_place(path: Path) -> None:
    """Make the folder of a file, and find out before hours of work whether the file can be written.

    Raises:
        OSError: it cannot, or is a folder; names it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    probe = _beside(path, 'probe')
    with atomic_write(probe) as file:
        file.write(b'')
    probe.unlink()


def is_picture_of(path: Path, software: str) -> bool:
    """Whether a PNG or an HTML page names `software` as what has made it, so that it may be made again."""
    marks = f'tEXtSoftware\0{software}', f'<meta name="generator" content="{software}">'
    try:
        with path.open('rb') as file:
            head = file.read(1024)  # the marks stand before the pixels, and before the text
    except OSError:
        return False
    return any(mark.encode() in head for mark in marks)


def free_path(path: Path, software: str = SOFTWARE, taken: Collection[Path] = ()) -> Path:
    """Where a picture or a page goes in a folder that may hold other files: `path`, or numbered `<stem>_2`, `_3`, ...

    Args:
        path: the name wanted.
        software: what draws it; its earlier pictures are replaced.
        taken: names that are not free either.
    """
    stems = chain([path.stem], (f'{path.stem}_{number}' for number in count(2)))
    paths = (path.with_name(stem + path.suffix) for stem in stems)
    return next(p for p in paths if p not in taken and (not os.path.lexists(p) or is_picture_of(p, software)))


def refuse_to_replace(path: Path, flag: str = '', *, overwrite: bool) -> None:
    """Stop before a file that is there already is written over; one of our own pictures may be.

    Args:
        path: the file to write.
        flag: what names it on the command line, if any.
        overwrite: of the command line.
    Raises:
        InputError: it exists; names flag and path.
    """
    if not overwrite and path.exists() and not is_picture_of(path, SOFTWARE):
        raise InputError(f'{flag} {path} exists: choose another name, or replace it by --overwrite'.lstrip())


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` another name of `source`'s bytes (a hard link where the disk has them), atomically."""
    part = _beside(target, f'{os.getpid()}.part')
    part.unlink(missing_ok=True)
    try:
        os.link(source, part)
    except OSError:
        part.write_bytes(source.read_bytes())
    part.replace(target)
    part.unlink(missing_ok=True)  # a rename does nothing where both are one file already
