import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer import InputError
from trainer.data.datasets import load
from trainer.data.datasets.folder import read_folder

SHARED = Path(os.environ.get('SQUEEZE_NET_DATA', Path(__file__).resolve().parents[5] / 'shared' / 'data'))


def picture(value, size=(8, 8), suffix='png'):
    """The bytes of an image of one grey level."""
    buffer = io.BytesIO()
    Image.new('RGB', size, (value, value, value)).save(buffer, {'jpg': 'JPEG'}.get(suffix, suffix))
    return buffer.getvalue()


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


FILES = {
    'train/cat/b.png': picture(2),
    'train/cat/a.png': picture(1),
    'train/dog/a.png': picture(3),
    'test/cat/a.png': picture(4),
    'test/dog/z.png': picture(5),
    'train/cat/.hidden.png': b'not looked at',
    'train/cat/notes.txt': b'not looked at',
    'README.md': b'not looked at',
}


def assert_is_the_set(data):
    assert data.classes == ('cat', 'dog')
    assert data.train.images[:, 0, 0, 0].tolist() == [1, 2, 3]
    assert data.train.labels.tolist() == [0, 0, 1]
    assert data.test.images[:, 0, 0, 0].tolist() == [4, 5]
    assert data.test.images.shape == (2, 3, 8, 8)
    assert not data.is_jpeg


@pytest.mark.parametrize('top', ['', 'pets/'])
@pytest.mark.parametrize('test', ['test', 'val'])
def test_reads_a_folder_in_the_order_of_names(tmp_path, top, test):
    files = {top + name.replace('test/', f'{test}/'): content for name, content in FILES.items()}
    assert_is_the_set(read_folder(write(tmp_path, files)))


@pytest.mark.parametrize('suffix', ['.tar', '.tar.gz', '.tgz', '.tar.xz'])
def test_reads_an_archive_in_the_same_order(tmp_path, suffix):
    path = tmp_path / f'pets{suffix}'
    with tarfile.open(path, f'w:{suffix.removeprefix(".tar").lstrip(".").replace("tgz", "gz")}') as archive:
        for name, content in FILES.items():
            member = tarfile.TarInfo(f'./{name}')
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert_is_the_set(read_folder(path))


def test_limit_decodes_no_other_images(tmp_path):
    write(tmp_path, FILES | {'train/cat/c.png': b'broken'})
    data = load('folder', tmp_path, limit=1)
    assert data.train.images[:, 0, 0, 0].tolist() == [1, 3]
    with pytest.raises(InputError, match=r'train/cat/c\.png cannot be read as an image'):
        load('folder', tmp_path)


def test_jpeg_is_told(tmp_path):
    files = {name.replace('.png', '.jpg'): picture(9, suffix='jpg') for name in FILES if name.endswith('.png')}
    data = read_folder(write(tmp_path, files))
    assert data.is_jpeg
    assert 'JPEG' in data.source


@pytest.mark.parametrize('size', [(8, 6), (40, 40), (20, 20)])
def test_images_of_several_sizes_are_squashed_to_one(tmp_path, size):
    write(tmp_path, FILES | {'train/dog/b.png': picture(7, size)})
    data = read_folder(tmp_path, max_side=36)
    assert data.train.images.shape == (4, 3, 36, 36)
    assert data.test.images.shape == (2, 3, 36, 36)
    assert data.train.images[:, 0, 20, 20].tolist() == [1, 2, 3, 7]
    with pytest.raises(InputError, match=r'several sizes'):
        read_folder(tmp_path)


def test_turned_pictures_are_set_upright(tmp_path):
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255
    Image.fromarray(pixels).save(buffer, 'PNG', exif=exif)
    data = read_folder(write(tmp_path, FILES | {'test/cat/a.png': buffer.getvalue()}))
    np.testing.assert_array_equal(data.test.images[0, 0, 0], [0, 0, 0, 0, 255, 255, 255, 255])


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'train/cow/a.png': picture(1)}, r"class 'cow' is in only one of train and test"),
        ({'train/cat/a.png': picture(1)[:40]}, r'train/cat/a\.png cannot be read as an image'),
        ({'train/cat/a.png': b''}, r'train/cat/a\.png cannot be read as an image'),
    ],
)
def test_faults_name_the_file(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        read_folder(write(tmp_path, FILES | change))


def test_bombs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr('trainer.data.images.MAX_PIXELS', 63)
    with pytest.raises(InputError, match=r'cannot be read as an image: 8 x 8 px, more than 63'):
        read_folder(write(tmp_path, FILES))


def test_places_without_the_set(tmp_path):
    (tmp_path / 'file').write_text('')
    for place, message in (
        (None, r'needs --data DIR'),
        (tmp_path / 'nowhere', r'does not exist'),
        (tmp_path / 'file', r'neither a folder nor a \.tar'),
        (tmp_path, r'holds no images as train/<class>/\*'),
    ):
        with pytest.raises(InputError, match=message):
            read_folder(place)


def test_archive_cut_short(tmp_path):
    whole = tmp_path / 'whole.tar.gz'
    with tarfile.open(whole, 'w:gz') as archive:
        archive.add(write(tmp_path / 'set', FILES), '.')
    (tmp_path / 'half.tar.gz').write_bytes(whole.read_bytes()[:400])
    with pytest.raises(InputError, match=r'half\.tar\.gz cannot be read as a tar archive'):
        read_folder(tmp_path / 'half.tar.gz')


def test_the_public_jpeg_copy_of_cifar10():
    path = SHARED / 'cifar10-jpeg.tar.xz'
    if not path.exists():
        pytest.skip(f'{path} is absent')
    data = load('folder', path, limit=3, max_side=36)
    assert data.train.images.shape == data.test.images.shape == (30, 3, 32, 32)
    assert data.classes[:2] == ('airplane', 'automobile')
    assert data.is_jpeg


def test_other_kinds_of_files_are_not_handed_to_their_decoders(tmp_path):
    """For PostScript, Pillow would start an interpreter."""
    page = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n'
    with pytest.raises(InputError, match=r'train/cat/a\.png cannot be read as an image'):
        read_folder(write(tmp_path, FILES | {'train/cat/a.png': page}))


def test_a_file_that_an_archive_holds_twice_counts_once(tmp_path):
    with tarfile.open(tmp_path / 'pets.tar', 'w') as archive:
        for name, content in [('train/cat/a.png', picture(9)), *FILES.items()]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert_is_the_set(read_folder(tmp_path / 'pets.tar'))
