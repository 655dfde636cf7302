"""Joins the processes that mpiexec has started, and ends all of them when one fails."""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Protocol

from trainer.errors import SECONDS_FOR_FIRST, InputError, TrainingError, program_name, rank_from_environment
from trainer.parallel.communicator import open_communicator
from trainer.parallel.mpi_ranks import MpiRanks
from trainer.parallel.ranks import ONE_PROCESS, Ranks
from trainer.parallel.watch import Watch

SIZE_VARIABLES = ('OMPI_COMM_WORLD_SIZE', 'PMI_SIZE')  # set by mpiexec


class CommunicatorSettings(Protocol):
    """What `join` reads of a `Config`."""

    @property
    def communicator(self) -> str | None: ...

    @property
    def gpu(self) -> int: ...

    @property
    def grad_dtype(self) -> str: ...


@contextmanager
def join(settings: CommunicatorSettings, resume_command: str = '') -> Iterator[Ranks]:
    """The processes of a run: this one, or those that mpiexec has started with `--communicator`.

    Within the block only the first rank prints. An error on any rank ends all of them, with one message.

    Args:
        settings: a `Config`, or anything with its settings of the communicator.
        resume_command: which resumes the run, without mpiexec.
    Raises:
        InputError: mpiexec without --communicator, or a communicator that is not available.
    """
    sizes = [os.environ[name] for name in SIZE_VARIABLES if os.environ.get(name, '').isdigit()]
    n_process = int(sizes[0]) if sizes else 1
    if settings.communicator is None:
        if n_process > 1:
            raise InputError(
                f'mpiexec has started {n_process} processes, and each would train alone: '
                'give --communicator naive (on CPUs) or pure_nccl (on GPUs)'
            )
        yield ONE_PROCESS
        return
    ranks, watch, resume = _start(settings, n_process, resume_command)
    try:
        with watch, redirect_stdout(sys.stdout if ranks.is_first else Path(os.devnull).open('w', errors='ignore')):
            yield ranks
            ranks.mpi.Barrier()  # mpiexec ends all when one ends early with a code that is not 0
    except BaseException as error:
        _abort(ranks, watch, error, resume)


def _start(settings: CommunicatorSettings, n_process: int, resume_command: str) -> tuple[MpiRanks, Watch, str]:
    """The ranks, their watch, and the command that resumes the run."""
    try:
        assert settings.communicator is not None
        ranks = MpiRanks(open_communicator(settings.communicator, settings.gpu, settings.grad_dtype))
        if n_process not in (1, ranks.size):
            raise InputError(
                f'mpiexec has started {n_process} processes, but mpi4py sees {ranks.size}: it finds another MPI than '
                'that of mpiexec'
            )
        resume = ranks.command(resume_command) if resume_command else 'the same command with --resume'
        return ranks, Watch(ranks.mpi, resume), resume
    except InputError as error:
        if n_process > 1 and 'mpi4py.MPI' in sys.modules:  # the others may have got further, and would wait for us
            if rank_from_environment():
                time.sleep(SECONDS_FOR_FIRST)
            print(f'{program_name()}: error: {error}', file=sys.stderr, flush=True)
            sys.modules['mpi4py.MPI'].COMM_WORLD.Abort(2)
        raise


def _abort(ranks: MpiRanks, watch: Watch, error: BaseException, resume: str) -> None:
    """End all ranks; one of them says why."""
    if isinstance(error, SystemExit) and not error.code:
        raise error
    if ranks.rank:  # what goes wrong everywhere, the first one says
        time.sleep(SECONDS_FOR_FIRST + 0.3 * min(ranks.rank, 10))
        if watch.is_explained():
            os._exit(1)
    where = f'rank {ranks.rank} of {ranks.size} on {socket.gethostname()}'
    if not isinstance(error, (InputError, TrainingError, KeyboardInterrupt, SystemExit)):
        traceback.print_exception(error)
    hint = '' if isinstance(error, InputError) else f'; go on with\n    {resume}'
    is_sentence = isinstance(error, (InputError, TrainingError))
    text = str(error) if is_sentence else ' '.join(f'{type(error).__name__}: {error}'.split())
    print(f'{program_name()}: error: {where}: {text}{hint}', file=sys.stderr, flush=True)
    watch.say_goodbye()
    ranks.mpi.Abort(2 if isinstance(error, InputError) else 130 if isinstance(error, KeyboardInterrupt) else 1)
