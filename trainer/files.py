"""Files that are whole or absent: written beside, flushed, then renamed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def atomic_write(path: Path, mode: str = 'wb') -> Iterator[IO]:
    """Open a file beside `path` for writing and rename it over `path` when the block ends well.

    A process killed at any moment leaves the old `path`, or the new one, never a torn one.  When the block raises
    (a full disk), the part file is removed and the old `path` stays.

    Args:
        path: the file to replace or create; its folder must exist.
        mode: 'wb' or 'w' (UTF-8).
    """
    part = path.with_name(f'.{path.name}.{os.getpid()}.part')
    try:
        with part.open(mode, encoding=None if 'b' in mode else 'utf-8') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:  # that of a full disk names no file
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        part.unlink(missing_ok=True)


def make_place(path: Path) -> None:
    """Make the folder of a file, and find out before hours of work whether the file can be written.

    Raises:
        OSError: it cannot, or is a folder; names it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    with atomic_write(path.with_name(f'.{path.name}.probe')) as file:
        file.write(b'')
    path.with_name(f'.{path.name}.probe').unlink()


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` another name of `source`'s bytes (a hard link where the disk has them), atomically."""
    part = target.with_name(f'.{target.name}.{os.getpid()}.part')
    part.unlink(missing_ok=True)
    try:
        os.link(source, part)
    except OSError:
        part.write_bytes(source.read_bytes())
    part.replace(target)
