"""The names that modules had before version 0.2 still lead to them."""

import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec

import pytest

import trainer  # noqa: F401  (it installs the old names)
from trainer.moved import MOVED, present_name


@pytest.mark.parametrize(('old', 'new'), MOVED.items())
def test_every_entry_is_the_same_module_object(old, new):
    assert find_spec(new) is not None
    assert import_module(old) is import_module(new)
    assert import_module(new).__spec__.name == new


def test_submodules_of_what_has_moved_are_found():
    assert present_name('trainer.datasets.pack') == 'trainer.data.datasets.pack'
    assert present_name('trainer.data.datasets.pack') is None
    assert import_module('trainer.datasets.archive') is import_module('trainer.data.datasets.archive')
    with pytest.raises(ModuleNotFoundError):
        import_module('trainer.datasets.nothing')


@pytest.mark.parametrize('command', ['trainer.datasets.pack', 'trainer.augmentation', 'trainer.report'])
def test_commands_keep_their_names(command):
    done = subprocess.run([sys.executable, '-m', command, '--help'], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout.startswith(f'usage: python -m {command} ')
