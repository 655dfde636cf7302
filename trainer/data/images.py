"""Image files: the formats that are read, the one place that lists them, and their decoding by Pillow."""

from __future__ import annotations

import functools
import io
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from trainer.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 100_000_000
MAX_RATIO = 100  # of the longer side to the shorter one
JUNK = ('thumbs.db', 'desktop.ini', 'icon\r')  # which systems put beside photos
ORIENTATION = 0x0112  # the tag of EXIF; values from 5 on lie on their side


class Format(NamedTuple):
    """A format of image files."""

    name: str  # as Pillow has it
    suffixes: tuple[str, ...]  # of file names, in lower case; the first is the one written
    starts: tuple[bytes, ...]  # how the contents begin
    at: int = 0  # where `starts` are


# PostScript has no place here: Pillow would start another program for it.
FORMATS = (
    Format('JPEG', ('.jpg', '.jpeg', '.jpe', '.jfif'), (b'\xff\xd8',)),
    Format('PNG', ('.png',), (b'\x89PNG',)),
    Format('BMP', ('.bmp',), (b'BM',)),
    Format('GIF', ('.gif',), (b'GIF8',)),
    Format('WEBP', ('.webp',), (b'WEBP',), at=8),
    Format('PPM', ('.ppm', '.pgm', '.pbm', '.pnm'), (b'P1', b'P2', b'P3', b'P4', b'P5', b'P6')),
    Format('TIFF', ('.tif', '.tiff'), (b'II*\0', b'MM\0*')),
    Format('AVIF', ('.avif',), (b'ftypavif', b'ftypavis'), at=4),
    Format('HEIF', ('.heic', '.heif'), (b'ftyp',), at=4),  # by a plugin, if it is installed
)
PLUGIN_FORMAT = FORMATS[-1]
JPEG_SUFFIXES = FORMATS[0].suffixes


@functools.cache
def has_plugin() -> bool:
    """Whether `pillow_heif`, which reads the last of FORMATS, is installed; then Pillow knows it from here on."""
    try:
        import pillow_heif  # type: ignore[import-not-found]
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


@functools.cache
def image_suffixes() -> tuple[str, ...]:
    """Of the names of files that count as images, in lower case."""
    return tuple(suffix for form in FORMATS if form != PLUGIN_FORMAT or has_plugin() for suffix in form.suffixes)


