"""Builds the `chainer.training.Trainer` of a run and runs it."""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import chainer
from chainer.training import Extension

from trainer import checkpoint, confusion, device, plots, records
from trainer.augmentation import Sizes, TestView, TrainView
from trainer.checkpoint import Checkpoint
from trainer.config import Config
from trainer.datasets import Data
from trainer.errors import InputError, TrainingError
from trainer.evaluate import Evaluation, evaluate
from trainer.interrupt import StopRequest
from trainer.iterator import EpochIterator
from trainer.progress import Progress
from trainer.recorder import Recorder
from trainer.schedule import SetLearningRate
from trainer.updater import Updater

SECONDS_BETWEEN_PLOTS = 30


class Outcome(NamedTuple):
    """How a run ended."""

    folder: Path  # results/<run>
    summary: dict[str, Any]  # as in summary.json; empty if no epoch has ended
    exit_code: int  # 0, or 128 + the signal that stopped it


def train(model: chainer.Chain, data: Data, config: Config, baselines: Collection[str] = ()) -> Outcome:
    """Train a network as configured; records, checkpoints and plots appear as it goes.

    Args:
        model: maps images (N, 3, H, W) to logits (N, data.n_class); an attribute `fixed_size = True` says
            that it takes only images of `config.size`.
        data: training and test images.
        config: the flags.
        baselines: model names that the plots draw dashed.
    Raises:
        InputError: flags, files or folders that do not fit, found before the first iteration.
        TrainingError: no memory, a full disk, a loss that is not finite.
    """
    with StopRequest() as stop, chainer.using_config('dtype', config.dtype):
        trainer = build(model, data, config, stop, baselines)
        recorder = trainer.get_extension('Recorder')
        try:
            trainer.run(show_loop_exception_msg=False)
            recorder.write(finished=not stop.requested)
            trainer.get_extension('Plots').draw()
        except TrainingError as error:
            raise TrainingError(f'{error}{_hint_at_checkpoint(config.run_folder)}') from error
        except MemoryError as error:  # CuPy's is one, too
            raise TrainingError(
                f'out of memory at --batch {config.batch} --size {config.size}: compute the batch in parts '
                f'with -trb {2 * config.train_batch_divide} (and -teb {2 * config.test_batch_divide})'
                f'{_hint_at_checkpoint(config.run_folder)}'
            ) from error
        except OSError as error:
            raise TrainingError(
                f'{error.filename} cannot be written ({error.strerror}){_hint_at_checkpoint(config.run_folder)}'
            ) from error
        summary = json.loads((config.run_folder / 'summary.json').read_text()) if recorder.entries else {}
    return Outcome(config.run_folder, summary, stop.exit_code)


