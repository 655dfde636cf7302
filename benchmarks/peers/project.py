"""The project itself, by its own updater and as its own evaluation predicts; with --engine plain, stock Chainer."""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from peers import task
from squeeze_net import NETWORKS
from trainer import Config, device, engine
from trainer.data.order import EpochIterator
from trainer.engine.onednn import library as onednn
from trainer.step.optimizer import make_optimizer
from trainer.step.predictor import Predictor
from trainer.step.updater import Updater, UpdateSettings

SEED = 0
N_CHECKED = 16  # images whose logits are compared
N_PROFILED = 6  # steps
settings = ExitStack()  # for the life of the process


def make_commands(args: Any) -> dict[str, Callable[..., Any]]:
    select_engine(args.engine, args.precision)
    model = build_model(args.network, args.reference)
    x, t = task.make_batch(args.network, args.batch)
    step = make_train_step(model, x, t)
    predict = make_predictor(model)
    get_images = cache(lambda n: task.make_batch(args.network, n)[0])

    def infer(batch: int, passes: int) -> list[float]:
        images = get_images(batch)
        return task.time_each(lambda: predict(images), passes)

    def check() -> float:
        with np.load(args.reference / 'logits.npz') as reference:
            return task.relative_difference(predict(reference['x']), reference['y'])

    return {
        'describe': describe,
        'train': lambda steps: task.time_each(step, steps),
        'infer': infer,
        'check': check,
        'rss': task.peak_rss_mib,
        'primitives': lambda: measure_primitives(step),
        'save_reference': lambda: save_reference(model, predict, args),
    }


def select_engine(engine: str, precision: str) -> None:
    """Compute with this engine, in this precision, from here on; before the network is built."""
    settings.enter_context(Config(engine=engine, precision=precision).using_precision())


def make_train_step(model: Any, x: Any, t: Any) -> Callable[[], None]:
    """One update on (x, t) as in a run: `trainer.training.build` without the data, the schedule and the extensions."""
    import chainer

    batch = len(x)
    config = Config(batch=batch, lr=task.LR, momentum=task.MOMENTUM, weight_decay=task.WEIGHT_DECAY, seed=SEED)
    optimizer = make_optimizer(config.optimizer, config.rate, config.momentum).setup(model)
    optimizer.add_hook(chainer.optimizer_hooks.WeightDecay(config.weight_decay))
    iterator = EpochIterator(batch, batch, SEED)
    updater = Updater(iterator, optimizer, lambda rows, target: (x, t), device.open_device(-1), UpdateSettings(SEED))
    reporter = chainer.Reporter()
    reporter.add_observer('main', model)

    def step() -> None:
        with reporter.scope({}):
            updater.update()

    return step


def make_predictor(model: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Images to logits, as `trainer.evaluate` computes them."""
    return Predictor(model)


def measure_primitives(step: Callable[[], None]) -> dict[str, Any] | None:
    """What oneDNN says its primitives take within a training step, beside what the step takes without its log."""
    if engine.version() is None:
        return None
    seconds = task.time_each(step, N_PROFILED)
    calls: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for line in verbose_log(lambda: task.time_each(step, N_PROFILED)):
        _, what, _, kind, implementation, propagation, *_, problem, milliseconds = line.split(',')
        if what == 'exec':
            calls[kind, propagation, implementation, problem].append(float(milliseconds))
    rows = [
        {
            **dict(zip(('primitive', 'propagation', 'implementation', 'problem'), key, strict=True)),
            'calls': len(times) // N_PROFILED,
            'ms': round(sum(times) / N_PROFILED, 3),
        }
        for key, times in calls.items()
    ]
    total = sum(map(sum, calls.values())) / 1e3 / N_PROFILED
    step_s = float(np.median(seconds))
    return {
        'step_s': round(step_s, 4),
        'sum_of_primitives_s': round(total, 4),
        'step_over_sum': round(step_s / total, 3),
        'table': sorted(rows, key=lambda row: -row['ms']),  # milliseconds a step
    }


def verbose_log(run: Callable[[], object]) -> list[str]:
    """The lines that oneDNN writes to standard output, one a primitive, while something runs."""
    library = onednn.library()
    with tempfile.TemporaryFile('w+') as log:
        kept = os.dup(1)
        os.dup2(log.fileno(), 1)
        library.call('set_verbose', 1)
        try:
            run()
        finally:
            library.call('set_verbose', 0)
            os.dup2(kept, 1)
            os.close(kept)
        log.seek(0)
        return [line.strip() for line in log if line.startswith('onednn_verbose,exec')]


def build_model(network: str, reference: Path) -> Any:
    """The network, with the reference's weights once there are any."""
    import chainer

    np.random.seed(SEED)  # Chainer's initializers draw from it
    model = NETWORKS[network](task.N_CLASS, task.SIZES_PX[network], task.DROPOUT)
    task.check_n_parameters(network, model.count_params())
    if (reference / 'weights.npz').exists():
        chainer.serializers.load_npz(reference / 'weights.npz', model)
    return model


def save_reference(model: Any, predict: Callable[[np.ndarray], np.ndarray], args: Any) -> None:
    """Write the weights that all contestants start with, and a few images with the logits they give."""
    import chainer

    chainer.serializers.save_npz(args.reference / 'weights.npz', model)
    x, _ = task.make_batch(args.network, N_CHECKED)
    np.savez(args.reference / 'logits.npz', x=x, y=predict(x))


def describe() -> dict[str, Any]:
    cpu = device.open_device(-1)
    return {
        'computes_with': device.describe(cpu),
        'instruction_set': engine.instruction_set() if engine.version() else "NumPy's",
        'versions': device.versions(cpu),
    }
