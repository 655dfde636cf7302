import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from trainer.data import datasets
from trainer.data.augmentation import Sizes, TestView
from trainer.data.augmentation.__main__ import main, make_sheet
from trainer.data.augmentation.sheet import Cell, draw_sheet, to_picture
from trainer.data.augmentation.specimens import read_dataset, read_image
from trainer.errors import InputError

DATA = Path(os.environ.get('SQUEEZE_NET_DATA', '../shared/data'))


@pytest.fixture
def image_file(tmp_path):
    path = tmp_path / 'a picture.png'
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def has_picture(sheet, picture):
    """Whether the picture stands somewhere on the sheet, pixel by pixel."""
    pixels, corner = np.asarray(sheet), picture[0, 0]
    height, width, _ = picture.shape
    tops, lefts = np.nonzero((pixels[: 1 - height or None, : 1 - width or None] == corner).all(-1))
    return any(
        np.array_equal(pixels[top : top + height, left : left + width], picture)
        for top, left in zip(tops, lefts, strict=True)
    )


def magnified(picture, zoom):
    return picture.repeat(zoom, axis=0).repeat(zoom, axis=1)


def test_normalised_values_become_grey_levels():
    x = np.array([-9, -3, -1.5, 0, 1.5, 3, 9], np.float16).reshape(1, 1, 7).repeat(3, axis=0)
    assert to_picture(x)[0, :, 0].tolist() == [0, 0, 64, 128, 191, 255, 255]


def test_pictures_stand_magnified_under_their_headings():
    rng = np.random.default_rng(1)
    view, small, large = (rng.integers(0, 250, (side, side, 3), np.uint8) for side in (40, 10, 900))
    rows = [
        [Cell(small, ('a', 'b'), fills=True), Cell(view, ('a', 'b'))],
        [Cell(large, ('a', 'b'), fills=True), None],
    ]
    sheet = draw_sheet('title', ['note'], [(0, 'one'), (1, 'two')], rows, 40)
    assert has_picture(sheet, magnified(view, 6)) and has_picture(sheet, magnified(small, 24))
    assert sheet.width < 700 and sheet.height < 900


def test_long_and_odd_texts_do_not_break_the_layout():
    cell = Cell(np.zeros((8, 8, 3), np.uint8), ('ü × ' * 200, '\n\t\x00'))
    sheet = draw_sheet('very long ' * 200, ['word ' * 300], [(0, 'h')], [[cell]], 8)
    assert sheet.width < 400
    edge = np.asarray(sheet)[:, -20:]
    assert (edge == 255).all(), 'a text runs over the margin'


def test_sheet_shows_what_the_views_give(image_file):
    sizes = Sizes.of(32)
    specimens = read_image(image_file, sizes.side_max)
    assert specimens.images.shape == (1, 3, 36, 36) and specimens.originals[0].shape == (50, 70, 3)
    sheet = make_sheet(specimens, sizes, seed=0, n_rows=2, n_columns=3)
    x, _ = TestView((specimens.images, np.zeros(1, np.int32)), sizes)([0])
    assert has_picture(sheet, magnified(to_picture(x[0]), 8))
    assert has_picture(sheet, magnified(specimens.originals[0], 3))


def test_small_image_is_not_squashed_beforehand(tmp_path):
    Image.new('L', (20, 500)).save(tmp_path / 'narrow.png')
    assert read_image(tmp_path / 'narrow.png', 132).images.shape == (1, 3, 132, 20)


