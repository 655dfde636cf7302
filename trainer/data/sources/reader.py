"""Random access to parts of many files, opened where they are first read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from trainer.errors import InputError

MAX_OPEN = 64  # files at a time


class Reader:
    """Reads from any of several files; pickles as their paths, so that each process opens its own.

    Args:
        paths: of the files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self._open: dict[int, BinaryIO] = {}

    def __reduce__(self) -> tuple[type[Reader], tuple[tuple[Path, ...]]]:
        return Reader, (self.paths,)

    def size(self, file: int) -> int:
        """Bytes of a file.

        Raises:
            InputError: it cannot be opened.
        """
        return os.fstat(self._file(file).fileno()).st_size

    def read(self, file: int, offset: int, n: int) -> bytes:
        """Up to `n` bytes from `offset` on; fewer at the end of the file.

        Raises:
            InputError: the file cannot be opened or read.
        """
        handle = self._file(file)
        try:
            handle.seek(offset)
            return handle.read(n)
        except (OSError, OverflowError, ValueError) as error:
            raise InputError(f'{self.paths[file]} cannot be read at byte {offset}: {error}') from None

    def _file(self, file: int) -> BinaryIO:
        if file not in self._open:
            while len(self._open) >= MAX_OPEN:
                self._open.pop(next(iter(self._open))).close()
            try:
                self._open[file] = self.paths[file].open('rb', buffering=0)
            except OSError as error:
                raise InputError(f'{self.paths[file]} cannot be read: {error.strerror}') from None
        return self._open[file]
