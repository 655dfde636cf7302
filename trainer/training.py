"""Builds the `chainer.training.Trainer` of a run and runs it."""

from __future__ import annotations

import io
import json
import math
import os
import time
import zlib
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import chainer
import numpy as np
from chainer.training import Extension
from tqdm import tqdm

from trainer import device, engine
from trainer.config import Config
from trainer.data.datasets import Data, Stream
from trainer.data.metadata import Metadata
from trainer.data.order import EpochIterator
from trainer.data.pictures import Pictures
from trainer.data.workers import default_workers
from trainer.engine.cores import bound_cores, count_cores
from trainer.errors import InputError, TrainingError
from trainer.parallel.ranks import ALONE, Agreement, Alone
from trainer.report import confusion, curves
from trainer.run import checkpoint, records
from trainer.run.checkpoint import Checkpoint
from trainer.run.contention import ContentionNotice
from trainer.run.log_file import copied_to
from trainer.run.progress import Progress
from trainer.run.recorder import Recorder
from trainer.run.stop import StopRequest
from trainer.step.average import WeightAverage
from trainer.step.captured import CapturedUpdater
from trainer.step.evaluate import Evaluation, evaluate
from trainer.step.mixing import Mixing
from trainer.step.optimizer import GradientHook, make_optimizer
from trainer.step.parameters import freeze, multiply_rates
from trainer.step.schedule import Schedule, SetLearningRate
from trainer.step.updater import Updater

SECONDS_BETWEEN_PLOTS = 30


class Outcome(NamedTuple):
    """How a run ended."""

    folder: Path  # results/<run>
    summary: dict[str, Any]  # as in summary.json; empty if no epoch has ended
    exit_code: int  # 0, or 128 + the signal that stopped it


def train(
    model: chainer.Chain,
    data: Data | Stream,
    config: Config,
    baselines: Collection[str] = (),
    load_model: Callable[[str, chainer.Chain], object] | None = None,
    hooks: Collection[GradientHook] = (),
    ranks: Alone = ALONE,
) -> Outcome:
    """Train a network as configured; records, checkpoints and plots appear as it goes.

    Args:
        model: maps images (N, 3, H, W) to logits (N, data.n_class); an attribute `fixed_size = True` says
            that it takes only images of `config.size`.
        data: training and test images, in memory or streamed.
        config: the flags.
        baselines: model names that the plots draw dashed.
        load_model: puts the weights of `--load_model` into the model; by default those of an .npz.
        hooks: of the optimizer, which change gradients before each update.
        ranks: of `trainer.parallel.join`: the processes that share each batch; the first of them writes.
    Raises:
        InputError: flags, files or folders that do not fit, found before the first iteration.
        TrainingError: no memory, a full disk, a loss that is not finite.
    """
    config = _own_gpu(config, ranks)
    with config.using_precision():
        config = replace(config, precision=_choose_precision(data, config, ranks))
    log_file = config.log_file if ranks.is_first else None
    with copied_to(log_file), StopRequest(is_shared=ranks.size > 1) as stop, config.using_precision():
        try:
            trainer = build(model, data, config, stop, baselines, load_model, hooks, ranks)
            trainer.run(show_loop_exception_msg=False)
            recorder = trainer.get_extension('Recorder')
            recorder.write(finished=not stop.requested)
            trainer.get_extension('Checkpoint').finish(trainer)
            if ranks.is_first:
                trainer.get_extension('Plots').draw()
            if trainer.updater.average is not None:
                trainer.updater.average.apply()  # what was tested and saved
            if isinstance(trainer.updater, CapturedUpdater):  # the network goes on without us
                trainer.updater.get_optimizer('main').leave_arena()
        except BrokenPipeError:  # of our output, not of a file
            raise
        except TrainingError as error:
            raise TrainingError(f'{error}{_hint_at_checkpoint(config.run_folder)}') from error
        except MemoryError as error:  # CuPy's is one, too
            raise TrainingError(
                f'out of memory at --batch {config.batch} --size {config.size}: compute the batch in parts '
                f'with -trb {min(2 * config.train_batch_divide, config.batch // ranks.size)} '
                f'(and -teb {min(2 * config.test_batch_divide, config.batch // ranks.size)})'
                f'{_hint_at_checkpoint(config.run_folder)}'
            ) from error
        except OSError as error:
            raise TrainingError(
                f'{error.filename or "a file"} cannot be written ({error.strerror})'
                f'{_hint_at_checkpoint(config.run_folder)}'
            ) from error
        path = config.run_folder / records.SUMMARY
        has_summary = ranks.is_first and recorder.own_entries
        summary = json.loads(path.read_text(encoding='utf-8')) if has_summary else {}
    return Outcome(config.run_folder, summary, stop.exit_code)


