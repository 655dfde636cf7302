"""Trains a network: device -> data -> network -> optimizer -> updater -> extensions -> run."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import chainer
from chainer.training import Trainer

from trainer import device
from trainer.config import Config
from trainer.data.augmentation import Sizes
from trainer.data.datasets import Data, Stream
from trainer.data.order import EpochIterator
from trainer.data.pictures import Pictures
from trainer.data.workers import default_workers
from trainer.parallel import ONE_PROCESS, Ranks
from trainer.report.plots import Plots
from trainer.run import checkpoint, description, failures
from trainer.run.extensions import extend
from trainer.run.log_file import copied_to
from trainer.run.start import LoadModel, Start, find_checkpoint
from trainer.run.stop import StopRequest, has_ended
from trainer.step.average import WeightAverage
from trainer.step.captured import choose_updater
from trainer.step.hooks import GradientHook, MeanGradient
from trainer.step.mixing import Mixing
from trainer.step.optimizer import Muon, make_optimizer
from trainer.step.parameters import freeze, multiply_rates, set_shapes
from trainer.step.updater import Updater, UpdateSettings


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
    load_model: LoadModel | None = None,
    hooks: Collection[GradientHook] = (),
    ranks: Ranks = ONE_PROCESS,
) -> Outcome:
    """Train a network as configured; records, checkpoints and plots appear as it goes.

    Args:
        model: maps images (N, 3, H, W) to logits (N, data.n_class); an attribute `fixed_size = True` says
            that it takes only images of `config.size`.
        data: training and test images, in memory or streamed.
        config: the settings.
        baselines: model names that the plots draw dashed.
        load_model: puts the weights of `--load_model` into the model; by default those of an .npz.
        hooks: of the optimizer, which change gradients before each update.
        ranks: of `trainer.parallel.join`: the processes that share each batch; the first of them writes.
    Raises:
        InputError: settings, files or folders that do not fit, found before the first iteration.
        TrainingError: no memory, a full disk, a loss that is not finite.
    """
    config = _on_device(config, ranks, data.capture_obstacle)
    log_file = config.log_file if ranks.is_first else None
    with copied_to(log_file), StopRequest(is_shared=ranks.size > 1) as stop, config.using_precision():
        with failures.explained(config, ranks):
            trainer = build(model, data, config, stop, baselines, load_model, hooks, ranks)
            trainer.run(show_loop_exception_msg=False)
            recorder = trainer.get_extension('Recorder')
            recorder.write(finished=not stop.requested)
            trainer.get_extension('Checkpoint').finish(trainer)
            if ranks.is_first:
                trainer.get_extension('Plots').draw()
            trainer.updater.finish()
        return Outcome(config.run_folder, recorder.summary, stop.exit_code)


def check(config: Config, ranks: Ranks = ONE_PROCESS) -> None:
    """Refuse, before minutes go into data, what `train` would refuse without looking at them.

    Raises:
        InputError: a device or precision that is not available, an earlier run that would be lost.
    """
    _on_device(config, ranks)
    ranks.from_first(lambda: find_checkpoint(config))


def build(
    model: chainer.Chain,
    data: Data | Stream,
    config: Config,
    stop: StopRequest,
    baselines: Collection[str] = (),
    load_model: LoadModel | None = None,
    hooks: Collection[GradientHook] = (),
    ranks: Ranks = ONE_PROCESS,
) -> Trainer:
    """The trainer of a run, ready to run, at its first iteration or where its checkpoint left off.

    Args:
        stop: a request to stop, which the trainer looks for after each iteration.
        model, data, config, baselines, load_model, hooks, ranks: as for `train`.
    """
    # Device
    target = device.open_device(config.gpu)
    ranks.set_threads(config.threads)
    print(f'computing on {ranks.describe(device.describe(target))}')
    ranks.check_batch(config.batch, config.train_batch_divide, config.sync_bn)
    start = Start(config, ranks)

    # Data
    iterator = EpochIterator(len(data.train.labels), config.batch, config.seed, epoch=config.start_epoch - 1)
    pictures = _open_pictures(model, data, config, iterator, ranks)

    # Network and optimizer
    model.to_device(target)
    optimizer = _set_up_optimizer(model, config, hooks, ranks)
    start.load(optimizer, load_model)
    set_shapes(model, lambda: pictures.train(iterator.peek().at(range(1)), target)[0])
    if isinstance(optimizer, Muon):
        optimizer.choose(data.n_class)
    multiply_rates(optimizer, config.lr_multiplier)
    freeze(model, config.freeze)

    # Updater
    obstacle = 'the size of the pictures changes' if config.smaller_sizes else None
    kind = choose_updater(optimizer, obstacle or data.capture_obstacle or ranks.capture_obstacle)
    updater = _make_updater(kind, iterator, optimizer, pictures, config, ranks)

    # Extensions
    out = str(config.run_folder) if ranks.is_first else os.curdir  # which Chainer makes
    trainer = Trainer(updater, lambda trainer: stop.requested or has_ended(updater, config), out)
    extend(trainer, data, pictures, config, stop, start)
    if ranks.is_first:
        trainer.extend(Plots(trainer.get_extension('Recorder'), config, baselines))
        checkpoint.prepare_folder(config.run_folder, checkpoint.bytes_needed(model, config))

    # Where an earlier run left off
    start.resume(trainer)
    if ranks.size > 1:
        ranks.check_alike(description.identity(model, data, config, target))
    start.begin()
    return trainer


def _on_device(config: Config, ranks: Ranks, obstacle: str | None = None) -> Config:
    """The settings with the GPU of this process, and with the precision that its device computes in."""
    config = replace(config, gpu=ranks.own_gpu(config.gpu))
    with config.using_precision():
        target = device.open_device(config.gpu)
    obstacle = obstacle or ranks.capture_obstacle
    precision = device.choose_precision(target, config.precision, config.engine, config.optimizer, obstacle)
    return replace(config, precision=precision)


def _open_pictures(
    model: chainer.Chain, data: Data | Stream, config: Config, iterator: EpochIterator, ranks: Ranks
) -> Pictures:
    workers = ranks.share_cores(default_workers()) if config.workers is None else config.workers
    sizes = Sizes.of(config.size, getattr(model, 'fixed_size', False), config.smaller_sizes)
    pictures = data.pictures(sizes, config.preprocess, config.seed, workers, config.unreadable)
    pictures.decode_ahead(iterator, ranks.share)
    return pictures


def _set_up_optimizer(
    model: chainer.Chain, config: Config, hooks: Collection[GradientHook], ranks: Ranks
) -> chainer.Optimizer:
    optimizer = make_optimizer(config.optimizer, config.rate, config.momentum, config.muon_lr).setup(model)
    ranks.connect(model, config.sync_bn)
    if ranks.size > 1:
        optimizer.add_hook(MeanGradient(ranks))
    for hook in hooks:
        optimizer.add_hook(hook)
    optimizer.add_hook(chainer.optimizer_hooks.WeightDecay(config.weight_decay))
    return optimizer


def _make_updater(
    kind: type[Updater],
    iterator: EpochIterator,
    optimizer: chainer.Optimizer,
    pictures: Pictures,
    config: Config,
    ranks: Ranks,
) -> Updater:
    model = optimizer.target
    assert model is not None
    mixing = Mixing(config.seed, (config.size, config.size), config.mixup, config.cutmix)
    settings = UpdateSettings(
        seed=config.seed,
        divide=config.train_batch_divide,
        smoothing=config.smoothing,
        mixing=mixing if config.mixup or config.cutmix else None,
        average=WeightAverage(model, config.ema) if config.ema else None,
        iteration=(config.start_epoch - 1) * iterator.n // config.batch,
        last_iteration=config.iterations,
    )
    return kind(iterator, optimizer, pictures.train, model.device, settings, ranks)
