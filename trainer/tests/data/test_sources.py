"""Sources of encoded images: what they read, what the packer makes of them, and files that lie."""

import io
import os
import pickle
import struct
import tarfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from trainer import InputError, datasets
from trainer.data.datasets import pack
from trainer.data.sources import ClassFolders, ImageList, RecordIO, Shards, Subset, open_source, read_class_list
from trainer.data.sources.record_io import write_record


def contents(source):
    return [(source.read(i), int(label)) for i, label in enumerate(source.labels)]


def make_list(folder, raws, labels, name='list.txt'):
    for i, raw in enumerate(raws):
        (folder / f'im {i}.jpg').write_bytes(raw)
    (folder / name).write_text(''.join(f'im {i}.jpg {label}\n' for i, label in enumerate(labels)))
    return ImageList(folder / name)


def make_tar(path, members):
    with tarfile.open(path, 'w') as archive:
        for name, raw in members:
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))


# Lists and folders


def test_a_list_takes_spaces_tabs_empty_lines_and_a_root(tmp_path):
    (tmp_path / 'pictures').mkdir()
    (tmp_path / 'pictures' / 'a b.jpg').write_bytes(b'1')
    (tmp_path / 'pictures' / 'ü.jpg').write_bytes(b'2')
    (tmp_path / 'list.txt').write_text('\n  a b.jpg 3\nü.jpg\t0\n\n')
    source = ImageList(tmp_path / 'list.txt', root=tmp_path / 'pictures')
    assert contents(source) == [(b'1', 3), (b'2', 0)]
    assert source.labels.dtype == np.int32
    assert source.classes is None
    assert source.name(0) == str(tmp_path / 'pictures' / 'a b.jpg')


def test_a_list_as_windows_writes_it(tmp_path):
    (tmp_path / 'a b.jpg').write_bytes(b'1')
    (tmp_path / 'list.txt').write_bytes(b'\xef\xbb\xbfa b.jpg\t0  \r\n\r\nx\\c.jpg 1\r\n')
    source = ImageList(tmp_path / 'list.txt')
    assert source.read(0) == b'1'
    with pytest.raises(InputError, match=r'x\\c\.jpg cannot be read: No such file.*separated by \\; write /'):
        source.read(1)
    (tmp_path / 'classes').write_bytes(b'\xef\xbb\xbfcat\r\ndog\r\n')
    assert read_class_list(tmp_path / 'classes').names == ('cat', 'dog')


def test_a_name_of_a_file_need_not_be_utf_8(tmp_path):
    name = b'caf\xe9.jpg'
    (tmp_path / os.fsdecode(name)).write_bytes(b'1')
    (tmp_path / 'list.txt').write_bytes(name + b' 0\n')
    assert ImageList(tmp_path / 'list.txt').read(0) == b'1'


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a.jpg 1\nb.jpg\n', 'line 2: .*is not `path label`'),
        ('a.txt one\n', 'line 1: .*is not `path label`'),
        ('a.jpg 0\nb.jpg one\n', "line 2: the label 'one' is a name, unlike those before it"),
        ('a.jpg one\nb.jpg 0\n', "line 2: the label '0' is a number"),
        ('a.jpg -1\n', "the label is '-1'"),
        ('a.jpg 99999999999999\n', 'the label is .*whole number'),
        ('\n', 'holds no image'),
    ],
)
def test_lists_that_are_none(tmp_path, text, message):
    (tmp_path / 'list.txt').write_text(text)
    with pytest.raises(InputError, match=message):
        ImageList(tmp_path / 'list.txt')


def test_labels_have_to_be_in_the_class_list(tmp_path):
    (tmp_path / 'list.txt').write_text('a.jpg 2\n')
    (tmp_path / 'classes').write_text('n01 tench, Tinca tinca\nn02 goldfish\n')
    with pytest.raises(InputError, match=r'label 2 is outside 0\.\.1'):
        ImageList(tmp_path / 'list.txt', class_list=tmp_path / 'classes')
    assert read_class_list(tmp_path / 'classes') == (('n01', 'n02'), ('tench, Tinca tinca', 'goldfish'))


