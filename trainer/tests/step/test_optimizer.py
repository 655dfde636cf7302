import copy
import pickle

import chainer
import numpy as np
import pytest

import trainer.functions as F
import trainer.links as L
from trainer import engine
from trainer.engine import arena
from trainer.step.optimizer import MomentumSGD, NesterovAG

pytestmark = pytest.mark.skipif(not engine.is_available(), reason='oneDNN is not installed')


class Net(chainer.Chain):
    def __init__(self):
        super().__init__()
        np.random.seed(0)
        with self.init_scope():
            self.conv = L.Convolution2D(3, 5, 3)
            self.bn = L.BatchNormalization(5)
            self.other = chainer.links.Scale(W_shape=(5,))  # knows no arena
            self.fc = L.Linear(5 * 6 * 6, 4)

    def forward(self, x):
        return self.fc(self.other(self.bn(self.conv(x), relu=True)))


def update(model, optimizer, n=1):
    rng = np.random.default_rng(0)
    for _ in range(n):
        x, t = rng.standard_normal((6, 3, 8, 8)).astype(np.float32), rng.integers(0, 4, 6).astype(np.int32)
        loss = F.softmax_cross_entropy(model(x), t)
        model.cleargrads()
        loss.backward()
        optimizer.update()


def set_up(kind, decay=0.01, **kwds):
    model = Net()
    optimizer = kind(lr=0.05, momentum=0.9, **kwds).setup(model)
    if decay:
        optimizer.add_hook(chainer.optimizer_hooks.WeightDecay(decay))
    return model, optimizer


def state(model):
    return {n: p.array.copy() for n, p in model.namedparams()}, {
        n: p.update_rule.state['v'].copy() for n, p in model.namedparams()
    }


@pytest.mark.parametrize('decay', [0, 0.01])
@pytest.mark.parametrize(
    ('ours', 'chainers'),
    [(MomentumSGD, chainer.optimizers.MomentumSGD), (NesterovAG, chainer.optimizers.NesterovAG)],
)
def test_equals_chainers_optimizer_to_the_bit(ours, chainers, decay):
    results = []
    for kind in (ours, chainers):
        model, optimizer = set_up(kind, decay)
        update(model, optimizer, 3)
        optimizer.lr = 0.005
        update(model, optimizer, 2)
        results.append(state(model))
        assert optimizer.t == 5 and {p.update_rule.t for p in model.params()} == {5}
    for one, other in zip(*results, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_parameters_gradients_and_momenta_lie_in_one_array_each():
    model, optimizer = set_up(MomentumSGD)
    update(model, optimizer, 2)
    flat = optimizer._arena
    for parameter in model.params():
        assert np.shares_memory(parameter.array, flat.data)
        assert np.shares_memory(parameter.grad, flat.gradient) or parameter is model.other.W
        assert np.shares_memory(parameter.update_rule.state['v'], optimizer._momenta)
    assert arena.place_of(model.conv.W.array) is model.conv.W.grad


@pytest.mark.parametrize('case', ['hook', 'no gradient', 'engine off', 'per-parameter hook'])
def test_what_does_not_fit_is_left_to_chainer(case):
    results = []
    for kind in (MomentumSGD, chainer.optimizers.MomentumSGD):
        model, optimizer = set_up(kind)
        update(model, optimizer)
        if case == 'hook':
            optimizer.add_hook(chainer.optimizer_hooks.GradientClipping(0.01))
        elif case == 'per-parameter hook':
            model.fc.W.update_rule.add_hook(chainer.optimizer_hooks.GradientHardClipping(-1e-4, 1e-4))
        with chainer.using_config('engine', 'plain' if case == 'engine off' else 'fused'):
            if case == 'no gradient':
                model.cleargrads()
                loss = chainer.functions.sum(model.conv(np.ones((1, 3, 8, 8), np.float32)))
                loss.backward()
                optimizer.update()
            else:
                update(model, optimizer, 2)
        results.append(state(model)[0])
        if kind is MomentumSGD:
            assert optimizer._arena is None
    for name in results[0]:
        np.testing.assert_allclose(results[0][name], results[1][name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_an_optimizer_set_up_again_updates_the_new_network():
    model, optimizer = set_up(MomentumSGD)
    update(model, optimizer, 2)
    before = state(model)[0]
    other, alone = Net(), Net()
    update(other, optimizer.setup(other), 2)
    update(alone, chainer.optimizers.MomentumSGD(lr=0.05, momentum=0.9).setup(alone), 2)  # hooks go with the setup
    for name, array in state(model)[0].items():
        np.testing.assert_array_equal(array, before[name])
        np.testing.assert_array_equal(state(other)[0][name], state(alone)[0][name])


@pytest.mark.parametrize('make_copy', [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_a_copied_optimizer_updates_its_own_network(make_copy):
    model, optimizer = set_up(MomentumSGD)
    update(model, optimizer, 2)
    copied = make_copy(optimizer)
    update(copied.target, copied, 2)
    update(model, optimizer, 2)
    for name, array in state(model)[0].items():
        np.testing.assert_array_equal(state(copied.target)[0][name], array)


def test_layers_that_share_an_array_both_add_to_its_update():
    results = []
    for kind in (MomentumSGD, chainer.optimizers.MomentumSGD):
        np.random.seed(0)
        model = L.Linear(4, 4).repeat(2, mode='share')
        optimizer = kind(lr=0.05).setup(model)
        for _ in range(2):
            model.cleargrads()
            chainer.functions.sum(model(np.ones((3, 4), np.float32))).backward()
            optimizer.update()
        results.append(model[0].W.array)
    np.testing.assert_allclose(*results, rtol=1e-6)


def test_new_arrays_given_to_parameters_are_noticed():
    model, optimizer = set_up(MomentumSGD)
    update(model, optimizer)
    model.fc.W.array = np.zeros_like(model.fc.W.array)
    update(model, optimizer)
    assert np.shares_memory(model.fc.W.array, optimizer._arena.data)
    assert 0 < np.abs(model.fc.W.array).max() < 1


def test_large_networks_are_updated_in_two_threads_alike(monkeypatch):
    results = []
    for parallel_from in (1, 2**40):
        monkeypatch.setattr('trainer.step.optimizer.PARALLEL_FROM', parallel_from)
        monkeypatch.setattr('trainer.step.optimizer.CHUNK', 64)
        model, optimizer = set_up(MomentumSGD)
        update(model, optimizer, 3)
        results.append(state(model)[0])
    for name in results[0]:
        np.testing.assert_array_equal(results[0][name], results[1][name])
