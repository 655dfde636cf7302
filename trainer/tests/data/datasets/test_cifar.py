import gzip
import hashlib
import io
import pickle
import tarfile
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from trainer import InputError
from trainer.data.datasets import cifar, download
from trainer.data.datasets.cifar import CIFAR10, CIFAR100, read_cifar


def text(value, keys):
    return value if keys is str else value.encode()


def dump(value, protocol):
    """The bytes of a pickle; protocol 'python2' is written by hand below."""
    return b'\x80\x02' + python2(value) + b'.' if protocol == 'python2' else pickle.dumps(value, protocol)


def python2(value):
    """What Python 2 and its NumPy wrote under protocol 2: 8-bit strings, and `numpy.core` for the array."""
    match value:
        case bytes():
            short = len(value) < 256
            return (b'U' + bytes([len(value)]) if short else b'T' + len(value).to_bytes(4, 'little')) + value
        case int():
            return b'J' + value.to_bytes(4, 'little', signed=True)
        case list():
            return b'](' + b''.join(map(python2, value)) + b'e'
        case dict():
            return b'}(' + b''.join(python2(key) + python2(item) for key, item in value.items()) + b'u'
        case np.ndarray():
            return (
                b'cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01'
                + b''.join(map(python2, value.shape))
                + b'\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R'
                + b'(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89'
                + python2(value.tobytes())
                + b'tb'
            )
    raise TypeError(type(value))


def batch(seed, edition=CIFAR10, n=4, suffix='png', keys=bytes):
    rng = np.random.default_rng(seed)
    names = [f'image_{seed}_{i}.{suffix}' for i in range(n)]
    return {
        text('batch_label', keys): text('a batch', keys),
        text(edition.label_key, keys): rng.integers(0, edition.n_class, n).tolist(),
        text('data', keys): rng.integers(0, 256, (n, 3072), np.uint8),
        text('filenames', keys): [text(name, keys) for name in names],
    }


def contents(edition=CIFAR10, protocol='python2', **options):
    """The files of a small set, by name."""
    files = {name: dump(batch(i, edition, 4 + i, **options), protocol) for i, name in enumerate(edition.batches)}
    names = [text(f'class {i}', options.get('keys', bytes)) for i in range(edition.n_class)]
    return files | {edition.meta: dump({text(edition.class_key, options.get('keys', bytes)): names}, protocol)}


def write_folder(directory, edition=CIFAR10, files=None):
    folder = directory / edition.folder
    folder.mkdir(parents=True)
    for name, raw in (files or contents(edition)).items():
        (folder / name).write_bytes(raw)
    return folder


def write_archive(directory, edition=CIFAR10, files=None):
    directory.mkdir(exist_ok=True)
    with tarfile.open(directory / edition.archive, 'w:gz') as archive:
        for name, raw in ((files or contents(edition)) | {'readme.html': b'<html>'}).items():
            member = tarfile.TarInfo(f'{edition.folder}/{name}')
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    return directory / edition.archive


def assert_is_the_set(data, edition=CIFAR10):
    batches = [batch(i, edition, 4 + i) for i in range(len(edition.batches))]
    pixels = np.concatenate([b[b'data'] for b in batches])
    n_train = len(data.train.labels)
    assert n_train == sum(len(b[b'data']) for b in batches[:-1])
    np.testing.assert_array_equal(np.concatenate([data.train.images, data.test.images]).reshape(-1, 3072), pixels)
    labels = [label for b in batches for label in b[edition.label_key.encode()]]
    assert [*data.train.labels, *data.test.labels] == labels
    assert data.classes == tuple(f'class {i}' for i in range(edition.n_class))


@pytest.mark.parametrize('protocol', ['python2', 2, 4, 5])
@pytest.mark.parametrize('edition', [CIFAR10, CIFAR100], ids=lambda edition: edition.name)
def test_reads_what_python_2_and_python_3_wrote(tmp_path, edition, protocol):
    data = read_cifar(edition, write_folder(tmp_path, edition, contents(edition, protocol)))
    assert_is_the_set(data, edition)
    assert data.train.images.shape[1:] == (3, 32, 32)
    assert data.source == f'{edition.name}, files of unknown origin'


