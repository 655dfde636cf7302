"""The experiment's command line, run as a user runs it: in a process of its own, on drawn shapes at 32 px."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from squeeze_net import make_network
from squeeze_net.weights import Weights, tensors_of, write
from trainer import engine
from trainer.data.datasets.shapes import SHAPES
from trainer.data.metadata import Metadata

ROOT = Path(__file__).parents[1]
QUICK = ['--dataset', 'shapes', '--size', '32', '--limit', '10', '--epoch', '2', '--batch', '20', '--run', 'r']

# What is told where there is no oneDNN.
FALLBACK = (
    ''
    if engine.is_available()
    else 'main.py: the CPU computes with plain Chainer, several times slower: '
    'oneDNN is not installed (pip install onednn-cpu-tbb, on x86-64 Linux)\n'
)


def command(folder, *flags):
    return [sys.executable, str(ROOT / 'main.py'), *QUICK, '-p', str(folder), *flags]


def run(folder, *flags):
    return subprocess.run(command(folder, *flags), capture_output=True, text=True, timeout=300)


def read_log(folder):
    return [json.loads(line) for line in (folder / 'results/r/log.jsonl').read_text().splitlines()]


def weights(folder):
    with np.load(folder / 'results/r/weights_last.npz') as arrays:
        return dict(arrays)


def assert_same_weights(a, b):
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A finished run and what it printed."""
    folder = tmp_path_factory.mktemp('finished')
    done = run(folder)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_runs_end_to_end(finished):
    folder, done = finished
    assert done.stderr == FALLBACK
    assert 'squeezenet: 747,146 parameters' in done.stdout
    assert len(re.findall(r'^epoch \d/2 ', done.stdout, re.MULTILINE)) == 2
    assert '--model alexnet --run alexnet' in done.stdout  # how to get a baseline, beside this run
    assert [entry['epoch'] for entry in read_log(folder)] == [1, 2]
    summary = json.loads((folder / 'results/r/summary.json').read_text())
    assert summary['finished'] and np.sum(summary['confusion']) == 100
    pictures = {'loss.png', 'accuracy.png', 'confusion_r.png', 'report_r.html'}
    assert {path.name for path in (folder / 'img').iterdir()} == pictures


@pytest.mark.long
def test_repeats_to_the_bit_from_its_config(finished, tmp_path):
    folder, _ = finished
    done = run(tmp_path, '--config', str(folder / 'results/r/config.yaml'))
    assert done.returncode == 0, done.stderr
    assert_same_weights(folder, tmp_path)


@pytest.mark.long
@pytest.mark.skipif(engine.threads() < 2 or not engine.is_available(), reason='one thread, or no oneDNN to name any')
def test_resuming_with_other_threads_says_so(finished, tmp_path):
    folder, _ = finished
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    assert 'it was computed on' not in run(tmp_path, '--resume').stdout
    done = run(tmp_path, '--resume', '--threads', '1')
    assert done.returncode == 0, done.stderr
    assert re.search(r'it was computed on CPU, .*\d+ threads.*: from here on, results differ', done.stdout)


STOPS = [signal.SIGKILL, *(pytest.param(stop, marks=pytest.mark.long) for stop in (signal.SIGTERM, signal.SIGINT))]


@pytest.mark.parametrize('kill', STOPS)
def test_killed_and_resumed_equals_unbroken_to_the_bit(finished, tmp_path, kill):
    """Killed at the end of the first epoch, about when its checkpoint is written."""
    with subprocess.Popen(
        command(tmp_path, '--checkpoint_minutes', '0.002'), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            if line.startswith('epoch 1/2'):
                break
        process.send_signal(kill)
        rest, errors = process.communicate(timeout=60)
    if kill == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 128 + kill
        assert (
            errors.removeprefix(FALLBACK).strip()
            == f'{kill.name}: finishing the iteration, then saving (again: quit at once)'
        )
        assert rest.rstrip().endswith('--resume')
    assert len(read_log(tmp_path)) == 1
    done = run(tmp_path, '--resume')
    assert done.returncode == 0, done.stderr
    assert 'resumed' in done.stdout
    assert_same_weights(finished[0], tmp_path)


@pytest.mark.long
def test_float64(tmp_path):
    done = run(tmp_path, '--precision', 'float64', '--epoch', '1')
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / 'results/r/weights_last.npz') as arrays:
        assert arrays['conv1/W'].dtype == np.float64


def test_reader_of_the_output_may_go_away(tmp_path):
    with subprocess.Popen(command(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 141
    assert errors == ''


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--batch', '0'], r'--batch is 0'),
        (['--size', '2000'], r'2000'),
        (['--limit', '1000000000'], r'--limit 1000000000'),
        (['--dataset', 'folder', '--data', 'nowhere'], r'nowhere'),
        (['--dataset', 'cifar10', '--data', 'nowhere'], r'nowhere'),
        (['-m', 'nowhere.npz'], r'nowhere\.npz does not exist'),
        (['--config', 'nowhere.yaml'], r'nowhere\.yaml'),
        (['--model', 'alexnet', '--size', '20'], r'AlexNet needs 29 px or more'),
        (['-p', '/dev/null'], r'/dev/null'),
    ],
)
def test_bad_input_ends_in_one_sentence_and_exit_code_2(tmp_path, flags, message):
    done = run(tmp_path, *flags)
    assert done.returncode == 2
    assert re.search(message, done.stderr)
    assert 'Traceback' not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_installed_copy_runs_as_a_module(tmp_path):
    argv = [sys.executable, '-m', 'squeeze_net', *QUICK, '-p', str(tmp_path), '--batch', '0']
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.startswith('python -m squeeze_net: error: --batch is 0')