def build(
    model: chainer.Chain, data: Data, config: Config, stop: StopRequest, baselines: Collection[str] = ()
) -> chainer.training.Trainer:
    """The trainer of a run, ready to run, at its first iteration or where its checkpoint left off."""
    target = device.open_device(config.gpu)
    resume_from = _prepare_run(config, model)
    model.to_device(target)
    optimizer = make_optimizer(config).setup(model)
    optimizer.add_hook(chainer.optimizer_hooks.WeightDecay(config.weight_decay))
    if config.load_model is not None:
        checkpoint.load_model(Path(config.load_model), model)
    if config.load_optimizer is not None:
        checkpoint.load_optimizer(Path(config.load_optimizer), optimizer)

    n_train, n_test = len(data.train.labels), len(data.test.labels)
    sizes = Sizes.of(config.size, fixed_size=getattr(model, 'fixed_size', False))
    iterator = EpochIterator(n_train, config.batch, config.seed, epoch=config.start_epoch - 1)
    train_view, test_view = TrainView(data.train, sizes, config.seed), TestView(data.test, sizes)
    updater = Updater(iterator, optimizer, train_view, target, config.seed, divide=config.train_batch_divide)
    schedule = config.make_schedule()
    progress = Progress(n_train, config.epoch, shown_epoch=config.start_epoch - 1)

    def run_test(model: chainer.Chain) -> Evaluation:
        def advance(n: int) -> None:
            progress.advance_test(n)
            stop.check()

        progress.begin_test(n_test)
        batch = -(-config.batch // config.test_batch_divide)
        return evaluate(model, test_view, n_test, data.n_class, batch, target, advance)

    facts, earlier = _facts(model, data, config, target), _earlier_entries(config)
    recorder = Recorder(config.run_folder, run_test, schedule, facts, earlier)
    trainer = chainer.training.Trainer(
        updater,
        lambda trainer: stop.requested or trainer.updater.epoch >= config.epoch,
        out=str(config.run_folder),
    )
    trainer.extend(SetLearningRate(schedule))
    trainer.extend(recorder)
    trainer.extend(progress)
    trainer.extend(Plots(recorder, config, baselines))
    trainer.extend(Checkpoint(config.run_folder, config, recorder, stop, config.checkpoint_minutes))
    if resume_from is not None:
        checkpoint.resume(resume_from, trainer, config)
        print(f'resumed {resume_from} at epoch {updater.epoch_detail:.2f}')
    else:
        for path in _earlier_run(config.run_folder):  # not sooner: what was loaded above may come from it
            path.unlink()
    config.write(config.run_folder / 'config.yaml')
    return trainer


def make_optimizer(config: Config) -> chainer.Optimizer:
    if config.optimizer == 'adam':
        return chainer.optimizers.Adam(alpha=config.lr)
    kind = {'momentum': chainer.optimizers.MomentumSGD, 'nesterov': chainer.optimizers.NesterovAG}[config.optimizer]
    return kind(lr=config.lr, momentum=config.momentum)


class Plots(Extension):
    """Draws the curves and the confusion matrix of the run, beside its peers, at most every half minute."""

    priority = -60
    trigger = 1, 'iteration'

    def __init__(self, recorder: Recorder, config: Config, baselines: Collection[str]) -> None:
        self.recorder, self.config, self.baselines = recorder, config, baselines
        self._drawn_epochs = 0
        self._drawn_at = time.monotonic()

    def __call__(self, trainer: Any) -> None:
        is_due = time.monotonic() - self._drawn_at > SECONDS_BETWEEN_PLOTS
        if is_due and len(self.recorder.entries) > self._drawn_epochs:
            self.draw()

    def draw(self) -> None:
        if not self.recorder.entries:
            return
        self._drawn_epochs, self._drawn_at = len(self.recorder.entries), time.monotonic()
        folder = Path(self.config.save_path) / 'img'
        folder.mkdir(parents=True, exist_ok=True)
        run = records.read_run(self.config.run_folder)
        # The experiment's own network comes first, also when it is the baseline that is being trained.
        runs = sorted([run, *records.peers(run.path)], key=lambda run: run.model in self.baselines)
        plots.draw_curves(runs, folder, dashed=self.baselines)
        confusion.draw_confusion(runs[0], folder)


def _prepare_run(config: Config, model: chainer.Chain) -> Path | None:
    """Make the run's folder and find the checkpoint to resume from, if any; never lose an earlier run."""
    resume_from = None
    if config.resume == 'auto':
        last = config.run_folder / 'checkpoint_last.npz'
        resume_from = last if last.exists() else None
    elif config.resume is not None:
        resume_from = Path(config.resume)
        if not resume_from.is_file():
            raise InputError(f'--resume {resume_from} is not a file; expected a checkpoint_*.npz, or auto')
    # The last, the best, and the one being written: checkpoints (weights and up to two moments) and weights alone.
    n_numbers = 3 * (3 + 1) * model.count_params()
    checkpoint.prepare_folder(config.run_folder, n_numbers * config.dtype.itemsize)
    if resume_from is None and _earlier_run(config.run_folder) and not config.overwrite:
        raise InputError(
            f'{config.run_folder} holds an earlier run: go on with it by --resume, replace it by --overwrite, '
            'or keep both by --run NAME'
        )
    return resume_from


def _earlier_run(folder: Path) -> list[Path]:
    return [path for pattern in ('*.npz', records.LOG, records.SUMMARY) for path in folder.glob(pattern)]


def _earlier_entries(config: Config) -> list[dict[str, Any]]:
    """The epochs of `--load_log` before `--start_epoch`."""
    if config.load_log is None:
        return []
    path = Path(config.load_log)
    entries = [entry for entry in records.read_log(path) if entry['epoch'] < config.start_epoch]
    if not entries:
        raise InputError(f'--load_log {path} has no epoch before --start_epoch {config.start_epoch}')
    return entries


def _facts(model: chainer.Chain, data: Data, config: Config, target: Any) -> dict[str, Any]:
    return {
        'run': config.run_name,
        'model': config.model,
        'n_parameters': model.count_params(),
        'classes': list(data.classes),
        'dataset': {
            'name': data.name,
            'source': data.source,
            'is_jpeg': data.is_jpeg,
            'n_train': len(data.train.labels),
            'n_test': len(data.test.labels),
        },
        'device': device.describe(target),
        'versions': device.versions(target),
    }


def _hint_at_checkpoint(folder: Path) -> str:
    last = folder / 'checkpoint_last.npz'
    return f'; the last checkpoint is {last}' if last.exists() else ''
