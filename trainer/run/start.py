"""Where a run begins: at a checkpoint, at the files of an earlier run, or afresh; and what must not be lost by it."""

from __future__ import annotations

import hashlib
import io
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import chainer
from chainer.training import Trainer
from filelock import FileLock, Timeout

from trainer.config import Config
from trainer.errors import InputError
from trainer.parallel import Ranks
from trainer.run import checkpoint, records
from trainer.run.stop import has_ended
from trainer.step.schedule import Schedule

HEADS = b'# The settings of this run', b'# The flags of this run'  # of `config.yaml`, now and in earlier versions
LoadModel = Callable[[str, chainer.Chain], object]


class Start:
    """Where a run begins.

    Attributes:
        path: the checkpoint to resume from, if any; all that it holds is then not loaded from elsewhere.
        entries: of the log of an earlier run (`--load_log`), to begin the log with.
    Raises:
        InputError: at construction, for a checkpoint that is missing or an earlier run that would be lost.
    """

    def __init__(self, config: Config, ranks: Ranks) -> None:
        self.config, self.ranks = config, ranks
        self.path = ranks.from_first(lambda: find_checkpoint(config))
        if config.resume is not None and self.path is None:
            print(f'--resume: {config.run_folder} has no {checkpoint.LAST}: the run starts anew')
        self.entries: list[dict[str, Any]] = []

    def load(self, optimizer: Any, load_model: LoadModel | None = None) -> None:
        """Load what `--load_model`, `--load_optimizer` and `--load_log` name; nothing where a checkpoint is resumed.

        Args:
            optimizer: set up with the model.
            load_model: reads a weights file into a model; by default an .npz.
        """
        config = self.config
        if self.path is not None:
            return
        if config.finetune is not None:
            print(f'fine-tuning {config.model} from {config.finetune}: {_recipe(config)}')
        if config.reset_classifier and load_model is None:
            raise InputError('--reset-classifier and --finetune need a program that gives trainer.train() a load_model')
        if config.load_model is not None:
            (load_model or load_npz)(config.load_model, optimizer.target)
        if config.load_optimizer is not None:
            checkpoint.load_optimizer(Path(config.load_optimizer), optimizer)
        if config.load_log is not None:
            self.entries = read_earlier_log(Path(config.load_log), config.start_epoch)

    def resume(self, trainer: Trainer) -> None:
        """Bring the trainer to the state in the checkpoint, if there is one to resume from."""
        if self.path is None:
            return
        file = None if self.ranks.size == 1 else io.BytesIO(self.ranks.from_first(self.path.read_bytes))
        notes = checkpoint.resume(self.path, trainer, self.config, file)
        recorder = trainer.get_extension('Recorder')
        check_rates(recorder.own_entries, recorder.schedule, self.config)
        hint = '; it has ended, and is only drawn again' if has_ended(trainer, self.config) else ''
        print(f'resumed {self.path} at epoch {trainer.updater.epoch_detail:.2f}{hint}')
        for note in notes:
            print(note)

    def begin(self) -> None:
        """Remove the files of a run that is replaced, once all is loaded, and write `config.yaml`."""
        if not self.ranks.is_first:
            return
        if not _goes_on(self.path, self.config):
            for path in earlier_run(self.config.run_folder):
                path.unlink()
        if self.path is not None:
            checkpoint.take_over(self.path, self.config.run_folder)
        self.config.write(self.config.run_folder / records.CONFIG)


def _recipe(config: Config) -> str:
    """The settings that `--finetune` chooses where the user does not, as flags."""
    length = 'epoch' if config.iterations is None else 'iterations'
    names = ['preprocess', 'size', length, 'batch', 'lr', 'schedule', 'warmup', 'freeze', 'lr_multiplier']
    values = [(name, getattr(config, name)) for name in names]
    return ' '.join(
        f'--{name} {value:g}' if isinstance(value, float) else f'--{name} {value}'
        for name, value in values
        if value is not None
    )


def load_npz(path: str, model: chainer.Chain) -> None:
    """Load a weights file, as `checkpoint.load_model`."""
    checkpoint.load_model(Path(path), model)