def test_class_lists_with_and_without_keys(tmp_path):
    path = tmp_path / 'classes'
    path.write_text('great white shark\n\ntench\n')
    assert read_class_list(path) == (('great white shark', 'tench'),) * 2
    path.write_text('0 great white shark\n1\n')
    assert read_class_list(path) == (('0', '1'), ('great white shark', '1'))
    path.write_text('crane\ntench\ncrane\n')
    assert read_class_list(path).names == ('crane', 'tench', 'crane')
    for text, folders in (('crane\ntench\ncrane\n', ['crane', 'tench']), ('n1 cat\nn1 dog\n', ())):
        path.write_text(text)
        with pytest.raises(InputError, match=r"lists the class '(crane|n1)' twice"):
            read_class_list(path, folders)


def test_lists_with_names_for_labels(tmp_path):
    path, classes = tmp_path / 'list.txt', tmp_path / 'classes'
    path.write_text('b 1.jpg white shark\na.PNG\tcat\nc.jpg cat\n')
    source = ImageList(path)
    assert source.classes == ('cat', 'white shark') and source.labels.tolist() == [1, 0, 0]
    assert source.name(0) == str(tmp_path / 'b 1.jpg')
    path.write_text('a.jpg ²\nb.jpg ①\n')
    assert ImageList(path).classes == tuple(sorted('²①'))
    path.write_text('b 1.jpg white shark\na.PNG\tcat\nc.jpg cat\n')
    classes.write_text('n02 tench\nn01 white shark\nn03 cat\n')
    assert ImageList(path, classes).labels.tolist() == [1, 2, 2]
    path.write_text('a.jpg n01\nb.jpg n03\n')
    assert ImageList(path, classes).labels.tolist() == [1, 2]
    path.write_text('a.jpg dog\n')
    with pytest.raises(InputError, match=r"the class 'dog', which .*classes does not list"):
        ImageList(path, classes)


def test_class_folders_are_ordered_by_name_or_by_a_list(tmp_path):
    for folder, file in (('b', '2.JPEG'), ('b', '10.jpg'), ('a', 'x.png'), ('a', 'notes.txt'), ('.hidden', 'y.jpg')):
        (tmp_path / 'root' / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / 'root' / folder / file).write_bytes(f'{folder}/{file}'.encode())
    source = ClassFolders(tmp_path / 'root')
    assert source.classes == ('a', 'b')
    assert contents(source) == [(b'a/x.png', 0), (b'b/10.jpg', 1), (b'b/2.JPEG', 1)]
    (tmp_path / 'list').write_text('b second letter\nz\na first letter\n')
    source = ClassFolders(tmp_path / 'root', tmp_path / 'list')
    assert source.classes == ('second letter', 'z', 'first letter')
    assert source.labels.tolist() == [0, 0, 2]
    (tmp_path / 'list').write_text('b\n')
    with pytest.raises(InputError, match="holds the class 'a', which"):
        ClassFolders(tmp_path / 'root', tmp_path / 'list')


# Shards


def test_shards_as_webdataset_writes_them(tmp_path):
    make_tar(
        tmp_path / 'shard-000001.tar',
        [('d/0.cls', b'1'), ('d/0.jpg', b'third'), ('d/0.json', b'{}'), ('e/0.cls', b'0'), ('e/0.PNG', b'fourth')],
    )
    make_tar(
        tmp_path / 'shard-000000.tar', [('0.jpg', b'first'), ('0.cls', b'2\n'), ('1.jpg', b'second'), ('1.cls', b'0')]
    )
    source = Shards(tmp_path)
    assert contents(source) == [(b'first', 2), (b'second', 0), (b'third', 1), (b'fourth', 0)]
    assert source.name(3).endswith('shard-000001.tar: e/0.PNG')
    assert contents(pickle.loads(pickle.dumps(source))) == contents(source)


