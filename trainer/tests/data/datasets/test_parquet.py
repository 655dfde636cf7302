import hashlib
import io
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from trainer import InputError
from trainer.data.datasets import parquet
from trainer.data.datasets.cifar import CIFAR10, CIFAR100, read_cifar
from trainer.data.datasets.parquet import find_parquet

pa = pytest.importorskip('pyarrow', reason='pyarrow is not installed')
pq = pytest.importorskip('pyarrow.parquet', reason='pyarrow is not installed')


def encode(pixels, form='png'):
    file = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(file, form)
    return file.getvalue()


def rows(seed, n, edition=CIFAR10):
    """Drawn pixels (n, 3, 32, 32), and the columns of labels."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (n, 3, 32, 32), np.uint8)
    labels = {name: rng.integers(0, 20 if 'coarse' in name else edition.n_class, n) for name in edition.label_columns}
    return pixels, labels


def write(path, pixels, labels, names=None, form='png', **changed):
    """A file as the library `datasets` writes it."""
    images = [{'bytes': encode(image, form), 'path': None} for image in pixels]
    columns = {'img': pa.array(images, pa.struct([('bytes', pa.binary()), ('path', pa.string())]))}
    table = pa.table(columns | {name: pa.array(values) for name, values in labels.items()} | changed)
    if names is not None:
        features = {name: {'names': names, '_type': 'ClassLabel'} for name in labels}
        table = table.replace_schema_metadata({'huggingface': json.dumps({'info': {'features': features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def write_set(folder, edition=CIFAR10, **options):
    train, test = rows(0, 10, edition), rows(1, 4, edition)
    write(folder / 'train-00000-of-00001.parquet', *train, **options)
    write(folder / 'test-00000-of-00001.parquet', *test, **options)
    return train, test


def official(edition, train, test):
    """An edition whose official files are these, the training batches in their order."""
    digests = {}
    for names, (pixels, labels) in ((edition.train, train), (edition.test, test)):
        content = np.column_stack([*labels.values(), pixels.reshape(len(pixels), -1)]).astype(np.uint8)
        for name, part in zip(names, np.split(content, len(names)), strict=True):
            digests[f'{name}.bin'] = hashlib.sha1(part.tobytes()).hexdigest()
    return replace(edition, sha1=digests)


def assert_equals(data, train, test, label):
    for split, (pixels, labels) in ((data.train, train), (data.test, test)):
        np.testing.assert_array_equal(split.images, pixels)
        np.testing.assert_array_equal(split.labels, labels[label])
        assert split.labels.dtype == np.int32


@pytest.mark.parametrize('edition', [CIFAR10, CIFAR100], ids=lambda edition: edition.name)
@pytest.mark.parametrize('below', ['', 'plain_text', 'a/data'])
def test_pixels_and_labels_are_those_of_the_files(tmp_path, edition, below):
    train, test = write_set(tmp_path / below, edition)
    data = read_cifar(edition, tmp_path)
    assert_equals(data, train, test, edition.label_columns[-1])
    assert data.classes == edition.classes
    assert data.source == f'{edition.name}, Parquet files of unknown origin'
    assert not data.is_jpeg


def test_one_of_the_files_suffices_to_find_the_other(tmp_path):
    train, test = write_set(tmp_path)
    for name in ('train-00000-of-00001.parquet', 'test-00000-of-00001.parquet'):
        assert_equals(read_cifar(CIFAR10, tmp_path / name), train, test, 'label')


def test_files_may_lie_in_folders_of_their_splits(tmp_path):
    train, test = rows(0, 4), rows(1, 3)
    write(tmp_path / 'plain_text/train/0000.parquet', *train)
    write(tmp_path / 'plain_text/test/0000.parquet', *test)
    for place in (tmp_path, tmp_path / 'plain_text', tmp_path / 'plain_text/train/0000.parquet'):
        assert_equals(read_cifar(CIFAR10, place), train, test, 'label')


def test_files_of_several_pieces_are_joined(tmp_path):
    parts, test = [rows(i, 3) for i in range(3)], rows(9, 2)
    for i, part in enumerate(parts):
        write(tmp_path / f'train-{i:05}-of-00003.parquet', *part)
    write(tmp_path / 'test.parquet', *test)
    train = np.concatenate([part[0] for part in parts]), {'label': np.concatenate([p[1]['label'] for p in parts])}
    assert_equals(read_cifar(CIFAR10, tmp_path), train, test, 'label')
    (tmp_path / 'train-00001-of-00003.parquet').unlink()
    with pytest.raises(InputError, match=r'train-00000-of-00003\.parquet is one of 3 files, of which 2 are there'):
        read_cifar(CIFAR10, tmp_path)


@pytest.mark.parametrize('edition', [CIFAR10, CIFAR100], ids=lambda edition: edition.name)
def test_the_official_pixels_are_known_and_put_into_the_official_order(tmp_path, edition):
    train, test = rows(0, 10, edition), rows(1, 4, edition)
    edition = official(edition, train, test)
    turn = np.roll(np.arange(10), 2 * (len(edition.train) > 1))  # the last batch comes first
    write(tmp_path / 'train.parquet', train[0][turn], {name: values[turn] for name, values in train[1].items()})
    write(tmp_path / 'test.parquet', *test)
    data = read_cifar(edition, tmp_path)
    assert data.source == f'{edition.name}, Parquet files of the official labels and pixels'
    assert_equals(data, train, test, edition.label_columns[-1])


@pytest.mark.parametrize('changes', ['pixel', 'label', 'test', 'order'])
def test_other_pixels_labels_or_orders_are_not_called_official(tmp_path, changes):
    train, test = rows(0, 10), rows(1, 4)
    edition = official(CIFAR10, train, test)
    if changes == 'pixel':
        train[0][7, 1, 2, 3] ^= 1
    elif changes == 'label':
        train[1]['label'][3] = (train[1]['label'][3] + 1) % 10
    elif changes == 'test':
        test[0][0, 0, 0, 0] ^= 1
    else:
        train = train[0][::-1], {'label': train[1]['label'][::-1]}
    write(tmp_path / 'train.parquet', *train)
    write(tmp_path / 'test.parquet', *test)
    data = read_cifar(edition, tmp_path)
    assert data.source == 'CIFAR-10, Parquet files of unknown origin'
    assert_equals(data, train, test, 'label')


def test_a_jpeg_copy_is_told(tmp_path):
    write_set(tmp_path, form='jpeg')
    data = read_cifar(CIFAR10, tmp_path)
    assert data.is_jpeg
    assert data.source == 'JPEG re-encoding of CIFAR-10, Parquet files of unknown origin'


def test_the_files_may_name_the_classes(tmp_path):
    names = [f'class {i}' for i in range(10)]
    write_set(tmp_path, names=names)
    assert read_cifar(CIFAR10, tmp_path).classes == tuple(names)


@pytest.mark.parametrize('names', [['cat'], 'ten', [1] * 10, {'names': []}])
def test_strange_names_give_the_official_ones(tmp_path, names):
    write_set(tmp_path, names=names)
    assert read_cifar(CIFAR10, tmp_path).classes == CIFAR10.classes


def test_the_crab_of_the_published_files_is_a_crab(tmp_path):
    write_set(tmp_path, CIFAR100, names=['cra' if name == 'crab' else name for name in CIFAR100.classes])
    assert read_cifar(CIFAR100, tmp_path).classes == CIFAR100.classes


def test_images_may_be_plain_bytes_in_a_column_named_image(tmp_path):
    for split, n in (('train', 4), ('test', 2)):
        pixels, labels = rows(n, n)
        table = pa.table({'image': [encode(image) for image in pixels], 'label': labels['label']})
        pq.write_table(table, tmp_path / f'{split}.parquet')
    assert_equals(read_cifar(CIFAR10, tmp_path), rows(4, 4), rows(2, 2), 'label')


FAULTS = {
    'a label too large': ({'label': [3, 10, 0, 0]}, r'row 1: label is 10, expected 0\.\.9'),
    'a label below zero': ({'label': [3, -1, 0, 0]}, r'row 1: label is -1, expected 0\.\.9'),
    'no label': ({'label': [3, None, 0, 0]}, r'row 1: label is None'),
    'a fine label': ({'label': [0.5, 1, 2, 3]}, r'row 0: label is 0\.5'),
    'no image': ({'img': [{'bytes': None, 'path': 'a.png'}] * 4}, r'row 0: img holds no bytes'),
    'a path': ({'img': ['a.png'] * 4}, r'row 0: img holds no bytes'),
    'a broken image': ({'img': [b'\x89PNG' + b'?' * 99] * 4}, r'row 0 cannot be read as an image'),
    'a large image': ({'img': [encode(np.zeros((3, 64, 64), np.uint8))] * 4}, r'row 0 has 64 x 64 px, expected 32 x'),
    'many bytes': ({'img': [b'\x89PNG' + bytes(1 << 16)] * 4}, r'row 0 has 65540 bytes, more than 65536'),
    'the columns of another set': ({'drop': 'label'}, r'has the columns img, but not label of CIFAR-10'),
}


@pytest.mark.parametrize(('changes', 'message'), FAULTS.values(), ids=FAULTS)
def test_faults_name_the_row(tmp_path, changes, message):
    train, _ = write_set(tmp_path)
    table = pa.table({'img': [encode(image) for image in train[0][:4]], 'label': train[1]['label'][:4]})
    if 'drop' in changes:
        table = table.drop_columns(['label'])
    else:
        table = pa.table({name: changes.get(name, table[name]) for name in table.column_names})
    pq.write_table(table, tmp_path / 'train-00000-of-00001.parquet')
    with pytest.raises(InputError, match=rf'train-00000-of-00001\.parquet,? {message}'):
        read_cifar(CIFAR10, tmp_path)


BAD = {
    'a web page': (b'<!DOCTYPE html><html>', 'it is a web page, not the file'),
    'a pointer': (
        b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n',
        'it is a Git LFS pointer, not the file',
    ),
    'nothing': (b'', ''),
    'other bytes': (b'PAR1' + bytes(100) + b'PAR1', ''),
}


@pytest.mark.parametrize(('raw', 'message'), BAD.values(), ids=BAD)
def test_what_is_not_a_parquet_file_is_refused(tmp_path, raw, message):
    write_set(tmp_path)
    path = tmp_path / 'test-00000-of-00001.parquet'
    path.write_bytes(raw)
    with pytest.raises(InputError, match=rf'{path.name} cannot be read as a Parquet file: {message}'):
        read_cifar(CIFAR10, tmp_path)


def test_a_file_cut_short_is_refused(tmp_path):
    write_set(tmp_path)
    path = tmp_path / 'test-00000-of-00001.parquet'
    for n in (4, 100, -1):
        raw = path.read_bytes()
        path.write_bytes(raw[:n])
        with pytest.raises(InputError, match=r'cannot be read as a Parquet file'):
            read_cifar(CIFAR10, tmp_path)
        path.write_bytes(raw)


def test_files_and_rows_are_bounded(tmp_path, monkeypatch):
    write_set(tmp_path)
    monkeypatch.setattr(parquet, 'MAX_ROWS', 9)
    with pytest.raises(InputError, match=r'has 10 rows, more than 9'):
        read_cifar(CIFAR10, tmp_path)
    monkeypatch.setattr(parquet, 'MAX_FILE_BYTES', 99)
    with pytest.raises(InputError, match=r'has [\d,]+ bytes, more than 99'):
        read_cifar(CIFAR10, tmp_path)


def test_a_missing_split_is_told(tmp_path):
    write_set(tmp_path)
    (tmp_path / 'test-00000-of-00001.parquet').unlink()
    with pytest.raises(InputError, match=r'has no test\*\.parquet; CIFAR-10 needs train and test files'):
        read_cifar(CIFAR10, tmp_path)


def test_without_pyarrow_the_sentence_says_what_to_install(tmp_path, monkeypatch):
    write_set(tmp_path)
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    with pytest.raises(InputError, match=r'need the package pyarrow, which is not installed: pip install pyarrow'):
        read_cifar(CIFAR10, tmp_path)


def test_other_files_are_not_looked_for(tmp_path):
    (tmp_path / 'train').mkdir()
    (tmp_path / 'train/readme.txt').write_text('')
    (tmp_path / 'training.parquet').write_text('')
    assert find_parquet(tmp_path) == {}
    assert find_parquet(tmp_path / 'train/readme.txt') == {}
