"""Memory for activations and gradients: allocated once, used in every iteration again.

NumPy gives large arrays back to the system and gets fresh pages for the next, whose first touch costs more than what is
computed with them. Here all large arrays of the engine come from one reservation of address space; a freed
range joins its free neighbours and serves the next request that it can hold, lowest address first, so that the pages
ever touched stay close to the most that was in use at once.
"""

from __future__ import annotations

import bisect
import collections
import contextlib
import mmap
import os
import sys
import threading
from typing import Any

import numpy as np

from trainer.engine.maps import DType, Shape

ALIGNMENT = 4096  # a page: also keeps the rows of different arrays out of each other's cache lines


class Ranges:
    """Which ranges of `n_byte` bytes are in use; safe to use from several threads.

    First fit: a request takes the lowest free range that can hold it. The free ranges are kept sorted and joined, so
    that there are as few as gaps between the used ones.
    """

    def __init__(self, n_byte: int) -> None:
        self._lock = threading.Lock()
        self._free = [(0, n_byte)] if n_byte else []  # (offset, bytes), by offset, no two adjacent
        # A collection of garbage can free a block at any moment, also while `take` works on the list.
        self._returned: collections.deque[tuple[int, int]] = collections.deque()
        self.peak = 0  # bytes up to the highest offset ever in use

    def take(self, n_byte: int) -> int:
        """Offset of a free range, or -1."""
        with self._lock:
            self._sweep()
            for i, (offset, n_free) in enumerate(self._free):
                if n_free >= n_byte:
                    if n_free == n_byte:
                        del self._free[i]
                    else:
                        self._free[i] = offset + n_byte, n_free - n_byte
                    self.peak = max(self.peak, offset + n_byte)
                    return offset
        return -1

    def give_back(self, offset: int, n_byte: int) -> None:
        """Free a range that `take` handed out, from any thread."""
        self._returned.append((offset, n_byte))

    def free(self) -> list[tuple[int, int]]:
        """The free ranges (offset, bytes), by offset."""
        with self._lock:
            self._sweep()
            return list(self._free)

    def _sweep(self) -> None:
        """Join what was given back to its free neighbours."""
        free = self._free
        while self._returned:
            offset, n_byte = self._returned.popleft()
            i = bisect.bisect(free, (offset, 0))
            if i < len(free) and free[i][0] == offset + n_byte:
                n_byte += free.pop(i)[1]
            if i and free[i - 1][0] + free[i - 1][1] == offset:
                free[i - 1] = free[i - 1][0], free[i - 1][1] + n_byte
            else:
                free.insert(i, (offset, n_byte))


class Buffers(Ranges):
    """Hands out arrays from one reservation of address space.

    Args:
        n_byte: size of the reservation; address space only, memory is taken as it is first touched.
    """

    def __init__(self, n_byte: int) -> None:
        self._map = _reserve(n_byte)
        super().__init__(n_byte if self._map else 0)
        self._start = np.frombuffer(self._map, np.uint8).ctypes.data if self._map else 0

    def empty(self, shape: Shape, strides: Shape, n_byte: int, dtype: DType) -> np.ndarray:
        """An uninitialised array over a block of its own; strides in bytes."""
        block = _Block(self, n_byte)
        if block.offset < 0:  # the reservation is used up, or there is none
            return np.ndarray(shape, dtype, np.empty(n_byte, np.uint8), 0, strides)
        # The interface knows no bfloat16: the block is seen as numbers of that size, then viewed as what it holds.
        type_code = _TYPE_CODES.get(dtype.itemsize, '|u1')
        block.__array_interface__ = {
            'shape': shape,
            'strides': strides,
            'typestr': type_code,
            'data': (self._start + block.offset, False),
            'version': 3,
        }
        return np.asarray(block).view(dtype)


_TYPE_CODES = {8: '<f8', 4: '<f4', 2: '<u2'}


class _Block:
    """Owns a range; the arrays over it keep it alive, and the last one to go gives the range back."""

    __slots__ = ('__array_interface__', 'buffers', 'n_byte', 'offset')
    __array_interface__: dict[str, Any]

    def __init__(self, buffers: Buffers, n_byte: int) -> None:
        self.buffers = buffers
        self.n_byte = -(-max(n_byte, 1) // ALIGNMENT) * ALIGNMENT
        self.offset = buffers.take(self.n_byte)

    def __del__(self) -> None:
        if self.offset >= 0:
            self.buffers.give_back(self.offset, self.n_byte)


def _reserve(n_byte: int) -> mmap.mmap | None:
    if n_byte == 0:
        return None
    try:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, 'MAP_NORESERVE', 0x4000)
        reserved = mmap.mmap(-1, n_byte, flags=flags)
    except (OSError, ValueError, OverflowError):  # e.g. a limit on address space: NumPy's own arrays serve then
        return None
    if hasattr(mmap, 'MADV_HUGEPAGE'):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            reserved.madvise(mmap.MADV_HUGEPAGE)
    return reserved


def physical_memory() -> int:
    """Bytes of the machine; 0 off Linux, where there is no engine to hand memory to."""
    if sys.platform != 'linux':
        return 0
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