@pytest.mark.parametrize(
    ('members', 'message'),
    [
        ([('0.jpg', b''), ('1.cls', b'1')], '0 has no label'),
        ([('0.cls', b'1')], '0 has no image'),
        ([('0.cls', b'x'), ('0.jpg', b'')], "0.cls: the label is 'x'"),
        ([('0.jpg', b''), ('0.jpeg', b''), ('0.cls', b'1')], '0.jpeg is the second image'),
        ([('readme', b'')], 'holds no image'),
    ],
)
def test_shards_that_are_none(tmp_path, members, message):
    make_tar(tmp_path / 'x.tar', members)
    with pytest.raises(InputError, match=message):
        Shards(tmp_path)


# RecordIO: no MXNet was at hand, so the fixture is written by hand from the description of the format.


def by_hand(path):
    magic = bytes.fromhex('0a23d7ce')
    image = b'\xff\xd8' + magic + b'ab'  # the word at an offset that is no multiple of 4 stays
    whole = struct.pack('<IfQQ', 0, 7.0, 1, 0) + image
    several = struct.pack('<IfQQ', 2, 0.0, 2, 0) + struct.pack('<2f', 3.0, 9.0) + b'xyz'
    first, last = struct.pack('<IfQQ', 0, 5.0, 3, 0) + b'1234', b'567'  # magic stood between them
    raw, offsets = b'', []
    for parts in ([(0, whole)], [(0, several)], [(1, first), (2, b''), (3, last)]):
        offsets.append(len(raw))
        for flag, part in parts:
            raw += magic + struct.pack('<I', flag << 29 | len(part)) + part + bytes(-len(part) % 4)
    path.write_bytes(raw)
    return offsets, [(image, 7), (b'xyz', 3), (b'1234' + magic + magic + b'567', 5)]


def test_record_io_written_by_hand(tmp_path):
    offsets, expected = by_hand(tmp_path / 'x.rec')
    assert contents(RecordIO(tmp_path / 'x.rec')) == expected
    (tmp_path / 'x.idx').write_text(''.join(f'{10 + i}\t{offset}\n' for i, offset in enumerate(offsets[::-1])))
    source = RecordIO(tmp_path / 'x.rec')
    assert contents(source) == expected[::-1]
    assert contents(pickle.loads(pickle.dumps(source))) == expected[::-1]


def test_writing_gives_the_bytes_written_by_hand(tmp_path):
    _, expected = by_hand(tmp_path / 'x.rec')
    file = io.BytesIO()
    write_record(file, expected[0][1], 1, expected[0][0])
    assert (tmp_path / 'x.rec').read_bytes().startswith(file.getvalue())
    file = io.BytesIO()
    write_record(file, expected[2][1], 3, expected[2][0])
    assert (tmp_path / 'x.rec').read_bytes().endswith(file.getvalue())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(st.sampled_from([b'\x0a\x23\xd7\xce', b'a', b'bc', b'1234', b'']), max_size=12))
def test_records_hold_the_magic_word_anywhere(tmp_path, pieces):
    image = b''.join(pieces)
    with (tmp_path / 'x.rec').open('wb') as file:
        for number in range(2):
            write_record(file, number, number, image)
    assert contents(RecordIO(tmp_path / 'x.rec')) == [(image, 0), (image, 1)]


@pytest.mark.parametrize(
    ('raw', 'message'),
    [
        (b'', 'holds no image'),
        (b'nothing of the kind', 'holds no RecordIO record at byte 0'),
        (bytes.fromhex('0a23d7ce') + struct.pack('<I', (1 << 29) - 1), 'cut short inside the record at byte 0'),
        (bytes.fromhex('0a23d7ce') + struct.pack('<I', 3) + b'abc\0', 'has 3 bytes, too few'),
        (
            bytes.fromhex('0a23d7ce') + struct.pack('<IIfQQ', 24, 2**32 - 1, 0, 0, 0),
            'says it has 4294967295 labels, but ends',
        ),
        (bytes.fromhex('0a23d7ce') + struct.pack('<IIfQQ', 24, 0, 0.5, 0, 0), 'the label is 0.5'),
        (bytes.fromhex('0a23d7ce') + struct.pack('<IIfQQ', 24, 0, float('nan'), 0, 0), 'the label is nan'),
        (
            bytes.fromhex('0a23d7ce') + struct.pack('<IIfQQ', 1 << 29 | 24, 0, 0, 0, 0),
            'should begin or go on at byte 32',
        ),
    ],
)
def test_record_io_that_is_none(tmp_path, raw, message):
    (tmp_path / 'x.rec').write_bytes(raw)
    with pytest.raises(InputError, match=message):
        RecordIO(tmp_path / 'x.rec')


