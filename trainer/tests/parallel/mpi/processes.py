"""Starts the trainings of `crew.py`, waits for them, and compares what they have written."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

CREW = Path(__file__).with_name('crew.py')
ROOT = Path(__file__).parents[4]
HAS_MPI = shutil.which('mpiexec') is not None
try:
    import mpi4py  # noqa: F401
except ImportError:
    HAS_MPI = False
ENVIRONMENT = {  # as CI runs: as root, with more processes than cores
    'OMPI_ALLOW_RUN_AS_ROOT': '1',
    'OMPI_ALLOW_RUN_AS_ROOT_CONFIRM': '1',
    'OMPI_MCA_rmaps_base_oversubscribe': '1',
    'OMPI_MCA_btl_vader_single_copy_mechanism': 'none',
    'OMP_NUM_THREADS': '1',
    'PYTHONPATH': str(ROOT),
    'CREW_OF': str(os.getpid()),  # tells them from those of tests that run beside these
}
FIFTY = ['--iterations', 50, '--checkpoint_minutes', 0, '--schedule', 'constant']
RUN = 'results/crew_cifar10_32px'


def command(n, *argv):
    start = ['mpiexec', '-n', str(n)] if n else []
    flags = ['--communicator', 'naive'] if n else []
    return [*start, sys.executable, str(CREW), *map(str, argv), *flags]


def start(n, *argv, **variables):
    environment = os.environ | ENVIRONMENT | {name: str(value) for name, value in variables.items()}
    options = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True, 'env': environment}
    return subprocess.Popen(command(n, *argv), **options)


def run(n, *argv, **variables):
    """Of n processes, or of one without mpiexec where n is 0: exit code, what was printed, and the seconds."""
    began = time.monotonic()
    with start(n, *argv, **variables) as process:
        text, _ = process.communicate(timeout=120)
    return process.returncode, text, time.monotonic() - began


def finish(n, *argv, **variables):
    code, text, _ = run(n, *argv, **variables)
    assert code == 0, text
    return text


def weights(folder, name='weights_last.npz'):
    with np.load(folder / RUN / name) as found:
        return {key: found[key] for key in found.files if found[key].dtype.kind == 'f'}


def log(folder):
    return [json.loads(line) for line in (folder / RUN / 'log.jsonl').read_text().splitlines()]


def assert_same_training(one, other, rtol):
    for mine, theirs in zip(log(one), log(other), strict=True):
        for key in 'train_loss', 'train_accuracy', 'test_loss', 'test_accuracy':
            assert mine[key] == pytest.approx(theirs[key], rel=rtol, abs=rtol), key
    a, b = weights(one), weights(other)
    for key in a:
        np.testing.assert_allclose(a[key], b[key], rtol=rtol, atol=rtol * np.abs(b[key]).max(), err_msg=key)


def crew_processes():
    """Process numbers of trainings that were started here and still are there."""
    found, mine = [], f'CREW_OF={os.getpid()}'.encode()
    for path in Path('/proc').glob('[0-9]*/cmdline'):
        try:
            words = path.read_bytes().split(b'\0')
            is_mine = mine in path.with_name('environ').read_bytes().split(b'\0')
        except OSError:
            continue
        if is_mine and os.fsencode(CREW) in words and b'mpiexec' not in words[0]:
            found.append(int(path.parent.name))
    return found


def assert_all_ended():
    deadline = time.monotonic() + 10
    while left := crew_processes():
        assert time.monotonic() < deadline, f'processes {left} are left'
        time.sleep(0.1)