def check(config: Config, ranks: Alone = ALONE) -> None:
    """Refuse, before minutes go into data, what `train` would refuse without looking at them.

    Raises:
        InputError: a device or precision that is not there, an earlier run that would be lost.
    """
    target = device.open_device(_own_gpu(config, ranks).gpu)
    with config.using_precision():
        device.choose_precision(target, config)
    ranks.from_first(lambda: _find_checkpoint(config))


def _own_gpu(config: Config, ranks: Alone) -> Config:
    return replace(config, gpu=config.gpu + ranks.local_rank) if config.gpu >= 0 else config


def build(
    model: chainer.Chain,
    data: Data | Stream,
    config: Config,
    stop: StopRequest,
    baselines: Collection[str] = (),
    load_model: Callable[[str, chainer.Chain], object] | None = None,
    hooks: Collection[GradientHook] = (),
    ranks: Alone = ALONE,
) -> chainer.training.Trainer:
    """The trainer of a run, ready to run, at its first iteration or where its checkpoint left off."""
    target = device.open_device(config.gpu)
    if config.threads is not None:
        engine.set_threads(config.threads)
    elif 'OMP_NUM_THREADS' not in os.environ and (ranks.local_size > 1 or count_cores() < len(bound_cores())):
        engine.set_threads(ranks.share_cores(count_cores()))
    n_rank = f'{ranks.size} processes, each on ' if ranks.size > 1 else ''
    print(f'computing on {n_rank}{device.describe(target)}')
    if config.batch < ranks.size:
        raise InputError(f'--batch {config.batch} leaves nothing to some of {ranks.size} processes')
    if config.train_batch_divide > config.batch // ranks.size:
        raise InputError(
            f'--train_batch_divide {config.train_batch_divide} cuts the {config.batch // ranks.size} rows of a process '
            'into empty parts'
        )
    if config.sync_bn and config.batch % ranks.size:
        raise InputError(
            f'--sync-bn needs as many rows on all of {ranks.size} processes: --batch {config.batch} does not'
        )
    resume_from = ranks.from_first(lambda: _find_checkpoint(config))
    model.to_device(target)
    optimizer = make_optimizer(config).setup(model)
    ranks.attach(model, optimizer, config.sync_bn)
    for hook in hooks:
        optimizer.add_hook(hook)
    optimizer.add_hook(chainer.optimizer_hooks.WeightDecay(config.weight_decay))
    earlier: list[dict[str, Any]] = []
    if resume_from is None:  # a checkpoint holds all of this
        if config.load_model is not None:
            (load_model or load_npz)(config.load_model, model)
        if config.load_optimizer is not None:
            checkpoint.load_optimizer(Path(config.load_optimizer), optimizer)
        if config.load_log is not None:
            earlier = _read_earlier_log(Path(config.load_log), config.start_epoch)

    n_train, n_test = len(data.train.labels), len(data.test.labels)
    iterator = EpochIterator(n_train, config.batch, config.seed, epoch=config.start_epoch - 1)
    n_worker = ranks.share_cores(default_workers()) if config.workers is None else config.workers
    has_fixed_size = getattr(model, 'fixed_size', False)
    pictures = data.pictures(config.size, config.preprocess, has_fixed_size, config.seed, n_worker, config.unreadable)
    pictures.decode_ahead(iterator, ranks.share)
    if (line := pictures.train.describe_decoding()) is not None:
        print(line)
    n_epoch = config.count_epochs(n_train)
    if any(parameter.array is None for parameter in model.params()):  # shapes that the first images decide
        with chainer.using_config('train', False), chainer.no_backprop_mode():
            model(pictures.train(iterator.peek().at(range(1)), target)[0])
    multiply_rates(optimizer, config.lr_multiplier)
    if frozen := freeze(model, config.freeze):
        print(f'frozen: {len(frozen)} of {len(list(model.params()))} parameters')
    mixing = Mixing(config.seed, (config.size, config.size), config.mixup, config.cutmix)
    is_captured = engine.is_on_gpu(model) and config.optimizer in device.FLAT_OPTIMIZERS and not data.capture_obstacle
    if is_captured and ranks is not ALONE:
        is_captured = False
        print('iterations are not captured: --communicator averages gradients from Python')
    if config.precision == 'fp16' and not is_captured:
        raise InputError("--precision fp16: the GPU's engine does not take this network; use --precision float32")
    updater = (CapturedUpdater if is_captured else Updater)(
        iterator,
        optimizer,
        pictures.train,
        target,
        config.seed,
        divide=config.train_batch_divide,
        iteration=(config.start_epoch - 1) * n_train // config.batch,
        smoothing=config.smoothing,
        mixing=mixing if config.mixup or config.cutmix else None,
        average=WeightAverage(model, config.ema) if config.ema else None,
        last_iteration=config.iterations,
        ranks=ranks,
    )
    schedule = config.make_schedule(n_epoch)
    progress = Progress(n_train, n_epoch, shown_epoch=config.start_epoch - 1)

    def run_test(model: chainer.Chain) -> Evaluation:
        def advance(n: int) -> None:
            progress.advance_test(n)
            stop.check()

        stop.check()  # all ranks here, as those without test images would not come to it below
        progress.begin_test(n_test)
        batch = -(-config.batch // (config.test_batch_divide * ranks.size))
        updater.even_out()
        with updater.average.in_place() if updater.average is not None else nullcontext():
            evaluation = evaluate(model, pictures.test, n_test, data.n_class, batch, target, advance, ranks)
        for line in pictures.new_faults(ranks.gather):
            tqdm.write(line)
        return evaluation

    recorder = Recorder(config.run_folder, run_test, schedule, _facts(model, data, config, target), earlier, ranks)
    trainer = chainer.training.Trainer(
        updater,
        lambda trainer: stop.requested or _is_done(trainer.updater, config),
        out=str(config.run_folder) if ranks.is_first else os.curdir,  # which Chainer makes
    )
    trainer.extend(SetLearningRate(schedule))
    trainer.extend(recorder)
    if ranks.is_first:
        trainer.extend(progress)
        trainer.extend(Plots(recorder, config, baselines))
        if target.xp is np and ranks.local_size == 1:  # the other ranks of a machine would count as other processes
            trainer.extend(ContentionNotice())
    trainer.extend(Closing(pictures))
    metadata = Metadata(config.model, data.n_class, pictures.preprocessing, tuple(data.classes))
    computed_on = device.describe(target)
    saving = Checkpoint(
        *(config.run_folder, config, recorder, stop, config.checkpoint_minutes, metadata, ranks, computed_on)
    )
    trainer.extend(saving)
    if ranks.size > 1:
        trainer.extend(Agreement(ranks, stop, saving))
    # The last, the best, and the one being written: checkpoints (weights and up to two moments) and weights alone.
    n_numbers = 3 * (3 + 1 + (config.ema > 0)) * model.count_params()
    if ranks.is_first:
        checkpoint.prepare_folder(config.run_folder, n_numbers * config.dtype.itemsize)
    if resume_from is not None:
        file = None if ranks.size == 1 else io.BytesIO(ranks.from_first(resume_from.read_bytes))
        before = checkpoint.resume(resume_from, trainer, config, file, computed_on)
        _check_rates(recorder.own_entries, schedule, config)
        has_ended = '; it has ended, and is only drawn again' if _is_done(updater, config) else ''
        print(f'resumed {resume_from} at epoch {updater.epoch_detail:.2f}{has_ended}')
        if before:
            print(f'it was computed on {before}: from here on, results differ from an unbroken run by rounding')
    if ranks.size > 1:
        ranks.check_alike(_identity(model, data, config, target))
    if ranks.is_first:
        if resume_from is None:
            for path in _earlier_run(config.run_folder):  # not sooner: what was loaded above may come from it
                path.unlink()
        config.write(config.run_folder / 'config.yaml')
    return trainer


def _identity(model: chainer.Chain, data: Data | Stream, config: Config, target: Any) -> dict[str, Any]:
    """What all ranks have to have in common."""
    host = chainer.get_device('@numpy')
    flags = {f'--{name}': value for name, value in config.as_dict().items() if name not in ('gpu', 'data', 'log_file')}
    found = {'the version of ' + name: version for name, version in device.versions(target).items()} | flags
    found |= data.checksums()
    return found | {'weights': f'of checksum {_checksum([host.send(p.array) for p in model.params()])}'}


def _checksum(arrays: Collection[Any]) -> str:
    total = 0
    for array in arrays:
        total = zlib.crc32(np.ascontiguousarray(array).tobytes(), total)
    return f'{total:08x}'


def _is_done(updater: Updater, config: Config) -> bool:
    if config.iterations is not None:
        return updater.iteration >= config.iterations
    assert config.epoch is not None
    return updater.epoch >= config.epoch


def _choose_precision(data: Data | Stream, config: Config, ranks: Alone = ALONE) -> str:
    """As the device has it; the scaled loss of fp16 is captured, for which images have to lie on the GPU."""
    target = device.open_device(config.gpu)
    obstacle = data.capture_obstacle
    if (obstacle or ranks is not ALONE) and target.xp is not np:
        if config.precision == 'fp16':
            why = f'and {obstacle}' if obstacle else 'and iterations of one process'
            raise InputError(f'--precision fp16 needs images in the memory of the GPU, {why}: use bf16 or float32')
        if config.precision == 'auto':
            config = replace(config, precision='float32')
    return device.choose_precision(target, config)


class Closing(Extension):
    """Ends the processes that decode when the training ends, however it does."""

    trigger = 1, 'epoch'

    def __init__(self, pictures: Pictures) -> None:
        self.pictures = pictures

    def __call__(self, trainer: Any) -> None:
        pass

    def finalize(self) -> None:
        self.pictures.close()


class Plots(Extension):
    """Draws the curves and the confusion matrix of the run, beside its peers, at most every half minute."""

    priority = -60
    trigger = 1, 'iteration'

    def __init__(self, recorder: Recorder, config: Config, baselines: Collection[str]) -> None:
        self.recorder, self.config, self.baselines = recorder, config, baselines
        self._drawn_epochs = len(recorder.entries)
        self._drawn_at = time.monotonic()

    def __call__(self, trainer: Any) -> None:
        is_due = time.monotonic() - self._drawn_at > SECONDS_BETWEEN_PLOTS
        if is_due and len(self.recorder.entries) > self._drawn_epochs:
            self.draw()

    def draw(self) -> None:
        if not self.recorder.own_entries:
            return
        self._drawn_epochs, self._drawn_at = len(self.recorder.entries), time.monotonic()
        folder = Path(self.config.save_path) / 'img'
        folder.mkdir(parents=True, exist_ok=True)
        run = records.read_run(self.config.run_folder)
        # The experiment's own network comes first, also when it is the baseline that is being trained.
        runs = sorted([run, *records.peers(run.path)], key=lambda run: run.model in self.baselines)
        curves.draw_curves(runs, folder, dashed=self.baselines)
        if (runs[0].summary or {}).get('confusion'):
            confusion.draw_confusion(runs[0], folder)


def load_npz(path: str, model: chainer.Chain) -> None:
    checkpoint.load_model(Path(path), model)


def _find_checkpoint(config: Config) -> Path | None:
    """The checkpoint to resume from, if any; refuses to lose an earlier run."""
    path = None
    if config.resume == 'auto':
        last = config.run_folder / 'checkpoint_last.npz'
        path = last if last.exists() else None
    elif config.resume is not None:
        path = Path(config.resume)
        if not path.is_file():
            raise InputError(f'--resume {path} is not a file; expected a checkpoint_*.npz, or auto')
    goes_on = path is not None and path.resolve().parent == config.run_folder.resolve()
    if _earlier_run(config.run_folder) and not goes_on and not config.overwrite:
        has_checkpoint = (config.run_folder / 'checkpoint_last.npz').exists()
        hint = 'go on with it by --resume' if has_checkpoint else 'it has no checkpoint to resume'
        raise InputError(
            f'{config.run_folder} holds an earlier run ({hint}): replace it by --overwrite, or keep both by --run NAME'
        )
    return path


def _check_rates(entries: list[dict[str, Any]], schedule: Schedule, config: Config) -> None:
    """A resumed run must not silently get other rates than it had: by default they follow from --epoch."""
    for entry in entries:
        rate = schedule(entry['epoch'] - 1)
        if not math.isclose(rate, entry['lr'], rel_tol=1e-6):
            raise InputError(
                f'epoch {entry["epoch"]} of this run had the learning rate {entry["lr"]:g}, not the {rate:g} that '
                f'{config.length} gives it: resume with the same --epoch, or give the --milestones it had'
            )


def _earlier_run(folder: Path) -> list[Path]:
    return [path for pattern in ('*.npz', records.LOG, records.SUMMARY) for path in folder.glob(pattern)]


def _read_earlier_log(path: Path, start_epoch: int) -> list[dict[str, Any]]:
    """The epochs of `--load_log` before `--start_epoch`."""
    entries = [entry for entry in records.read_log(path) if entry['epoch'] < start_epoch]
    if not entries:
        raise InputError(f'--load_log {path} has no epoch before --start_epoch {start_epoch}')
    for entry in entries:
        if missing := records.ENTRY_FIELDS.keys() - entry.keys():
            raise InputError(f'--load_log {path}: epoch {entry["epoch"]} lacks {", ".join(sorted(missing))}')
    return entries


def _facts(model: chainer.Chain, data: Data | Stream, config: Config, target: Any) -> dict[str, Any]:
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
