"""Tar archives streamed once, member by member; nothing is ever extracted to disk."""

from __future__ import annotations

import gzip
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from trainer.errors import InputError

MAX_BYTES = 256 << 20  # of one member

_OPENERS: dict[str, Callable[..., Any]] = {
    '.tar.gz': gzip.open,
    '.tgz': gzip.open,
    '.tar.xz': lzma.open,
    '.tar': open,
}
# What tarfile and the decompressors raise for bytes that are not an archive.
_FAULTS = (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, OverflowError, RecursionError)


def is_archive(path: Path) -> bool:
    """Whether `path` is a file with the suffix of an archive that `read_members` reads."""
    return path.is_file() and path.name.endswith(tuple(_OPENERS))


def member_names(path: Path) -> Iterator[str]:
    """The names of the regular files of an archive, in its order, as the archive spells them.

    Raises:
        InputError: the archive is cut short or corrupt.
    """
    with _opened(path) as archive:
        for member in _files(archive):
            yield member.name


def read_members(path: Path, is_wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """The wanted files of an archive, in its order.

    Args:
        path: a .tar, .tar.gz, .tgz or .tar.xz.
        is_wanted: whether the member of a name, as the archive spells it, is read.
    Yields:
        (name, contents) of regular files; links and devices are passed over.
    Raises:
        InputError: the archive is cut short or corrupt, or a wanted member is larger than MAX_BYTES.
    """
    with _opened(path) as archive:
        for member in _files(archive):
            if is_wanted(member.name):
                yield member.name, _contents(archive, member, path)


def list_members(path: Path) -> Iterator[tuple[str, int, int]]:
    """Where the files of a plain tar archive lie, read from its headers alone.

    Yields:
        (name, offset, bytes) of regular files, in the archive's order.
    Raises:
        InputError: the archive is cut short, compressed or corrupt.
    """
    with _opened(path, open) as archive:
        end = path.stat().st_size
        for member in _files(archive):
            if member.offset_data + member.size > end:
                raise InputError(f'{path} is cut short inside {member.name}')
            if not member.issparse():  # its bytes do not lie in one piece
                yield member.name, member.offset_data, member.size


@contextmanager
def _opened(path: Path, opener: Callable[..., Any] | None = None) -> Iterator[tarfile.TarFile]:
    """An archive, decompressed as its suffix says or by `opener`."""
    opener = opener or next(opener for suffix, opener in _OPENERS.items() if path.name.endswith(suffix))
    try:
        with opener(path, 'rb') as file:
            bounded: Any = _BoundedReads(file, path)  # tarfile asks for no more than it has
            with tarfile.open(fileobj=bounded, mode='r:') as archive:
                yield archive
    except InputError:
        raise
    except _FAULTS as error:
        raise InputError(f'{path} cannot be read as a tar archive: {error}') from None


def _files(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # it would remember all, a kilobyte each
        if member.isfile():
            yield member


def _contents(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> bytes:
    if member.size > MAX_BYTES:
        raise InputError(f'{path}: {member.name} has {member.size} bytes, more than {MAX_BYTES}')
    file = archive.extractfile(member)
    assert file is not None  # a regular file
    contents = file.read()
    if len(contents) != member.size:
        raise InputError(f'{path} is cut short inside {member.name}')
    return contents


class _BoundedReads:
    """A file that refuses large reads: a header may declare names of any length, and tarfile would allocate them."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self.file, self.path = file, path
        self.tell, self.seek = file.tell, file.seek

    def read(self, n: int) -> bytes:
        if n > MAX_BYTES:
            raise InputError(f'{self.path}: a header declares {n} bytes, more than {MAX_BYTES}')
        return self.file.read(n)
