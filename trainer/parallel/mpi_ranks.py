"""The ranks that mpiexec has started, which talk by MPI and ChainerMN."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import chainer
import numpy as np

from trainer.engine.cores import bound_cores
from trainer.engine.maps import Array
from trainer.errors import InputError
from trainer.parallel.batch_normalization import synchronize
from trainer.parallel.ranks import Ranks

T = TypeVar('T')


class MpiRanks(Ranks):
    """This process among those that mpiexec has started.

    Args:
        communicator: of ChainerMN.
    """

    capture_obstacle = '--communicator averages gradients from Python'

    def __init__(self, communicator: Any) -> None:
        self.communicator, self.mpi = communicator, communicator.mpi_comm
        self.rank, self.size = communicator.rank, communicator.size
        self.local_rank, self.local_size = communicator.intra_rank, communicator.intra_size

    def share_cores(self, n_core: int) -> int:
        is_bound = len(bound_cores()) < (os.cpu_count() or 1)  # mpiexec has shared them; a CPU quota is for all
        return n_core if is_bound else max(min(1, n_core), n_core // self.local_size)

    def check_batch(self, batch: int, divide: int, sync_bn: bool) -> None:
        n_row = batch // self.size
        if n_row == 0:
            raise InputError(f'--batch {batch} leaves nothing to some of {self.size} processes')
        if divide > n_row:
            raise InputError(f'--train_batch_divide {divide} cuts the {n_row} rows of a process into empty parts')
        if sync_bn and batch % self.size:
            raise InputError(
                f'--sync-bn needs the same number of rows on all of {self.size} processes, '
                f'but --batch {batch} is not a multiple of {self.size}'
            )

    def connect(self, model: chainer.Chain, sync_bn: bool) -> None:
        if model.xp is not np:
            model.xp.cuda.Stream.null.__enter__()  # for good: ChainerMN's own, which the engine's would not wait for
        if sync_bn:
            synchronize(model, self.communicator)

    def average_gradients(self, link: chainer.Link) -> None:
        self.communicator.multi_node_mean_grad(link, zero_fill=True)

    def average_arrays(self, arrays: list[Array]) -> None:
        if self.size == 1 or not arrays:
            return
        host = chainer.get_device('@numpy')
        flat = np.concatenate([host.send(array).ravel() for array in arrays]).astype(np.float64)
        flat = self.total(flat) / self.size  # in float64, and the same bits on all ranks
        ends = np.cumsum([array.size for array in arrays]).tolist()
        for array, end in zip(arrays, ends, strict=True):
            xp = chainer.backend.get_array_module(array)
            array[...] = xp.asarray(flat[end - array.size : end].reshape(array.shape), array.dtype)

    def total(self, values: np.ndarray) -> np.ndarray:
        total = np.zeros_like(values)
        self.mpi.Reduce(np.ascontiguousarray(values), total)
        self.mpi.Bcast(total)
        return total

    def gather(self, value: T) -> list[T]:
        return self.mpi.allgather(value)

    def from_first(self, compute: Callable[[], T]) -> T:
        return self.mpi.bcast(compute() if self.is_first else None)

    def check_alike(self, facts: Mapping[str, Any]) -> None:
        everyone = self.gather((socket.gethostname(), dict(facts)))
        first_host, expected = everyone[0]
        for rank, (host, facts_of_rank) in enumerate(everyone):
            for name in expected | facts_of_rank:
                own, first = facts_of_rank.get(name, 'none'), expected.get(name, 'none')
                if own != first:
                    raise InputError(
                        f'rank {rank} on {host} has {name} {own}, rank 0 on {first_host} has {first}: '
                        'all ranks need the same'
                    )

    def command(self, command: str) -> str:
        return f'mpiexec -n {self.size} {command}'

    @contextmanager
    def first_on_host_first(self) -> Iterator[None]:
        if self.local_rank:
            self.mpi.Barrier()
        yield
        if not self.local_rank:
            self.mpi.Barrier()