def test_reads_keys_that_are_str(tmp_path):
    assert_is_the_set(read_cifar(CIFAR10, write_folder(tmp_path, files=contents(protocol=4, keys=str))))


def test_labels_may_be_an_array(tmp_path):
    files = contents(protocol=4)
    changed = batch(0)
    files['data_batch_1'] = pickle.dumps(changed | {b'labels': np.array(changed[b'labels'])})
    assert_is_the_set(read_cifar(CIFAR10, write_folder(tmp_path, files=files)))


@pytest.mark.parametrize('edition', [CIFAR10, CIFAR100], ids=lambda edition: edition.name)
def test_the_folder_and_the_archive_are_found(tmp_path, edition):
    folder = write_folder(tmp_path / 'a', edition)
    archive = write_archive(tmp_path / 'b', edition)
    renamed = folder.rename(tmp_path / 'renamed')
    other = archive.with_name('copy.tgz')
    other.write_bytes(archive.read_bytes())
    for place in (write_folder(tmp_path / 'c', edition), tmp_path / 'c', renamed, archive, tmp_path / 'b', other):
        assert_is_the_set(read_cifar(edition, place), edition)


def binary_contents(edition=CIFAR10):
    """The same set as `contents`, as the binary version has it."""
    files = {edition.binary_classes: '\n'.join(f'class{i}' for i in range(edition.n_class)).encode() + b'\n\n'}
    for i, name in enumerate(edition.batches):
        one = batch(i, edition, 4 + i)
        labels = np.array(one[edition.label_key.encode()], np.uint8)
        coarse = [labels // 5] if edition is CIFAR100 else []
        files[f'{name}.bin'] = np.column_stack([*coarse, labels, one[b'data']]).tobytes()
    return files


def pack(path, files, folder):
    """An archive of the kind that its suffix names."""
    path.parent.mkdir(exist_ok=True)
    if path.suffix == '.zip':
        with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
            for name, raw in files.items():
                archive.writestr(f'{folder}{name}', raw)
        return path
    with tarfile.open(path, 'w:gz') as archive:
        for name, raw in files.items():
            member = tarfile.TarInfo(f'{folder}{name}')
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    return path


@pytest.mark.parametrize('edition', [CIFAR10, CIFAR100], ids=lambda edition: edition.name)
def test_the_binary_version_is_the_same_set(tmp_path, edition):
    files = binary_contents(edition)
    folder = tmp_path / 'a' / edition.binary_folder
    folder.mkdir(parents=True)
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    archive = pack(tmp_path / 'b' / edition.binary_archive, files, f'{edition.binary_folder}/')
    renamed = pack(tmp_path / 'c' / 'archive.zip', files, f'{edition.binary_folder}/')
    for place in (folder, folder.parent, archive, archive.parent, renamed):
        data = read_cifar(edition, place)
        assert data.classes == tuple(f'class{i}' for i in range(edition.n_class))
        assert_is_the_set(replace(data, classes=tuple(f'class {i}' for i in range(edition.n_class))), edition)
        assert data.source == f'{edition.name}, files of unknown origin'
    (folder / edition.binary_classes).unlink()
    assert read_cifar(edition, folder).classes == edition.classes
    known = replace(edition, sha1={name: hashlib.sha1(files[name]).hexdigest() for name in edition.sha1})
    assert read_cifar(known, folder).source == f'{edition.name}, official files'


@pytest.mark.parametrize(
    ('raw', 'message'),
    [
        (b'', r'has 0 bytes, expected a multiple of 3073'),
        (bytes(3074), r'has 3074 bytes, expected a multiple of 3073'),
        (b'\x0a' + bytes(3072), r': labels are 10\.\.10, expected 0\.\.9'),
    ],
)
def test_faults_of_the_binary_version(tmp_path, raw, message):
    files = binary_contents() | {'data_batch_2.bin': raw}
    path = pack(tmp_path / 'a.zip', files, 'cifar-10-batches-bin/')
    with pytest.raises(InputError, match=rf'a\.zip/data_batch_2\.bin ?{message}'):
        read_cifar(CIFAR10, path)
    del files['data_batch_2.bin'], files['test_batch.bin']
    pack(path, files, 'cifar-10-batches-bin/')
    with pytest.raises(InputError, match=r'a\.zip lacks data_batch_2\.bin, test_batch\.bin of CIFAR-10'):
        read_cifar(CIFAR10, path)


@pytest.mark.parametrize('folder', ['', './', 'cifar-10-batches-py/', 'a/cifar-10-batches-py/'])
@pytest.mark.parametrize('name', ['archive.zip', 'archive.tar.gz'])
def test_archives_of_other_people(tmp_path, name, folder):
    assert_is_the_set(read_cifar(CIFAR10, pack(tmp_path / name, contents(), folder)))


def test_the_contents_of_an_archive_count_not_its_suffix(tmp_path):
    """Browsers unpack a .gz and keep its name."""
    packed = pack(tmp_path / 'a.tar.gz', contents(), 'cifar-10-batches-py/')
    unpacked = tmp_path / 'cifar-10-python.tar.gz'
    unpacked.write_bytes(gzip.decompress(packed.read_bytes()))
    zipped = pack(tmp_path / 'b.zip', contents(), 'cifar-10-batches-py/').rename(tmp_path / 'b.tar.gz')
    for path in (unpacked, zipped):
        assert_is_the_set(read_cifar(CIFAR10, path))


def test_jpeg_files_are_told(tmp_path):
    data = read_cifar(CIFAR10, write_folder(tmp_path, files=contents(suffix='jpg')))
    assert data.is_jpeg
    assert data.source == 'JPEG re-encoding of CIFAR-10'


def test_official_files_are_told(tmp_path):
    files = contents()
    edition = replace(
        CIFAR10,
        train={name: cifar._digest(files[name], 'md5') for name in CIFAR10.train},
        test={name: cifar._digest(files[name], 'md5') for name in CIFAR10.test},
    )
    data = read_cifar(edition, write_folder(tmp_path, files=files))
    assert data.source == 'CIFAR-10, official files'
    assert not data.is_jpeg


GOOD = batch(0)
FAULTS = {
    'cut short': (dump(GOOD, 'python2')[:5000], r'cannot be read as a pickle'),
    'no dict': (dump([1], 2), r'holds a list, expected a dict'),
    'no data': (dump({b'labels': [1]}, 2), r'data is NoneType, expected uint8 \(N, 3072\)'),
    'narrow rows': (dump(GOOD | {b'data': GOOD[b'data'][:, 1:]}, 4), r'data is uint8 \(4, 3071\)'),
    'four dimensions': (
        dump(GOOD | {b'data': GOOD[b'data'].reshape(4, 3, 32, 32)}, 4),
        r'data is uint8 \(4, 3, 32, 32\)',
    ),
    'floats': (dump(GOOD | {b'data': GOOD[b'data'].astype('f4')}, 4), r'data is float32 \(4, 3072\)'),
    'no rows': (dump(GOOD | {b'data': GOOD[b'data'][:0], b'labels': []}, 4), r'holds 0 images and 0 labels'),
    'no labels': (dump({b'data': GOOD[b'data']}, 4), r'labels is not a list of whole numbers'),
    'fine labels': (dump(GOOD | {b'labels': [0.5] * 4}, 4), r'labels is not a list of whole numbers'),
    'labels too few': (dump(GOOD | {b'labels': [1]}, 4), r'holds 4 images and 1 labels'),
    'a label too large': (dump(GOOD | {b'labels': [1, 10, 2, 3]}, 4), r'labels are 1\.\.10, expected 0\.\.9'),
    'a label below zero': (dump(GOOD | {b'labels': [1, -1, 2, 3]}, 4), r'labels are -1\.\.3, expected 0\.\.9'),
    'a label beyond 64 bits': (dump(GOOD | {b'labels': [2**70] * 4}, 4), r'labels is not a list of whole numbers'),
}


@pytest.mark.parametrize(('raw', 'message'), FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize('write', [write_folder, write_archive])
def test_faults_name_the_file(tmp_path, write, raw, message):
    place = write(tmp_path, files=contents() | {'data_batch_2': raw})
    with pytest.raises(InputError, match=rf'{place}/data_batch_2:? {message}'):
        read_cifar(CIFAR10, place)


@pytest.mark.parametrize('names', [None, [b'cat'] * 9, [b'cat'] * 9 + [[b'cat']]])
def test_class_names_at_fault(tmp_path, names):
    files = contents() | {'batches.meta': dump({b'label_names': names}, 4)}
    with pytest.raises(InputError, match=r'batches\.meta: label_names is not a list of 10 names'):
        read_cifar(CIFAR10, write_folder(tmp_path, files=files))


@pytest.mark.parametrize('write', [write_folder, write_archive])
def test_missing_files_are_named(tmp_path, write):
    files = contents()
    del files['data_batch_3'], files['batches.meta']
    with pytest.raises(InputError, match=r'lacks batches\.meta, data_batch_3 of CIFAR-10'):
        read_cifar(CIFAR10, write(tmp_path, files=files))


def test_large_files_are_refused(tmp_path, monkeypatch):
    folder, archive = write_folder(tmp_path / 'a'), write_archive(tmp_path / 'b')
    monkeypatch.setattr(cifar, 'MAX_BYTES', 10_000)
    with pytest.raises(InputError, match=r'/(data_batch_\d|test_batch) has more than 10,000 bytes'):
        read_cifar(CIFAR10, folder)
    monkeypatch.setattr('trainer.datasets.archive.MAX_BYTES', 12_000)
    with pytest.raises(InputError, match=r'data_batch_1 has \d+ bytes, more than 12000'):
        read_cifar(CIFAR10, archive)


def test_archives_cut_short(tmp_path):
    archive = write_archive(tmp_path)
    archive.write_bytes(archive.read_bytes()[:-5000])
    with pytest.raises(InputError, match=r'cifar-10-python\.tar\.gz cannot be read as a tar archive'):
        read_cifar(CIFAR10, tmp_path)
    archive.write_bytes(b'<html>not found</html>')
    with pytest.raises(InputError, match=r'cifar-10-python\.tar\.gz cannot be read as a tar archive'):
        read_cifar(CIFAR10, tmp_path)


def test_zip_archives_cut_short_broken_or_locked(tmp_path):
    path = pack(tmp_path / 'a.zip', contents(), 'cifar-10-batches-py/')
    raw = path.read_bytes()
    path.write_bytes(raw[:-5000])
    with pytest.raises(InputError, match=r'a\.zip cannot be read as a zip archive: it is cut short: download or copy'):
        read_cifar(CIFAR10, path)
    path.write_bytes(raw[:2000] + bytes(100) + raw[2100:])
    with pytest.raises(InputError, match=r'a\.zip cannot be read as a zip archive'):
        read_cifar(CIFAR10, path)
    flags = raw.rindex(b'PK\x01\x02') + 8
    path.write_bytes(raw[:flags] + b'\x01' + raw[flags + 1 :])
    with pytest.raises(InputError, match=r'a\.zip cannot be read as a zip archive: .*password'):
        read_cifar(CIFAR10, path)


def test_a_zip_archive_cannot_claim_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr('trainer.datasets.archive.MAX_BYTES', 12_000)
    path = pack(tmp_path / 'a.zip', contents(), 'cifar-10-batches-py/')
    with pytest.raises(InputError, match=r'data_batch_1 has \d+ bytes, more than 12000'):
        read_cifar(CIFAR10, path)


@pytest.mark.parametrize(
    ('raw', 'message'),
    [
        (b'\n <!DOCTYPE HTML>\n<html>', r'it is a web page, not the file: download the file itself'),
        (b'version https://git-lfs.github.com/spec/v1\n', r'it is a Git LFS pointer, not the file: run git lfs pull'),
        (gzip.compress(bytes(9999), mtime=0)[:-20], r'it is cut short: download or copy it again'),
    ],
)
def test_what_is_not_an_archive_is_named(tmp_path, raw, message):
    (tmp_path / CIFAR10.archive).write_bytes(raw)
    with pytest.raises(InputError, match=rf'{CIFAR10.archive} cannot be read as a tar archive: {message}'):
        read_cifar(CIFAR10, tmp_path)


PLACES = {
    'class folders': ({'train/cat/1.png': b'', 'test/cat/1.png': b''}, r'image files, as \S+: add --dataset folder'),
    'MATLAB': ({'cifar-10-batches-mat/data_batch_1.mat': b''}, r'is a MATLAB version, which is not read'),
    'CIFAR-100': ({'cifar-100-python/train': b''}, r'holds CIFAR-100, not CIFAR-10: add --dataset cifar100'),
    'an archive further down': (
        {'a/b/cifar-10-python.tar.gz': b''},
        r'a/b/cifar-10-python\.tar\.gz: (unpack it, and )?give its',
    ),
    'Parquet further down': ({'a/b/c/d/train.parquet': b''}, r'a/b/c/d/train\.parquet: (unpack it, and )?give its'),
    'anything': ({'a/b.txt': b''}, r'neither the folder cifar-10-batches-py nor the archive cifar-10-python\.tar\.gz'),
}


@pytest.mark.parametrize(('files', 'message'), PLACES.values(), ids=PLACES)
@pytest.mark.parametrize('kind', ['folder', 'a.zip', 'a.tar.gz'])
def test_what_else_a_place_holds_is_named(tmp_path, kind, files, message):
    if kind == 'folder':
        for name, raw in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(raw)
    place = tmp_path if kind == 'folder' else pack(tmp_path / 'x' / kind, files, '')
    with pytest.raises(InputError, match=rf'^{place} (holds )?.*{message}'):
        read_cifar(CIFAR10, place)


@pytest.mark.parametrize('name', ['data_batch_1', 'cifar10.parquet'])
def test_other_files_are_not_enough(tmp_path, name):
    path = write_folder(tmp_path) / name
    path.touch()
    with pytest.raises(
        InputError, match=rf'{name} is not a folder of CIFAR-10, an archive \(.*\.zip\) or a train\*\.parquet'
    ):
        read_cifar(CIFAR10, path)


def test_a_header_cannot_claim_the_memory(tmp_path):
    member = tarfile.TarInfo('././@PaxHeader')
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 4 << 30
    (tmp_path / 'huge.tar').write_bytes(member.tobuf(tarfile.USTAR_FORMAT) + b'\0' * 1024)
    # From Python 3.14 on, tarfile itself reads a long name in pieces, and finds the end of the file.
    with pytest.raises(InputError, match=r'huge\.tar(: a header declares \d+ bytes| cannot be read as a tar archive)'):
        read_cifar(CIFAR10, tmp_path / 'huge.tar')


def test_folders_without_the_set(tmp_path):
    with pytest.raises(InputError, match=r'nowhere does not exist'):
        read_cifar(CIFAR10, tmp_path / 'nowhere')
    write_folder(tmp_path, CIFAR10)
    with pytest.raises(InputError, match=r'holds CIFAR-10, not CIFAR-100: add --dataset cifar10'):
        read_cifar(CIFAR100, tmp_path)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(
        InputError, match=r'neither the folder cifar-100-python nor the archive cifar-100-python\.tar\.gz'
    ):
        read_cifar(CIFAR100, tmp_path / 'empty')


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr('chainer.dataset.download._dataset_root', str(tmp_path / 'root'))
    return tmp_path / 'root' / 'trainer' / 'cifar'


def test_the_cache_is_read_without_a_download(cache, monkeypatch):
    monkeypatch.setattr(download, 'download', lambda *_: pytest.fail('downloaded'))
    cache.mkdir(parents=True)
    write_archive(cache)
    assert_is_the_set(read_cifar(CIFAR10))


def test_the_archive_is_downloaded_into_the_cache(cache, monkeypatch):
    def arrive(url, path, md5, mirrors):
        assert (url, path, md5, mirrors) == (CIFAR10.url, cache / CIFAR10.archive, CIFAR10.md5, CIFAR10.mirrors)
        path.parent.mkdir(parents=True)
        write_archive(path.parent)

    monkeypatch.setattr(download, 'download', arrive)
    assert_is_the_set(read_cifar(CIFAR10))


def test_without_a_network_the_ways_on_are_told(cache):
    edition = replace(CIFAR10, url='http://127.0.0.1:9/cifar-10-python.tar.gz', mirrors=('http://127.0.0.1:9/b',))
    with pytest.raises(InputError) as caught:
        read_cifar(edition)
    ways = ('could not be downloaded', CIFAR10.md5, *edition.mirrors, '--data DIR', str(cache), '--dataset shapes')
    for way in (*ways, '--dataset folder --data cifar10.tar.xz'):
        assert way in str(caught.value)