def test_image_is_shown_upright_as_its_camera_meant(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn clockwise
    Image.new('RGB', (40, 20)).save(tmp_path / 'turned.jpg', exif=exif)
    assert read_image(tmp_path / 'turned.jpg', 132).originals[0].shape == (40, 20, 3)


def test_command_writes_the_sheet_the_same_every_time(image_file, tmp_path, capsys):
    outputs = [tmp_path / 'one.png', tmp_path / 'two.png']
    for output in outputs:
        main([str(image_file), '-o', str(output), '--size', '32', '--columns', '2', '--rows', '2', '--seed', '5'])
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    with Image.open(outputs[0]) as sheet:
        assert f'{outputs[0]}: {sheet.width} × {sheet.height} px' in capsys.readouterr().out
    assert sorted(tmp_path.iterdir()) == sorted([image_file, *outputs])


@pytest.mark.parametrize('n', [1, 2, 3, 5])
def test_data_set_gives_the_first_images_of_every_class(monkeypatch, n):
    rng = np.random.default_rng(2)

    def load(name, directory, limit, max_side):
        assert (name, directory, max_side) == ('pets', Path('somewhere'), 36)
        labels = np.tile(np.array([1, 0, 2], np.int32), limit)
        train = rng.integers(0, 256, (3 * limit, 3, 32, 32), np.uint8), labels
        split = SimpleNamespace(images=train[0], labels=train[1])
        return SimpleNamespace(name='pets', source='a shop', classes=('cat', 'dog', 'fox'), n_class=3, train=split)

    monkeypatch.setattr(datasets, 'load', load, raising=False)
    specimens = read_dataset('pets', Path('somewhere'), n, 36)
    expected = {1: ['cat'], 2: ['cat', 'dog'], 3: ['cat', 'dog', 'fox'], 5: ['cat', 'cat', 'dog', 'dog', 'fox']}
    assert specimens.names == expected[n]
    assert len(specimens.images) == len(specimens.originals) == n
    assert np.array_equal(specimens.originals[-1], specimens.images[-1].transpose(1, 2, 0))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['IMAGE', '--rows', '0'], r'--rows 0 is outside 1 \.\. 20'),
        (['IMAGE', '--columns', '99'], r'--columns 99 is outside 1 \.\. 12'),
        (['IMAGE', '--size', '7'], 'size 7 is outside'),
        (['IMAGE', '--seed', '-1'], '--seed -1 is outside'),
        (['IMAGE', '-o', 'sheet.jpg'], r'-o sheet.jpg: .*\.png'),
        (['IMAGE', '-o', 'no/such/folder/sheet.png'], 'the folder no/such/folder does not exist'),
        (['nowhere.jpg'], 'nowhere.jpg cannot be read: No such file'),
    ],
)
def test_bad_arguments_are_named(image_file, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        main([str(image_file) if a == 'IMAGE' else a for a in arguments])
    assert list(tmp_path.iterdir()) == [image_file]


@pytest.mark.parametrize('content', [b'', b'not an image', 'truncated'])
def test_broken_file_is_named(image_file, content):
    image_file.write_bytes(image_file.read_bytes()[:4000] if content == 'truncated' else content)
    with pytest.raises(InputError, match=r'a picture\.png cannot be read as an image'):
        read_image(image_file, 132)


def test_folder_is_no_image(tmp_path):
    with pytest.raises(InputError, match='cannot be read: Is a directory'):
        read_image(tmp_path, 132)


@pytest.mark.filterwarnings('ignore:Image size')
def test_image_too_large_is_refused_unread(tmp_path):
    path = tmp_path / 'large.png'
    Image.new('1', (11_000, 10_000)).save(path)
    with pytest.raises(InputError, match=r'large\.png cannot .*11000 x 10000 px, more than'):
        read_image(path, 132)


def test_mistake_at_the_command_line_leaves_no_traceback():
    command = [sys.executable, '-m', 'trainer.augmentation', 'nowhere.jpg']
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == 'trainer.augmentation: error: nowhere.jpg cannot be read: No such file or directory\n'


def test_real_photograph(tmp_path):
    photographs = sorted((DATA / 'imagenet-sample' / 'images').glob('*.JPEG'))
    if not photographs:
        pytest.skip(f'no photographs below {DATA}')
    main([str(photographs[0]), '-o', str(tmp_path / 'sheet.png')])
    with Image.open(tmp_path / 'sheet.png') as sheet:
        assert sheet.width > 2000
