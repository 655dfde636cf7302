"""The commands as a shell runs them, from a folder of the user's: what they leave alone, and their parallel paths."""

import os
import subprocess
import sys

from documents import ROOT
from test_journeys import copy_of_repository

TINY = ['--dataset', 'shapes', '--limit', '4', '--size', '32', '-b', '8', '-e', '1', '-g', '-1']


def execute(words, folder, **options):
    """`python words` in a folder, with the repository on the path alone."""
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'CUDA_VISIBLE_DEVICES': ''}
    command = [sys.executable, *map(str, words)]
    options = {'capture_output': True, 'text': True, 'env': environment, 'timeout': 300} | options
    return subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, **options)


# ---- what is there already ----


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
    assert pictures == {'accuracy.png', 'loss.png'} | matrices
