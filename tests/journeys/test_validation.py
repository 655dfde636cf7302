"""Holding out, stopping early and weighing classes, as typed: main.py in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
FLAGS = ['--size', '32', '-b', '20', '-lr', '0.02', '--run', 'r']
SHAPES = ['--dataset', 'shapes', '--limit', '20', '-e', '2', *FLAGS]


def start(folder, *argv):
    command = [sys.executable, str(ROOT / 'main.py'), '-p', str(folder), *map(str, argv)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(folder, *argv, code=0):
    """What it prints; for another exit code than 0, its message."""
    with start(folder, *argv) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == code and 'Traceback' not in err, err
    return err if code else out


def records(folder):
    log = [json.loads(line) for line in (folder / 'results/r/log.jsonl').read_text().splitlines()]
    summary = json.loads((folder / 'results/r/summary.json').read_text())
    log = [{key: value for key, value in entry.items() if key not in ('seconds', 'images_per_s')} for entry in log]
    return log, {key: value for key, value in summary.items() if key not in ('seconds', 'last', 'best', 'parts')}


@pytest.mark.journeys
def test_validation_chooses_and_a_killed_run_gives_the_same(tmp_path):
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    flags = [*SHAPES, '--validation', '10%']
    out = run(whole, *flags)
    assert 'validation: 20 of 200 training images are held out to choose the best epoch' in out
    log, summary = records(whole)
    best = max(log, key=lambda entry: entry['val_accuracy'])
    test = summary['test']
    assert (len(log), test['epoch'], test['chosen_on']) == (2, best['epoch'], 'validation')
    assert 'test_accuracy' not in log[0] and np.sum(test['confusion']) == 200
    told = f'validation accuracy {best["val_accuracy"]:.2%}; with its weights, test accuracy {test["accuracy"]:.2%}'
    assert f'best epoch {best["epoch"]}: {told}' in out
    assert 'validation: 10%' in (whole / 'results/r/config.yaml').read_text()

    with start(broken, *flags) as process:
        while process.poll() is None and not (broken / 'results/r/weights_best.npz').exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert 'resumed' in run(broken, *flags, '--resume')
    assert records(broken) == records(whole)

    command = [sys.executable, '-m', 'trainer.report', str(whole / 'results'), '-o', str(tmp_path / 'img')]
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    table = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    assert f'{test["accuracy"]:.2%} ({best["epoch"]})'.replace('%', ' %') in table
    assert 'The epoch is picked on 20 validation images, the test images are scored once.' in table
    assert (tmp_path / 'img/confusion_r.png').exists()


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """Two classes by brightness, 24 images of the one and 4 of the other."""
    folder = tmp_path_factory.mktemp('photos')
    rng = np.random.default_rng(0)
    for split, counts in ('train', (24, 4)), ('test', (4, 4)):
        for name, n in zip(('bright', 'dark'), counts, strict=True):
            place = folder / split / name
            place.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 60, (32, 32, 3), np.uint8) + np.uint8(180 * (name == 'bright'))
                Image.fromarray(pixels).save(place / f'{i}.png')
    return folder


@pytest.mark.journeys
def test_classes_of_unequal_size_are_told_and_weighed(photos, tmp_path):
    flags = ['--dataset', 'folder', '--data', photos, '-e', 1, *FLAGS]
    assert "class 'bright' has 24 images, 'dark' 4: consider --class_weights balanced" in run(tmp_path / 'a', *flags)
    out = run(tmp_path / 'b', *flags, '--class_weights', 'balanced')
    assert "class 'bright' has 24 images, 'dark' 4: losses are weighted by class, from 0.583 to 3.5" in out
    losses = [records(tmp_path / name)[0][0]['train_loss'] for name in 'ab']
    assert losses[0] != losses[1]


@pytest.mark.journeys
def test_patience_ends_a_run_that_does_not_improve(tmp_path):
    """At rate 0 and with statistics that stay, no epoch is better than the first."""
    flags = [*SHAPES[:4], '-e', 9, *FLAGS, '-lr', 0, '--freeze', '*bn*', '--patience', 1]
    out = run(tmp_path, *flags)
    assert '--patience uses the test images, as there are no validation images, so their accuracy is optimistic' in out
    assert 'stopped after epoch 2: no higher test accuracy for 1 epoch, the best is that of epoch 1' in out
    assert records(tmp_path)[1]['stopped_early'] == 2
    assert 'it has ended, and is only drawn again' in run(tmp_path, *flags, '--resume')


@pytest.mark.parametrize(
    ('amount', 'message'),
    [
        ('some', "--validation is 'some'; expected a number of images such as 500, or a share such as 10%"),
        ('195', '--validation 195: 195 of 200 images to hold out, expected 1..190, as every class keeps one'),
    ],
)
def test_amounts_that_do_not_fit_are_refused(tmp_path, amount, message):
    assert message in run(tmp_path, *SHAPES, '--validation', amount, code=2)
