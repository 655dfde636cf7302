"""The project itself, by its own updater and as its own evaluation predicts; with --engine chainer, stock Chainer."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from peers import task
from squeeze_net import NETWORKS
from trainer import Config, device
from trainer.iterator import EpochIterator
from trainer.loop import make_optimizer
from trainer.updater import Updater

SEED = 0
N_CHECKED = 16  # images whose logits are compared


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
        'primitives': lambda: measure_primitives(model, x, t),
        'save_reference': lambda: save_reference(model, predict, args),
    }


def select_engine(engine: str, precision: str) -> None:
    """Compute with this engine, in this precision, from here on; before the network is built."""
    if precision != 'float32':
        raise NotImplementedError(f'the project does not compute in {precision} yet')
    # So far, both engines are stock Chainer; `describe` says what computes.


def make_train_step(model: Any, x: Any, t: Any) -> Callable[[], None]:
    """One update on (x, t) as in a run: `trainer.loop.build` without the data, the schedule and the extensions."""
    import chainer

    batch = len(x)
    config = Config(batch=batch, lr=task.LR, momentum=task.MOMENTUM, weight_decay=task.WEIGHT_DECAY, seed=SEED)
    optimizer = make_optimizer(config).setup(model)
    optimizer.add_hook(chainer.optimizer_hooks.WeightDecay(config.weight_decay))
    iterator = EpochIterator(batch, batch, SEED)
    updater = Updater(iterator, optimizer, lambda rows, target: (x, t), device.open_device(-1), SEED)
    reporter = chainer.Reporter()
    reporter.add_observer('main', model)

    def step() -> None:
        with reporter.scope({}):
            updater.update()

    return step


def make_predictor(model: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Images to logits, as `trainer.evaluate` computes them."""
    import chainer

    def predict(x: np.ndarray) -> np.ndarray:
        with chainer.using_config('train', False), chainer.no_backprop_mode():
            return model(x).array

    return predict


def measure_primitives(model: Any, x: Any, t: Any) -> dict[str, Any] | None:
    """What the primitives of a training step take alone: {'sum_of_primitives_s': seconds, 'table': [...]}."""
    return None


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
    return {'computes_with': device.describe(cpu), 'versions': device.versions(cpu)}
