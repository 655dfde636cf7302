"""What people have in place of a weights file: a page, a pointer, an archive. Named, with what to do about it."""

from __future__ import annotations

import io
import zipfile
from pathlib import PurePosixPath

from squeeze_net.weights.formats import FORMATS

# The first characters, in lower case and after blanks.
TEXTS = {
    'version https://git-lfs': 'it is a Git LFS pointer, not the file: run git lfs pull, or download the file itself',
    '<!doctype html': 'it is an HTML page, not the file: download the file itself (on GitHub, by its button "Raw")',
    '<html': 'it is an HTML page, not the file: download the file itself (on GitHub, by its button "Raw")',
    '<': 'it is an XML or HTML text, perhaps the error message of a server: download the file again',
    '{': 'it is a JSON text, perhaps the error message of a server: download the file again',
}
PACKED = {
    b'\x1f\x8b': 'gzip',
    b'BZh': 'bzip2',
    b'\xfd7zXZ': 'xz',
    b'7z\xbc\xaf': '7z',
    b'Rar!': 'rar',
    b'(\xb5/\xfd': 'zstd',
}
AT_TAR, MAX_SHOWN = 257, 60  # bytes before the mark of a tar archive; characters


def describe(raw: memoryview, suffix: str) -> str | None:
    """What a file is that cannot be read by its suffix, and what to do; None if nothing better is known."""
    head = bytes(raw[:512])
    text = head.removeprefix(b'\xef\xbb\xbf').lstrip().lower().decode('latin-1')
    for start, words in TEXTS.items():
        if text.startswith(start) and text.replace('\n', '').isprintable():
            return words
    if head[AT_TAR : AT_TAR + 5] == b'ustar':
        return 'it is a tar archive: unpack it first'
    for mark, kind in PACKED.items():
        if head.startswith(mark):
            return f'it is a {kind} archive: unpack it first'
    if head.startswith(b'\x89HDF') and suffix not in ('.h5', '.hdf5'):
        return 'it is an HDF5 file, whose name ends in .h5'
    return _describe_zip(raw, suffix) if head.startswith(b'PK') else None


def _describe_zip(raw: memoryview, suffix: str) -> str | None:
    try:
        names = [info.filename for info in zipfile.ZipFile(io.BytesIO(raw)).infolist() if not info.is_dir()]
    except Exception:
        return 'it begins as a zip archive, but is cut short or broken: download or copy it again'
    for end, right in (('data.pkl', '.pth'), ('.npy', '.npz')):
        if any(name.endswith(end) for name in names):
            return None if FORMATS.get(suffix) == FORMATS[right] else f'it is a {right} file: give it that suffix'
    named = [name for name in names if PurePosixPath(name).suffix.lower() in FORMATS] or names
    return f'it is a zip archive of {PurePosixPath(named[0]).name[:MAX_SHOWN]!r}: unpack it first' if named else None
