"""Trains a network: device -> data -> network -> optimizer -> updater -> extensions -> run."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import chainer
import numpy as np
from chainer.training import Trainer

from trainer import device
from trainer.config import CUT_FROM_FILES, Config
from trainer.data import datasets
from trainer.data.augmentation import Sizes
from trainer.data.balance import balanced_weights, describe_skew, is_skewed
from trainer.data.classes import describe_gaps
from trainer.data.datasets import Data, Stream
from trainer.data.order import EpochIterator
from trainer.data.pictures import Pictures
from trainer.data.workers import default_workers
from trainer.errors import InputError
from trainer.parallel import ONE_PROCESS, Ranks
from trainer.report.plots import Plots
from trainer.run import checkpoint, description, failures
from trainer.run.extensions import extend
from trainer.run.log_file import copied_to
from trainer.run.recorder import Recorder
from trainer.run.records import WATCHED
from trainer.run.start import LoadModel, Start, alone_in, find_checkpoint, saved_settings
from trainer.run.stop import StopRequest, has_ended, is_complete
from trainer.run.tensorboard import check_tensorboard
from trainer.step.average import WeightAverage
from trainer.step.captured import choose_updater
from trainer.step.hooks import GradientHook, MeanGradient
from trainer.step.mixing import Mixing
from trainer.step.network import check_call, check_network, last_child
from trainer.step.optimizer import Muon, make_optimizer
from trainer.step.parameters import freeze, multiply_rates
from trainer.step.teacher import CAPTURE_OBSTACLE, Teacher
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
    teacher: Teacher | None = None,
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
        teacher: whose answers are learnt besides the labels; a resumed run must be given it again.
    Raises:
        InputError: settings, files, folders or a network that do not fit, found before the first iteration.
        TrainingError: no memory, a full disk, a loss that is not finite.
    """
    if config.teacher is not None and teacher is None:
        raise InputError(
            f'Config(teacher={config.teacher!r}) is only a name: give trainer.train the network, teacher=Teacher(...)'
        )
    config = _on_device(config, ranks, _obstacle_of(data, teacher))
    log_file = config.log_file if ranks.is_first else None
    with copied_to(log_file), StopRequest(is_shared=ranks.size > 1) as stop, config.using_precision():
        data = _with_validation(data, config)
        config = config.fit(len(data.train.labels), ranks.from_first(lambda: saved_settings(config)))
        with alone_in(config.run_folder, ranks), failures.explained(config, ranks):
            trainer = build(model, data, config, stop, baselines, load_model, hooks, ranks, teacher)
            trainer.run(show_loop_exception_msg=False)
            recorder = trainer.get_extension('Recorder')
            stopped_early = not stop.requested and not is_complete(trainer.updater, config)
            if stopped_early:
                _say_why_it_ended(recorder)
            recorder.write(not stop.requested, stopped_early)
            trainer.get_extension('Checkpoint').finish(trainer)
            if ranks.is_first:
                trainer.get_extension('Plots').finish()
            trainer.updater.finish()
        return Outcome(config.run_folder, recorder.summary, stop.exit_code)


def check(config: Config, ranks: Ranks = ONE_PROCESS) -> None:
    """Refuse, before minutes go into data, what `train` would refuse without looking at them.

    Raises:
        InputError: a device or precision that is not available, an earlier run that would be lost, one under way.
    """
    check_tensorboard(config)
    _on_device(config, ranks)
    with alone_in(config.run_folder, ranks):
        ranks.from_first(lambda: find_checkpoint(config))


def load_data(config: Config) -> Data | Stream:
    """The images of a run; those in memory are no larger than its largest training view.

    Raises:
        InputError: as `trainer.datasets.load`.
    """
    return datasets.load(
        *(config.dataset, config.data),
        limit=config.limit,
        max_side=Sizes.of(config.size).side_max,
        preprocess=config.preprocess,
        seed=config.seed,
        unreadable=config.unreadable,
    )


def build(
    model: chainer.Chain,
    data: Data | Stream,
    config: Config,
    stop: StopRequest,
    baselines: Collection[str] = (),
    load_model: LoadModel | None = None,
    hooks: Collection[GradientHook] = (),
    ranks: Ranks = ONE_PROCESS,
    teacher: Teacher | None = None,
) -> Trainer:
    """The trainer of a run, ready to run, at its first iteration or where its checkpoint left off.

    Args:
        stop: a request to stop, which the trainer looks for after each iteration.
        model, data, config, baselines, load_model, hooks, ranks, teacher: as for `train`.
    """
    # Device
    check_call(model)
    check_tensorboard(config)
    target = device.open_device(config.gpu)
    ranks.set_threads(config.threads)
    print(f'computing on {ranks.describe(device.describe(target))}')
    ranks.check_batch(config.batch, config.train_batch_divide, config.sync_bn)
    start = Start(config, ranks)

    # Data
    _say_what_is_unusual(data, config)
    iterator = EpochIterator(len(data.train.labels), config.batch, config.seed, epoch=config.start_epoch - 1)
    pictures = _open_pictures(model, data, config, iterator, ranks)

    # Network and optimizer
    model.to_device(target)
    smaller = [crop for crop, _ in config.smaller_sizes]
    layers = check_network(model, data.n_class, config.size, pictures.preprocessing.crop, smaller)
    optimizer = _set_up_optimizer(model, config, hooks, ranks)
    if isinstance(optimizer, Muon):
        optimizer.choose(data.n_class, last_child(layers))
    start.load(optimizer, load_model)
    multiply_rates(optimizer, config.lr_multiplier)
    freeze(model, config.freeze)

    # Updater
    kind = choose_updater(optimizer, config.capture_obstacle or _obstacle_of(data, teacher) or ranks.capture_obstacle)
    class_weight = balanced_weights(data.train.labels, data.n_class) if config.class_weights == 'balanced' else None
    updater = _make_updater(kind, iterator, optimizer, pictures, config, ranks, class_weight, teacher)

    # Extensions
    out = str(config.run_folder) if ranks.is_first else os.curdir  # which Chainer makes
    trainer = Trainer(updater, lambda trainer: stop.requested or has_ended(trainer, config), out)
    extend(trainer, data, pictures, config, stop, start, layers)
    if ranks.is_first:
        checkpoint.prepare_folder(config.run_folder, checkpoint.bytes_needed(model, config))
        trainer.extend(Plots(trainer.get_extension('Recorder'), config, baselines))

    # Where an earlier run left off
    start.resume(trainer)
    if ranks.size > 1:
        images = trainer.get_extension('Checkpoint').images
        ranks.check_alike(description.identity(model, images, config, target, teacher))
    start.begin()
    return trainer


