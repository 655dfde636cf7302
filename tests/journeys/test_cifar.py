"""`main.py --dataset cifar10` with what people have: each form of the set, and what is not one."""

import hashlib
import io
import json
import os
import pickle
import socket
import subprocess
import sys
import tarfile
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import substitutions
from documents import ROOT
from PIL import Image

from trainer.data.datasets.cifar import CIFAR10

pytestmark = pytest.mark.journeys

TRAIN = ['-e', '1', '-b', '10', '--size', '32', '--limit', '2', '-p', 'out', '--run', 'run', '-g', '-1']


def run_main(folder, *arguments, program=(), **environment):
    return subprocess.run(
        [sys.executable, *(program or [ROOT / 'main.py']), *TRAIN, *map(str, arguments)],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def refusal(folder, *arguments, **environment):
    """The sentence with which the command ends."""
    done = run_main(folder, *arguments, **environment)
    assert done.returncode == 2, done.stderr
    assert 'Traceback' not in done.stderr
    return done.stderr.splitlines()[-1]


# ---- the forms of the set ----


def batches(folder):
    """(name, pixels (N, 3, 32, 32), labels) of each file of `substitutions.cifar`, and the class names."""
    substitutions.cifar(folder)
    folder /= CIFAR10.folder
    read = {name: pickle.loads((folder / name).read_bytes()) for name in (*CIFAR10.batches, CIFAR10.meta)}
    names = [name.decode() for name in read.pop(CIFAR10.meta)[b'label_names']]
    return [(name, one[b'data'].reshape(-1, 3, 32, 32), one[b'labels']) for name, one in read.items()], names


def folder_of_it(place):
    batches(place)
    return CIFAR10.folder


def parent_folder(place):
    batches(place)
    return '.'


def tar_gz(place):
    batches(place)
    with tarfile.open(place / CIFAR10.archive, 'w:gz') as archive:
        archive.add(place / CIFAR10.folder, CIFAR10.folder)
    return CIFAR10.archive


def zipped(place):
    batches(place)
    with zipfile.ZipFile(place / 'archive.zip', 'w') as archive:
        for path in sorted((place / CIFAR10.folder).iterdir()):
            archive.write(path, f'{CIFAR10.folder}/{path.name}')
    return 'archive.zip'


def binary(place):
    read, names = batches(place / 'python')
    with tarfile.open(place / CIFAR10.binary_archive, 'w:gz') as archive:
        files = {f'{name}.bin': np.column_stack([labels, pixels.reshape(-1, 3072)]) for name, pixels, labels in read}
        contents = {name: rows.astype(np.uint8).tobytes() for name, rows in files.items()}
        for name, raw in (contents | {CIFAR10.binary_classes: '\n'.join(names).encode()}).items():
            member = tarfile.TarInfo(f'{CIFAR10.binary_folder}/{name}')
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    return CIFAR10.binary_archive


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(file, 'png')
    return file.getvalue()


def parquet(place):
    pa = pytest.importorskip('pyarrow', reason='pyarrow is not installed')
    from pyarrow.parquet import write_table

    read, names = batches(place / 'python')
    (place / 'cifar10/plain_text').mkdir(parents=True)
    for split, files in ('train', CIFAR10.train), ('test', CIFAR10.test):
        images = [{'bytes': png(p), 'path': None} for name, pixels, _ in read if name in files for p in pixels]
        labels = [label for name, _, labels in read if name in files for label in labels]
        table = pa.table({'img': images, 'label': labels})
        features = {'label': {'names': names, '_type': 'ClassLabel'}}
        table = table.replace_schema_metadata({'huggingface': json.dumps({'info': {'features': features}})})
        write_table(table, place / f'cifar10/plain_text/{split}-00000-of-00001.parquet')
    return 'cifar10'


@pytest.fixture(scope='module')
def usual(tmp_path_factory):
    """What a run on the extracted folder ends with."""
    place = tmp_path_factory.mktemp('usual')
    return summary(run_main(place, '--data', folder_of_it(place)), place)


def summary(done, place):
    assert done.returncode == 0, done.stderr
    return json.loads((place / 'out/results/run/summary.json').read_text())


@pytest.mark.parametrize(
    'form',
    [parquet, *(pytest.param(form, marks=pytest.mark.journeys) for form in (parent_folder, tar_gz, zipped, binary))],
    ids=lambda form: form.__name__,
)
def test_every_form_trains_the_same(tmp_path, usual, form):
    done = run_main(tmp_path, '--data', form(tmp_path))
    given = summary(done, tmp_path)
    for key in ('classes', 'confusion'):
        assert given[key] == usual[key]
    assert given['last']['train_loss'] == usual['last']['train_loss']
    assert given['dataset']['n_train'] == 20
    assert done.stdout.startswith(given['dataset']['source'])


# ---- what is not one ----


def test_without_a_network_every_address_and_every_way_on_is_told(tmp_path):
    with socket.socket() as closed:
        closed.bind(('127.0.0.1', 0))  # nobody listens
        proxy = f'http://127.0.0.1:{closed.getsockname()[1]}'
        sentence = refusal(
            tmp_path, https_proxy=proxy, HTTPS_PROXY=proxy, no_proxy='', NO_PROXY='', CHAINER_DATASET_ROOT='cache'
        )
    for word in (CIFAR10.url, *CIFAR10.mirrors, CIFAR10.md5, 'refused', 'cache/trainer/cifar', '--data DIR'):
        assert word in sentence
    assert '--dataset folder --data cifar10.tar.xz' in sentence


BAD = {
    'a web page': (b'<!DOCTYPE html>\n<html><body>Too many requests', 'it is a web page, not the file'),
    'a pointer': (b'version https://git-lfs.github.com/spec/v1\noid sha256:6d9\n', 'it is a Git LFS pointer'),
}


@pytest.mark.parametrize(('raw', 'words'), BAD.values(), ids=BAD)
def test_what_is_not_the_archive_is_named(tmp_path, raw, words):
    (tmp_path / CIFAR10.archive).write_bytes(raw)
    assert f'{CIFAR10.archive} cannot be read as a tar archive: {words}' in refusal(tmp_path, '--data', CIFAR10.archive)


def test_an_archive_cut_short_is_named(tmp_path):
    path = tmp_path / tar_gz(tmp_path)
    path.write_bytes(path.read_bytes()[:-20_000])
    assert refusal(tmp_path, '--data', path.name).endswith('it is cut short: download or copy it again')


def test_class_folders_are_a_data_set_of_another_name(tmp_path):
    for split in ('train', 'test'):
        for name in ('cat', 'dog'):
            substitutions.drawn_photo(tmp_path / 'images' / split / name / '0.jpg', np.random.default_rng(0))
    with tarfile.open(tmp_path / 'cifar10.tar.xz', 'w:xz') as archive:
        archive.add(tmp_path / 'images', 'cifar10')
    sentence = refusal(tmp_path, '--data', 'cifar10.tar.xz')
    assert 'cifar10.tar.xz holds image files' in sentence
    assert 'add --dataset folder' in sentence


def test_without_pyarrow_the_sentence_says_what_to_install(tmp_path):
    (tmp_path / 'missing').mkdir()
    (tmp_path / 'missing/pyarrow.py').write_text('raise ImportError')
    for split in ('train', 'test'):
        (tmp_path / f'{split}.parquet').write_bytes(b'PAR1')
    path = os.pathsep.join([str(tmp_path / 'missing'), os.environ.get('PYTHONPATH', str(ROOT))])
    assert refusal(tmp_path, '--data', '.', PYTHONPATH=path).endswith('not installed: pip install pyarrow')


# ---- downloading ----

OTHER_ADDRESSES = """
import runpy, sys
from trainer.data.datasets.editions import CIFAR10

main, url, mirror, md5 = sys.argv[1:5]
for name, value in (('url', url), ('mirrors', (mirror,)), ('md5', md5)):
    object.__setattr__(CIFAR10, name, value)
sys.argv = [main, *sys.argv[5:]]
runpy.run_path(main, run_name='__main__')
"""


def test_a_mirror_is_used_when_the_first_address_has_nothing(tmp_path, usual):
    archive = tmp_path / 'served' / tar_gz(tmp_path / 'served')
    handler = partial(SimpleHTTPRequestHandler, directory=str(archive.parent))
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        address = f'http://127.0.0.1:{server.server_port}'
        urls = [f'{address}/nothing/{CIFAR10.archive}', f'{address}/{CIFAR10.archive}']
        md5 = hashlib.md5(archive.read_bytes()).hexdigest()
        program = ['-c', OTHER_ADDRESSES, str(ROOT / 'main.py'), *urls, md5]
        done = run_main(tmp_path, program=program, no_proxy='*', CHAINER_DATASET_ROOT=str(tmp_path / 'cache'))
        server.shutdown()
    assert f'{urls[0]}: HTTP Error 404: File not found; trying {urls[1]}\n' in done.stderr
    assert summary(done, tmp_path)['last']['train_loss'] == usual['last']['train_loss']
    assert (tmp_path / 'cache/trainer/cifar' / CIFAR10.archive).read_bytes() == archive.read_bytes()
