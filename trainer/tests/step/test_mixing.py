"""Mixup and CutMix: draws from (seed, iteration) alone, pixels and losses as by hand."""

import chainer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trainer.functions as F
from trainer.data.order import EpochIterator
from trainer.step.mixing import Mixing
from trainer.step.optimizer import MomentumSGD
from trainer.step.updater import Updater, UpdateSettings, mix_part

IMAGES = np.random.default_rng(0).standard_normal((20, 3, 6, 8)).astype(np.float32)
LABELS = (np.arange(20) % 4).astype(np.int32)


@given(st.integers(0, 2**32 - 1), st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_draws_are_functions_of_seed_and_iteration(seed, iteration, n, height, width):
    for alphas in ({'mixup': 0.2}, {'cutmix': 1.0}, {'mixup': 0.2, 'cutmix': 1.0}):
        mixing = Mixing(seed, (height, width), **alphas)
        mix, again = mixing.draw(iteration, n), mixing.draw(iteration, n)
        assert sorted(mix.partner) == list(range(n))
        np.testing.assert_array_equal(mix.partner, again.partner)
        assert (mix.share, mix.box) == (again.share, again.box) and 0 <= mix.share <= 1
        if mix.box is None:
            assert 'mixup' in alphas
        else:
            top, left, h, w = mix.box
            assert 'cutmix' in alphas and min(mix.box) >= 0 and top + h <= height and left + w <= width
            assert mix.share == 1 - h * w / (height * width)


def test_both_are_taken_about_equally_often_and_shares_are_betas():
    both = [Mixing(1, (32, 32), 0.2, 1.0).draw(i, 2) for i in range(400)]
    assert 150 < sum(mix.box is None for mix in both) < 250
    shares = np.array([Mixing(1, (32, 32), mixup=0.4).draw(i, 2).share for i in range(2000)])
    assert abs(shares.mean() - 0.5) < 0.03
    assert abs(shares.var() - 0.25 / 1.8) < 0.01  # of Beta(a, a): 1 / (4 (2 a + 1))
    assert len({tuple(Mixing(seed, (32, 32), 0.2).draw(0, 20).partner) for seed in range(5)}) == 5


@pytest.mark.parametrize('alphas', [{'mixup': 1.0}, {'cutmix': 1.0}], ids=str)
def test_pixels_are_mixed_as_written(alphas):
    mix = Mixing(3, (6, 8), **alphas).draw(2, 20)
    x, labels = mix_part(mix, IMAGES, LABELS, 20)
    other = IMAGES[mix.partner]
    if mix.box is None:
        np.testing.assert_allclose(x, mix.share * IMAGES + (1 - mix.share) * other, rtol=1e-5, atol=1e-6)
    else:
        top, left, h, w = mix.box
        inside = np.zeros((6, 8), bool)
        inside[top : top + h, left : left + w] = True
        np.testing.assert_array_equal(x, np.where(inside, other, IMAGES))
        assert inside.mean() == pytest.approx(1 - mix.share)
    np.testing.assert_array_equal(labels[1][0], LABELS[mix.partner])
    assert labels[0][1] + labels[1][1] == 1


class Net(chainer.Chain):
    def __init__(self):
        super().__init__()
        np.random.seed(0)
        with self.init_scope():
            self.conv = chainer.links.Convolution2D(3, 6, 3)
            self.fc = chainer.links.Linear(6, 4)

    def forward(self, x):
        return self.fc(F.mean(F.relu(self.conv(x)), axis=(2, 3)))


def run(n=3, divide=1, **settings):
    model = Net()
    updater = Updater(
        EpochIterator(20, 10, seed=5),
        MomentumSGD(lr=0.1, momentum=0.9).setup(model),
        lambda batch, device: (IMAGES[batch.index], LABELS[batch.index]),
        chainer.get_device('@numpy'),
        UpdateSettings(5, divide=divide, **settings),
    )
    seen = []
    for _ in range(n):
        with chainer.reporter.Reporter().scope(observation := {}):
            updater.update()
        seen.append((observation['train/loss'], observation['train/accuracy']))
    return seen, model


@pytest.mark.parametrize('alphas', [{'mixup': 0.5}, {'cutmix': 1.0}], ids=str)
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('weights', [None, np.array([0.5, 2, 1, 3], np.float32)], ids=['even', 'weighted'])
def test_loss_and_accuracy_are_the_shares_of_both_labels(alphas, smoothing, weights):
    mixing = Mixing(5, (6, 8), **alphas)
    ((loss, accuracy),), _ = run(1, smoothing=smoothing, mixing=mixing, class_weight=weights)
    index = EpochIterator(20, 10, seed=5).next().index
    mix = mixing.draw(0, 10)
    a, b = LABELS[index], LABELS[index][mix.partner]
    y = Net()(mix.apply(IMAGES[index], IMAGES[index][mix.partner])).array.astype(float)
    log_p = y - np.log(np.exp(y).sum(axis=1, keepdims=True))
    targets = (1 - smoothing) * np.eye(4) + smoothing / 4  # of each class
    if weights is not None:
        targets *= weights[:, None]
    target = mix.share * targets[a] + (1 - mix.share) * targets[b]
    assert loss == pytest.approx(-(target * log_p).sum(axis=1).mean(), rel=1e-5)
    hits = mix.share * (y.argmax(1) == a) + (1 - mix.share) * (y.argmax(1) == b)
    assert accuracy == pytest.approx(hits.mean(), rel=1e-6)


@pytest.mark.parametrize('alphas', [{'mixup': 0.5}, {'cutmix': 1.0}], ids=str)
def test_a_divided_batch_is_mixed_as_the_whole(alphas):
    (whole, model), (parts, divided) = (run(divide=d, mixing=Mixing(5, (6, 8), **alphas)) for d in (1, 3))
    np.testing.assert_allclose(parts, whole, rtol=1e-5)
    np.testing.assert_allclose(divided.conv.W.array, model.conv.W.array, rtol=1e-4, atol=1e-6)
    assert whole != run()[0]


@pytest.mark.parametrize('engine', ['fused', 'plain'])
def test_class_weights_change_gradients_as_the_formula_says(engine):
    """A step of plain gradient descent: each row's gradient counts with the weight of its class."""
    weights = np.array([0.5, 2, 1, 3], np.float32)
    index = EpochIterator(20, 10, seed=5).next().index
    model = Net()
    y = model(IMAGES[index])
    p = np.exp(y.array) / np.exp(y.array).sum(axis=1, keepdims=True)
    gy = weights[LABELS[index]][:, None] * (p - np.eye(4)[LABELS[index]]) / 10
    y.grad = gy.astype(np.float32)
    model.cleargrads()
    y.backward()
    with chainer.using_config('engine', engine):
        _, trained = run(1, class_weight=weights)
        _, divided = run(1, class_weight=weights, divide=3)
        _, even = run(1)
    for name, parameter in model.namedparams():
        stepped = parameter.array - 0.1 * parameter.grad
        np.testing.assert_allclose(dict(trained.namedparams())[name].array, stepped, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(dict(divided.namedparams())[name].array, stepped, rtol=1e-4, atol=1e-6)
        assert not np.allclose(dict(even.namedparams())[name].array, stepped, rtol=1e-4, atol=1e-6)
