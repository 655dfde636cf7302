"""A file fetched over the network: resumed where it broke off, checked, then put in place whole."""

from __future__ import annotations

import hashlib
import http.client
import sys
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from trainer.errors import InputError

CHUNK = 1 << 16
TIMEOUT_S = 20  # without a byte
SLOW_BYTES, SLOW_S = 5 << 20, 30  # fewer bytes in this time, and the next mirror is tried
MAX_BYTES = 1 << 30


def download(
    url: str, path: Path, md5: str | None = None, sha256: str | None = None, mirrors: Sequence[str] = ()
) -> None:
    """Fetch `url` into `path`, showing progress on a terminal.

    What arrived stays beside `path`, in a file that ends in `.part`, until the file is whole: a transfer that breaks
    off goes on from there, at once as long as it brings bytes, otherwise at the next address or the next call.  Where
    there are mirrors, an address that stalls or crawls is left with a line on stderr, and returned to only if all
    others fail.  Of several processes that call it at once, one transfers and the others wait.

    Args:
        url: the address, https.
        path: the file to make; its folder is created.  When it exists already, nothing is done.
        md5, sha256: one of them, the checksum, hexadecimal, or its first digits where no more of it is known.
        mirrors: further addresses of the same file, in the order in which they are tried.
    Raises:
        InputError: no address gave the file, with the reason of each: it cannot be reached, the transfer broke off, or
            what arrived has another checksum (and is then removed); or the disk cannot be written.
    """
    from filelock import FileLock

    kind, digits = ('md5', md5) if md5 is not None else ('sha256', sha256)
    assert digits
    part = path.with_name(f'{path.name}.part')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f'{path.name}.lock')):
            if not path.exists():
                _fetch_from_any((url, *mirrors), path, part, Checksum(kind, digits))
                part.replace(path)
    except OSError as error:
        raise InputError(f'{url} could not be downloaded to {path}: {error}') from None


class Checksum(NamedTuple):
    """What the file has to be."""

    kind: str  # a name in hashlib
    digits: str  # hexadecimal; perhaps only the first


class _Fault(Exception):
    """What is wrong with an address; the next may do better."""


class _Slow(_Fault):
    """The address works, but a mirror may be faster."""


def _fetch_from_any(urls: Sequence[str], path: Path, part: Path, checksum: Checksum) -> None:
    """Fill `part` from the first address that gives the file; slow ones have a second turn."""
    faults: dict[str, str] = {}
    waiting = deque((url, True) for url in urls)
    while waiting:
        url, is_hurried = waiting.popleft()
        is_hurried &= bool(waiting)
        try:
            _fetch(url, part, checksum, is_hurried)
            return
        except _Fault as fault:
            faults[url] = str(fault)
            if is_hurried and isinstance(fault, _Slow):
                waiting.append((url, False))
        if waiting:
            print(f'{url}: {faults[url]}; trying {waiting[0][0]}', file=sys.stderr, flush=True)
    if len(urls) == 1:
        raise InputError(f'{urls[0]} could not be downloaded to {path}: {faults[urls[0]]}')
    reasons = {*faults.values()}
    each = ', '.join(urls if len(reasons) == 1 else (f'{url} ({faults[url]})' for url in urls))
    raise InputError(
        f'{path.name} ({checksum.kind} {checksum.digits}) could not be downloaded to {path.parent} from any of '
        f'{len(urls)} addresses: {each}' + (f': {reasons.pop()}' if len(reasons) == 1 else '')
    )


def _fetch(url: str, part: Path, checksum: Checksum, is_hurried: bool) -> None:
    """Fill `part` from an address; a file begun elsewhere that turns out wrong is fetched once more, all of it."""
    for _ in range(2 if _size(part) else 1):
        fault = None
        try:
            _transfer(url, part, is_hurried)
        except _Fault as error:
            fault = error  # what is there may be whole all the same: servers give wrong lengths
        if (digest := _digest(part, checksum.kind)).startswith(checksum.digits):
            return
        if fault is not None:
            raise fault
        part.unlink()
    raise _Fault(f'gave a file with {checksum.kind} {digest}, expected {checksum.digits}; it was removed')


def _transfer(url: str, part: Path, is_hurried: bool) -> None:
    """Append to `part` until it is whole; connections that break are opened again as long as each brings bytes."""
    speed = _Speed() if is_hurried else None
    while True:
        n_before = _size(part)
        try:
            if (n_total := _receive(url, part, speed)) in (None, _size(part)):
                return
            raise _Fault(f'broke off after {_size(part)} of {n_total} bytes')
        except _Slow:
            if is_hurried or _size(part) <= n_before:
                raise
        except _Fault:
            if _size(part) <= n_before:
                raise


def _receive(url: str, part: Path, speed: _Speed | None) -> int | None:
    """Receive what `part` lacks over one connection; returns the size of the whole file, if known."""
    from tqdm import tqdm

    n_part = _size(part)
    request = urllib.request.Request(url, headers={'Range': f'bytes={n_part}-'} if n_part else {})
    try:
        with _network():
            response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return None  # nothing is missing; the checksum decides
        raise _Fault(str(error).partition('\n')[0]) from None
    with response:
        if response.headers.get_content_type() == 'text/html':
            raise _Fault('gave a web page, not the file')
        is_rest = response.headers.get('Content-Range', '').startswith(f'bytes {n_part}-')
        n_part = n_part if is_rest else 0  # the server ignored the range and sends the file from its start
        length = response.headers.get('Content-Length')
        n_total = n_part + int(length) if length and length.isdigit() else None
        with (
            part.open('ab' if is_rest else 'wb') as file,
            tqdm(desc=part.stem, total=n_total, initial=n_part, unit='B', unit_scale=True, disable=None) as bar,
        ):
            while chunk := _read(response):
                if (n_part := n_part + len(chunk)) > MAX_BYTES:
                    raise _Fault(f'sends more than {MAX_BYTES} bytes')
                file.write(chunk)
                bar.update(len(chunk))
                if speed is not None:
                    speed.check(len(chunk))
    return n_total


def _read(response: http.client.HTTPResponse) -> bytes:
    with _network():
        return response.read1(CHUNK)  # read() would wait for the whole chunk, however slowly it comes


@contextmanager
def _network() -> Iterator[None]:
    """Faults of the network as `_Fault`, which tells them from those of the disk; HTTP's own errors as they are."""
    try:
        yield
    except urllib.error.HTTPError:
        raise
    except TimeoutError:
        raise _Slow(f'no byte for {TIMEOUT_S} s') from None
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: an address redirected to nonsense
        reason = getattr(error, 'reason', error)
        raise _Fault(getattr(reason, 'strerror', None) or str(reason) or type(error).__name__) from None


class _Speed:
    """The bytes of the last seconds, over all connections to an address."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._since, self._n_bytes = time.monotonic(), 0

    def check(self, n_bytes: int) -> None:
        """Count what arrived; every SLOW_S, see whether it was enough."""
        self._n_bytes += n_bytes
        if (elapsed_s := time.monotonic() - self._since) >= SLOW_S:
            if self._n_bytes < SLOW_BYTES * elapsed_s / SLOW_S:
                raise _Slow(f'slow: {self._n_bytes / elapsed_s / 1000:.0f} kB/s')
            self._begin()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _digest(path: Path, kind: str) -> str:
    if not path.exists():
        return ''
    with path.open('rb') as file:
        return hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
