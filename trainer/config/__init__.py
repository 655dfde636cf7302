"""The settings of a run: `Config`, made from the table in table.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import chainer
import numpy as np
import yaml
from ml_dtypes import bfloat16

from trainer.config.setting import check_settings, plain, settings_of
from trainer.config.table import GROUPS, ComputeSettings, DataSettings, RecipeSettings, RunSettings
from trainer.data.augmentation.sizes import Sizes, read_sizes
from trainer.data.holdout import count_held
from trainer.data.preprocessing import PREPROCESSINGS
from trainer.errors import InputError
from trainer.files import atomic_write
from trainer.step.parameters import read_multipliers, read_patterns
from trainer.step.schedule import Schedule, constant, cosine, default_milestones, factor, poly, step, warm_up
from trainer.step.teacher import CAPTURE_OBSTACLE

CUT_FROM_FILES = ('folder', 'imagelist', 'shards', 'recordio')  # with another preprocessing than the experiment's
COMPUTE_DTYPES = {'fp16': np.dtype(np.float16), 'bf16': np.dtype(bfloat16)}
DEFAULT_EPOCH = 300
DEFAULT_SIZE_PX = 122
SHORT_EPOCHS = 30  # fewer are too few for rates that fall in steps


@dataclass(frozen=True)
class Config(RunSettings, ComputeSettings, RecipeSettings, DataSettings):
    """The settings of a run. Units: epochs, px, images.

    The length is `epoch` or `iterations`, never both: `epoch` is 300 where neither is given, None with `iterations`.

    Raises:
        InputError: a value out of bounds, or two that do not go together; names them.
    """

    def __post_init__(self) -> None:
        for name, (one, _) in settings_of(Config).items():
            object.__setattr__(self, name, plain(name, getattr(self, name), str(one.type)))
        if self.epoch is not None and self.iterations is not None:
            raise InputError(f'--epoch {self.epoch} and --iterations {self.iterations} both say how long: give one')
        if self.iterations is None and self.epoch is None:
            object.__setattr__(self, 'epoch', DEFAULT_EPOCH)
        if self.finetune is not None:
            if self.load_model not in (None, self.finetune):
                raise InputError(
                    f'--finetune {self.finetune} and --pretrained {self.load_model} both say which weights: give one'
                )
            object.__setattr__(self, 'load_model', self.finetune)
            object.__setattr__(self, 'reset_classifier', True)
        check_settings(self)
        if self.size == 0:
            object.__setattr__(self, 'size', self._usual_size())
        self._check_together()

    def _check_together(self) -> None:
        if self.reset_classifier and self.load_model is None:
            raise InputError('--reset-classifier goes with the weights of --pretrained FILE, which is missing')
        if self.distill != RecipeSettings.distill and self.teacher is None:
            raise InputError(f'--distill {self.distill:g} is the share of a --teacher FILE, which is missing')
        if self.validation is not None:
            count_held(self.validation, 1)
        read_patterns(self.freeze)
        read_multipliers(self.lr_multiplier)
        self._check_sizes()
        if self.epoch is not None and self.start_epoch > self.epoch:
            raise InputError(f'--start_epoch {self.start_epoch} comes after the last epoch, --epoch {self.epoch}')
        for name in ('train_batch_divide', 'test_batch_divide'):
            if getattr(self, name) > self.batch:
                raise InputError(f'--{name} {getattr(self, name)} cuts a batch of {self.batch} into empty parts')
        if self.grad_dtype != 'float32' and self.communicator != 'pure_nccl':
            raise InputError(f'--grad_dtype {self.grad_dtype} goes with --communicator pure_nccl alone')
        if self.run == '' or self.run_name == '..' or self.run_name != Path(self.run_name).name:
            raise InputError(f'--run is {self.run_name!r}; expected the name of a folder below results/')

    def _check_sizes(self) -> None:
        if self.smaller_sizes and self.cutmix:
            raise InputError(f'--progressive_size {self.progressive_size} and --cutmix do not go together')
        if self.epoch is not None:
            self._check_last_size(self.epoch)

    def _check_last_size(self, n_epoch: float) -> None:
        if self.smaller_sizes and self.smaller_sizes[-1][1] >= n_epoch:
            raise InputError(
                f'--progressive_size {self.progressive_size} leaves no epoch of {self.length} for --size {self.size}'
            )

    @property
    def smaller_sizes(self) -> tuple[tuple[int, int], ...]:
        """(crop in px, last epoch) of the sizes that training begins with."""
        return read_sizes(self.progressive_size)

    def size_at(self, epoch: int) -> int:
        """The training crop, px, of the epoch that comes after `epoch` completed ones."""
        return Sizes.of(self.size, smaller=self.smaller_sizes).at(epoch).crop

    @property
    def capture_obstacle(self) -> str | None:
        """Why a GPU cannot capture training iterations, if the settings are in the way."""
        if self.teacher is not None:
            return CAPTURE_OBSTACLE
        return 'the size of the pictures changes' if self.smaller_sizes else None

    def _usual_size(self) -> int:
        """The experiment's; for images that are cut from files of any size, that of their preprocessing."""
        if self.preprocess in PREPROCESSINGS and self.preprocess != 'experiment' and self.dataset in CUT_FROM_FILES:
            return PREPROCESSINGS[self.preprocess].crop
        return DEFAULT_SIZE_PX

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

    def fit(self, n_train: int, saved: Mapping[str, Any] | None = None) -> Config:
        """The settings that depend on how many training images there are: the batch, and what `--schedule auto` is.

        Prints a line about each that it changes.

        Args:
            n_train: number of training images.
            saved: the settings in the checkpoint that the run resumes; its schedule stays, whatever the length now.
        Raises:
            InputError: --iterations end before --size is reached, or before --start_epoch.
        """
        changed: dict[str, Any] = {}
        if self.batch > n_train:
            print(f'a batch of {self.batch} is more than the {n_train} training images: --batch {n_train}')
            changed['batch'] = n_train
        if self.schedule == 'auto':
            n_epoch = replace(self, **changed).count_epochs(n_train)
            if saved is not None:
                changed |= {name: saved[name] for name in ('schedule', 'warmup') if name in saved}
            elif n_epoch >= SHORT_EPOCHS:
                changed['schedule'] = 'step'
            else:
                changed |= {'schedule': 'cosine', 'warmup': self.warmup or round(min(1, n_epoch / 5), 3)}
                print(
                    f'a run of fewer than {SHORT_EPOCHS} epochs: --schedule cosine --warmup {changed["warmup"]:g} '
                    '(for other rates give --schedule or --lr)'
                )
        fitted = replace(self, **changed)
        if fitted.iterations is not None:
            fitted._check_last_size(fitted.count_epochs(n_train))
        return fitted

    def make_schedule(self, n_epoch: float) -> Schedule:
        """The learning rate over `n_epoch` epochs."""
        assert self.schedule != 'auto', 'fit() says what it is'
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
        """Write `config.yaml`: a flat mapping, under the names of the groups."""
        values = self.as_dict()
        with atomic_write(path, 'w') as file:
            file.write('# The settings of this run. To repeat it: --config on this file, with another --run.\n')
            for group in GROUPS:
                kept = {name: values[name] for name in settings_of(group) if name not in ('resume', 'overwrite')}
                file.write(f'\n# {group.__doc__}\n')
                yaml.safe_dump(kept, file, sort_keys=False)

    def check_resumes(self, saved: Mapping[str, Any], path: Path) -> None:
        """Refuse to resume a checkpoint of another experiment.

        Raises:
            InputError: a flag that shapes the result has another value than in the checkpoint; names flag and values.
        """
        values = self.as_dict()
        for name, (_, one) in settings_of(Config).items():
            before = saved.get(name, getattr(Config, name, values[name]))  # a setting that is younger than the run
            if not one.may_change and before != values[name]:
                raise InputError(
                    f'{path} was trained with --{name} {before}, not {values[name]}: '
                    'resume it with the same flags, or start another run with --run NAME'
                )


NAMES = tuple(settings_of(Config))