@pytest.mark.parametrize('index', ['0\t4\n', '0\t99999999\n', '0\t-1\n', '0\n', 'a b\n', '0\t' + '9' * 30])
def test_an_index_that_does_not_fit(tmp_path, index):
    by_hand(tmp_path / 'x.rec')
    (tmp_path / 'x.idx').write_text(index)
    with pytest.raises(InputError, match=r'x\.(rec|idx)'):
        RecordIO(tmp_path / 'x.rec')


# Files that lie


def read_all(open_it):
    """A source of a broken file is an InputError, at once or image by image, or it is a source."""
    try:
        source = open_it()
    except InputError as error:
        assert str(error)
        return
    for i in range(len(source)):
        try:
            source.read(i)
        except InputError as error:
            assert str(error)


CHANGES = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=6)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=CHANGES, end=st.integers(0, 6000), kind=st.sampled_from(['rec', 'tar', 'txt']))
def test_broken_files(tmp_path, changes, end, kind):
    if kind == 'rec':
        by_hand(tmp_path / 'x.rec')
    elif kind == 'tar':
        make_tar(
            tmp_path / 'x.tar',
            [('0.jpg', b'first'), ('0.cls', b'2\n'), ('l' * 120 + '.jpg', b'second'), ('1.cls', b'0')],
        )
    else:
        (tmp_path / 'x.txt').write_text('a.jpg 1\nb.jpg 2\n')
    path = tmp_path / f'x.{kind}'
    raw = bytearray(path.read_bytes())
    for at, value in changes:
        raw[at % len(raw)] = value
    path.write_bytes(raw[:end])
    read_all(lambda: open_source(path))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=1600), kind=st.sampled_from(['rec', 'tar', 'txt', 'idx']))
def test_any_bytes(tmp_path, raw, kind):
    if kind == 'idx':
        by_hand(tmp_path / 'y.rec')
        (tmp_path / 'y.idx').write_bytes(raw)
        read_all(lambda: open_source(tmp_path / 'y.rec'))
    else:
        (tmp_path / f'x.{kind}').write_bytes(raw)
        read_all(lambda: open_source(tmp_path / f'x.{kind}'))


def test_a_source_cut_short_after_it_was_opened(tmp_path):
    by_hand(tmp_path / 'x.rec')
    make_tar(tmp_path / 'x.tar', [('0.cls', b'1'), ('0.jpg', bytes(5000))])
    for name, n_byte in (('x.rec', 40), ('x.tar', 3000)):
        source = open_source(tmp_path / name)
        with (tmp_path / name).open('r+b') as file:
            file.truncate(n_byte)
        with pytest.raises(InputError, match='cut short'):
            source.read(len(source) - 1)


# The packer


def test_list_to_shards_to_rec_keeps_bytes_labels_and_names(tmp_path):
    rng = np.random.default_rng(0)
    raws = [b'\xff\xd8' + rng.integers(0, 256, n, np.uint8).tobytes() for n in rng.integers(1, 3000, 20)]
    make_list(tmp_path, raws, [i % 3 for i in range(20)])
    (tmp_path / 'names').write_text('n1 one, uno\nn2 two\nn3 three\n')
    pack.main([str(tmp_path / 'list.txt'), str(tmp_path / 'tars'), '--class_list', str(tmp_path / 'names')])
    shards = open_source(tmp_path / 'tars')
    pack.main([str(tmp_path / 'tars'), str(tmp_path / 'x.rec')])
    rec = open_source(tmp_path / 'x.rec')
    assert isinstance(shards, Shards)
    assert isinstance(rec, RecordIO)
    assert contents(shards) == contents(rec) == [(raw, i % 3) for i, raw in enumerate(raws)]
    assert shards.classes == rec.classes == ('one, uno', 'two', 'three')
    (tmp_path / 'x.idx').unlink()
    assert contents(RecordIO(tmp_path / 'x.rec')) == contents(rec)
    assert not list(tmp_path.glob('.*'))


