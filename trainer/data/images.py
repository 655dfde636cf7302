"""Image files: the formats that are read, the one place that lists them, and their decoding by Pillow."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from trainer.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 100_000_000


class Format(NamedTuple):
    """A format of image files."""

    name: str  # as Pillow has it
    suffixes: tuple[str, ...]  # of file names, in lower case; the first is the one written
    starts: tuple[bytes, ...]  # how the contents begin


# PostScript has no place here: Pillow would start another program for it.
FORMATS = (
    Format('JPEG', ('.jpg', '.jpeg'), (b'\xff\xd8',)),
    Format('PNG', ('.png',), (b'\x89PNG',)),
    Format('BMP', ('.bmp',), (b'BM',)),
    Format('GIF', ('.gif',), (b'GIF8',)),
    Format('WEBP', ('.webp',), (b'RIFF',)),
    Format('PPM', ('.ppm',), (b'P',)),
    Format('TIFF', ('.tif', '.tiff'), (b'II*\0', b'MM\0*')),
)
JPEG_SUFFIXES = FORMATS[0].suffixes
IMAGE_SUFFIXES = tuple(suffix for form in FORMATS for suffix in form.suffixes)


def is_image_name(name: str) -> bool:
    """Whether a file of this name, which may include folders, counts as an image; hidden files do not."""
    base = name.rpartition('/')[2]
    return not base.startswith('.') and base.lower().endswith(IMAGE_SUFFIXES)


def format_of(raw: bytes) -> Format:
    """The format of an encoded image by how it begins; JPEG for what is not known."""
    return next((form for form in FORMATS if raw.startswith(form.starts)), FORMATS[0])


def decode(
    raw: bytes, suffices: Callable[[int, int], tuple[float, float]] | None = None, upright: bool = False
) -> Image:
    """Decode an image to RGB with Pillow.

    Args:
        raw: the bytes of the file.
        suffices: (width, height) of the image -> the size that suffices, px. A JPEG is then decoded to half, a quarter
            or an eighth of its size where that is still as large, which is faster and gives other pixels. None for
            its own size, exactly.
        upright: turn the image as its EXIF orientation says; otherwise it stays as it lies in the file.
    Returns:
        An image of mode RGB.
    Raises:
        InputError: not an image of one of `FORMATS`, a broken one, or one of more than MAX_PIXELS; names no file.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(raw), formats=[form.name for form in FORMATS]) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise InputError(f'{width} x {height} px, more than {MAX_PIXELS:,}')
            if suffices is not None:
                least_width, least_height = suffices(width, height)
                image.draft('RGB', (max(1, math.ceil(least_width)), max(1, math.ceil(least_height))))
            if upright:
                return ImageOps.exif_transpose(image).convert('RGB')
            if image.mode == 'RGB':
                image.load()
                return image
            return image.convert('RGB')
    except (InputError, MemoryError):
        raise
    except Exception as error:  # Pillow raises what its decoders raise: OSError, SyntaxError, ValueError, struct.error
        raise InputError(str(error).partition(' <')[0] or type(error).__name__) from None


def decode_named(raw: bytes, name: str, upright: bool = True) -> Image:
    """`decode` at the image's own size, with errors that begin with a name."""
    try:
        return decode(raw, upright=upright)
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