def is_image_name(name: str) -> bool:
    """Whether a file of this name, which may include folders, counts as an image; hidden files do not."""
    base = name.rpartition('/')[2]
    return not is_hidden(base) and base.lower().endswith(image_suffixes())


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is for systems and programs, not for people."""
    return name.startswith('.') or name in ('__MACOSX', '@eaDir') or name.lower() in JUNK


def files_below(folder: Path) -> Iterator[Path]:
    """The files in a folder and in those below it, sorted; hidden ones do not count.

    Links to folders elsewhere are followed; not those to folders that are walked anyway, or that hold one of these.
    Folders that cannot be listed count as empty.
    """
    return _files_below(folder, [Path(os.path.realpath(folder))])


def _files_below(folder: Path, walked: list[Path]) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if is_hidden(entry.name):
            continue
        path = folder / entry.name
        if not entry.is_symlink():
            yield from _files_below(path, walked) if entry.is_dir() else [path]
        elif not os.path.isdir(path):  # noqa: PTH112 - `is_dir` raises where the link leads to itself or may not be followed
            yield path
        else:
            place = Path(os.path.realpath(path))
            if not any(place.is_relative_to(other) or other.is_relative_to(place) for other in walked):
                yield from _files_below(path, [*walked, place])


def format_of(raw: bytes) -> Format | None:
    """The format of an encoded image by how it begins; None for what is not known."""
    return next((form for form in FORMATS if raw.startswith(form.starts, form.at)), None)


def decode(raw: bytes, suffices: Callable[[int, int], tuple[float, float]] | None = None) -> Image:
    """Decode an image to RGB with Pillow, upright as its EXIF orientation says.

    Sixteen bits become eight by their range, 0..65535; what is transparent is laid on white; of several frames, the
    first counts.

    Args:
        raw: the bytes of the file.
        suffices: (width, height) of the upright image -> the size that suffices, px. A JPEG is then decoded to half, a
            quarter or an eighth of its size where that is still as large, which is faster and gives other pixels. None
            for its own size, exactly.
    Returns:
        An image of mode RGB.
    Raises:
        InputError: not an image of one of `FORMATS`, a broken one, one of more than MAX_PIXELS, or a strip whose sides
            differ by more than MAX_RATIO; names no file.
    """
    from PIL import Image

    names = [form.name for form in FORMATS if form != PLUGIN_FORMAT or has_plugin()]
    try:
        with Image.open(io.BytesIO(raw), formats=names) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise InputError(f'{width} x {height} px, more than {MAX_PIXELS:,}')
            if max(image.size) > MAX_RATIO * min(image.size):
                raise InputError(f'{width} x {height} px: one side is more than {MAX_RATIO} times the other')
            orientation = _orientation(image)
            if suffices is not None:
                least = suffices(*((height, width) if orientation >= 5 else (width, height)))
                across, down = reversed(least) if orientation >= 5 else least
                image.draft('RGB', (max(1, math.ceil(across)), max(1, math.ceil(down))))
            return to_rgb(image)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # Pillow raises what its decoders raise: OSError, SyntaxError, ValueError, struct.error
        raise InputError(str(error).partition(' <')[0] or type(error).__name__) from None


def to_rgb(image: Image) -> Image:
    """An image of Pillow as `decode` makes it of its file: RGB, upright.

    Raises:
        InputError: its pixels are numbers of which no range is known.
    """
    return _upright(_as_rgb(image), _orientation(image))


def _orientation(image: Image) -> int:
    """1 .. 8 of EXIF; 1, upright, where it does not say or cannot be read, and of a TIFF, which Pillow turns."""
    try:
        if image.format == 'TIFF':
            return 1
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # of a broken EXIF, Pillow raises anything; the image may be whole
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(image: Image, orientation: int) -> Image:
    from PIL.Image import Transpose

    turns = (
        *(None, Transpose.FLIP_LEFT_RIGHT, Transpose.ROTATE_180, Transpose.FLIP_TOP_BOTTOM),
        *(Transpose.TRANSPOSE, Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90),
    )
    if (turn := turns[orientation - 1]) is None:
        return image
    turned = image.transpose(turn)
    turned.info.clear()  # what it says of the orientation, with the rest
    return turned


def _as_rgb(image: Image) -> Image:
    from PIL import Image as PILImage

    if image.mode == 'F':
        raise InputError('its pixels are 32-bit floating-point numbers, of which no range is known')
    if image.mode.startswith('I'):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise InputError('its pixels are 32-bit numbers, of which no range is known')
        return PILImage.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8)).convert('RGB')
    if image.mode in ('RGBA', 'LA', 'PA', 'La', 'RGBa') or 'transparency' in image.info:
        image = image.convert('RGBA')
        white = PILImage.new('RGBA', image.size, 'white')
        return PILImage.alpha_composite(white, image).convert('RGB')
    if image.mode == 'RGB':
        image.load()
        return image
    return image.convert('RGB')


def decode_named(raw: bytes, name: str) -> Image:
    """`decode` at the image's own size, with errors that begin with a name."""
    try:
        return decode(raw)
    except InputError as error:
        raise InputError(f'{name} cannot be read as an image: {error}') from None


def squash(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """An image (H, W, 3) uint8 resized to width x height px, whatever its shape (Pillow's bicubic)."""
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def describe_decoder() -> str:
    """Pillow and its JPEG library, with their versions."""
    from PIL import __version__, features

    library = f'libjpeg-turbo {features.version("libjpeg_turbo")}' if features.check('libjpeg_turbo') else 'libjpeg'
    return f'Pillow {__version__} ({library})'
