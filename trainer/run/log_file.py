"""What a run prints, line by line, in a file with the time of each (`--log_file`)."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

from trainer.errors import InputError


class _Copying:
    """A stream that also writes each finished line to a file; everything else is the stream's own."""

    def __init__(self, stream: TextIO, file: TextIO) -> None:
        self._stream, self._file, self._line = stream, file, ''

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if not text.startswith('\r') and '\x1b[' not in text:  # a progress bar, or its way back up
            *lines, self._line = (self._line + text).split('\n')
            for line in filter(str.strip, lines):
                _note(self._file, line)
        return self._stream.write(text)


def _note(file: TextIO, line: str) -> None:
    try:
        file.write(f'{time.strftime("%Y-%m-%d %H:%M:%S")}  {line}\n')
    except OSError as error:  # that of a full disk names no file
        raise OSError(error.errno, error.strerror, file.name) from None


@contextmanager
def copied_to(path: str | None) -> Iterator[None]:
    """Within, lines printed to stdout and stderr are also appended to a file, with timestamps; progress bars are not.

    An error that ends the block is noted, too. Inside another such block it does nothing: that file gets the lines.

    Args:
        path: of the file; None for none.
    Raises:
        InputError: the file cannot be opened for writing.
    """
    if path is None or isinstance(sys.stdout, _Copying):
        yield
        return
    try:
        file = Path(path).open('a', encoding='utf-8', errors='backslashreplace', buffering=1)  # noqa: SIM115  (below; errors in it are others)
    except OSError as error:
        raise InputError(f'--log_file {path} cannot be written: {error.strerror}') from None
    with file:
        out, err = _Copying(sys.stdout, file), _Copying(sys.stderr, file)
        with redirect_stdout(out), redirect_stderr(err):
            try:
                yield
            except Exception as error:
                _note(file, f'error: {" ".join(str(error).split()) or type(error).__name__}')
                raise
