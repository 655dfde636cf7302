"""The two lines that install from a git address, typed with pip and with uv, and the commands of the copy."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[2]
COMMANDS = ('', '.infer', '.validate', '.summary', '.weights', '.compression', '.explore')
COMMANDS = tuple(f'squeeze_net{name}' for name in COMMANDS)
COMMANDS += ('trainer.doctor', 'trainer.report', 'trainer.augmentation', 'trainer.datasets.pack')
TRAIN = shlex.split('--dataset shapes --size 32 --limit 4 -e 1 -b 8 --lr 0.01 --model squeezenet_v1.1 --run quick -p .')
CONSTRAINTS = {name: str(ROOT / 'constraints.txt') for name in ('PIP_CONSTRAINT', 'UV_CONSTRAINT')}
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'} | CONSTRAINTS


def run(folder, *command, **environment):
    done = subprocess.run(
        list(map(str, command)), cwd=folder, capture_output=True, text=True, timeout=540, env=ENVIRONMENT | environment
    )
    assert done.returncode == 0, f'{shlex.join(map(str, command))}\n{done.stdout}\n{done.stderr}'
    return done.stdout


def documented_lines():
    """Those of trainer/README.md, with the packages in a clone of this repository as it was last committed."""
    section = (ROOT / 'trainer/README.md').read_text(encoding='utf-8').split('## Install')[1].split('##')[0]
    lines = [shlex.split(line) for line in re.findall(r'^ {4}pip (.*)$', section, re.MULTILINE)]
    assert len(lines) == 2 and '"squeeze-net @ git+ADDRESS"' in section
    lines[1].append('squeeze-net @ git+ADDRESS')
    commit = subprocess.run(['git', 'rev-parse', 'HEAD'], cwd=ROOT, capture_output=True, text=True)
    if commit.returncode:
        pytest.skip('this is not a clone')
    address = f'git+file://{ROOT}@{commit.stdout.strip()}'
    return [[word.replace('git+ADDRESS', address) for word in line] for line in lines]


@pytest.fixture(scope='module')
def tools(tmp_path_factory):
    """The Python of an environment with today's pip and uv."""
    python = make_environment(tmp_path_factory.mktemp('tools') / 'tools')
    done = subprocess.run([python, '-m', 'pip', 'install', '--quiet', '--upgrade', 'pip', 'uv'], capture_output=True)
    if done.returncode:
        pytest.skip('no package index can be reached')
    return python


def make_environment(folder):
    subprocess.run([sys.executable, '-m', 'venv', str(folder)], check=True)
    return folder / 'bin/python'


@pytest.fixture(scope='module', params=['pip', 'uv'])
def installed(request, tools, tmp_path_factory):
    """The Python of a fresh environment after the two lines."""
    folder = tmp_path_factory.mktemp(request.param)
    python = make_environment(folder / 'venv')
    for line in documented_lines():
        if request.param == 'uv':
            run(folder, tools.parent / 'uv', 'pip', *line, VIRTUAL_ENV=str(folder / 'venv'))
        else:
            run(folder, tools, '-m', 'pip', '--python', python, *line)
    return python


def test_it_is_a_copy_that_trains_as_main_py(installed, tmp_path):
    place = run(tmp_path, installed, '-c', 'import squeeze_net, trainer; print(squeeze_net.__file__, trainer.__file__)')
    assert place.count('site-packages') == 2
    for name, program in ('copy', ['-m', 'squeeze_net']), ('main', [ROOT / 'main.py']):
        (tmp_path / name).mkdir()
        run(tmp_path / name, installed, *program, *TRAIN)
    copy, main = (tmp_path / name / 'results/quick' for name in ('copy', 'main'))
    weights, expected = (np.load(folder / 'weights_last.npz') for folder in (copy, main))
    assert sorted(weights.files) == sorted(expected.files) and len(expected.files) > 50
    for name in expected.files:
        np.testing.assert_array_equal(weights[name], expected[name])


def test_every_command_of_the_copy_runs(installed, tmp_path):
    for command in COMMANDS:
        assert run(tmp_path, installed, '-m', command, '--help').startswith(f'usage: python -m {command}')
    assert 'python -m squeeze_net -p ./ -e 300' in run(tmp_path, installed, '-m', 'squeeze_net', '--help')
    run(tmp_path, installed, '-m', 'squeeze_net', *TRAIN, '--overwrite')
    run(tmp_path, installed, '-m', 'trainer.augmentation', 'shapes', '-o', 'photo.png')
    weights = 'results/quick/weights_best.npz'
    (line,) = run(
        tmp_path, installed, '-m', 'squeeze_net.infer', 'photo.png', '-w', weights, '--format', 'jsonl'
    ).splitlines()
    assert sum(one['probability'] for one in json.loads(line)['top']) <= 1.001
    run(tmp_path, installed, '-m', 'squeeze_net.weights', weights, 'quick.onnx')
    names = 'from squeeze_net.classifier import default_class_names; print(default_class_names(1000)[0])'
    assert run(tmp_path, installed, '-c', names).strip() == 'tench'
