"""How many cores a process may use, on made-up and real control groups."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from trainer import cores
from trainer.cores import count_cores, cpu_quota, default_threads

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
        'from trainer.cores import count_cores; print(count_cores())'
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
