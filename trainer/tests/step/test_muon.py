import chainer
import numpy as np
import pytest

import trainer.functions as F
import trainer.links as L
from trainer.engine.onednn.operation import BFLOAT16
from trainer.step.muon import DECAY, _product, orthogonalise
from trainer.step.optimizer import Muon
from trainer.step.parameters import multiply_rates
from trainer.step.schedule import scale_rate


@pytest.mark.parametrize('shape', [(16, 16), (16, 96), (96, 16), (1, 5)])
def test_five_steps_bring_all_singular_values_near_one(shape):
    matrix = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    result = orthogonalise(matrix, steps=5)
    assert result.shape == shape
    u, _, vh = np.linalg.svd(matrix, full_matrices=False)
    inner = u.T @ result @ vh.T  # diagonal: it turns no singular vector
    values = np.diag(inner)
    assert np.abs(inner - np.diag(values)).max() < 1e-3
    assert (values > 0.6).all() and (values < 1.3).all()


class Net(chainer.Chain):
    def __init__(self):
        super().__init__()
        np.random.seed(0)
        with self.init_scope():
            self.first = L.Convolution2D(3, 6, 3)
            self.hidden = L.Convolution2D(6, 8, 3)
            self.last = L.Linear(8, 4)

    def forward(self, x):
        return self.last(F.mean(F.relu(self.hidden(F.relu(self.first(x)))), (2, 3)))


def gradient(model):
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(6, 3, 8, 8)).astype(np.float32), rng.integers(0, 4, 6).astype(np.int32)
    model.cleargrads()
    F.softmax_cross_entropy(model(x), t).backward()


@pytest.mark.parametrize('engine', ['fused', 'plain'])
def test_hidden_weights_are_orthogonalised_and_all_else_is_nesterovs(engine):
    with chainer.using_config('engine', engine):
        model, reference = Net(), Net()
        optimizer = Muon(lr=0.1, momentum=0.9, muon_lr=0.02).setup(model)
        assert optimizer.choose(n_class=4) == ['/hidden/W']
        nesterov = chainer.optimizers.NesterovAG(lr=0.1, momentum=0.9).setup(reference)
        momentum, expected = 0, reference.hidden.W.array.copy()
        for _ in range(3):
            reference.hidden.W.array = expected.copy()
            for one in model, reference:
                gradient(one)
            g = reference.hidden.W.grad
            momentum = 0.9 * momentum + g
            step = orthogonalise((g + 0.9 * momentum).reshape(8, -1)).reshape(g.shape)
            expected = (1 - 0.02 * DECAY) * expected - 0.02 * step
            optimizer.update()
            nesterov.update()
        reference.hidden.W.array = expected
        for (path, one), (_, other) in zip(model.namedparams(), reference.namedparams(), strict=True):
            np.testing.assert_allclose(one.array, other.array, atol=2e-5, err_msg=path)


def test_products_are_float32_also_where_the_network_computes_in_bfloat16():
    matrix = np.random.default_rng(0).normal(size=(16, 40)).astype(np.float32)
    expected = orthogonalise(matrix)
    with chainer.using_config('compute_dtype', BFLOAT16):
        assert np.array_equal(orthogonalise(matrix), expected)


@pytest.mark.parametrize(('m', 'k', 'n'), [(16, 24, 16), (1, 5, 1), (7, 1, 3), (130, 70, 33)])
def test_the_engine_multiplies_matrices_and_their_transposes(m, k, n):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(m, k)).astype(np.float32), rng.normal(size=(k, n)).astype(np.float32)
    for left in x, np.ascontiguousarray(x.T).T:
        for right in y, np.ascontiguousarray(y.T).T:
            np.testing.assert_allclose(_product(left, right), x @ y, rtol=1e-4, atol=1e-5)


def test_matrices_too_large_to_orthogonalise_are_nesterovs():
    model = chainer.Sequential(L.Linear(20, 1100), L.Linear(1100, 1100), L.Linear(1100, 4))
    optimizer = Muon(lr=0.1, momentum=0.9, muon_lr=0.02).setup(model)
    assert optimizer.choose(n_class=4) == ['/0/W']


@pytest.mark.parametrize('multiplier', [1.0, 2.0, 5.0])  # 5: of the two rates, the product is that of the optimizer
def test_a_multiplier_is_of_the_orthogonalised_rate_and_follows_the_schedule(multiplier):
    model = Net()
    optimizer = Muon(lr=0.1, momentum=0.9, muon_lr=0.02).setup(model)
    optimizer.choose(n_class=4)
    multiply_rates(optimizer, f'hidden={multiplier},first=3')
    for lr in 0.1, 0.01:
        optimizer.lr = lr
        scale_rate(optimizer)
        rates = [part.W.update_rule.hyperparam.lr for part in (model.first, model.hidden, model.last)]
        assert rates == pytest.approx([3 * lr, multiplier * lr / 5, lr])


def test_a_parameter_without_dimensions_is_nesterovs():
    model = chainer.Sequential(L.Linear(20, 6), chainer.links.PReLU(), L.Linear(6, 6), L.Linear(6, 4))
    assert Muon(lr=0.1, momentum=0.9, muon_lr=0.02).setup(model).choose(4) == ['/0/W', '/2/W']


def test_only_the_weight_that_gives_the_logits_is_left_out_of_those_with_as_many_rows():
    model = chainer.Sequential(L.Linear(20, 4), L.Linear(4, 4), L.Linear(4, 4))
    for last, chosen in (None, []), ('2', ['/0/W', '/1/W']):
        assert Muon(lr=0.1, momentum=0.9, muon_lr=0.02).setup(model).choose(4, last) == chosen
