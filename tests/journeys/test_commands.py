"""The commands as a shell runs them, from a folder of the user's: what they leave alone, and their parallel paths."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from documents import ROOT
from PIL import Image
from test_journeys import copy_of_repository

from squeeze_net import make_network
from squeeze_net.weights import Weights, tensors_of, write
from trainer import InputError
from trainer.data.metadata import Metadata

TINY = ['--dataset', 'shapes', '--limit', '4', '--size', '32', '-b', '8', '-e', '1', '-g', '-1']


def execute(words, folder, **options):
    """`python words` in a folder, with the repository on the path alone."""
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'CUDA_VISIBLE_DEVICES': ''}
    command = [sys.executable, *map(str, words)]
    options = {'capture_output': True, 'text': True, 'env': environment, 'timeout': 300} | options
    return subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, **options)


# ---- what is there already ----


@pytest.mark.journeys
def test_a_run_in_a_clone_changes_nothing_that_is_tracked(tmp_path):
    home = copy_of_repository(tmp_path / 'clone')

    def git(*words):
        words = ['git', '-c', 'user.name=me', '-c', 'user.email=me@example.org', *words]
        return subprocess.run(words, cwd=home, capture_output=True, text=True, check=True).stdout

    git('init')
    git('add', '--force', '.')  # also records below results/, which are ignored unless they are tracked
    git('commit', '-m', 'all')
    for model in 'squeezenet', 'alexnet':
        done = execute(['main.py', *TINY, '-p', './', '--model', model], home)
        assert done.returncode == 0, done.stderr
    assert git('status', '--porcelain') == ''
    pictures = {path.name for path in (home / 'img').iterdir()}
    matrices = {f'confusion_{model}_shapes_32px.png' for model in ('squeezenet', 'alexnet')}
    reports = {f'report_{model}_shapes_32px.html' for model in ('squeezenet', 'alexnet')}
    assert pictures == {'accuracy.png', 'loss.png'} | matrices | reports


FOREIGN = b'somebody else has written this'
WEIGHTS = ROOT / 'results/squeezenet_jpeg/weights_best.npz'
ARCHIVE = ROOT / 'results/compression/small.sqz'
VALIDATE = ['squeeze_net.validate', ROOT / 'results/squeezenet_v1.1_finetuned/weights_best.npz', '--list', 'list.txt']
# What is in the way, and the command that would write it.
REFUSED = [
    ('net.onnx', ['squeeze_net.weights', WEIGHTS, 'net.onnx', '--network', 'squeezenet']),
    ('net.npz', ['squeeze_net.compression', 'decompress', ARCHIVE, 'net.npz']),
    ('net.sqz', ['squeeze_net.compression', 'compress', WEIGHTS, '-o', 'net.sqz', '--lossless']),
    ('a.png', ['squeeze_net.compression', 'draw', ROOT / 'results/compression/small.json', '-o', 'a.png']),
    ('net.dot', ['squeeze_net.summary', 'squeezenet', '--size', '32', '--graph', 'net.dot']),
    ('a.csv', [*VALIDATE, '--per_class', 'a.csv']),
    ('a.csv', [*VALIDATE, '--confusion', 'a.csv']),
    ('sheet.png', ['trainer.augmentation', 'photo.jpg', '--size', '32']),
    ('x.rec', ['trainer.datasets.pack', 'list.txt', 'x.rec']),
    ('x.idx', ['trainer.datasets.pack', 'list.txt', 'x.rec']),
    ('shards', ['trainer.datasets.pack', 'list.txt', 'shards']),
    ('results/r/config.yaml', ['squeeze_net', *TINY, '--run', 'r']),
]
# Pictures in a folder get another name instead: what is in the way, the command, and that name.
NUMBERED = [
    ('photo.png', ['squeeze_net.infer', 'photo.jpg', '-w', VALIDATE[1], '--draw', '.'], 'photo_2.png'),
    ('img/loss.png', ['trainer.report', ROOT / 'results/squeezenet_jpeg'], 'img/loss_2.png'),
    (
        'img/confusion_squeezenet_jpeg.png',
        ['trainer.report', ROOT / 'results/squeezenet_jpeg'],
        'img/confusion_squeezenet_jpeg_2.png',
    ),
    (
        'img/pareto.png',
        ['squeeze_net.explore', '-o', ROOT / 'results/explore', '--images', 'img', '--draw_only'],
        'img/pareto_2.png',
    ),
    ('img/accuracy.png', ['squeeze_net', *TINY, '--overwrite'], 'img/accuracy_2.png'),
]


@pytest.fixture
def folder(tmp_path):
    """A folder with a photo and a list of it."""
    photo(tmp_path / 'photo.jpg', np.random.default_rng(0))
    (tmp_path / 'list.txt').write_text('photo.jpg 0\n')
    return tmp_path


def photo(path, rng):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((64, 48)).save(path)


def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(FOREIGN)


@pytest.mark.journeys
@pytest.mark.parametrize(('name', 'words'), REFUSED, ids=lambda value: value if isinstance(value, str) else value[0])
def test_what_others_made_is_not_written_over(name, words, folder):
    put(folder / name)
    before = sorted(folder.rglob('*'))
    done = execute(['-m', *words], folder)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert Path(name).name in done.stderr and ('--overwrite' in done.stderr or 'remove it' in done.stderr)
    assert (folder / name).read_bytes() == FOREIGN and sorted(folder.rglob('*')) == before
    if '--overwrite' in done.stderr and name != 'x.idx':
        done = execute(['-m', *words, '--overwrite'], folder)
        assert done.returncode == 0 and (folder / name).read_bytes() != FOREIGN, done.stderr


def test_the_file_beside_a_caffemodel_is_not_written_over_either(tmp_path):
    put(tmp_path / 'net.prototxt')
    network = Weights(tensors_of(make_network('squeezenet_v1.1', 2, 64)), Metadata('squeezenet_v1.1', 2))
    with pytest.raises(InputError, match=r'net\.prototxt exists'):
        write(network, tmp_path / 'net.caffemodel', overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ['net.prototxt']


@pytest.mark.journeys
@pytest.mark.parametrize(('name', 'words', 'other'), NUMBERED, ids=lambda v: v if isinstance(v, str) else v[0])
def test_pictures_take_another_name(name, words, other, folder):
    put(folder / name)
    for _ in range(2):  # its own ones are drawn again
        done = execute(['-m', *words], folder)
        assert done.returncode == 0, done.stderr
    assert (folder / name).read_bytes() == FOREIGN
    with Image.open(folder / other) as image:
        assert image.width > 100
    assert not (folder / other.replace('_2.', '_3.')).exists()


# ---- in parallel, from a folder of the user's ----

N = 70  # images of a class; processes decode from 64 on


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    """Photos of two classes of CIFAR-10, and modules called as those of Python."""
    folder, rng = tmp_path_factory.mktemp('home'), np.random.default_rng(0)
    for split in 'train', 'val':
        for name in ('cat', 'dog'):
            for i in range(N):
                photo(folder / f'photos/{split}/{name}/{i}.jpg', rng)
        rows = [f'{split}/{name}/{i}.jpg {label}\n' for label, name in enumerate(('cat', 'dog')) for i in range(N)]
        (folder / f'photos/{split}.txt').write_text(''.join(rows))
    for name in 'pickle', 'struct', 'squeeze_net', 'trainer':
        (folder / f'{name}.py').write_text('raise SystemExit("the wrong module")')
    return folder


STREAMED = ['--data', 'photos', '--size', '32', '-b', '16', '-e', '1', '-g', '-1']
# What each module that can be run shows, and the files that it writes.
COMMANDS = {
    'squeeze_net': (
        [*STREAMED, '--dataset', 'folder', '--preprocess', 'caffe', '--workers', 2, '-p', 'streamed'],
        r'decoding in 2 processes(?s:.*)best epoch 1: test accuracy +\d',
        ['streamed/results/*/summary.json', 'streamed/img/accuracy.png'],
    ),
    'squeeze_net.infer': (
        ['photos', '-w', VALIDATE[1], '--top', '1', '--format', 'csv'],
        r'photos/val/dog/9.jpg,1,\d,\w+,0\.\d+',
        [],
    ),
    'squeeze_net.validate': (
        [VALIDATE[1], '--dataset', 'folder', '--data', 'photos'],
        r'2 classes of .* by name \(cat: 3\)(?s:.*)140 images(?s:.*)top-1 \d',
        [],
    ),
    'squeeze_net.weights': ([ARCHIVE, 'net.safetensors'], r'wrote net.safetensors', ['net.safetensors']),
    'squeeze_net.summary': (['squeezenet', '--graph', 'net.dot'], r'wrote net.dot(?s:.*)fire9', ['net.dot']),
    'squeeze_net.compression': (['compress', ARCHIVE, '-o', 'new.sqz', '--lossless'], r'[\d,]+ bytes', ['new.sqz']),
    'squeeze_net.deploy': (
        [ARCHIVE, '-o', 'deployed'],
        r'wrote deployed/squeezenet.wasm(?s:.*)int8 is left out',
        ['deployed/model.onnx', 'deployed/squeezenet.c', 'deployed/index.html'],
    ),
    'squeeze_net.explore': (
        [
            *STREAMED,
            '--dataset',
            'imagelist',
            '--ratios',
            '0.25,0.5',
            '--shares',
            '0.5',
            '-o',
            'sweep',
            '--processes',
            2,
        ],
        r'on the Pareto front(?s:.*)drew sweep/pareto.png',
        ['sweep/points.jsonl', 'sweep/pareto.png'],
    ),
    'trainer.report': ([ROOT / 'results/alexnet_jpeg'], r'\| run \|', ['img/loss.png']),
    'trainer.augmentation': (['photos/val/cat/0.jpg', '--size', '32'], r'sheet.png: \d+', ['sheet.png']),
    'trainer.datasets.pack': (
        ['photos/val', 'packed.rec', '--resize', '32'],
        r'packed.rec: 140 images',
        ['packed.rec'],
    ),
    'trainer.doctor': ([], r'Python .*(?s:.*)-g -1', []),
}
RUN_ELSEWHERE = {'squeeze_net.explore.point', 'squeeze_net.deploy.page.build'}  # by squeeze_net.explore; test_page.py


QUICK = 'trainer.datasets.pack'
CASES = [pytest.param(name, marks=() if name == QUICK else pytest.mark.journeys) for name in COMMANDS]


@pytest.mark.parametrize('name', CASES)
def test_command_in_parallel(name, home):
    words, shows, writes = COMMANDS[name]
    done = execute(['-P', '-m', name, *words], home)
    assert done.returncode == 0 and 'Traceback' not in done.stderr, done.stdout + done.stderr
    assert re.search(shows, done.stderr + done.stdout), done.stdout + done.stderr
    for pattern in writes:
        assert list(home.glob(pattern)), pattern


def test_every_command_is_in_the_table():
    paths = [path for package in ('squeeze_net', 'trainer') for path in (ROOT / package).rglob('*.py')]
    found = set()
    for path in paths:
        if "if __name__ == '__main__':" in path.read_text(encoding='utf-8') and 'tests' not in path.parts:
            name = '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__main__')
            typed = {'trainer.data.augmentation': 'trainer.augmentation'}
            found.add(typed.get(name, name).replace('trainer.data.datasets', 'trainer.datasets'))
    assert found == COMMANDS.keys() | RUN_ELSEWHERE


def test_processes_do_not_depend_on_how_python_starts_them():
    """What it does by default is another thing on 3.11 and 3.14: none is started by its own modules."""
    for package in 'squeeze_net', 'trainer':
        for path in (ROOT / package).rglob('*.py'):
            words = r'multiprocessing import|multiprocessing\.(?!parent_process)|ProcessPool'
            assert not re.search(words, path.read_text(encoding='utf-8')), path


@pytest.mark.journeys
def test_answers_do_not_depend_on_the_processes(home):
    words = ['-P', '-m', 'squeeze_net.infer', 'photos', '-w', VALIDATE[1], '--format', 'jsonl']
    answers = [execute([*words, '--workers', n], home).stdout for n in (0, 3)]
    assert answers[0] == answers[1] and len(answers[0].splitlines()) == 4 * N


@pytest.mark.journeys
def test_infer_names_what_it_cannot_read(folder):
    (folder / 'broken.jpg').write_bytes(b'\xff\xd8\xff nothing')
    words = ['-m', 'squeeze_net.infer', 'broken.jpg', 'photo.jpg', 'gone.jpg', '-w', VALIDATE[1], '--top', '1']
    done = execute(words, folder)
    assert done.returncode == 2 and 'gone.jpg does not exist' in done.stderr
    words.remove('gone.jpg')
    done = execute(words, folder)
    assert done.returncode == 0 and done.stdout.startswith('broken.jpg\n  cannot be read: '), done.stderr
    assert re.search(r'\nphoto.jpg\n +\d', done.stdout) and done.stderr == '1 of 2 images could not be read\n'
    first, second = json.loads(execute([*words, '--format', 'json'], folder).stdout)
    assert first.keys() == {'image', 'error'} and second['top'][0]['probability'] > 0.1
    assert execute([*words, '--format', 'csv'], folder).stdout.splitlines()[1] == 'broken.jpg,,,,'
    done = execute(['-m', 'squeeze_net.infer', 'broken.jpg', '-w', VALIDATE[1]], folder)
    assert done.returncode == 2 and 'none of the images can be read' in done.stderr


ADDRESSES = [
    ['squeeze_net.infer', 'http://x.org/cat.jpg', '-w', 'w.npz'],
    ['squeeze_net.infer', 'photo.jpg', '-w', 's3://bucket/w.npz'],
    ['squeeze_net.weights', 'https://x.org/w.npz'],
]


@pytest.mark.parametrize('words', ADDRESSES)
def test_addresses_are_refused(words, folder):
    done = execute(['-m', *words], folder)
    assert done.returncode == 2 and 'is an address: download it' in done.stderr


@pytest.mark.journeys
def test_names_that_the_terminal_has_no_characters_for(folder):
    (folder / 'photo.jpg').rename(os.fsdecode(bytes(folder / 'caf') + b'\xe9.jpg'))
    (folder / 'names').write_text(''.join(f'Käfer {i}\n' for i in range(10)), encoding='utf-8')
    words = ['-m', 'squeeze_net.infer', '.', '-w', VALIDATE[1], '--classes', 'names']
    for encoding in 'utf-8', 'ascii':
        environment = os.environ | {'PYTHONPATH': str(ROOT), 'PYTHONIOENCODING': encoding, 'LANG': 'C'}
        for form in 'table', 'csv', 'json':
            done = execute([*words, '--format', form], folder, env=environment, encoding='utf-8')
            assert done.returncode == 0 and r'caf\udce9.jpg' in done.stdout, done.stderr
            if form == 'json':
                assert json.loads(done.stdout)[0]['top'][0]['name'].startswith('Käfer')


@pytest.mark.journeys
def test_a_reader_that_leaves_and_ctrl_c_end_it_quietly(home, tmp_path):
    """More answers than the pipe holds, so that it cannot have ended before."""
    (tmp_path / 'many.txt').write_text(f'{home}/photos/train/cat/0.jpg\n' * 2000)
    words = [sys.executable, '-P', '-m', 'squeeze_net.infer', 'photos', str(tmp_path / 'many.txt')]
    words += ['-w', str(VALIDATE[1]), '-b', '1']
    environment, left_out = os.environ | {'PYTHONPATH': str(ROOT)}, 'photos: 2 other files left out (.txt)\n'
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'cwd': home, 'env': environment, 'text': True}
    with subprocess.Popen(words, **pipes) as process:
        assert process.stdout.readline() == 'photos/train/cat/0.jpg\n'
        process.stdout.close()
        assert process.wait(60) == 141 and process.stderr.read() == left_out
    # What a shell starts in the background ignores SIGINT, and so would this process, if the tests run there.
    with subprocess.Popen(words, **pipes, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) as process:
        assert process.stdout.readline() == 'photos/train/cat/0.jpg\n'
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130 and err == f'{left_out}python -m squeeze_net.infer: interrupted\n'
