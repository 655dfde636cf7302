"""One process or several: the same run alone and under mpiexec. No other file knows ChainerMN.

Several processes, ranks, share each batch: rank r of n takes the rows r, r + n, ..., with the pictures and dropout
masks that one process would give them. Gradients are averaged before each update, so that the parameters of all ranks
stay the same bits; the first rank writes what a run writes.

Source: Akiba et al., "ChainerMN: scalable distributed deep learning framework" (2017).
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import chainer
import numpy as np
from chainer.training import Extension

from trainer.engine.cores import bound_cores
from trainer.errors import SECONDS_FOR_FIRST, InputError, TrainingError, rank_from_environment
from trainer.links import BatchNormalization
from trainer.step.optimizer import GradientHook

if TYPE_CHECKING:
    from trainer.config import Config

SIZE_VARIABLES = ('OMPI_COMM_WORLD_SIZE', 'PMI_SIZE')  # set by mpiexec


class Alone:
    """One process, for which the others' part is nothing.

    Attributes:
        rank, size: which of how many processes this is.
        local_rank, local_size: the same among those of this machine.
    """

    rank = local_rank = 0
    size = local_size = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, n: int) -> range:
        """Which of n rows, or images, are this process's."""
        return range(self.rank, n, self.size)

    def attach(self, model: chainer.Chain, optimizer: Any, sync_bn: bool) -> None:
        """Have gradients averaged before each update and, if asked, statistics of batch normalisation, too."""

    def even_out(self, arrays: list[Any]) -> None:
        """Give all ranks the mean of floating point arrays, in place."""

    def total(self, values: np.ndarray) -> np.ndarray:
        """The sum over the ranks, the same bits on all of them."""
        return values

    def gather(self, value: Any) -> list[Any]:
        """An object of each rank, on all of them."""
        return [value]

    def from_first(self, compute: Callable[[], Any]) -> Any:
        """What the first rank computes, on all of them."""
        return compute()

    def check_alike(self, facts: Mapping[str, Any]) -> None:
        """Refuse ranks that differ.

        Raises:
            InputError: names the rank, the fact and both values.
        """

    def share_cores(self, n_core: int) -> int:
        """How many of the cores that this process may use are its own."""
        return n_core

    def command(self, alone: str) -> str:
        """The command line that starts all processes, from the one that starts this."""
        return alone

    @contextmanager
    def first_on_host_first(self) -> Iterator[None]:
        """One process of each machine before the others: it may download what they find."""
        yield


ALONE = Alone()


