"""Tar archives streamed once, member by member; nothing is ever extracted to disk."""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
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


def is_archive(path: Path) -> bool:
    """Whether `path` is a file with the suffix of an archive that `read_members` reads."""
    return path.is_file() and path.name.endswith(tuple(_OPENERS))


def read_members(path: Path, is_wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """The wanted files of an archive, in its order.

    Args:
        path: a .tar, .tar.gz, .tgz or .tar.xz.
        is_wanted: says of a member's name, as the archive spells it, whether its contents are to be read.
    Yields:
        (name, contents) of regular files; links and devices are passed over.
    Raises:
        InputError: the archive is cut short or corrupt, or a wanted member is larger than MAX_BYTES.
    """
    opener = next(opener for suffix, opener in _OPENERS.items() if path.name.endswith(suffix))
    try:
        with opener(path, 'rb') as file, _open_tar(_BoundedReads(file, path)) as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # it would remember all, a kilobyte each
                if member.isfile() and is_wanted(member.name):
                    yield member.name, _contents(archive, member, path)
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f'{path} cannot be read as a tar archive: {error}') from None


def _open_tar(file: Any) -> tarfile.TarFile:
    return tarfile.open(fileobj=file, mode='r:')


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


def list_members(path: Path) -> Iterator[tuple[str, int, int]]:
    """Where the files of a plain tar archive lie, read from its headers alone.

    Yields:
        (name, offset, bytes) of regular files, in the archive's order.
    Raises:
        InputError: it is cut short, compressed or no tar archive.
    """
    try:
        with path.open('rb') as file:
            end = file.seek(0, io.SEEK_END)
            file.seek(0)
            with _open_tar(_BoundedReads(file, path)) as archive:
                while (member := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # it would remember all, a kilobyte each
                    if member.offset_data + member.size > end:
                        raise InputError(f'{path} is cut short inside {member.name}')
                    if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
                        yield member.name, member.offset_data, member.size
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f'{path} cannot be read as a plain tar archive: {error}') from None
