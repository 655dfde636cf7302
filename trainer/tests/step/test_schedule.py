import chainer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer import Config
from trainer.step import schedule
from trainer.step.schedule import SetLearningRate


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


@given(
    st.floats(1e-4, 10), st.floats(0.1, 500), st.floats(0, 3), st.floats(0.01, 1), st.integers(1, 9), st.floats(0, 600)
)
@settings(max_examples=60, deadline=None)
def test_poly_and_factor_are_their_formulas(lr, n_epoch, power, factor, every, epoch):
    progress = min(epoch / n_epoch, 1)
    assert schedule.poly(lr, n_epoch, power)(epoch) == pytest.approx(lr * (1 - progress) ** power)
    assert schedule.factor(lr, factor, every)(epoch) == pytest.approx(lr * factor ** int(epoch / every))


def test_poly_over_iterations_is_caffes():
    """Rate of iteration k, from 0: base_lr * (1 - k / max_iter)^power."""
    config = Config(lr=0.04, schedule='poly', iterations=170, batch=512)
    rate = config.make_schedule(config.count_epochs(10_000))
    for k in (0, 1, 85, 169, 170):
        assert rate(k * 512 / 10_000) == pytest.approx(0.04 * (1 - k / 170), abs=1e-12)


def test_factor_holds_within_its_epochs():
    rate = schedule.factor(0.1, 0.94, 2)
    assert [rate(epoch) for epoch in (0, 1.99, 2, 3.9, 4)] == pytest.approx([0.1, 0.1, 0.094, 0.094, 0.08836])


def test_milestones_of_iterations_are_exact():
    rate = Config(lr=1, iterations=30, batch=10).make_schedule(2.5)
    assert [rate(epoch) for epoch in (0, 1.24, 1.25, 1.87, 1.875)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_multiplied_rates_follow_the_optimizers():
    model = chainer.Sequential(chainer.links.Linear(2, 2), chainer.links.Linear(2, 2))
    optimizer = chainer.optimizers.MomentumSGD().setup(model)
    model[1].W.update_rule.lr_multiplier = 3.0
    updater = type('Updater', (), {'epoch_detail': 6, 'get_optimizer': lambda self, name: optimizer})()
    SetLearningRate(schedule.step(0.1, (5,)))(type('Trainer', (), {'updater': updater})())
    assert model[0].W.update_rule.hyperparam.lr == pytest.approx(0.01)
    assert model[1].W.update_rule.hyperparam.lr == pytest.approx(0.03)
