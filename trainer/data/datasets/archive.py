"""Tar and zip archives read member by member; nothing is ever extracted to disk."""

from __future__ import annotations

import gzip
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from trainer.errors import InputError

MAX_BYTES = 256 << 20  # of one member

SUFFIXES = ('.tar.gz', '.tgz', '.tar.xz', '.tar', '.zip')
# How the contents begin, since browsers unpack .gz and keep the name; anything else is read as a plain tar archive.
_OPENERS: dict[bytes, Callable[..., Any]] = {b'\x1f\x8b': gzip.open, b'\xfd7zXZ': lzma.open}
_ZIP = b'PK'
# What people have in place of a file, by how it begins, in lower case.
_IMPOSTORS = {
    b'version https://git-lfs': 'it is a Git LFS pointer, not the file: run git lfs pull, or download the file itself',
    b'<!doctype html': 'it is a web page, not the file: download the file itself',
    b'<html': 'it is a web page, not the file: download the file itself',
}
# What tarfile, zipfile and the decompressors raise for bytes that are not an archive.
_FAULTS = (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, OverflowError, RecursionError)
_ZIP_FAULTS = (*_FAULTS, zipfile.BadZipFile, struct.error, RuntimeError, LookupError, MemoryError)


def is_archive(path: Path) -> bool:
    """Whether `path` is a file with the suffix of an archive that `read_members` reads."""
    return path.is_file() and path.name.lower().endswith(SUFFIXES)


def impostor(path: Path) -> str | None:
    """What a file is that is not what its name says, and what to do: a web page, a Git LFS pointer; None if neither."""
    start = _start(path).lstrip().lower()
    return next((words for mark, words in _IMPOSTORS.items() if start.startswith(mark)), None)


def member_names(path: Path) -> Iterator[str]:
    """The names of the regular files of an archive, in its order, as the archive spells them.

    Raises:
        InputError: the archive is cut short or corrupt.
    """
    if _start(path).startswith(_ZIP):
        with _opened_zip(path) as archive:
            yield from (info.filename for info in archive.infolist() if not info.is_dir())
        return
    with _opened(path) as archive:
        for member in _files(archive):
            yield member.name


def read_members(path: Path, is_wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """The wanted files of an archive, in its order.

    Args:
        path: a .tar, .tar.gz, .tgz, .tar.xz or .zip.
        is_wanted: whether the member of a name, as the archive spells it, is read.
    Yields:
        (name, contents) of regular files; links and devices are passed over.
    Raises:
        InputError: the archive is cut short or corrupt, or a wanted member is larger than MAX_BYTES.
    """
    if _start(path).startswith(_ZIP):
        with _opened_zip(path) as archive:
            for info in archive.infolist():
                if not info.is_dir() and is_wanted(info.filename):
                    _check_size(path, info.filename, info.file_size)
                    yield info.filename, read_zip_member(archive, info)
        return
    with _opened(path) as archive:
        for member in _files(archive):
            if is_wanted(member.name):
                yield member.name, _contents(archive, member, path)


def read_zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """The contents of a member of a zip, of which no more is unpacked than its directory declares.

    Raises:
        InputError: it is packed in a way that Python unpacks without bounds.
    """
    check_zip_member(info)
    with archive.open(info) as file:
        return file.read(info.file_size)


def check_zip_member(info: zipfile.ZipInfo) -> None:
    """Raise an `InputError` for what is not stored or deflated: bzip2 and lzma unpack all that they are given."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f'{info.filename[:80]} is packed by method {info.compress_type} of zip, expected deflate')


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
    """An archive, decompressed as its first bytes say or by `opener`."""
    start = _start(path)
    opener = opener or next((opener for mark, opener in _OPENERS.items() if start.startswith(mark)), open)
    try:
        with opener(path, 'rb') as file:
            bounded: Any = _BoundedReads(file, path)  # tarfile asks for no more than it has
            with tarfile.open(fileobj=bounded, mode='r:') as archive:
                yield archive
    except InputError:
        raise
    except _FAULTS as error:
        raise _unreadable(path, 'tar', error) from None


@contextmanager
def _opened_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except InputError:
        raise
    except _ZIP_FAULTS as error:
        raise _unreadable(path, 'zip', error) from None


def _unreadable(path: Path, kind: str, error: BaseException) -> InputError:
    is_short = isinstance(error, EOFError) or str(error) == 'File is not a zip file'  # its table is at its end
    reason = impostor(path) or ('it is cut short: download or copy it again' if is_short else error)
    return InputError(f'{path} cannot be read as a {kind} archive: {reason}')


def _start(path: Path) -> bytes:
    try:
        with path.open('rb') as file:
            return file.read(64)
    except OSError as error:
        raise InputError(f'{path} cannot be read: {error.strerror}') from None


def _files(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # it would remember all, a kilobyte each
        if member.isfile():
            yield member


def _contents(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> bytes:
    _check_size(path, member.name, member.size)
    file = archive.extractfile(member)
    assert file is not None  # a regular file
    contents = file.read()
    if len(contents) != member.size:
        raise InputError(f'{path} is cut short inside {member.name}')
    return contents


def _check_size(path: Path, name: str, n_bytes: int) -> None:
    if n_bytes > MAX_BYTES:
        raise InputError(f'{path}: {name} has {n_bytes} bytes, more than {MAX_BYTES}')


class _BoundedReads:
    """A file that refuses large reads: a header may declare names of any length, and tarfile would allocate them."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self.file, self.path = file, path
        self.tell, self.seek = file.tell, file.seek

    def read(self, n: int) -> bytes:
        if n > MAX_BYTES:
            raise InputError(f'{self.path}: a header declares {n} bytes, more than {MAX_BYTES}')
        return self.file.read(n)
