"""Several processes under a real mpiexec: the same run as one, resumed on any number, and no harm when one dies."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from processes import (
    CREW,
    ENVIRONMENT,
    FIFTY,
    HAS_MPI,
    RUN,
    assert_all_ended,
    assert_same_training,
    crew_processes,
    finish,
    log,
    run,
    start,
    weights,
)

pytestmark = [
    pytest.mark.mpi,
    pytest.mark.skipif(not HAS_MPI, reason='needs mpiexec (Debian: openmpi-bin) and mpi4py'),
]

# ---- the same run ----


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp('alone')
    finish(0, '-p', folder, *FIFTY)
    return folder


@pytest.mark.parametrize('n', [2, pytest.param(3, marks=pytest.mark.long)])
def test_synchronised_ranks_train_as_one_process(alone, n, tmp_path):
    text = finish(n, '-p', tmp_path, *FIFTY, '--sync-bn')
    assert text.count('epoch 5/5') == 1 and f'computing on {n} processes' in text
    assert_same_training(tmp_path, alone, rtol=2e-3)
    summary = json.loads((tmp_path / RUN / 'summary.json').read_text())
    assert np.sum(summary['confusion']) == 70  # each of the test images once


@pytest.mark.long
def test_mixed_pictures_parts_and_a_teacher_are_the_same_too(tmp_path):
    flags = [*FIFTY[:1], 20, *FIFTY[2:], '--mixup', 0.3, '--cutmix', 1, '--ema', 0.9, '-trb', 2, '--teacher', 7]
    flags += ['--precision', 'float64', '--freeze', '*bn*']  # whose statistics would be those of parts
    finish(0, '-p', tmp_path / 'one', *flags)
    finish(2, '-p', tmp_path / 'two', *flags)
    assert_same_training(tmp_path / 'two', tmp_path / 'one', rtol=1e-9)


@pytest.mark.long
def test_validation_patience_and_class_weights_are_the_same_too(tmp_path):
    flags = ['-e', 6, '--schedule', 'constant', '--validation', '20%', '--class_weights', 'balanced', '--patience', 2]
    flags += ['--precision', 'float64', '--freeze', '*bn*', '--checkpoint_minutes', 0]
    finish(0, '-p', tmp_path / 'one', *flags)
    text = finish(3, '-p', tmp_path / 'three', *flags)
    assert text.count('validation: 24 of 120 training images are held out') == 1
    one, three = (json.loads((tmp_path / name / RUN / 'summary.json').read_text()) for name in ('one', 'three'))
    assert np.sum(three['test']['confusion']) == 70 and np.sum(three['confusion']) == 24
    assert three['test']['confusion'] == one['test']['confusion']
    assert three['test']['loss'] == pytest.approx(one['test']['loss'], rel=1e-9)
    assert [three.get(key) for key in ('stopped_early', 'finished')] == [one.get('stopped_early'), True]
    mistakes = [json.loads((tmp_path / name / RUN / 'mistakes.json').read_text()) for name in ('one', 'three')]
    assert mistakes[0]['images'] == 'test' and mistakes[0]['mistakes']
    for mine, theirs in zip(*(each.pop('mistakes') for each in mistakes), strict=True):
        assert mine.pop('probability') == pytest.approx(theirs.pop('probability'), rel=1e-6)
        assert mine == theirs
    assert mistakes[0] == mistakes[1]
    for mine, theirs in zip(log(tmp_path / 'three'), log(tmp_path / 'one'), strict=True):
        for key in 'train_loss', 'val_loss', 'val_accuracy':
            assert mine[key] == pytest.approx(theirs[key], rel=1e-9), key
    before = (tmp_path / 'three' / RUN / 'summary.json').read_text()
    assert 'only drawn again' in finish(2, '-p', tmp_path / 'three', *flags, '--resume')
    assert (tmp_path / 'three' / RUN / 'summary.json').read_text() == before


@pytest.mark.long
def test_batches_that_do_not_divide(tmp_path):
    flags = ['--iterations', 12, '-b', 13, '--precision', 'float64', '--freeze', '*bn*', '--checkpoint_minutes', 0]
    finish(0, '-p', tmp_path / 'one', *flags)
    finish(3, '-p', tmp_path / 'three', *flags)
    assert_same_training(tmp_path / 'three', tmp_path / 'one', rtol=1e-9)


@pytest.mark.long
def test_a_checkpoint_goes_on_with_any_number_of_processes(alone, tmp_path):
    """The unbroken run of one process, in pieces of two, one and three."""
    flags = ['-p', tmp_path, '--schedule', 'constant', '--checkpoint_minutes', 0, '--sync-bn']
    finish(2, *flags, '-e', 1)
    assert 'resumed' in finish(0, *flags, '-e', 3, '--resume')
    assert 'resumed' in finish(3, *flags, '-e', 5, '--resume')
    assert_same_training(tmp_path, alone, rtol=2e-3)


@pytest.mark.long
def test_only_the_first_rank_prints_and_writes(tmp_path):
    text = finish(3, '-p', tmp_path, '--iterations', 10)
    assert text.count('computing on') == 1 and text.count('epoch 1/1') == 1
    files = {path.name for path in (tmp_path / RUN).iterdir()}
    assert 'checkpoint_last.npz' in files and not [name for name in files if 'part' in name]


# ---- what does not fit ----


def test_started_by_mpiexec_without_a_communicator(tmp_path):
    line = ['mpiexec', '-n', '2', sys.executable, str(CREW), '-p', str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, env=os.environ | ENVIRONMENT, timeout=60)
    assert done.returncode == 2 and 'each would train alone: give --communicator' in done.stderr


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['-b', 1], '--batch 1 leaves nothing to some of 2 processes'),
        (['-g', 0], '--communicator naive gives GPU memory to MPI, which this one cannot read'),
        (['-trb', 7], '--train_batch_divide 7 cuts the 6 rows of a process into empty parts'),
        (['-b', 'x'], "argument -b/--batch: invalid int value: 'x'"),
        (['-b', 13, '--sync-bn'], '--sync-bn needs the same number of rows on all of 2 processes'),
        (['--grad_dtype', 'float16'], 'goes with --communicator pure_nccl alone'),
    ],
)
def test_flags_that_do_not_go_together(flags, message, tmp_path):
    code, text, _ = run(2, '-p', tmp_path, *flags)
    assert code == 2 and text.count(message) == 1 and 'Traceback' not in text
    assert not (tmp_path / RUN).exists()


@pytest.mark.long
def test_ranks_of_other_flags_or_data_are_named(tmp_path):
    own = [sys.executable, str(CREW), '-p', str(tmp_path), '--communicator', 'naive']
    line = ['mpiexec', '-n', '1', *own, ':', '-n', '1', *own, '-lr', '0.2']
    done = subprocess.run(line, capture_output=True, text=True, env=os.environ | ENVIRONMENT, timeout=60)
    assert done.returncode == 2
    assert re.search(r'rank 1 on \S+ has --lr 0.2, rank 0 on \S+ has 0.05: all ranks need the same', done.stderr)
    assert 'Traceback' not in done.stderr
    code, text, _ = run(2, '-p', tmp_path, CREW_DATA=1)
    assert code == 2 and re.search(r'rank 1 on \S+ has training images 120 of checksum', text)
    line = ['mpiexec', '-n', '1', *own, '--teacher', '7', ':', '-n', '1', *own, '--teacher', '8']
    done = subprocess.run(line, capture_output=True, text=True, env=os.environ | ENVIRONMENT, timeout=60)
    assert done.returncode == 2 and re.search(r'rank 1 on \S+ has the teacher Crew of checksum', done.stderr)
    assert not list((tmp_path / RUN).glob('*.npz'))


# ---- what goes wrong ----


@pytest.mark.parametrize(
    ('kind', 'message'),
    [
        ('raise', 'rank 1 of 2 on .*: ZeroDivisionError: something that nobody has thought of'),
        pytest.param('nan', 'rank . of 2 on .*: the loss is nan in iteration 2', marks=pytest.mark.long),
        pytest.param('memory', 'rank 1 of 2 on .*: out of memory at --batch 12', marks=pytest.mark.long),
        pytest.param('kill', r'rank 1 on \S+ \(process \d+\) has ended; all others end', marks=pytest.mark.long),
        pytest.param('stop', r'rank 1 on \S+ \(process \d+\) is stopped; all others end', marks=pytest.mark.long),
    ],
)
def test_one_message_names_the_rank_and_the_way_to_go_on(kind, message, tmp_path):
    flags = ['-p', tmp_path, '-e', 4, '--checkpoint_minutes', 0]
    code, text, seconds = run(2, *flags, CREW_FAULT=f'{"all" if kind == "nan" else 1}:25:{kind}')
    assert code != 0 and seconds < 60
    assert len(re.findall(message, text)) == 1 and text.count('error: ') == 1, text
    assert re.search(r'mpiexec -n 2 python \S*crew.py .* --resume', text), text
    assert_all_ended()
    assert 'resumed' in finish(2, *flags, '--resume')  # from the end of epoch 2
    assert len(log(tmp_path)) == 4


@pytest.mark.long
def test_the_first_rank_stopped(tmp_path):
    code, text, seconds = run(3, '-p', tmp_path, '-e', 4, '--checkpoint_minutes', 0, CREW_FAULT='0:15:stop')
    assert code != 0 and seconds < 60 and re.search(r'rank 0 on \S+ \(process \d+\) is stopped', text), text
    assert text.count('error: ') == 1, text
    assert_all_ended()


@pytest.mark.long
def test_a_request_to_stop_reaches_all_and_loses_nothing(tmp_path):
    flags = ['--iterations', 40, '--schedule', 'constant', '--checkpoint_minutes', 0]
    finish(2, '-p', tmp_path / 'whole', *flags)
    code, text, _ = run(2, '-p', tmp_path / 'broken', *flags, CREW_FAULT='1:17:term')
    assert code == 128 + signal.SIGTERM and 'interrupted' not in text.replace('interrupted; go on', ''), text
    assert 'resumed' in finish(2, '-p', tmp_path / 'broken', *flags, '--resume')
    a, b = weights(tmp_path / 'whole'), weights(tmp_path / 'broken')
    for key in a:
        if 'avg_' not in key:  # the means of the ranks' statistics, taken once more
            np.testing.assert_array_equal(a[key], b[key])


@pytest.mark.long
def test_twenty_kills_at_random_moments(tmp_path):
    flags = ['-e', 12, '--schedule', 'constant', '--checkpoint_minutes', 0.003]
    started = time.perf_counter()
    finish(2, '-p', tmp_path / 'whole', *flags)
    pace = time.perf_counter() - started  # of this machine
    rng, broken = random.Random(0), tmp_path / 'broken'
    n_progress = 0
    for _ in range(20):
        with start(2, '-p', broken, *flags, '--resume', CREW_DELAY=0.02) as process:
            time.sleep(rng.uniform(0.3, 1.2) * pace)
            if members := crew_processes():
                os.kill(rng.choice([*members, process.pid]), signal.SIGKILL)
            process.communicate(timeout=60)
        assert_all_ended()
        if (broken / RUN / 'checkpoint_last.npz').exists():
            with np.load(broken / RUN / 'checkpoint_last.npz') as found:
                n_progress = max(n_progress, int(found['updater/iteration']))
    assert n_progress > 10
    finish(2, '-p', broken, *flags, '--resume')
    assert not list((broken / RUN).glob('.*.part'))
    assert [entry['epoch'] for entry in log(broken)] == list(range(1, 13))
    a, b = weights(tmp_path / 'whole'), weights(broken)
    for key in a:
        if 'avg_' not in key:
            np.testing.assert_array_equal(a[key], b[key])
