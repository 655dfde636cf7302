"""How many cores a process may use, on made-up and real control groups, and what others take of them."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from trainer.engine import cores
from trainer.engine.cores import Contention, Usage, count_cores, cpu_quota, default_threads

HOST = set(range(64))
ME = os.getpid()


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Writes files of /proc and /sys/fs/cgroup as a machine of 64 cores would show them."""
    monkeypatch.setattr(cores, 'bound_cores', lambda: HOST)

    def write(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / 'proc', tmp_path / 'cgroup'

    return write


@pytest.mark.parametrize(
    ('limit', 'expected'),
    [
        ('max 100000', 64),
        ('100000 100000', 1),
        ('10000 100000', 1),
        ('140000 100000', 1),
        ('150000 100000', 2),
        ('380000 100000', 4),
        ('25000 10000', 3),
        ('9000000 100000', 64),
    ],
)
def test_a_quota_limits_the_cores(tree, limit, expected):
    assert count_cores(*tree({'proc/self/cgroup': '0::/\n', 'cgroup/cpu.max': limit + '\n'})) == expected


@pytest.mark.parametrize('limited', ['a', 'a/b', '.'])
def test_the_smallest_quota_of_the_group_and_its_ancestors_counts(tree, limited):
    files = {'cgroup/a/cpu.max': '800000 100000', 'cgroup/a/b/cpu.max': 'max 100000', 'cgroup/c/cpu.max': '1 1'}
    assert cpu_quota(*tree({'proc/self/cgroup': '1:name=systemd:/c\n0::/a/b\n', **files})) == 8
    assert cpu_quota(*tree({f'cgroup/{limited}/cpu.max': '250000 100000'})) == 2.5


def test_the_path_of_another_namespace_is_the_root(tree):
    places = tree({'proc/self/cgroup': '0::/docker/1f2e\n', 'cgroup/cpu.max': '300000 100000'})
    assert cpu_quota(*places) == 3
    assert cpu_quota(*tree({'proc/self/cgroup': '0::/../other\n'})) == 3


def test_version_1_names_its_controller(tree):
    files = {'cgroup/cpu/a/cpu.cfs_quota_us': '200000\n', 'cgroup/cpu/a/cpu.cfs_period_us': '100000\n'}
    assert cpu_quota(*tree({'proc/self/cgroup': '3:cpuset:/\n2:cpu,cpuacct:/a\n0::/\n', **files})) == 2
    assert cpu_quota(*tree({'cgroup/cpu/a/cpu.cfs_quota_us': '-1\n'})) is None


@pytest.mark.parametrize('limit', ['', 'max', '100000', 'few 100000', '100000 0', '0 100000', '-1 100000', '1 2 3'])
def test_what_is_malformed_is_no_quota(tree, limit):
    assert cpu_quota(*tree({'proc/self/cgroup': '0::/\n', 'cgroup/cpu.max': limit})) is None


@pytest.mark.parametrize('line', ['', '\n', 'nonsense', '0::', ':::::'])
def test_without_a_group_there_is_no_quota(tree, line):
    assert cpu_quota(*tree({'proc/self/cgroup': line})) is None
    assert count_cores(*tree({})) == 64


CPU_OF_V1, CPU_OF_V2 = Path('/sys/fs/cgroup/cpu'), Path('/sys/fs/cgroup')


@pytest.fixture
def real_group():
    """A control group of its own, and a function that limits its CPU time."""
    is_v1 = (CPU_OF_V1 / 'cpu.cfs_quota_us').exists()
    group = (CPU_OF_V1 if is_v1 else CPU_OF_V2) / f'test_cores_{ME}'
    if not is_v1 and not (CPU_OF_V2 / 'cgroup.controllers').exists():
        pytest.skip(f'no control groups at {CPU_OF_V2}')
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f'no control group can be made: {error}')

    def limit(us):
        if is_v1:
            (group / 'cpu.cfs_period_us').write_text('100000')
            (group / 'cpu.cfs_quota_us').write_text(str(us))
        else:
            (group / 'cpu.max').write_text(f'{us} 100000')

    try:
        limit(100000)
    except OSError as error:
        group.rmdir()
        pytest.skip(f'the control group takes no CPU quota: {error}')
    yield group, limit
    for _ in range(50):  # until its last process is gone
        with suppress(OSError):
            return group.rmdir()
        time.sleep(0.02)


@pytest.mark.skipif(os.cpu_count() < 2, reason='one core, which no quota makes fewer')
def test_in_a_real_group_of_one_core_there_is_one(real_group):
    group, limit = real_group
    code = (
        'import os, sys; from pathlib import Path; Path(sys.argv[1]).write_text(str(os.getpid()));'
        'from trainer.engine.cores import count_cores; print(count_cores())'
    )
    for us, expected in (100000, 1), (200000, 2):
        limit(us)
        command = [sys.executable, '-c', code, str(group / 'cgroup.procs')]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert int(done.stdout) == min(expected, count_cores())


@pytest.mark.parametrize(
    ('value', 'expected'),
    [('3', 3), (' 3 , 2', 3), (None, 64), ('', 64), ('0', 64), ('-1', 64), ('many', 64), ('²', 64)],
)
def test_threads_are_those_of_the_variable_or_every_core(monkeypatch, value, expected):
    monkeypatch.setattr(cores, 'count_cores', lambda: 64)
    if value is None:
        monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    else:
        monkeypatch.setenv('OMP_NUM_THREADS', value)
    assert default_threads() == expected


