"""Batches of pictures from a source: the same whatever the number of processes, which leave nothing behind."""

import functools
import importlib
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trainer import InputError, TrainingError
from trainer.data import decode, images, preprocessing
from trainer.data.decode import Loader, batches
from trainer.data.sources import ImageList

ROOT = Path(__file__).parents[3]
DATA = Path(os.environ.get('SQUEEZE_NET_DATA', ROOT.parent / 'shared' / 'data')) / 'imagenet-sample'
CAFFE = preprocessing.Preprocessing('small', 'squash', 40, 32, mean=(104, 117, 123))


def write_images(folder, n=11, n_class=3, broken=()):
    """A list of JPEGs of several shapes, of which some are cut short."""
    rng = np.random.default_rng(0)
    lines = []
    for i in range(n):
        height, width = rng.integers(20, 70, 2)
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize((width, height))
        file = io.BytesIO()
        coarse.save(file, 'jpeg')
        raw = file.getvalue()
        (folder / f'image {i}.jpg').write_bytes(raw[: len(raw) // 2] if i in broken else raw)
        lines.append(f'image {i}.jpg {i % n_class}\n')
    (folder / 'list.txt').write_text(''.join(lines))
    return ImageList(folder / 'list.txt')


@pytest.mark.parametrize('workers', [0, 1, 2])
def test_every_image_once_in_order_as_cut(tmp_path, workers):
    source = write_images(tmp_path)
    found = list(batches(source, CAFFE, 4, workers))
    assert [len(x) for x, _, _ in found] == [4, 4, 3]
    x, labels, index = (np.concatenate(column) for column in zip(*found, strict=True))
    assert index.tolist() == list(range(11))
    assert labels.tolist() == source.labels.tolist() == [i % 3 for i in range(11)]
    for i in range(11):
        with Image.open(tmp_path / f'image {i}.jpg') as image:
            np.testing.assert_array_equal(x[i], CAFFE.cut(image.convert('RGB')).transpose(2, 0, 1))


@pytest.mark.parametrize('workers', [0, 2])
def test_unreadable_images_are_left_out_and_told(tmp_path, workers):
    source = write_images(tmp_path, broken=(0, 1, 2, 3, 6))
    with batches(source, CAFFE, 4, workers, 'skip') as stream:
        index = np.concatenate([index for _, _, index in stream])
    assert index.tolist() == [4, 5, 7, 8, 9, 10]
    assert [fault.index for fault in stream.skipped] == [0, 1, 2, 3, 6]
    assert 'image 6.jpg' in str(stream.skipped[-1])


@pytest.mark.parametrize('workers', [0, 2])
def test_unreadable_images_are_fatal_if_asked(tmp_path, workers):
    source = write_images(tmp_path, broken=(6,))
    with pytest.raises(InputError, match=r'image 6.jpg \(.*\) is unreadable; --unreadable skip'):
        list(batches(source, CAFFE, 4, workers))


def test_a_missing_file_is_unreadable(tmp_path):
    source = write_images(tmp_path)
    (tmp_path / 'image 2.jpg').unlink()
    with batches(source, CAFFE, 4, 0, 'skip') as stream:
        assert sum(len(x) for x, _, _ in stream) == 10
    assert 'No such file' in str(stream.skipped[0])


@pytest.mark.parametrize('workers', [0, 2])
def test_replacements_are_the_next_that_can_be_read(tmp_path, workers):
    source = write_images(tmp_path, broken=(3, 4, 10))
    loader = Loader(source, decode.CentreCut(CAFFE), 6, workers, 'skip', replaces=True)
    for index in (3, 0, 10, 4):
        loader.ask(0, index)
    _, index = loader.take(4)
    loader.close()
    assert index.tolist() == [5, 0, 0, 5]
    assert sorted(loader.unreadable) == [3, 4, 10]


def test_a_source_without_a_readable_image_is_an_error(tmp_path):
    source = write_images(tmp_path, n=3, broken=(0, 1, 2))
    loader = Loader(source, decode.CentreCut(CAFFE), 2, 0, 'skip', replaces=True)
    loader.ask(0, 1)
    with pytest.raises(InputError, match='3 images in a row are unreadable'):
        loader.take(1)


FAILING = """
import os, signal
import numpy as np

class Failing:
    size = 8

    def __init__(self, how):
        self.how = how

    def __call__(self, raw, epoch, index):
        if index == 1:
            if self.how == 'dies':
                os.kill(os.getpid(), signal.SIGKILL)
            raise ZeroDivisionError('by test')
        return np.zeros((8, 8, 3), np.uint8)
"""


@pytest.fixture
def failing(tmp_path, monkeypatch):
    """A cut that fails as none should, in a module that the workers can import."""
    (tmp_path / 'failing_cut.py').write_text(FAILING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'failing_cut', raising=False)
    return importlib.import_module('failing_cut').Failing


def test_errors_of_workers_name_the_image(tmp_path, failing):
    for workers in (0, 2):
        loader = Loader(write_images(tmp_path), failing('fails'), 4, workers, 'skip', replaces=False)
        for index in range(3):
            loader.ask(0, index)
        with pytest.raises(TrainingError, match=r'image 1.jpg cannot be decoded: ZeroDivisionError: by test'):
            loader.take(3)
        loader.close()


def test_a_worker_that_dies_is_told(tmp_path, failing):
    loader = Loader(write_images(tmp_path), failing('dies'), 4, 2, 'skip', replaces=False)
    for index in range(3):
        loader.ask(0, index)
    with pytest.raises(TrainingError, match='has died by signal 9'):
        loader.take(3)
    loader.close()


@pytest.mark.skipif(not DATA.is_dir(), reason=f'no sample images in {DATA}')
def test_real_images_are_the_same_from_processes():
    source = ImageList(DATA / 'val.txt', class_list=DATA / 'synset_words.txt')
    assert source.labels.tolist() == list(range(0, 1000, 10))
    assert source.classes[10] == 'brambling'
    caffe = preprocessing.find('caffe')
    alone, parallel = (list(batches(source, caffe, 8, workers, indexes=range(40, 56))) for workers in (0, 2))
    for (x, _, index), (y, _, same) in zip(alone, parallel, strict=True):
        np.testing.assert_array_equal(index, same)
        np.testing.assert_array_equal(x, y)


SCRIPT = """
import itertools, signal, sys, trainer
from pathlib import Path
from trainer import preprocessing
from trainer.datasets.decode import batches
from trainer.datasets.sources import ImageList

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
source = ImageList(Path(sys.argv[1]))
stream = batches(source, preprocessing.find('caffe'), 4, 2, indexes=itertools.cycle(range(len(source))))
next(stream)
print('ready', flush=True)
for _ in stream:
    if sys.argv[2] == 'exception':
        raise ZeroDivisionError
"""


def in_session(leader):
    """The processes of a session that are not yet reaped or gone."""
    found = []
    for path in Path('/proc').glob('[0-9]*/stat'):
        try:
            state, _, _, session = path.read_text().rpartition(')')[2].split()[:4]
        except OSError:  # gone
            continue
        if int(session) == leader and state != 'Z':
            found.append(path)
    return found


def test_a_source_of_the_program_itself_is_refused(tmp_path, monkeypatch):
    class Mine(ImageList):
        pass

    Mine.__module__ = '__main__'
    write_images(tmp_path)
    with pytest.raises(InputError, match=r'Mine is defined in the program .*: put it into a module of its own'):
        list(batches(Mine(tmp_path / 'list.txt'), CAFFE, 4, 1))
    assert len(list(batches(Mine(tmp_path / 'list.txt'), CAFFE, 4, 0))) == 3


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='needs /proc')
@pytest.mark.parametrize(
    ('how', 'code', 'last_line'),
    [
        ('exception', 1, 'ZeroDivisionError'),
        ('SIGINT', -2, 'KeyboardInterrupt'),
        ('SIGTERM', -15, ''),
        ('SIGKILL', -9, ''),
    ],
)
def test_no_process_is_left(tmp_path, how, code, last_line):
    write_images(tmp_path)
    script = subprocess.Popen(
        [sys.executable, '-c', SCRIPT, str(tmp_path / 'list.txt'), how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {'PYTHONPATH': str(ROOT)},
    )
    assert script.stdout.readline() == 'ready\n'
    if how != 'exception':
        assert len(in_session(script.pid)) == 4  # the script, the launcher, two workers
        script.send_signal(getattr(signal, how))
    try:
        _, errors = script.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(script.pid, signal.SIGKILL)  # else it takes both cores until somebody sees it
        raise
    assert script.returncode == code
    assert errors.strip().rpartition('\n')[2] == last_line
    assert errors.count('Traceback') == bool(last_line)  # none of the workers'
    deadline = time.monotonic() + 20
    while in_session(script.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not in_session(script.pid)


def test_closing_ends_the_processes(tmp_path):
    source = write_images(tmp_path)
    stream = batches(source, CAFFE, 4, 2)
    next(stream)
    launcher = stream._loader._workers._launcher
    stream.close()
    assert launcher.poll() is not None
    assert list(stream) == []
    loader = Loader(source, decode.CentreCut(CAFFE), 4, 2, 'fail', replaces=False)
    loader.close()
    loader.close()
    with pytest.raises(TrainingError, match='have ended'):
        loader.ask(0, 0)


def test_more_rows_than_the_pipes_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, 'MAX_IN_FLIGHT', 3)
    source = write_images(tmp_path, broken=(3, 10))
    loader = Loader(source, decode.CentreCut(CAFFE), 22, 2, 'skip', replaces=True)
    for index in [*range(11), *range(11)]:
        loader.ask(0, index)
    _, index = loader.take(22)
    loader.close()
    assert index.tolist() == [0, 1, 2, 4, 4, 5, 6, 7, 8, 9, 0] * 2


@pytest.mark.filterwarnings('ignore::UserWarning')
@settings(max_examples=150, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=8),
    end=st.integers(0, 1500),
    form=st.sampled_from(['jpeg', 'png', 'gif', 'bmp', 'ppm', 'tiff', 'webp']),
    reduces=st.booleans(),
)
def test_broken_images_are_an_error_or_an_image(changes, end, form, reduces):
    raw = encoded(form)
    for at, value in changes:
        raw[at % len(raw)] = value
    try:
        image = decode.decode(bytes(raw[:end]), (lambda width, height: (8, 8)) if reduces else None)
    except InputError as error:
        assert str(error)
    else:
        assert image.mode == 'RGB'
        assert image.width * image.height <= images.MAX_PIXELS


@functools.cache
def _encoded(form):
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (16, 20, 3), np.uint8)
    Image.fromarray(noise).save(file, form)
    return file.getvalue()


def encoded(form):
    return bytearray(_encoded(form))


@pytest.mark.filterwarnings('ignore:Image size')
def test_too_many_pixels_are_refused_before_they_are_decoded():
    header = b'P6 12000 11000 255\n'
    with pytest.raises(InputError, match='12000 x 11000 px, more than 100,000,000'):
        decode.decode(header + bytes(100))


@pytest.mark.parametrize('mode', ['L', 'CMYK', 'P', 'RGBA', '1'])
def test_other_colours_become_rgb(mode):
    file = io.BytesIO()
    Image.new('RGB', (9, 7), (255, 0, 0)).convert(mode).save(file, 'jpeg' if mode in ('L', 'CMYK') else 'png')
    image = decode.decode(file.getvalue())
    assert (image.mode, image.size) == ('RGB', (9, 7))
