"""The table of image formats: every line is read, recognised by name and by contents."""

import io

import pytest
from PIL import Image

from trainer.data.images import FORMATS, IMAGE_SUFFIXES, decode, format_of, is_image_name


@pytest.mark.parametrize('form', FORMATS, ids=lambda form: form.name)
def test_every_format_is_read_and_recognised(form):
    file = io.BytesIO()
    Image.new('RGB', (6, 4), 'red').save(file, form.name)
    assert decode(file.getvalue()).size == (6, 4)
    assert format_of(file.getvalue()) == form
    assert all(is_image_name(f'a folder/image{suffix.upper()}') for suffix in form.suffixes)


def test_suffixes_belong_to_one_format_and_hidden_files_do_not_count():
    assert len(set(IMAGE_SUFFIXES)) == len(IMAGE_SUFFIXES)
    assert not any(map(is_image_name, ['.hidden.jpg', 'a/.hidden.png', 'notes.txt', 'jpg', 'page.eps']))
