import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer import InputError
from trainer.data.datasets import load, pack
from trainer.data.datasets.folder import read_folder
from trainer.data.images import decode, has_plugin

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


def tar(folder, files):
    with tarfile.open(folder / 'pets.tar', 'w') as archive:
        archive.add(write(folder / 'set', files), '.')
    return folder / 'pets.tar'


def test_what_is_only_right_for_a_folder_is_refused_of_an_archive(tmp_path, monkeypatch):
    assert_is_the_set(read_folder(tar(tmp_path, FILES), preprocess='torchvision'))
    monkeypatch.setattr('trainer.data.datasets.folder.MAX_IN_MEMORY', 5 * 3 * 8**2 - 1)
    with pytest.raises(InputError, match=r'pets\.tar takes more than 0 GiB in memory, as an archive: unpack it'):
        read_folder(tmp_path / 'pets.tar')
    monkeypatch.undo()
    wide = tar(tmp_path, FILES | {'train/dog/b.png': picture(6, size=(9, 8))})
    with pytest.raises(InputError, match=r'pets\.tar: .*b\.png is not square, and --preprocess torchvision .*: unpack'):
        read_folder(wide, max_side=8, preprocess='torchvision')
    (tmp_path / 'set/train/dog/b.png').unlink()
    assert_is_the_set(read_folder(tar(tmp_path, {'train/cat/classes.txt': b'dog\ncat\n'})))  # of an annotation tool
    listed = tar(tmp_path, {'classes.txt': b'dog\ncat\n'})
    with pytest.raises(InputError, match=r'pets\.tar holds .*classes\.txt, and lists .*: unpack it'):
        read_folder(listed)


def test_folders_that_are_links_count_as_folders(tmp_path):
    real = write(tmp_path / 'real', FILES)
    place = tmp_path / 'pets'
    (place / 'train').mkdir(parents=True)
    for path in (real / 'train').iterdir():
        (place / 'train' / path.name).symlink_to(path)
    for path in real.iterdir():
        if path.name != 'train':
            (place / path.name).symlink_to(path)
    (place / 'train/cat/back').symlink_to(place)
    assert_is_the_set(read_folder(place))


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
        ({'test/cow/a.png': picture(1)}, r"class 'cow' of test has no training images"),
        ({'val/cow/a.png': picture(1)}, r"class 'cow' of val has no training images"),
        ({'val/cow/a.png': picture(1), 'Dev/cow/a.png': picture(1)}, r'holds both Dev and val; expected one'),
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
        (tmp_path, r'holds no images; expected train/<class>/\* and test/<class>/\*, or <class>/\*'),
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


@pytest.mark.long
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


# Folders as people have them


def tree(folder, *names):
    """Images of a grey level each, which counts up; other files as they are."""
    for level, name in enumerate(names):
        write(folder, {name: picture(level) if name.lower().endswith(('png', 'jpg')) else b'text'})
    return folder


def grey(split):
    """The level of each image, class by class."""
    return [split.images[split.labels == label, 0, 0, 0].tolist() for label in range(split.labels.max() + 1)]


def as_read(place, in_memory, **options):
    """Levels of train, validation and test, the classes, and the notes."""
    data = read_folder(place, preprocess='experiment' if in_memory else 'torchvision', **options)
    assert hasattr(data.train, 'images') == in_memory
    if in_memory:
        splits = [None if part is None else grey(part) for part in (data.train, data.validation, data.test)]
    else:
        splits = [None if part is None else streamed(part) for part in (data.train, data.validation, data.test)]
    return splits, data.classes, '\n'.join(data.notes)


def streamed(source):
    levels = [int(np.asarray(decode(source.read(i)))[0, 0, 0]) for i in range(len(source))]
    return [
        [v for v, t in zip(levels, source.labels, strict=True) if t == label]
        for label in range(source.labels.max() + 1)
    ]


both = pytest.mark.parametrize('in_memory', [True, False], ids=['memory', 'streamed'])