def test_an_earlier_run_is_refused_before_data_are_loaded(finished):
    done = run(finished[0], '--data', 'nowhere')
    assert done.returncode == 2
    assert 'holds an earlier run' in done.stderr


def test_missing_gpu_is_said_in_one_sentence(tmp_path):
    done = subprocess.run(
        command(tmp_path, '-g', '0'),
        capture_output=True,
        text=True,
        env=os.environ | {'CUDA_VISIBLE_DEVICES': ''},
        timeout=60,
    )
    assert done.returncode == 2
    assert re.fullmatch(r'main\.py: error: -g 0.*-g -1, the CPU\n', done.stderr)


@pytest.mark.long
def test_starts_from_the_weights_of_another_run(finished, tmp_path):
    folder, _ = finished
    source = str(folder / 'results/r/weights_last.npz')
    done = run(tmp_path, '--pretrained', source, '--lr', '1e-9', '--epoch', '1')
    assert done.returncode == 0, done.stderr
    before, after = weights(folder), weights(tmp_path)
    for name in before:
        if name.rpartition('/')[2] in ('W', 'b', 'gamma', 'beta'):
            np.testing.assert_allclose(after[name], before[name], atol=1e-5, err_msg=name)
    np.savez(
        tmp_path / 'of3.npz', **before | {'conv10/conv/W': before['conv10/conv/W'][:3], 'conv10/conv/b': np.zeros(3)}
    )
    done = run(tmp_path / 'b', '--pretrained', str(tmp_path / 'of3.npz'))
    assert done.returncode == 2 and re.search('of 3 classes, the data of 10.*--reset-classifier', done.stderr)
    done = run(tmp_path / 'b', '--pretrained', str(tmp_path / 'of3.npz'), '--reset-classifier', '--epoch', '1')
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_learns_from_a_teacher(finished, tmp_path):
    teacher = ['--teacher', str(finished[0] / 'results/r/weights_last.npz')]
    taught, gone_on = tmp_path / 'taught', tmp_path / 'gone_on'
    done = run(taught, *teacher, '--distill', '1')
    assert done.returncode == 0, done.stderr
    assert 'teacher: squeezenet, 747,146 parameters' in done.stdout
    are_same = [np.array_equal(weights(taught)[name], w) for name, w in weights(finished[0]).items() if w.ndim > 1]
    assert not any(are_same)
    assert run(gone_on, *teacher, '--epoch', '1', '--schedule', 'constant').returncode == 0
    done = run(gone_on, '--schedule', 'constant', '--resume')
    assert done.returncode == 2
    assert 'was trained with the teacher SqueezeNet of checksum ' in done.stderr and ', not no teacher: ' in done.stderr
    own = ['--teacher', str(gone_on / 'results/r/weights_last.npz')]
    done = run(gone_on, *own, '--schedule', 'constant', '--overwrite')
    assert done.returncode == 2 and 'lies in the run that would be replaced' in done.stderr


@pytest.mark.long
def test_the_documented_teacher_at_growing_sizes_resumed_to_the_bit(tmp_path):
    np.random.seed(0)
    path, n_class = tmp_path / 'teacher.npz', len(SHAPES)
    tensors = tensors_of(make_network('airbench94', n_class, 64))
    write(Weights(tensors, Metadata('airbench94', n_class, classes=tuple(SHAPES))), path)
    flags = ['--size', '64', '--progressive_size', '32=1', '--teacher', str(path), '--schedule', 'constant']
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    done = run(whole, *flags, '--epoch', '3', '--resume')
    assert done.returncode == 0, done.stderr
    assert 'r has no checkpoint_last.npz: the run starts anew' in done.stdout
    assert '--model alexnet' not in done.stdout  # which has no teacher
    assert run(parts, *flags, '--epoch', '2').returncode == 0
    os.renames(path, tmp_path / 'elsewhere' / 'teacher.npz')
    flags[flags.index(str(path))] = str(tmp_path / 'elsewhere' / 'teacher.npz')
    done = run(parts, *flags, '--epoch', '3', '--resume')
    assert done.returncode == 0, done.stderr
    assert_same_weights(whole, parts)


@pytest.mark.long
@pytest.mark.parametrize('kill', [None, signal.SIGINT])
def test_images_from_files(tmp_path, kill):
    """Decoded by processes, of which none is left, however it ends."""
    colours = np.random.default_rng(0).integers(0, 256, (24, 3))
    for i, colour in enumerate(colours.tolist()):
        Image.new('RGB', (60, 45), tuple(colour)).save(tmp_path / f'{i}.jpg')
    (tmp_path / 'train.txt').write_text(''.join(f'{i}.jpg {i % 3}\n' for i in range(18)))
    (tmp_path / 'val.txt').write_text(''.join(f'{i}.jpg {i % 3}\n' for i in range(18, 24)))
    argv = [sys.executable, str(ROOT / 'main.py'), '--dataset', 'imagelist', '--data', str(tmp_path), '--run', 'r']
    argv += ['--preprocess', 'caffe', '--size', '32', '-b', '6', '--workers', '2', '-p', str(tmp_path)]
    argv += ['-e', '300' if kill else '1']
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        for line in process.stdout:
            if re.match('epoch +1/', line):
                break
        if kill:
            process.send_signal(kill)
        process.stdout.read()
        errors = process.stderr.read()
    assert process.returncode == (128 + kill if kill else 0), errors
    assert 'Traceback' not in errors
    assert read_log(tmp_path)[0]['epoch'] == 1
    group = [path for path in Path('/proc').glob('[0-9]*/stat') if session_of(path) == process.pid]
    assert not group


def session_of(stat):
    try:
        state, _, _, session = stat.read_text().rpartition(')')[2].split()[:4]
    except OSError:  # gone
        return None
    return None if state == 'Z' else int(session)
