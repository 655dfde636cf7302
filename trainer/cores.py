"""The cores of this machine."""

from __future__ import annotations

import os


def count_cores() -> int:
    """How many this process may use: those it is bound to, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def default_threads() -> int:
    """OMP_NUM_THREADS, or every core."""
    first = os.environ.get('OMP_NUM_THREADS', '').partition(',')[0].strip()
    return int(first) if first.isdigit() and int(first) else count_cores()