@both
@pytest.mark.parametrize('val', ['val', 'valid', 'dev', 'Validation'])
def test_validation_images_beside_a_test_are_kept_apart(tmp_path, val, in_memory):
    names = [f'{split}/{name}/1.png' for split in ('Train', val, 'TEST') for name in ('cat', 'dog')]
    assert as_read(tree(tmp_path, *names), in_memory) == ([[[0], [1]], [[2], [3]], [[4], [5]]], ('cat', 'dog'), '')


@both
def test_a_folder_without_a_test_gives_a_fifth_of_each_class(tmp_path, in_memory):
    tree(tmp_path, *(f'{name}/{i}.png' for name in ('cat', 'dog') for i in range(10)))
    (train, none, test), classes, notes = as_read(tmp_path, in_memory)
    assert classes == ('cat', 'dog') and none is None
    assert [len(levels) for levels in train + test] == [8, 8, 2, 2]
    for name, label in (('cat', 0), ('dog', 1)):
        assert sorted(train[label] + test[label]) == [10 * label + i for i in range(10)], name
    assert notes == f'{tmp_path} has no test folder: 4 of its 20 images are held out as the test (seed 0)'
    again, _, _ = as_read(tmp_path, in_memory)
    other, _, _ = as_read(tmp_path, in_memory, seed=1)
    assert again == [train, None, test] != other


@both
def test_a_train_folder_alone_gives_the_same(tmp_path, in_memory):
    tree(tmp_path, *(f'pets/train/{name}/{i}.png' for name in ('cat', 'dog') for i in range(5)))
    (train, _, test), _, notes = as_read(tmp_path, in_memory)
    assert [len(levels) for levels in train + test] == [4, 4, 1, 1]
    assert 'no test folder: 2 of its 10 images' in notes


@both
def test_a_folder_of_validation_images_is_enough_to_validate(tmp_path, in_memory):
    tree(tmp_path, 'val/cat/1.png', 'val/dog/1.png')
    (_, _, test), classes, _ = as_read(tmp_path, in_memory, needs_train=False)
    assert (test, classes) == ([[0], [1]], ('cat', 'dog'))
    with pytest.raises(InputError, match=r'holds no images as train/<class>/\*'):
        as_read(tmp_path, in_memory)


@both
def test_images_count_for_their_class_however_deep_they_lie(tmp_path, in_memory):
    tree(
        tmp_path,
        *('train/cat/2019/may/1.png', 'train/cat/3.PNG', 'train/dog/old/1.png', 'test/cat/1.png', 'test/dog/x/1.png'),
        *('train/.ipynb_checkpoints/1.png', '__MACOSX/train/cat/1.png', 'train/cat/.thumbs/1.png'),
        *('train/cat/Thumbs.db', 'train/cat/.DS_Store', 'train/dog/desktop.ini'),
    )
    splits, classes, notes = as_read(tmp_path, in_memory)
    assert splits == [[[0, 1], [2]], None, [[3], [4]]]
    assert (classes, notes) == (('cat', 'dog'), '')


@both
def test_what_is_left_out_is_counted_and_named(tmp_path, in_memory):
    tree(
        tmp_path,
        *('train/cat/1.png', 'train/dog/1.png', 'test/cat/1.png', 'train/loose.png', 'README.txt'),
        *('train/cat/a.txt', 'train/cat/b.txt', 'train/dog/film.mp4', 'test/cat/raw.CR2', 'train/dog/1.heic'),
    )
    _, _, notes = as_read(tmp_path, in_memory)
    assert notes.split('\n') == [
        'left out: 1 images that lie in no folder of a class',
        *([] if has_plugin() else ['left out: 1 .heic files; pip install pillow-heif, and they are read']),
        'left out: files that are no images: 2 .txt, 1 .cr2, 1 .mp4',
        'test has no images of 1 of the classes: dog',
    ]


@both
def test_photos_of_trains_are_no_split(tmp_path, in_memory):
    tree(tmp_path, *(f'{name}/{i}.png' for name in ('plane', 'train') for i in range(5)))
    _, classes, _ = as_read(tmp_path, in_memory)
    assert classes == ('plane', 'train')


