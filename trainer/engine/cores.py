"""The cores of this machine: how many this process may use, and how busy other processes keep them.

Read from /proc and /sys/fs/cgroup: psutil knows neither CPU quotas nor how long threads waited for a core.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PROC, CGROUP = Path('/proc'), Path('/sys/fs/cgroup')
TICKS_PER_S = os.sysconf('SC_CLK_TCK') if hasattr(os, 'sysconf') else 100


def default_threads() -> int:
    """OMP_NUM_THREADS, of a list its first number; without one every core that this process may use."""
    first = os.environ.get('OMP_NUM_THREADS', '').partition(',')[0].strip()
    return int(first) if first.isdecimal() and int(first) else count_cores()


def count_cores(proc: Path = PROC, cgroup: Path = CGROUP) -> int:
    """How many cores this process may use: those it is bound to, or fewer if its control group has a CPU quota.

    Args:
        proc, cgroup: where these file systems are mounted.
    """
    n_bound = len(bound_cores())
    quota = cpu_quota(proc, cgroup)
    # Rounded, not rounded up. The work of a step is divided evenly among the threads, and a step ends with the slowest:
    # a thread that the quota stops holds up all others. With 1.2 cores one thread trained 505 images/s, two 378; with
    # 1.8 cores one thread 406, two about 500. It is at least 1, since nothing computes without a thread.
    return n_bound if quota is None else min(n_bound, max(1, math.floor(quota + 0.5)))


def bound_cores() -> set[int]:
    """The numbers of the cores that this process is bound to, where the system tells; else of all."""
    if hasattr(os, 'sched_getaffinity'):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def cpu_quota(proc: Path = PROC, cgroup: Path = CGROUP) -> float | None:
    """How many cores' time the control groups of this process allow it, as containers limit it; None if any amount."""
    return min(_quotas(proc, cgroup), default=None)


def _quotas(proc: Path, cgroup: Path) -> Iterator[float]:
    """Those of its group and of every ancestor: each of them counts."""
    for line in _read(proc / 'self' / 'cgroup').splitlines():
        _, _, controllers_and_path = line.partition(':')
        controllers, _, path = controllers_and_path.partition(':')
        group = Path(path.lstrip('/'))
        if '..' in group.parts:  # outside the namespace of this container, which sees its own group as the root
            group = Path()
        for folder in (group, *group.parents):  # a folder that a container does not see has no files
            if not controllers:  # version 2
                quota = _read(cgroup / folder / 'cpu.max').split()
            elif 'cpu' in controllers.split(','):  # version 1
                files = ('cpu.cfs_quota_us', 'cpu.cfs_period_us')
                quota = [_read(cgroup / 'cpu' / folder / file).strip() for file in files]
            else:
                continue
            # 'max' and -1 are not decimal: no quota.
            if len(quota) == 2 and all(number.isdecimal() and int(number) for number in quota):
                yield int(quota[0]) / int(quota[1])


def _read(path: Path) -> str:
    """The text of a file; empty if it is missing or cannot be read, as that of a process that has ended."""
    try:
        return path.read_text(encoding='utf-8', errors='replace')
    except OSError:
        return ''


class Usage(NamedTuple):
    """How the cores were used, on average over a time.

    Attributes:
        taken: how many of the cores that this process may use other processes kept busy.
        waited: how many threads of this process were ready to run and waited for a core.
    """

    taken: float
    waited: float


class _Times(NamedTuple):
    """Sums since the start of the machine or of a thread, in seconds."""

    uptime: float
    cores: dict[int, float]  # busy, by the number of a core
    family: dict[int, float]  # computed, by process: this one and those it started
    waits: dict[int, float]  # waited for a core, by thread


class Contention:
    """Measures what other processes take of this process's cores; processes that it started are not others.

    Both numbers are needed to tell that others slow it down. Threads also wait where its own outnumber the cores, and
    others may compute on cores that it leaves idle.

    Args:
        proc: where this file system is mounted.
        n_core: how many cores this process may use; those of `count_cores`.
    """

    def __init__(self, proc: Path = PROC, n_core: int | None = None) -> None:
        self._proc, self._n_core = proc, count_cores() if n_core is None else n_core
        self._before = self._times()

    def measure(self) -> Usage | None:
        """Since the last call; None on a system that does not tell."""
        before, now = self._before, self._times()
        self._before = now
        if before is None or now is None or now.uptime <= before.uptime:
            return None
        elapsed_s = now.uptime - before.uptime
        bound = bound_cores() & before.cores.keys() & now.cores.keys()
        busy = sum(now.cores[number] - before.cores[number] for number in bound)
        others = (busy - _gain(before.family, now.family)) / elapsed_s
        # Under a quota it may use fewer cores than it is bound to: what the others take of the rest does no harm.
        n_spare = len(bound) - self._n_core
        taken = min(max(others - n_spare, 0.0), float(self._n_core))
        return Usage(taken, _gain(before.waits, now.waits) / elapsed_s)

    def _times(self) -> _Times | None:
        try:
            uptime = float(_read(self._proc / 'uptime').split()[0])
            times = _Times(uptime, self._cores(), self._family(), self._waits())
        except (OSError, ValueError, IndexError):
            return None
        return times if times.cores and times.waits else None

    def _cores(self) -> dict[int, float]:
        busy = {}
        for number, ticks in re.findall(r'^cpu(\d+) (.*)$', _read(self._proc / 'stat'), re.M):
            user, nice, system, _idle, _iowait, irq, softirq = map(int, ticks.split()[:7])
            busy[int(number)] = (user + nice + system + irq + softirq) / TICKS_PER_S
        return busy

    def _waits(self) -> dict[int, float]:
        waits = {}
        for task in (self._proc / 'self' / 'task').iterdir():
            if numbers := _read(task / 'schedstat').split():  # ns computed, ns waited, turns
                waits[int(task.name)] = int(numbers[1]) / 1e9
        return waits

    def _family(self) -> dict[int, float]:
        """Of this process and those that it started, directly or not; each with those it started that have ended."""
        parents, times = {}, {}
        for path in self._proc.glob('[0-9]*/stat'):
            # After the name, which may hold anything, come state, parent, ..., utime, stime, cutime, cstime: 11 to 14.
            fields = _read(path).rpartition(')')[2].split()
            if len(fields) > 14:
                pid = int(path.parent.name)
                parents[pid] = int(fields[1])
                times[pid] = sum(map(int, fields[11:15])) / TICKS_PER_S
        # Processes that multiprocessing started for one purpose, as a sweep does, share the cores: they are one family.
        parent = multiprocessing.parent_process()
        family = {os.getpid() if parent is None or parent.pid is None else parent.pid}
        while more := {pid for pid, parent_pid in parents.items() if parent_pid in family} - family:
            family |= more
        return {pid: times[pid] for pid in family & times.keys()}


def _gain(before: dict[int, float], now: dict[int, float]) -> float:
    """By how much the sum has grown; what has ended in between counts for nothing, never negative."""
    return sum(max(0.0, value - before.get(key, 0.0)) for key, value in now.items())
