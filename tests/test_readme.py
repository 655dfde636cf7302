"""What the README says of files and flags is so."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from squeeze_net import NETWORKS
from squeeze_net.classifier import default_class_names
from trainer import cli

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get('SQUEEZE_NET_DATA', ROOT.parent / 'shared' / 'data'))
README = (ROOT / 'README.md').read_text(encoding='utf-8')


def python_blocks(path):
    return re.findall(r'```python\n(.*?)```', path.read_text(encoding='utf-8'), re.DOTALL)


def test_example_is_the_one_that_the_trainers_tests_run():
    assert python_blocks(ROOT / 'README.md')[-1:] == python_blocks(ROOT / 'trainer/README.md')


@pytest.mark.skipif(not DATA.is_dir(), reason=f'no published weights and images in {DATA}')
def test_classifying_a_picture_runs_as_it_stands(tmp_path):
    sample = DATA / 'imagenet-sample'
    image = (sample / 'val.txt').read_text().split()[0]
    (tmp_path / 'squeezenet_v1.1.caffemodel').symlink_to(DATA / 'weights/squeezenet_v1.1.caffemodel')
    (tmp_path / 'cat.jpg').symlink_to(sample / image)
    code = python_blocks(ROOT / 'README.md')[0]
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {'PYTHONPATH': str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    name, _, probability = done.stdout.strip().rpartition(' ')
    assert name in default_class_names(1000) and 0.01 < float(probability) <= 1


def test_links_and_pictures_exist():
    targets = re.findall(r'\]\((?!https?:)([^)]+)\)', README)
    assert targets
    headings = {'#' + heading.lower().replace(' ', '-') for heading in re.findall(r'^#+ (.*)$', README, re.MULTILINE)}
    assert [target for target in targets if target not in headings and not (ROOT / target).exists()] == []


def test_every_flag_of_the_commands_exists():
    known = {flag for action in cli.make_parser(NETWORKS)._actions for flag in action.option_strings}
    known |= {flag.replace('_', '-') for flag in known}
    commands = re.findall(r'python main\.py (.*?)(?:  #|$)', README, re.MULTILINE)
    used = {word for command in commands for word in command.split() if re.fullmatch(r'--?[a-z][a-z_-]*', word)}
    assert {'-e', '--resume'} <= used
    assert used <= known


def test_every_module_of_the_layout_exists():
    layout = README.split('## Layout')[1].split('##')[0]
    tops = [path for path in ROOT.iterdir() if not path.name.startswith('.')]  # not the virtual environment
    known = {path.name for top in tops for path in (top.rglob('*.py') if top.is_dir() else [top])}
    for name in re.findall(r'[a-z_]+\.py', layout):
        assert name in known