@both
def test_tiny_imagenets_layout(tmp_path, in_memory):
    tree(
        tmp_path,
        *('tiny/train/n02/images/n02_0.JPEG.jpg', 'tiny/train/n01/images/n01_0.jpg', 'tiny/test/images/test_0.jpg'),
        *('tiny/val/images/val_0.jpg', 'tiny/val/images/val_1.jpg'),
    )
    write(tmp_path, {'tiny/val/val_annotations.txt': b'val_0.jpg\tn02\t0\t0\t9\t9\nval_1.jpg\tn01\t0\t0\t9\t9\n'})
    write(tmp_path, {'tiny/train/n01/n01_boxes.txt': b'n01_0.jpg\t0\t0\t9\t9\n'})
    splits, classes, notes = as_read(tmp_path, in_memory)
    assert splits == [[[1], [0]], None, [[4], [3]]]
    assert classes == ('n01', 'n02')
    assert 'the 1 images of test, which have no classes' in notes


@both
@pytest.mark.parametrize('folder', ['val', 'elsewhere'])
def test_a_list_of_classes_without_their_images(tmp_path, in_memory, folder):
    tree(tmp_path, 'train/n01/0.jpg', 'train/n02/1.jpg', 'test/n01/2.jpg', 'test/n02/3.jpg', f'{folder}/4.jpg')
    write(tmp_path, {f'{folder}/val_annotations.txt': b'4.jpg\tn02\t0\t0\t9\t9\n'})
    splits, _, notes = as_read(tmp_path, in_memory)
    assert splits == [[[0], [1]], None, [[2], [3]]]
    assert 'left out: 1 images' in notes


@both
def test_images_without_folders_of_classes(tmp_path, in_memory):
    with pytest.raises(InputError, match=r'holds 2 images in no folder of a class; expected train/<class>/\*'):
        as_read(tree(tmp_path, '1.png', '2.png'), in_memory)
    with pytest.raises(InputError, match=r'holds no images; .* \(files that are no images: 1 \.mp4\)'):
        as_read(tree(tmp_path / 'films', 'cat/1.mp4'), in_memory)


@pytest.mark.parametrize('content', [b'', b'<html>', picture(1)[:40]])
def test_unreadable_images_are_left_out_if_asked(tmp_path, content):
    place = write(tmp_path / 'x', FILES | {'train/cat/broken.png': content})
    with pytest.raises(
        InputError, match=r'train/cat/broken\.png cannot be read as an image.*--unreadable skip goes on'
    ):
        read_folder(place)
    data = read_folder(place, unreadable='skip')
    assert_is_the_set(data)
    assert data.notes[-1].startswith('1 images could not be read and are left out: ')
    assert 'train/cat/broken.png' in data.notes[-1]


def test_odd_names(tmp_path):
    names = [
        'train/a cat, #1/photo (1) ü.png',
        b'train/dog/\xff.png'.decode('utf-8', 'surrogateescape'),
        'train/dog/a\nb.png',
    ]
    tree(tmp_path, *names, 'test/a cat, #1/x.png', 'test/dog/x.png')
    for in_memory in (True, False):
        splits, classes, _ = as_read(tmp_path, in_memory)
        assert classes == ('a cat, #1', 'dog')
        assert splits[0][0] == [0] and sorted(splits[0][1]) == [1, 2]


def test_one_class_and_one_photo_each(tmp_path):
    with pytest.raises(InputError, match=r"holds the one class 'cat'; there is nothing to tell apart"):
        read_folder(tree(tmp_path / 'one', 'cat/1.png', 'cat/2.png'))
    place = tree(tmp_path / 'few', 'cat/1.png', 'dog/1.png')
    assert grey(read_folder(place, needs_train=False).test) == [[0], [1]]  # nothing to hold out, all is scored


def test_the_packer_takes_one_split(tmp_path):
    tree(tmp_path, 'train/cat/1.png', 'val/cat/1.png')
    with pytest.raises(InputError, match=r'holds the splits train, val: pack each by itself'):
        pack.main([str(tmp_path), str(tmp_path / 'x')])
