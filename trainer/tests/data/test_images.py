"""The table of image formats: every line is read, recognised by name and by contents."""

import io

import numpy as np
import pytest
from PIL import Image

from trainer.data.images import FORMATS, PLUGIN_FORMAT, decode, format_of, has_plugin, is_image_name
from trainer.errors import InputError


@pytest.mark.parametrize('form', FORMATS, ids=lambda form: form.name)
def test_every_format_is_read_and_recognised(form):
    if form == PLUGIN_FORMAT and not has_plugin():
        pytest.skip('pillow_heif is not installed')
    file = io.BytesIO()
    Image.new('RGB', (6, 4), 'red').save(file, form.name)
    assert decode(file.getvalue()).size == (6, 4)
    assert format_of(file.getvalue()) == form
    assert all(is_image_name(f'a folder/image{suffix.upper()}') for suffix in form.suffixes)


def test_suffixes_belong_to_one_format_and_hidden_files_do_not_count():
    suffixes = [suffix for form in FORMATS for suffix in form.suffixes]
    assert len(set(suffixes)) == len(suffixes)
    assert not any(map(is_image_name, ['.hidden.jpg', 'a/.hidden.png', 'notes.txt', 'jpg', 'page.eps']))
    assert format_of(b'<html>') is None


def encoded(image, form='PNG', **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def corner(raw):
    return decode(raw).getpixel((0, 0))


RED, CLEAR = (255, 0, 0), (255, 0, 0, 0)


@pytest.mark.parametrize(
    ('raw', 'expected'),
    [
        (encoded(Image.fromarray(np.full((4, 4), 0x8080, np.uint16))), (128,) * 3),
        (encoded(Image.fromarray(np.full((4, 4), 0x4040, np.uint16)), 'TIFF'), (64,) * 3),
        (b'P5\n2 1\n1023\n\x03\xff\x00\x00', (255,) * 3),
        (encoded(Image.new('1', (4, 4), 1)), (255,) * 3),
        (encoded(Image.new('L', (4, 4), 9)), (9,) * 3),
        (encoded(Image.new('RGB', (4, 4), RED).quantize(4)), RED),
        (encoded(Image.new('RGBA', (4, 4), CLEAR)), (255,) * 3),
        (encoded(Image.new('RGBA', (4, 4), (255, 0, 0, 128))), (255, 127, 127)),
        (encoded(Image.new('LA', (4, 4), (0, 0))), (255,) * 3),
        (encoded(Image.new('RGB', (4, 4), RED), transparency=RED), (255,) * 3),
        (encoded(Image.new('RGB', (4, 4), RED).quantize(4), 'GIF', transparency=0), (255,) * 3),
        (encoded(Image.new('CMYK', (4, 4), (0, 255, 255, 0)), 'JPEG'), (254, 0, 0)),
        (
            encoded(Image.new('RGB', (4, 4), RED), 'GIF', save_all=True, append_images=[Image.new('RGB', (4, 4))]),
            RED,
        ),
    ],
)
def test_every_mode_becomes_rgb_by_one_rule(raw, expected):
    assert np.abs(np.subtract(corner(raw), expected)).max() <= 1
    assert decode(raw).mode == 'RGB'


@pytest.mark.parametrize('dtype', [np.float32, np.int32])
def test_pixels_without_a_range_are_refused(dtype):
    raw = encoded(Image.fromarray(np.full((4, 4), 70000, dtype)), 'TIFF')
    with pytest.raises(InputError, match='of which no range is known'):
        decode(raw)


def photo():
    """(24, 32, 3): bright on the left, brightest at the top left."""
    y, x = np.mgrid[:24, :32]
    return Image.fromarray(np.repeat((255 - 5 * x - 4 * y)[..., None], 3, 2).clip(0, 255).astype(np.uint8))


# How a camera stores what it holds at each orientation: what `decode` has to undo.
TURNED = {
    1: lambda image: image,
    3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
    6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
    8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
    5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
}


@pytest.mark.parametrize('form', ['PNG', 'JPEG', 'TIFF', 'WEBP'])
@pytest.mark.parametrize('orientation', TURNED)
def test_a_turned_photo_is_set_upright(form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {'quality': 100} if form in ('JPEG', 'WEBP') else {}
    image = decode(encoded(TURNED[orientation](photo()), form, exif=exif, **options))
    assert image.size == (32, 24)
    assert np.abs(np.asarray(image).astype(int) - np.asarray(photo())).max() < 8


@pytest.mark.parametrize('orientation', [1, 6])
def test_what_suffices_is_asked_of_the_upright_image(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = encoded(TURNED[orientation](photo().resize((640, 480))), 'JPEG', exif=exif)
    asked = []
    image = decode(raw, lambda width, height: asked.append((width, height)) or (160, 60))
    assert asked == [(640, 480)]
    assert image.size == (160, 120)


def test_a_broken_exif_does_not_break_the_image():
    raw = encoded(photo(), 'JPEG', exif=b'Exif\0\0MM\0*\xff\xff\xff\xff' + bytes(20))
    assert decode(raw).size == (32, 24)


@pytest.mark.parametrize('size', [(100_000, 1), (1, 100_000), (101, 1)])
def test_a_strip_is_no_photo(size):
    with pytest.raises(InputError, match=r'one side is more than 100 times the other'):
        decode(encoded(Image.new('L', size)))
