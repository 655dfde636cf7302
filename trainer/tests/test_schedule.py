import chainer
import numpy as np
import pytest

from trainer import schedule
from trainer.schedule import SetLearningRate


def test_step_drops_after_the_milestones():
    rate = schedule.step(0.1, schedule.default_milestones(300))
    assert [rate(epoch) for epoch in (0, 149.99, 150, 224.99, 225, 299)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    )


@pytest.mark.parametrize(('n_epoch', 'expected'), [(300, (150, 225)), (10, (5, 7)), (3, (1, 2)), (2, (1,)), (1, ())])
def test_default_milestones_are_the_floors(n_epoch, expected):
    assert schedule.default_milestones(n_epoch) == expected


def test_cosine_and_warm_up():
    rate = schedule.warm_up(schedule.cosine(0.4, 100), 5)
    assert rate(0) == 0
    assert rate(2.5) == pytest.approx(schedule.cosine(0.4, 100)(2.5) / 2)
    assert rate(50) == pytest.approx(0.2)
    assert rate(100) == pytest.approx(0, abs=1e-12)
    assert schedule.warm_up(schedule.constant(0.3), 0)(0) == 0.3


@pytest.mark.parametrize('kind', [chainer.optimizers.MomentumSGD, chainer.optimizers.Adam])
@pytest.mark.parametrize('epoch', [0, 4, 5, 6, 7, 9])
def test_a_run_that_starts_anywhere_has_the_rate_of_that_epoch(kind, epoch):
    """Also across both milestones, where Chainer's MultistepShift starts from the initial rate again."""
    optimizer = kind().setup(chainer.links.Linear(1, 1))
    updater = type('Updater', (), {'epoch_detail': epoch, 'get_optimizer': lambda self, name: optimizer})()
    rate = schedule.step(0.1, (5, 7))
    SetLearningRate(rate).initialize(type('Trainer', (), {'updater': updater})())
    assert (
        schedule.get_rate(optimizer)
        == rate(epoch)
        == pytest.approx(0.1 * 0.1 ** np.searchsorted((5, 7), epoch, 'right'))
    )
