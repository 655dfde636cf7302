"""The cores of this machine."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

PROC, CGROUP = Path('/proc'), Path('/sys/fs/cgroup')


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
