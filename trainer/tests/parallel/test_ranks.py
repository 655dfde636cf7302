"""What processes of one machine share, without MPI; with it: `mpi/`."""

import os
from types import SimpleNamespace

import pytest

from trainer.parallel import ONE_PROCESS, mpi_ranks
from trainer.parallel.mpi_ranks import MpiRanks


@pytest.mark.parametrize(
    ('bound', 'usable', 'expected'),
    # not bound, without and with a quota; bound by mpiexec, to many or a few; no processes at all
    [(8, 8, 2), (8, 4, 1), (8, 2, 1), (7, 7, 7), (2, 2, 2), (8, 0, 0)],
)
def test_cores_are_shared_unless_mpiexec_has_shared_them(monkeypatch, bound, usable, expected):
    monkeypatch.setattr(os, 'cpu_count', lambda: 8)
    monkeypatch.setattr(mpi_ranks, 'bound_cores', lambda: set(range(bound)))
    communicator = SimpleNamespace(rank=1, size=6, intra_rank=1, intra_size=3, mpi_comm=None)
    assert MpiRanks(communicator).share_cores(usable) == expected
    assert ONE_PROCESS.share_cores(usable) == usable
