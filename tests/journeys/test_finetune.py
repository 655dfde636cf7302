"""Fine-tuning on a few photos of one's own, and what short runs and runs that do not learn say: as commands."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import yaml
from documents import ROOT
from substitutions import DATA
from test_journeys import environment

PUBLISHED = DATA / 'weights/squeezenet_v1.1.caffemodel'
SAMPLE = DATA / 'imagenet-sample'
# Labels of the sample, of which there is one photo each; the last ones of a line are held out.
CLASSES = {
    'birds': (10, 20, 80, 90, 130, 140, 100),
    'dogs': (160, 170, 180, 190, 200, 210, 220, 230, 240, 250),
    'vehicles': (450, 510, 670, 690, 780, 810, 830, 870, 880),
}
N_TRAIN = 5
SMALL = ('--size', '64', '--epoch', '1', '--workers', '0')
pytestmark = pytest.mark.journeys
needs_photos = pytest.mark.skipif(not PUBLISHED.is_file(), reason=f'no real photos and weights: {DATA} is not there')


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp('photos')
    names = {int(line.split()[1]): line.split()[0] for line in (SAMPLE / 'val.txt').read_text().splitlines()}
    for name, labels in CLASSES.items():
        for i, label in enumerate(labels):
            place = folder / ('train' if i < N_TRAIN else 'test') / name
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(SAMPLE / names[label], place)
    return folder


def train(folder, *flags):
    """main.py, with its records in `folder`/results/r."""
    words = [sys.executable, ROOT / 'main.py', '-p', folder, '--run', 'r', *flags]
    return subprocess.run(
        list(map(str, words)), capture_output=True, text=True, timeout=300, env=environment(ROOT, ROOT)
    )


def summary_of(folder):
    return json.loads((folder / 'results/r/summary.json').read_text())


def settings_of(folder):
    return yaml.safe_load((folder / 'results/r/config.yaml').read_text())


@pytest.fixture(scope='module')
def tuned(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp('tuned')
    done = train(folder, '--dataset', 'folder', '--data', photos, '--finetune', PUBLISHED)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@needs_photos
def test_fifteen_photos_and_published_weights_make_a_network_that_is_right(tuned):
    folder, text = tuned
    assert summary_of(folder)['last']['test_accuracy'] >= 0.75
    assert summary_of(folder)['hints'] == []
    settings = settings_of(folder)
    chosen = {'model': 'squeezenet_v1.1', 'preprocess': 'caffe', 'size': 227, 'schedule': 'cosine', 'dropout': None}
    assert chosen.items() <= settings.items()
    line = (
        rf'^fine-tuning squeezenet_v1\.1 from {PUBLISHED}: --preprocess caffe --size 227 --epoch {settings["epoch"]} .*'
    )
    assert len(re.findall(line, text, re.MULTILINE)) == 1


@needs_photos
def test_it_can_be_resumed_and_repeated(photos, tuned, tmp_path):
    flags = ('--dataset', 'folder', '--data', photos, '--finetune', PUBLISHED)
    done = train(tuned[0], *flags, '--resume')
    assert done.returncode == 0 and 'it has ended' in done.stdout and 'fine-tuning' not in done.stdout, done.stderr
    first = tmp_path / 'first'
    assert train(first, *flags, *SMALL).returncode == 0
    again = tmp_path / 'again'
    done = train(again, '--config', first / 'results/r/config.yaml')
    assert done.returncode == 0 and 'fine-tuning squeezenet_v1.1' in done.stdout, done.stderr
    with np.load(first / 'results/r/weights_last.npz') as a, np.load(again / 'results/r/weights_last.npz') as b:
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@needs_photos
@pytest.mark.parametrize('suffix', ['.npz', '.sqz', '.safetensors', '.onnx'])
def test_weights_of_an_earlier_run_in_any_format(photos, tuned, tmp_path, suffix):
    source = tuned[0] / 'results/r/weights_last.npz'
    if suffix != '.npz':
        words = [sys.executable, '-m', 'squeeze_net.weights', source, tmp_path / f'w{suffix}']
        if suffix == '.sqz':
            words[2:3] = ['squeeze_net.compression', 'compress']
            words[-1:] = ['-o', tmp_path / 'w.sqz', '--lossless']
        subprocess.run(list(map(str, words)), check=True, capture_output=True, env=environment(ROOT, ROOT))
        source = tmp_path / f'w{suffix}'
    done = train(tmp_path, '--dataset', 'folder', '--data', photos, '--finetune', source, *SMALL, '-b', '100')
    assert done.returncode == 0, done.stderr
    assert 'a batch of 100 is more than the 15 training images: --batch 15' in done.stdout
    assert settings_of(tmp_path)['model'] == 'squeezenet_v1.1' and settings_of(tmp_path)['preprocess'] == 'caffe'
    assert settings_of(tmp_path)['batch'] == 15


@needs_photos
@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (
            ['--finetune', PUBLISHED, '--model', 'alexnet'],
            r'of squeezenet_v1\.1, not of --model alexnet: leave --model out',
        ),
        (
            ['--finetune', PUBLISHED, '--model', 'squeezenet_v1.0'],
            r'of squeezenet_v1\.1, not of --model squeezenet_v1\.0: leave --model out',
        ),
        (['--finetune', PUBLISHED, '-m', 'x.npz'], r'--finetune \S+ and --pretrained x\.npz both say which weights'),
        (['--finetune', 'nowhere.npz'], r'nowhere\.npz does not exist; expected a weights file, or a published one of'),
        (['--pretrained', PUBLISHED, '--model', 'squeezenet_v1.1'], r'1000 classes, the data of 3: give --finetune'),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(photos, tmp_path, flags, message):
    done = train(tmp_path, '--dataset', 'folder', '--data', photos, *flags)
    assert done.returncode == 2 and re.search(message, done.stderr), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_short_run_warms_up_and_keeps_its_schedule_when_resumed(tmp_path):
    flags = ('--dataset', 'shapes', '--size', '32', '--limit', '2', '-b', '10')
    done = train(tmp_path, *flags, '-e', '5')
    assert done.returncode == 0, done.stderr
    assert (
        len(re.findall('^a run of fewer than 30 epochs: --schedule cosine --warmup 1 ', done.stdout, re.MULTILINE)) == 1
    )
    assert (settings_of(tmp_path)['schedule'], settings_of(tmp_path)['warmup']) == ('cosine', 1)
    done = train(tmp_path, *flags, '-e', '40', '--resume')
    assert done.returncode == 2
    assert re.search(r'had the learning rate .* that --epoch 40 gives it: resume with the same --epoch', done.stderr)
    done = train(tmp_path, *flags, '-e', '5', '--resume')
    assert done.returncode == 0 and 'it has ended' in done.stdout, done.stderr


@needs_photos
def test_a_network_from_nothing_on_few_photos_is_told_to_try_fine_tuning(photos, tmp_path):
    flags = ('--dataset', 'folder', '--data', photos, '--size', '32', '-e', '5', '--model', 'squeezenet_v1.1')
    done = train(tmp_path, *flags)
    assert done.returncode == 0, done.stderr
    hints = summary_of(tmp_path)['hints']
    assert len(hints) == 1 and re.search(r'after 5 updates the training loss is .* --finetune$', hints[0])
    assert done.stdout.count(f'hint: {hints[0]}\n') == 1