class Ranks(Alone):
    """This process among those that mpiexec has started.

    Args:
        communicator: of ChainerMN.
    """

    def __init__(self, communicator: Any) -> None:
        self.communicator, self.mpi = communicator, communicator.mpi_comm
        self.rank, self.size = communicator.rank, communicator.size
        self.local_rank, self.local_size = communicator.intra_rank, communicator.intra_size

    def attach(self, model: chainer.Chain, optimizer: Any, sync_bn: bool) -> None:
        optimizer.add_hook(MeanGradient(self.communicator))
        if model.xp is not np:
            model.xp.cuda.Stream.null.use()  # ChainerMN's own; the engine's would not wait for it
        if sync_bn:
            for link in model.links():
                if isinstance(link, BatchNormalization) and link.gamma is not None and link.beta is not None:
                    link.__class__ = SynchronizedBatchNormalization
                    link.communicator = self.communicator

    def even_out(self, arrays: list[Any]) -> None:
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

    def gather(self, value: Any) -> list[Any]:
        return self.mpi.allgather(value)

    def from_first(self, compute: Callable[[], Any]) -> Any:
        return self.mpi.bcast(compute() if self.is_first else None)

    def check_alike(self, facts: Mapping[str, Any]) -> None:
        everyone = self.gather((socket.gethostname(), dict(facts)))
        _, expected = everyone[0]
        for rank, (host, found) in enumerate(everyone):
            for name in expected | found:
                mine, first = found.get(name, 'none'), expected.get(name, 'none')
                if mine != first:
                    raise InputError(
                        f'rank {rank} on {host} has {name} {mine}, rank 0 on {everyone[0][0]} has {first}: '
                        'all ranks have to be alike'
                    )

    def share_cores(self, n_core: int) -> int:
        is_bound = len(bound_cores()) < (os.cpu_count() or 1)  # mpiexec has shared them; a CPU quota is for all
        return n_core if is_bound else max(min(1, n_core), n_core // self.local_size)

    def command(self, alone: str) -> str:
        return f'mpiexec -n {self.size} {alone}'

    @contextmanager
    def first_on_host_first(self) -> Iterator[None]:
        if self.local_rank:
            self.mpi.Barrier()
        yield
        if not self.local_rank:
            self.mpi.Barrier()


class MeanGradient(GradientHook):
    """Averages the gradients over the ranks: all of them in one message where they lie in one array."""

    name = 'MeanGradient'

    def __init__(self, communicator: Any) -> None:
        self.communicator = communicator
        self._flat: tuple[Any, chainer.Link] | None = None

    def __call__(self, optimizer: Any) -> None:
        arena = getattr(optimizer, 'arena', None)
        if arena is None:
            self.communicator.multi_node_mean_grad(optimizer.target, zero_fill=True)
            return
        if self._flat is None or self._flat[0] is not arena:
            self._flat = arena, _as_link(arena)
        self.communicator.multi_node_mean_grad(self._flat[1])


def _as_link(arena: Any) -> chainer.Link:
    """A link of one parameter, which is all parameters and gradients of an arena: what ChainerMN takes."""
    link = chainer.Link()
    with link.init_scope():
        link.flat = chainer.Parameter(arena.data)
    link.flat.grad = arena.gradient
    return link


class SynchronizedBatchNormalization(BatchNormalization):
    """Batch normalisation with the statistics of the whole batch: ChainerMN's function under this project's link.

    As `chainermn.links.MultiNodeBatchNormalization`, with the names and the options of `trainer.links`, and with the
    running variance of one process: ChainerMN's is corrected for the number of a rank's values, not of all.
    """

    communicator: Any = None

    def forward(  # type: ignore[override]
        self, x: Any, *, relu: bool = False, finetune: bool = False
    ) -> Any:
        if self.is_fixed or not chainer.config.train or finetune or self.avg_mean is None or self.avg_var is None:
            return super().forward(x, relu=relu, finetune=finetune)
        from chainer.functions.normalization.batch_normalization import BatchNormalization as Function
        from chainermn.functions.batch_normalization import MultiNodeBNImplSelector, get_communication_backend

        import trainer.functions as F
        from trainer.functions.concat import joined
        from trainer.functions.node import to_float32

        backend = get_communication_backend(self.communicator)
        is_moving = not chainer.config.in_recomputing
        statistics = (self.avg_mean, self.avg_var) if is_moving else (self.avg_mean.copy(), self.avg_var.copy())
        selector = MultiNodeBNImplSelector(self.communicator, backend)
        function = Function(self.eps, *statistics, self.decay, self.axis, impl_selector=selector)
        old = self.avg_var * self.decay
        y = function.apply((to_float32(joined(x)), self.gamma, self.beta))[0]
        if is_moving:
            n = y.size // self.avg_mean.size
            n_all = n * self.communicator.size
            correction = (n_all / max(n_all - 1, 1)) / (n / max(n - 1, 1))
            self.avg_mean[...] = function.running_mean
            self.avg_var[...] = old + (function.running_var - old) * self.avg_var.dtype.type(correction)
        return F.relu(y) if relu else y

    def __deepcopy__(self, memo: Any) -> Any:
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        twin.__dict__.update(
            {name: value if name == 'communicator' else deepcopy(value, memo) for name, value in self.__dict__.items()}
        )
        return twin


class Agreement(Extension):
    """After each iteration: the mean loss and accuracy of the ranks, whether one was told to stop, whether to save.

    Args:
        ranks: the processes.
        stop: a `StopRequest`, which heeds what was heard anywhere.
        checkpoint: a `Checkpoint`; the first rank's clock says when it is due.
    """

    priority = 1000  # before all that reads reports
    trigger: Any = staticmethod(lambda trainer: True)  # unlike Chainer's, it leaves no trace in a checkpoint

    def __init__(self, ranks: Alone, stop: Any, checkpoint: Any) -> None:
        self.ranks, self.stop, self.checkpoint = ranks, stop, checkpoint

    def __call__(self, trainer: Any) -> None:
        seen = trainer.observation
        own = [seen['train/loss'], seen['train/accuracy'], self.stop.heard or 0, self.checkpoint.is_due()]
        table = np.array(self.ranks.gather([float(value) for value in own]))
        seen['train/loss'], seen['train/accuracy'] = table[:, :2].mean(0).tolist()
        self.stop.heed(int(table[:, 2].max()) or None, says_so=self.ranks.is_first)
        self.checkpoint.has_to_save = bool(table[0, 3])


@contextmanager
def join(config: Config, resume_command: str = '') -> Iterator[Alone]:
    """The processes of a run: this one alone, or those that mpiexec has started with `--communicator`.

    Within the block only the first rank prints. An error on any rank ends all of them, with one message.

    Args:
        config: says which communicator.
        resume_command: what goes on with the run, without mpiexec.
    Raises:
        InputError: mpiexec without --communicator, or a communicator that cannot be had.
    """
    sizes = [os.environ[name] for name in SIZE_VARIABLES if os.environ.get(name, '').isdigit()]
    n_process = int(sizes[0]) if sizes else 1
    if config.communicator is None:
        if n_process > 1:
            raise InputError(
                f'mpiexec has started {n_process} processes, and each would train alone: '
                'give --communicator naive (on CPUs) or pure_nccl (on GPUs)'
            )
        yield ALONE
        return
    ranks, watch, resume = _start(config, n_process, resume_command)
    try:
        with watch, redirect_stdout(sys.stdout if ranks.is_first else Path(os.devnull).open('w')):
            yield ranks
            ranks.mpi.Barrier()  # mpiexec ends all when one ends early with a code that is not 0
    except BaseException as error:
        _abort(ranks, watch, error, resume)


def _start(config: Config, n_process: int, resume_command: str) -> tuple[Ranks, Any, str]:
    """The ranks, their watch, and the command that goes on."""
    from trainer.parallel.watch import Watch

    try:
        ranks = Ranks(_open(config))
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
            print(f'{Path(sys.argv[0]).name}: error: {error}', file=sys.stderr, flush=True)
            sys.modules['mpi4py.MPI'].COMM_WORLD.Abort(2)
        raise


def _open(config: Config) -> Any:
    if config.communicator != 'naive' and config.gpu < 0:
        raise InputError(f'--communicator {config.communicator} is for GPUs, -g 0: on CPUs it is naive')
    if config.communicator != 'pure_nccl' and config.gpu >= 0 and not _is_cuda_aware():
        raise InputError(
            f'--communicator {config.communicator} gives GPU memory to MPI, which this one cannot read: take pure_nccl'
        )
    try:
        import chainermn
        from chainermn.communicators import _memory_utility
    except ImportError as error:
        raise InputError(
            f'--communicator {config.communicator} needs MPI ({error}): install Open MPI (Debian: openmpi-bin) '
            'and the extra mpi'
        ) from None
    _memory_utility.unpack_params = _unpack_params
    options = {} if config.grad_dtype == 'float32' else {'allreduce_grad_dtype': np.dtype(config.grad_dtype)}
    try:
        return chainermn.create_communicator(config.communicator, **options)
    except (RuntimeError, ImportError, AttributeError) as error:
        raise InputError(f'--communicator {config.communicator}: {error}') from None


def _is_cuda_aware() -> bool:
    """Whether MPI is an Open MPI that reads the memory of GPUs; others would crash without a word."""
    if shutil.which('ompi_info') is None:
        return False
    told = subprocess.run(['ompi_info', '--parsable', '--all'], capture_output=True, text=True).stdout
    return 'mpi_built_with_cuda_support:value:true' in told


def _unpack_params(
    params: Any, attr_name: str, buffer: Any, transfer_dtype: Any, zero_fill: bool, stream: Any = None
) -> None:
    """ChainerMN's own asks CuPy for `array(copy=False)` of another dtype, which CuPy 14 refuses as NumPy 2 does."""
    offset = 0
    for param in params:
        value = getattr(param, attr_name)
        if attr_name == 'grad' and value is None and zero_fill:
            value = param.xp.empty_like(param.data)
            param.grad = value
        n_byte = value.size * np.dtype(transfer_dtype).itemsize
        received = value if value.dtype == transfer_dtype else param.xp.empty(value.shape, transfer_dtype)
        buffer.to_device(received, n_byte, offset, stream)
        offset += n_byte
        if received is not value:
            value[...] = received.astype(value.dtype)


def _abort(ranks: Ranks, watch: Any, error: BaseException, resume: str) -> None:
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
    print(f'{Path(sys.argv[0]).name}: error: {where}: {text}{hint}', file=sys.stderr, flush=True)
    watch.say_goodbye()
    ranks.mpi.Abort(2 if isinstance(error, InputError) else 130 if isinstance(error, KeyboardInterrupt) else 1)
