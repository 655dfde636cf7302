"""The learning rate as a pure function of progress, and the extension that sets it.

Progress is counted in completed epochs, with a fraction within an epoch.  Nothing here has a state: at whichever epoch
a run starts or resumes, it has the rate of that epoch in an unbroken run.  (Chainer's own `MultistepShift` does
not: it starts from the initial rate again.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import chainer
from chainer.training import Extension, Trainer, extension

Schedule = Callable[[float], float]

DIVISOR = 10


def step(lr: float, milestones: Sequence[float]) -> Schedule:
    """`lr`, divided by 10 after each of the epochs `milestones`."""
    return lambda epoch: lr / DIVISOR ** sum(epoch >= milestone for milestone in milestones)


def cosine(lr: float, n_epoch: float) -> Schedule:
    """Half a cosine from `lr` down to 0 after `n_epoch` epochs (Loshchilov and Hutter, "SGDR", 2017, one period)."""
    return lambda epoch: lr * 0.5 * (1 + math.cos(math.pi * min(epoch / n_epoch, 1.0)))


def poly(lr: float, n_epoch: float, power: float) -> Schedule:
    """lr * (1 - epoch / n_epoch)^power, down to 0 after `n_epoch` epochs: Caffe's policy of this name."""
    return lambda epoch: lr * max(1 - epoch / n_epoch, 0.0) ** power


def factor(lr: float, factor: float, every: int) -> Schedule:
    """`lr`, times `factor` after every `every` whole epochs: lr * factor^floor(epoch / every).

    As MXNet's FactorScheduler, which counts updates; its examples give it the updates of `every` epochs.
    """
    return lambda epoch: lr * factor ** (epoch // every)


def constant(lr: float) -> Schedule:
    """`lr`, all the time."""
    return lambda epoch: lr


def warm_up(schedule: Schedule, n_epoch: float) -> Schedule:
    """`schedule`, scaled up linearly from 0 over the first `n_epoch` epochs (Goyal et al., 2017, section 2.2)."""
    return lambda epoch: schedule(epoch) * (min(epoch / n_epoch, 1.0) if n_epoch > 0 else 1.0)


def default_milestones(n_epoch: int) -> tuple[int, ...]:
    """After half and three quarters of the epochs, as in DenseNet's CIFAR recipe (Huang et al., 2017, section 4.2)."""
    return tuple(sorted({n_epoch // 2, 3 * n_epoch // 4} - {0}))


class SetLearningRate(Extension):
    """Gives the optimizer the schedule's rate, before the first iteration and after each one."""

    priority = extension.PRIORITY_EDITOR
    trigger = 1, 'iteration'

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def initialize(self, trainer: Trainer) -> None:
        self(trainer)

    def __call__(self, trainer: Trainer) -> None:
        optimizer = trainer.updater.get_optimizer('main')
        setattr(optimizer, _rate_name(optimizer), self.schedule(trainer.updater.epoch_detail))
        scale_rate(optimizer)


def get_rate(optimizer: Any) -> float:
    """The optimizer's learning rate, whatever Chainer calls it."""
    return getattr(optimizer, _rate_name(optimizer))


def multiplier_of(parameter: chainer.Parameter) -> float:
    """The rate of a parameter over that of its optimizer: `--lr_multiplier` times the `ratio` of its rule."""
    rule = parameter.update_rule
    return getattr(rule, 'ratio', 1.0) * getattr(rule, 'lr_multiplier', 1.0)


def scale_rate(optimizer: Any) -> None:
    """Tell Chainer's update rules of the rates that are not the optimizer's own."""
    name = _rate_name(optimizer)
    for parameter in optimizer.target.params():
        own = getattr(parameter.update_rule, 'hyperparam', None)
        if own is not None and ((multiplier := multiplier_of(parameter)) != 1 or name in vars(own)):
            setattr(own, name, getattr(optimizer, name) * multiplier)


def _rate_name(optimizer: Any) -> str:
    """Adam's step size is `alpha` in Chainer; its `lr` is computed from that."""
    return 'alpha' if hasattr(optimizer, 'alpha') else 'lr'