def test_packed_splits_of_other_classes_are_refused(tmp_path):
    for split, classes in (('train', ('ant', 'bee', 'cat')), ('val', ('ant', 'cat'))):
        for name in classes:
            (tmp_path / 'photos' / split / name).mkdir(parents=True)
            Image.new('RGB', (8, 8)).save(tmp_path / 'photos' / split / name / 'a.jpg')
        (tmp_path / 'packed').mkdir(exist_ok=True)
        pack.pack(open_source(tmp_path / 'photos' / split), tmp_path / 'packed' / split)
    with pytest.raises(InputError, match=r"the class 'bee' is in only one of train and val"):
        datasets.load('shards', tmp_path / 'packed')


def test_shards_end_when_full_and_shuffling_is_a_permutation(tmp_path):
    source = make_list(tmp_path, [b'\xff\xd8' + bytes([i]) * 2998 for i in range(10)], range(10))
    pack.pack(source, tmp_path / 'plain', shard_bytes=12_000)
    assert len(list((tmp_path / 'plain').glob('*.tar'))) == 4
    assert contents(open_source(tmp_path / 'plain')) == contents(source)
    orders = []
    for name, seed in (('a', 1), ('b', 1), ('c', 2)):
        pack.pack(pack.shuffled(source, seed), tmp_path / f'{name}.rec')
        found = contents(open_source(tmp_path / f'{name}.rec'))
        assert sorted(found) == sorted(contents(source))
        orders.append([label for _, label in found])
    assert orders[0] == orders[1] != orders[2]


def test_resizing_makes_smaller_jpegs_and_leaves_out_what_is_none(tmp_path, capsys):
    images = []
    for size in ((90, 60), (30, 200), (20, 10)):
        file = io.BytesIO()
        Image.new('RGB', size, 'red').save(file, 'png')
        images.append(file.getvalue())
    make_list(tmp_path, [*images, b'no image'], [0, 1, 2, 3])
    with pytest.raises(InputError, match=r'im 3.jpg \(.*\) is unreadable'):
        pack.main([str(tmp_path / 'list.txt'), str(tmp_path / 'x.rec'), '--resize', '30'])
    assert not (tmp_path / 'x.rec').exists()
    assert not (tmp_path / 'x.idx').exists()
    pack.main([str(tmp_path / 'list.txt'), str(tmp_path / 'x.rec'), '--resize', '30', '--unreadable', 'skip'])
    assert 'left out: ' in capsys.readouterr().out
    sizes = [Image.open(io.BytesIO(raw)).size for raw, _ in contents(open_source(tmp_path / 'x.rec'))]
    assert sizes == [(45, 30), (30, 200), (20, 10)]


def test_the_packer_replaces_nothing(tmp_path):
    source = make_list(tmp_path, [b'1'], [0])
    (tmp_path / 'x.rec').touch()
    for target in ('x.rec', 'im 0.jpg'):
        with pytest.raises(InputError, match='exists'):
            pack.pack(source, tmp_path / target)
    for beside in ('y.idx', 'z.classes.txt'):
        (tmp_path / beside).write_text('mine')
        source.classes = ('cat', 'dog')
        with pytest.raises(InputError, match=f'{beside} exists'):
            pack.pack(source, tmp_path / f'{beside[0]}.rec')
        assert (tmp_path / beside).read_text() == 'mine'
    with pytest.raises(InputError, match='there is no folder'):
        pack.pack(source, tmp_path / 'missing' / 'x')


def test_a_subset(tmp_path):
    source = make_list(tmp_path, [b'0', b'1', b'2'], [0, 1, 1])
    subset = Subset(source, np.array([2, 0]))
    assert contents(subset) == [(b'2', 1), (b'0', 0)]
    assert subset.name(0) == source.name(2)
