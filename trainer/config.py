"""Everything a run depends on, in one flat record: the flags, the keys of a YAML file, and `config.yaml` of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import chainer
import numpy as np
import yaml
from ml_dtypes import bfloat16

from trainer.data.preprocessing import PREPROCESSINGS
from trainer.engine import ENGINES
from trainer.errors import InputError
from trainer.files import atomic_write
from trainer.step.parameters import read_multipliers, read_patterns
from trainer.step.schedule import Schedule, constant, cosine, default_milestones, factor, poly, step, warm_up

OPTIMIZERS = ('momentum', 'nesterov', 'adam')
SCHEDULES = ('step', 'cosine', 'constant', 'poly', 'factor')
DEFAULT_EPOCH = 300
COMMUNICATORS = ('naive', 'flat', 'pure_nccl')
GRAD_DTYPES = ('float32', 'float16')
UNREADABLE = ('fail', 'skip')
CUT_FROM_FILES = ('folder', 'imagelist', 'shards', 'recordio')  # with another preprocessing than the experiment's
PRECISIONS = ('auto', 'float32', 'fp16', 'bf16', 'float64')
COMPUTE_DTYPES = {'fp16': np.dtype(np.float16), 'bf16': np.dtype(bfloat16)}

# What may differ between a checkpoint and the run that resumes it.
FREE_ON_RESUME = frozenset(
    {
        'save_path',
        'run',
        'overwrite',
        'resume',
        'data',
        'load_model',
        'reset_classifier',
        'load_optimizer',
        'load_log',
        'log_file',
    }  # where things are
    | {'communicator', 'grad_dtype', 'sync_bn'}  # by whom: a checkpoint of n processes goes on with m
    | {'gpu', 'engine', 'threads', 'train_batch_divide', 'test_batch_divide', 'checkpoint_minutes'}  # how to compute
    | {'workers', 'unreadable'}
    | {'epoch', 'milestones'}  # how far; the rates that follow from them are compared with the log's
)


@dataclass(frozen=True)
class Config:
    """The flags of a run; `--help` and `trainer.cli.flags` say what each means. Units: epochs, px, images.

    The length is `epoch` or `iterations`, never both: `epoch` is 300 where neither is given, None with `iterations`.
    """

    model: str = 'model'
    dataset: str = 'cifar10'
    data: str | None = None
    limit: int | None = None
    size: int = 0  # once made: never 0, which stands for what suits the data
    preprocess: str = 'experiment'
    epoch: int | None = None
    iterations: int | None = None
    batch: int = 64
    start_epoch: int = 1
    lr: float = 0.1
    lr_batch: int | None = None
    optimizer: str = 'momentum'
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = 'step'
    milestones: tuple[int, ...] | None = None
    power: float = 1.0
    factor: float = 0.94
    factor_every: int = 1
    warmup: float = 0.0
    dropout: float | None = None
    smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    ema: float = 0.0
    freeze: str | None = None
    lr_multiplier: str | None = None
    seed: int = 0
    precision: str = 'auto'
    gpu: int = -1
    engine: str = 'fused'
    threads: int | None = None
    train_batch_divide: int = 1
    test_batch_divide: int = 1
    save_path: str = '.'
    run: str | None = None
    overwrite: bool = False
    resume: str | None = None
    load_model: str | None = None
    reset_classifier: bool = False
    load_optimizer: str | None = None
    load_log: str | None = None
    log_file: str | None = None
    checkpoint_minutes: float = 10.0
    workers: int | None = None
    unreadable: str = 'fail'
    communicator: str | None = None
    sync_bn: bool = False
    grad_dtype: str = 'float32'

    def __post_init__(self) -> None:
        if self.size == 0:
            object.__setattr__(self, 'size', self._usual_size())
        if self.epoch is not None and self.iterations is not None:
            raise InputError(f'--epoch {self.epoch} and --iterations {self.iterations} both say how long: give one')
        if self.iterations is None:
            object.__setattr__(self, 'epoch', DEFAULT_EPOCH if self.epoch is None else self.epoch)
        if self.size == 0:
            object.__setattr__(self, 'size', self._usual_size())
        at_least = {
            'limit': 1,
            'epoch': 1,
            'iterations': 1,
            'batch': 1,
            'start_epoch': 1,
            'gpu': -1,
            'lr': 0,
            'lr_batch': 1,
            'momentum': 0,
            'seed': 0,
            'workers': 0,
        }
        at_least |= {'weight_decay': 0, 'warmup': 0, 'dropout': 0, 'checkpoint_minutes': 0}
        at_least |= {'power': 0, 'factor': 0, 'factor_every': 1, 'smoothing': 0, 'mixup': 0, 'cutmix': 0, 'ema': 0}
        at_least |= {'train_batch_divide': 1, 'test_batch_divide': 1, 'threads': 1}
        for name, bound in at_least.items():
            value = getattr(self, name)
            if value is not None and not bound <= value < float('inf'):  # NaN fails, too
                raise InputError(f'--{name} is {value}, but has to be a number of at least {bound}')
        for name in ('momentum', 'dropout', 'ema'):
            if getattr(self, name) is not None and getattr(self, name) >= 1:
                raise InputError(f'--{name} is {getattr(self, name)}, but has to be below 1')
        for name in ('smoothing', 'factor'):
            if getattr(self, name) > 1:
                raise InputError(f'--{name} is {getattr(self, name)}, but has to be at most 1')
        if self.reset_classifier and self.load_model is None:
            raise InputError('--reset-classifier goes with the weights of --pretrained FILE, which is missing')
        read_patterns(self.freeze)
        read_multipliers(self.lr_multiplier)
        if self.seed >= 2**32:
            raise InputError(f'--seed is {self.seed}, but has to be below 2**32')
        if self.epoch is not None and self.start_epoch > self.epoch:
            raise InputError(f'--start_epoch {self.start_epoch} comes after the last epoch, --epoch {self.epoch}')
        for name in ('train_batch_divide', 'test_batch_divide'):
            if getattr(self, name) > self.batch:
                raise InputError(f'--{name} {getattr(self, name)} cuts a batch of {self.batch} into empty parts')
        choices_of = {'optimizer': OPTIMIZERS, 'schedule': SCHEDULES, 'precision': PRECISIONS, 'engine': ENGINES}
        choices_of |= {'grad_dtype': GRAD_DTYPES}
        if self.communicator is not None:
            choices_of |= {'communicator': COMMUNICATORS}
        choices_of |= {'preprocess': tuple(PREPROCESSINGS), 'unreadable': UNREADABLE}
        for name, choices in choices_of.items():
            if getattr(self, name) not in choices:
                raise InputError(f'--{name} is {getattr(self, name)!r}, but has to be one of {", ".join(choices)}')
        if self.grad_dtype != 'float32' and self.communicator != 'pure_nccl':
            raise InputError(f'--grad_dtype {self.grad_dtype} goes with --communicator pure_nccl alone')
        if self.run is not None and (not self.run or self.run != Path(self.run).name):
            raise InputError(f'--run is {self.run!r}, but has to be the name of a folder below results/')

    def _usual_size(self) -> int:
        """The experiment's; for images that are cut from files of any size, that of their preprocessing."""
        if self.preprocess in PREPROCESSINGS and self.preprocess != 'experiment' and self.dataset in CUT_FROM_FILES:
            return PREPROCESSINGS[self.preprocess].crop
        return 122

    @property
    def run_name(self) -> str:
        return self.run or f'{self.model}_{self.dataset}_{self.size}px'

    @property
    def run_folder(self) -> Path:
        return Path(self.save_path) / 'results' / self.run_name

    @property
    def dtype(self) -> Any:
        """Of parameters, statistics and images; half precisions are a matter of what is computed with them."""
        return np.dtype('float64' if self.precision == 'float64' else 'float32')

    @contextmanager
    def using_precision(self) -> Iterator[None]:
        """The context to build and run a network in: --precision and --engine in Chainer's configuration."""
        compute_dtype = COMPUTE_DTYPES.get(self.precision)
        with (
            chainer.using_config('dtype', self.dtype),
            chainer.using_config('compute_dtype', compute_dtype),
            chainer.using_config('engine', self.engine),
        ):
            yield

    @property
    def rate(self) -> float:
        """The learning rate at the start: --lr, for a batch of --lr_batch if that is given, in proportion."""
        return self.lr if self.lr_batch is None else self.lr * self.batch / self.lr_batch

    @property
    def length(self) -> str:
        """The flag that says how long the run is, as it is given."""
        return f'--epoch {self.epoch}' if self.iterations is None else f'--iterations {self.iterations}'

    def count_epochs(self, n_train: int) -> float:
        """The length in epochs of `n_train` images; with --iterations, the last one may be a part of one.

        Raises:
            InputError: --start_epoch comes after the last iteration.
        """
        if self.iterations is None:
            assert self.epoch is not None
            return self.epoch
        n_epoch = self.iterations * self.batch / n_train
        if self.start_epoch - 1 >= n_epoch:
            raise InputError(
                f'--start_epoch {self.start_epoch} comes after the last iteration, --iterations {self.iterations}: '
                f'{n_train} images in batches of {self.batch} make {n_epoch:.1f} epochs of them'
            )
        return n_epoch

    def make_schedule(self, n_epoch: float | None = None) -> Schedule:
        """The learning rate over `n_epoch` epochs, which are --epoch by default."""
        if n_epoch is None:
            assert self.epoch is not None, 'how many epochs --iterations are depends on the number of images'
            n_epoch = self.epoch
        if self.schedule == 'step':
            milestones: Sequence[float] = self.milestones or ()
            if self.milestones is None:
                is_whole = self.iterations is None
                milestones = default_milestones(int(n_epoch)) if is_whole else (n_epoch / 2, 3 * n_epoch / 4)
            rate = step(self.rate, milestones)
        elif self.schedule == 'cosine':
            rate = cosine(self.rate, n_epoch)
        elif self.schedule == 'poly':
            rate = poly(self.rate, n_epoch, self.power)
        elif self.schedule == 'factor':
            rate = factor(self.rate, self.factor, self.factor_every)
        else:
            rate = constant(self.rate)
        return warm_up(rate, self.warmup)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as YAML and JSON hold them."""
        values = asdict(self)
        if self.milestones is not None:
            values['milestones'] = list(self.milestones)
        return values

    def write(self, path: Path) -> None:
        with atomic_write(path, 'w') as file:
            values = {name: value for name, value in self.as_dict().items() if name not in ('resume', 'overwrite')}
            file.write('# The flags of this run; --config on this file, with another --run, repeats it.\n')
            yaml.safe_dump(values, file, sort_keys=False)

    def check_resumes(self, saved: Any, path: Path) -> None:
        """Refuse to resume a checkpoint of another experiment.

        Raises:
            InputError: a flag that shapes the result has another value than in the checkpoint; names flag and values.
        """
        if not isinstance(saved, dict):
            raise InputError(f'{path} holds {saved!r} in the place of its configuration')
        for name, value in self.as_dict().items():
            if name not in FREE_ON_RESUME and name in saved and saved[name] != value:
                raise InputError(
                    f'{path} was trained with --{name} {saved[name]}, not {value}: '
                    'resume it with the same flags, or start another run with --run NAME'
                )


NAMES = tuple(field.name for field in fields(Config))
