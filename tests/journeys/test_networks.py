"""Networks of one's own: what a script that trains one prints, and the commands with a network that the script adds."""

import json
import re
import shlex
import subprocess
import sys

import pytest
from PIL import Image

TRAIN = """
import trainer, trainer.functions as F, trainer.links as L
from chainer import Sequential, links
with trainer.exit_with_message('train.py'):
    net = {network}
    data = trainer.datasets.load('shapes', limit=2)
    trainer.train(net, data, trainer.Config(model='own', dataset='shapes', size=32, epoch=1, batch=4, run='own'))
"""
OWN = """
import importlib, sys
import trainer, trainer.functions as F, trainer.links as L
from chainer import Sequential
from squeeze_net import NETWORKS

def own(n_class):
    shared = Sequential(L.Convolution2D(None, 8, 3, pad=1), L.BatchNormalization(8), F.relu)
    body = Sequential(L.Convolution2D(8, 8, 3, pad=1), F.relu).repeat(2)
    return Sequential(shared, body, lambda h: F.mean(h, (2, 3)), L.Linear(None, n_class))

NETWORKS['own'] = own
command = importlib.import_module('squeeze_net.' + sys.argv.pop(1))
with trainer.exit_with_message('own.py'):
    sys.exit(command.main())
"""
REFUSED = {
    'L.Convolution2D(3, 10, 3, pad=1)': r'returned \(1, 10, 32, 32\); logits \(1, 10\) are expected: average over',
    'Sequential(lambda h: F.mean(h, (2, 3)), L.Linear(3, 7))': r'returned \(1, 7\); .* the data have 10 classes',
    'links.Classifier(L.Linear(None, 10))': 'give its predictor',
}


def run(folder, *arguments):
    return subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize('network', REFUSED)
def test_what_is_not_logits_is_one_sentence(tmp_path, network):
    done = run(tmp_path, '-c', TRAIN.format(network=network))
    assert done.returncode == 2
    assert re.search(REFUSED[network], done.stderr)
    assert done.stderr.startswith('train.py: error: ') and len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / 'results').exists()


@pytest.mark.journeys
def test_every_command_knows_a_network_that_a_script_adds(tmp_path):
    (tmp_path / 'own.py').write_text(OWN)
    Image.effect_noise((50, 40), 60).convert('RGB').save(tmp_path / 'photo.png')
    flags = shlex.split('--model own --dataset shapes --size 32 --limit 4 -e 1 -b 8 --lr 0.01 --run own -p .')
    weights = 'results/own/weights_best.npz'

    def own(*arguments):
        done = run(tmp_path, 'own.py', *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def answer(file):
        (line,) = own('infer', 'photo.png', '-w', file, '--format', 'jsonl').splitlines()
        return json.loads(line)['top']

    own('__main__', *flags)
    assert 'resumed' in own('__main__', *flags, '--resume')
    summary = json.loads((tmp_path / 'results/own/summary.json').read_text())
    table = json.loads(own('summary', 'own', '--size', '32', '--n_class', '10', '--format', 'json'))
    assert table['total']['parameters'] == summary['n_parameters'] == 1498
    own('weights.__main__', weights, 'own.onnx')
    own('compression.__main__', 'compress', weights, '-o', 'own.sqz', '--lossless')
    expected = answer(weights)
    for file in ('own.onnx', 'own.sqz'):
        assert [one['name'] for one in answer(file)] == [one['name'] for one in expected]
        assert answer(file)[0]['probability'] == pytest.approx(expected[0]['probability'], abs=1e-4)

    done = run(tmp_path, '-m', 'squeeze_net.infer', 'photo.png', '-w', weights)
    assert done.returncode == 2
    assert "the weights are of 'own', which is not among the networks of this project" in done.stderr
    assert 'trainer.load_classifier(model, FILE)' in done.stderr