def find_checkpoint(config: Config) -> Path | None:
    """The checkpoint to resume from, if any.

    Raises:
        InputError: it does not exist, or an earlier run would be lost.
    """
    path = None
    if config.resume == 'auto':
        last = config.run_folder / checkpoint.LAST
        path = last if last.exists() else None
    elif config.resume is not None:
        path = Path(config.resume)
        if not path.is_file():
            raise InputError(f'--resume {path} is not a file; expected a checkpoint_*.npz, or auto')
    goes_on = _goes_on(path, config)
    if earlier_run(config.run_folder) and not goes_on and not config.overwrite:
        has_checkpoint = (config.run_folder / checkpoint.LAST).exists()
        hint = 'go on with it by --resume' if has_checkpoint else 'it has no checkpoint to resume'
        raise InputError(
            f'{config.run_folder} holds an earlier run ({hint}): replace it by --overwrite, or keep both by --run NAME'
        )
    replaced = {file.resolve() for file in earlier_run(config.run_folder)} if not goes_on else set()
    for source in (config.load_model, config.teacher):
        if source is not None and Path(source).resolve() in replaced:
            raise InputError(f'{source} lies in the run that would be replaced: keep it by another --run NAME')
    own = config.run_folder / records.CONFIG
    if not goes_on and not config.overwrite and own.exists() and not own.read_bytes().startswith(HEADS):
        raise InputError(f'{own} was not written by a run: choose another --run, or replace it by --overwrite')
    return path


def _goes_on(path: Path | None, config: Config) -> bool:
    """Whether a checkpoint is one of the run itself, and not of another that it begins with."""
    return path is not None and path.resolve().parent == config.run_folder.resolve()


@contextmanager
def alone_in(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Within, no other process that has the same folder for temporary files trains in the folder of a run.

    Raises:
        InputError: one does.
    """
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    held: list[FileLock] = []

    def acquire() -> None:
        try:
            lock = FileLock(Path(tempfile.gettempdir()) / f'trainer-{name}.lock', timeout=0)
            lock.acquire()
            held.append(lock)
        except Timeout:
            raise InputError(f'another process trains in {folder}: stop it, or keep both by --run NAME') from None
        except (OSError, NotImplementedError):  # a system without a place for locks, or without locks
            pass

    ranks.from_first(acquire)
    try:
        yield
    finally:
        for lock in held:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()


def saved_settings(config: Config) -> dict[str, Any] | None:
    """The settings in the checkpoint to resume from, if any.

    Raises:
        InputError: as `find_checkpoint`, or not a checkpoint.
    """
    path = find_checkpoint(config)
    return None if path is None else checkpoint.read_settings(path)


def earlier_run(folder: Path) -> list[Path]:
    """The files of a run that a new one in this folder would replace."""
    patterns = *checkpoint.FILES, records.LOG, records.SUMMARY, records.MISTAKES, records.EVENTS
    return [path for pattern in patterns for path in folder.glob(pattern)]


def read_earlier_log(path: Path, start_epoch: int) -> list[dict[str, Any]]:
    """The entries of a `log.jsonl` before `start_epoch`.

    Raises:
        InputError: there are none, or one lacks a field.
    """
    entries = [entry for entry in records.read_log(path) if entry['epoch'] < start_epoch]
    if not entries:
        raise InputError(f'--load_log {path} has no epoch before --start_epoch {start_epoch}')
    for entry in entries:
        if missing := records.entry_fields(records.watched_of(entry)).keys() - entry.keys():
            raise InputError(f'--load_log {path}: epoch {entry["epoch"]} lacks {", ".join(sorted(missing))}')
    return entries


def check_rates(entries: list[dict[str, Any]], schedule: Schedule, config: Config) -> None:
    """Refuse to resume at other learning rates than the run had: by default they follow from --epoch.

    Raises:
        InputError: names the first epoch that had another rate, and both.
    """
    for entry in entries:
        rate = schedule(entry['epoch'] - 1)
        if not math.isclose(rate, entry['lr'], rel_tol=1e-6):
            other = 'give the --milestones it had' if config.schedule == 'step' else 'start another run with --run NAME'
            raise InputError(
                f'epoch {entry["epoch"]} of this run had the learning rate {entry["lr"]:g}, not the {rate:g} that '
                f'{config.length} gives it: resume with the same --epoch, or {other}'
            )
