"""The threads of oneDNN: those of its TBB build, whose number is fixed when the first of them is asked for.

TBB and not OpenMP, since its threads take over the work of one that waits for its core. OpenMP's wait for each other in
every primitive: beside one other busy process on two cores a training step takes three to four times as long.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from trainer.engine.cores import bound_cores, default_threads

# tbb::detail::r1::max_concurrency(tbb::detail::d1::task_arena_base const*); part of the interface of libtbb.so.12
_MAX_CONCURRENCY = '_ZN3tbb6detail2r115max_concurrencyEPKNS0_2d115task_arena_baseE'
# What the library links, in an order in which each finds those before it.
_LINKED = ('libintlc.so.5', 'libimf.so', 'libtbb.so.12')


class Threads:
    """How many threads compute.

    Work is divided by their number, so that results depend on it to the bit. TBB fixes it for the life of the process.

    Args:
        folder: where TBB's library lies.

    Raises:
        OSError: a library is missing.
    """

    def __init__(self, folder: Path) -> None:
        libraries = [ctypes.CDLL(str(folder / name), ctypes.RTLD_GLOBAL) for name in _LINKED]
        self._max_concurrency = getattr(libraries[-1], _MAX_CONCURRENCY)
        self._max_concurrency.argtypes, self._max_concurrency.restype = (ctypes.c_void_p,), ctypes.c_int
        self._n = default_threads()
        self._has_started = False

    @property
    def n(self) -> int:
        """At most the cores that this process may use: TBB starts no more."""
        return self._n if self._has_started else min(self._n, len(bound_cores()))

    def set(self, n: int) -> bool:
        """Compute with `n` threads; False if others have started already, and stay."""
        if self._has_started:
            return min(n, len(bound_cores())) == self._n
        self._n = n
        return True

    def start(self) -> None:
        """Fix their number: TBB takes as many as the cores that the calling thread may use when it is first asked."""
        if self._has_started:
            return
        cores = bound_cores()
        os.sched_setaffinity(0, sorted(cores)[: self._n])
        try:
            self._n = self._max_concurrency(None)  # not what was asked for where another library has started TBB
        finally:
            os.sched_setaffinity(0, cores)
        self._has_started = True
