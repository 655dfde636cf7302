"""One line in the output of a run that other processes slow down."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from chainer.training import Extension, Trainer
from tqdm import tqdm

from trainer.engine.cores import Contention, Usage, count_cores

SECONDS_BEFORE_FIRST, SECONDS_BETWEEN = 6, 30
# Cores. Measured on two cores, over 2 to 3 s: alone, a run saw at most 0.06 taken, with decoding processes and with
# more threads than cores, too; beside one loop in Python 0.65 taken and 0.37 waited or more, mostly 0.7 of both.
# Short commands of others, which cost it a tenth of its speed, took 0.3.
CLEARLY = 0.4


class ContentionNotice(Extension):
    """Says once per run that other processes slow it down: soon after its start, or when it begins later.

    Args:
        contention: what measures; begun with the first iteration.
        clock: seconds.
    """

    priority = -70  # after the record and its line
    trigger: Any = staticmethod(lambda trainer: True)  # unlike Chainer's, it leaves no trace in a checkpoint

    def __init__(self, contention: Callable[[], Any] = Contention, clock: Callable[[], float] = time.monotonic) -> None:
        self._begin, self._clock = contention, clock
        self._contention: Any = None
        self._due = 0.0

    def __call__(self, trainer: Trainer) -> None:
        now = self._clock()
        if now < self._due:
            return
        if self._contention is None:  # not sooner: the first iteration prepares much on one thread
            self._contention, self._due = self._begin(), now + SECONDS_BEFORE_FIRST
            return
        usage = self._contention.measure()
        self._due = now + SECONDS_BETWEEN
        if usage is None:
            self._due = math.inf  # this system does not report it
        elif is_slowed(usage):
            tqdm.write(describe(usage, count_cores()))
            self._due = math.inf


def is_slowed(usage: Usage) -> bool:
    """Whether others take much of the cores while threads of this process wait for one."""
    return usage.taken >= CLEARLY and usage.waited >= CLEARLY


def describe(usage: Usage, n_core: int) -> str:
    """What the others take, and what to do about it."""
    cores = f'{usage.taken:.1f} of {n_core} core{"s" if n_core > 1 else ""}'
    return f'other processes keep {cores} busy: this run takes up to twice as long until they end'