def stat(parent, ticks, ended=0):
    """The line of a process whose name has all that may confuse."""
    return f'1 (a ) b) S {parent} 0 0 0 0 0 0 0 0 0 {ticks} 0 {ended} 0 20 0 1\n'


def machine(uptime, busy, waits, processes):
    """/proc as it is `uptime` seconds after the start; busy ticks by core, waits in s by thread, rows by process."""
    lines = [f'cpu{i} {ticks} 0 0 77 0 0 0 0 0 0' for i, ticks in enumerate(busy)]
    return {
        'proc/uptime': f'{uptime:.2f} 1.00\n',
        'proc/stat': '\n'.join(['cpu 9 9 9 9 9 9 9 9 9 9', *lines, 'intr 1 2 3', 'ctxt 5']) + '\n',
        **{f'proc/self/task/{tid}/schedstat': f'5 {round(1e9 * s)} 7\n' for tid, s in waits.items()},
        **{f'proc/{pid}/stat': stat(*row) for pid, row in processes.items()},
    }


@pytest.fixture
def two_cores(tree, monkeypatch):
    monkeypatch.setattr(cores, 'bound_cores', lambda: {0, 1})
    monkeypatch.setattr(cores, 'TICKS_PER_S', 100)
    return tree


def test_others_are_who_this_process_did_not_start(two_cores):
    proc, _ = two_cores(machine(10, [500, 500], {7: 1.0}, {1: (0, 3), ME: (1, 100), 900001: (1, 5)}))
    contention = Contention(proc, 2)
    # In ten seconds: we 8, a child of ours 2 and its own 1; of 20 that leaves 5 to another process, and 4 idle.
    processes = {ME: (1, 900), 900002: (ME, 200), 900003: (900002, 100), 900001: (1, 505)}
    two_cores(machine(20, [1500, 1100], {7: 5.0, 8: 1.0}, processes))
    assert contention.measure() == pytest.approx(Usage(0.5, 0.5))
    assert contention.measure() is None  # no time has passed
    two_cores(machine(30, [1500, 1100], {7: 5.0, 8: 1.0}, processes))
    assert contention.measure() == Usage(0, 0)


def test_what_ends_does_not_make_it_negative(two_cores):
    processes = {ME: (1, 100), 900002: (ME, 700)}
    proc, _ = two_cores(machine(10, [500, 500], {7: 1.0, 8: 60.0}, processes))
    contention = Contention(proc, 2)
    for path in proc / 'self/task/8/schedstat', proc / '900002/stat':
        path.unlink()
    two_cores(machine(20, [600, 500], {7: 2.0}, {ME: (1, 200, 800)}))  # its child's time is now its own
    assert contention.measure() == pytest.approx(Usage(0, 0.1))


def test_only_cores_that_it_may_use_count(two_cores, monkeypatch):
    proc, _ = two_cores(machine(10, [0, 0, 0, 0], {7: 0}, {ME: (1, 0)}))
    contention = Contention(proc, 2)
    two_cores(machine(20, [300, 0, 1000, 1000], {7: 0}, {ME: (1, 0)}))
    assert contention.measure() == pytest.approx(Usage(0.3, 0))
    monkeypatch.setattr(cores, 'bound_cores', lambda: {0, 1, 2, 3})  # under a quota of 2, two may be the others'
    two_cores(machine(30, [1300, 0, 2000, 1500], {7: 0}, {ME: (1, 0)}))
    assert contention.measure() == pytest.approx(Usage(0.5, 0))


def test_processes_of_one_sweep_are_not_others(two_cores, monkeypatch):
    monkeypatch.setattr(multiprocessing, 'parent_process', lambda: SimpleNamespace(pid=900009))
    processes = {900009: (1, 0), ME: (900009, 0), 900010: (900009, 0)}
    proc, _ = two_cores(machine(10, [0, 0], {7: 0}, processes))
    contention = Contention(proc, 2)
    two_cores(machine(20, [1000, 1000], {7: 0}, processes | {ME: (900009, 1000), 900010: (900009, 1000)}))
    assert contention.measure() == Usage(0, 0)


@pytest.mark.parametrize('missing', ['uptime', 'stat', 'self/task/7/schedstat', 'self/task'])
def test_a_system_that_does_not_tell(two_cores, missing):
    files = machine(10, [0, 0], {7: 0}, {ME: (1, 0)})
    proc, _ = two_cores({name: text for name, text in files.items() if not name.startswith(f'proc/{missing}')})
    contention = Contention(proc, 2)
    assert contention.measure() is None


def test_a_real_process_beside_this_one_is_seen():
    contention = Contention()
    time.sleep(0.05)
    if contention.measure() is None:
        pytest.skip('this system does not tell how its cores are used')
    # The shell ends at once, so that the loop is not a child of this process.
    shell = ['sh', '-c', '"$0" -c "while True: pass" >/dev/null & echo $!', sys.executable]
    loop = int(subprocess.run(shell, stdout=subprocess.PIPE, check=True).stdout)
    try:
        contention.measure()
        time.sleep(0.6)
        assert contention.measure().taken > 0.3
    finally:
        os.kill(loop, signal.SIGKILL)
