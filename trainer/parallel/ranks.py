"""The processes of a run, ranks: one process, or those that mpiexec has started (`mpi_ranks.py`).

Several ranks share each batch: rank r of n takes the rows r, r + n, ..., with the pictures and dropout masks that one
process would give them. Gradients are averaged before each update, so that the parameters of all ranks stay the same
bits; the first rank writes what a run writes.

Source: Akiba et al., "ChainerMN: scalable distributed deep learning framework" (2017).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import chainer
import numpy as np

from trainer import engine
from trainer.engine.cores import bound_cores, count_cores
from trainer.engine.maps import Array

T = TypeVar('T')


class Ranks:
    """One process; with several, each method works with the other ranks.

    Attributes:
        rank, size: which of how many processes this is.
        local_rank, local_size: the same among those of this machine.
        capture_obstacle: why a GPU cannot capture training iterations, if it cannot.
    """

    rank = local_rank = 0
    size = local_size = 1
    capture_obstacle: str | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def share(self, n: int) -> range:
        """Which of n rows, or images, are this process's."""
        return range(self.rank, n, self.size)

    def share_cores(self, n_core: int) -> int:
        """How many of the cores that this process may use are its own."""
        return n_core

    def set_threads(self, n: int | None) -> None:
        """Compute with n threads; None is a thread for each core of this process, or what OMP_NUM_THREADS says.

        Without a CPU quota and other ranks on this machine, that is the default of the libraries.
        """
        is_limited = self.local_size > 1 or count_cores() < len(bound_cores())
        if n is None and is_limited and 'OMP_NUM_THREADS' not in os.environ:
            n = self.share_cores(count_cores())
        if n is not None:
            engine.set_threads(n)

    def own_gpu(self, gpu: int) -> int:
        """The GPU of this process, where those of its machine begin at `gpu`; -1 is the CPU."""
        return gpu + self.local_rank if gpu >= 0 else gpu

    def describe(self, device: str) -> str:
        """One line: what computes."""
        return device if self.size == 1 else f'{self.size} processes, each on {device}'

    def check_batch(self, batch: int, divide: int, sync_bn: bool) -> None:
        """Refuse a batch that the ranks cannot share.

        Args:
            batch: rows of all ranks together.
            divide: parts that each rank computes its rows in.
            sync_bn: batch normalisation takes the statistics of the whole batch.
        Raises:
            InputError: a rank, or a part, without rows; or ranks with unequal rows under `sync_bn`.
        """

    def connect(self, model: chainer.Chain, sync_bn: bool) -> None:
        """Prepare a model for averaged gradients; with `sync_bn`, also for the statistics of the whole batch."""

    def average_gradients(self, link: chainer.Link) -> None:
        """Give all ranks the mean of the link's gradients, in place; a gradient that is missing counts as 0."""

    def average_arrays(self, arrays: list[Array]) -> None:
        """Give all ranks the mean of floating-point arrays, in place."""

    def total(self, values: np.ndarray) -> np.ndarray:
        """The sum over the ranks, the same bits on all of them."""
        return values

    def gather(self, value: T) -> list[T]:
        """An object of each rank, on all of them."""
        return [value]

    def from_first(self, compute: Callable[[], T]) -> T:
        """What the first rank computes, on all of them."""
        return compute()

    def check_alike(self, facts: Mapping[str, Any]) -> None:
        """Refuse ranks that differ.

        Raises:
            InputError: names the rank, the fact and both values.
        """

    def command(self, command: str) -> str:
        """The command line that starts all processes, from the one that starts this."""
        return command

    @contextmanager
    def first_on_host_first(self) -> Iterator[None]:
        """One process of each machine before the others: it may download what they find."""
        yield


ONE_PROCESS = Ranks()
