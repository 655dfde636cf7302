"""A file fetched over the network: resumed where it broke off, checked, then put in place whole."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from pathlib import Path

from trainer.errors import InputError

CHUNK = 1 << 16
TIMEOUT_S = 30
MAX_BYTES = 1 << 30


def download(url: str, path: Path, md5: str | None = None, sha256: str | None = None) -> None:
    """Fetch `url` into `path`, showing progress on a terminal.

    What arrived stays beside `path`, in a file that ends in `.part`, until the file is whole: a transfer that breaks
    off goes on from there, at once as long as it brings bytes, otherwise at the next call.  Of several processes that
    call it at once, one transfers and the others wait.

    Args:
        url: the address, https.
        path: the file to make; its folder is created.  When it exists already, nothing is done.
        md5, sha256: one of them, the checksum, hexadecimal, or its first digits where no more of it is known.
    Raises:
        InputError: the address cannot be reached, the transfer broke off, the disk cannot be written, or what arrived
            has another checksum (and is then removed).
    """
    from filelock import FileLock

    part = path.with_name(f'{path.name}.part')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f'{path.name}.lock')):
            if path.exists():
                return
            _transfer(url, part)
            kind, expected = ('md5', md5) if md5 is not None else ('sha256', sha256)
            assert expected
            if not (digest := _digest(part, kind)).startswith(expected):
                part.unlink()
                raise InputError(f'{url} gave a file with {kind} {digest}, expected {expected}; it was removed')
            part.replace(path)
    except (OSError, http.client.HTTPException) as error:
        reason = error if isinstance(error, urllib.error.HTTPError) else getattr(error, 'reason', error)
        raise InputError(f'{url} could not be downloaded to {path}: {reason}') from None


def _transfer(url: str, part: Path) -> None:
    """Append to `part` until it is whole; connections that break are opened again as long as each brings bytes."""
    while True:
        n_before = _size(part)
        try:
            if (n_total := _receive(url, part)) in (None, _size(part)):
                return
            raise ConnectionError(f'broke off after {_size(part)} of {n_total} bytes')
        except urllib.error.HTTPError:
            raise
        except (OSError, http.client.HTTPException):
            if _size(part) <= n_before:
                raise


def _receive(url: str, part: Path) -> int | None:
    """Receive what `part` lacks over one connection; returns the size of the whole file, if known."""
    from tqdm import tqdm

    n_part = _size(part)
    request = urllib.request.Request(url, headers={'Range': f'bytes={n_part}-'} if n_part else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return None  # nothing is missing; the checksum decides
        raise
    with response:
        is_rest = response.headers.get('Content-Range', '').startswith(f'bytes {n_part}-')
        n_part = n_part if is_rest else 0  # the server ignored the range and sends the file from its start
        length = response.headers.get('Content-Length')
        n_total = n_part + int(length) if length and length.isdigit() else None
        with (
            part.open('ab' if is_rest else 'wb') as file,
            tqdm(desc=part.stem, total=n_total, initial=n_part, unit='B', unit_scale=True, disable=None) as bar,
        ):
            while chunk := response.read(CHUNK):
                if (n_part := n_part + len(chunk)) > MAX_BYTES:
                    raise InputError(f'{url} sends more than {MAX_BYTES} bytes')
                file.write(chunk)
                bar.update(len(chunk))
    return n_total


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _digest(path: Path, kind: str) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