def _on_device(config: Config, ranks: Ranks, obstacle: str | None = None) -> Config:
    """The settings with the GPU of this process, and with the precision that its device computes in."""
    config = replace(config, gpu=ranks.own_gpu(config.gpu))
    with config.using_precision():
        target = device.open_device(config.gpu)
    obstacle = obstacle or config.capture_obstacle or ranks.capture_obstacle
    precision = device.choose_precision(target, config.precision, config.engine, config.optimizer, obstacle)
    return replace(config, precision=precision)


def _obstacle_of(data: Data | Stream, teacher: Teacher | None) -> str | None:
    return data.capture_obstacle or (None if teacher is None else CAPTURE_OBSTACLE)


def _with_validation(data: Data | Stream, config: Config) -> Data | Stream:
    """The data, some of its training images held out if `--validation` says so."""
    if config.validation is not None:
        if data.validation is not None:
            raise InputError(
                f'--validation {config.validation}: {data.name} has validation images of its own; leave the flag out'
            )
        n = len(data.train.labels)
        data = data.with_validation(config.validation, config.seed)
        assert data.validation is not None
        n_held = len(data.validation.labels)
        print(f'validation: {n_held:,} of {n:,} training images are held out to choose the best epoch')
    if config.patience is not None and data.validation is None:
        print(
            '--patience uses the test images, as there are no validation images, so their accuracy is optimistic: '
            'see --validation'
        )
    return data


def _say_what_is_unusual(data: Data | Stream, config: Config) -> None:
    """Lines about classes without images, or of very different sizes, weights that make up for it, and Adam's rate."""
    gaps = describe_gaps(data.train.labels, data.test.labels, data.classes)
    if gaps is not None:
        print(gaps)
    if config.optimizer == 'adam' and config.lr == type(config).lr:
        print(
            f'--lr {config.lr:g}, the default, is meant for the other optimizers: adam usually begins with --lr 0.001'
        )
    skew = describe_skew(data.train.labels, data.classes)
    if config.class_weights == 'balanced':
        weights = balanced_weights(data.train.labels, data.n_class)
        print(f'{skew}: losses are weighted by class, from {weights.min():.3g} to {weights.max():.3g}')
    elif config.dataset in CUT_FROM_FILES and is_skewed(data.train.labels):
        print(f'{skew}: consider --class_weights balanced')


def _say_why_it_ended(recorder: Recorder) -> None:
    last, best = recorder.entries[-1]['epoch'], recorder.best['epoch']
    n_epoch = f'{recorder.patience} epoch{"" if recorder.patience == 1 else "s"}'
    kind = WATCHED[recorder.watched]
    print(f'stopped after epoch {last}: no higher {kind} accuracy for {n_epoch}, the best is that of epoch {best}')


def _open_pictures(
    model: chainer.Chain, data: Data | Stream, config: Config, iterator: EpochIterator, ranks: Ranks
) -> Pictures:
    workers = ranks.share_cores(default_workers()) if config.workers is None else config.workers
    sizes = Sizes.of(config.size, getattr(model, 'fixed_size', False), config.smaller_sizes, config.pad)
    pictures = data.pictures(sizes, config.preprocess, config.seed, workers, config.unreadable)
    is_mixed_in_parts = (config.mixup or config.cutmix) and config.train_batch_divide * ranks.size > 1
    pictures.decode_ahead(iterator, ranks.share, is_in_order=not is_mixed_in_parts)
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
    class_weight: np.ndarray | None,
    teacher: Teacher | None,
) -> Updater:
    model = optimizer.target
    assert model is not None
    mixing = Mixing(config.seed, (config.size, config.size), config.mixup, config.cutmix)
    settings = UpdateSettings(
        seed=config.seed,
        divide=config.train_batch_divide,
        smoothing=config.smoothing,
        class_weight=class_weight,
        mixing=mixing if config.mixup or config.cutmix else None,
        average=WeightAverage(model, config.ema) if config.ema else None,
        teacher=teacher,
        iteration=(config.start_epoch - 1) * iterator.n // config.batch,
        last_iteration=config.iterations,
    )
    return kind(iterator, optimizer, pictures.train, model.device, settings, ranks)
