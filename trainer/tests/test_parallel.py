"""What processes of one machine share, without MPI; with it: `mpi/`."""

import os
from types import SimpleNamespace

import pytest

from trainer.parallel import ALONE, Ranks


@pytest.mark.parametrize(
    ('usable', 'expected'),
    [(8, 2), (7, 7), (2, 2), (0, 0)],  # not bound; bound by mpiexec, to one or a few; no processes at all
)
def test_cores_are_shared_unless_mpiexec_has_shared_them(monkeypatch, usable, expected):
    monkeypatch.setattr(os, 'cpu_count', lambda: 8)
    communicator = SimpleNamespace(rank=1, size=6, intra_rank=1, intra_size=3, mpi_comm=None)
    assert Ranks(communicator).share_cores(usable) == expected
    assert ALONE.share_cores(usable) == usable
