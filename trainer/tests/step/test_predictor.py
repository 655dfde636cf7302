import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import chainer
import numpy as np
import pytest
from ml_dtypes import bfloat16

import trainer.functions as F
import trainer.links as L
from trainer import engine
from trainer.step import plan
from trainer.step.predictor import N_PLAN, Predictor
from trainer.step.trace import fold

pytestmark = pytest.mark.skipif(not engine.is_available(), reason='oneDNN is not installed')


class Net(chainer.Chain):
    """Each kind of layer: what can be folded, what cannot, and maps side by side."""

    def __init__(self):
        super().__init__()
        np.random.seed(0)
        with self.init_scope():
            self.conv1 = L.Convolution2D(3, 16, 5, stride=2, pad=2)
            self.bn1 = L.BatchNormalization(16)
            self.layer2 = L.BNReLUConv(16, 8, 1)
            self.left = L.BNReLUConv(8, 12, 1)
            self.right = L.BNReLUConv(8, 12, 3, pad=1)
            self.layer3 = L.BNReLUConv(24, 24, 3, pad=1)
            self.left2 = L.BNReLUConv(24, 12, 1)
            self.right2 = L.BNReLUConv(24, 12, 1)
            self.conv4 = L.BNReLUConv(24, 10, 3, pad=1)
            self.fc5 = L.Linear(10 * 5 * 5, 20)
            self.bn5 = L.BatchNormalization(20)
            self.fc6 = L.Linear(20, 7)
            self.fc7 = L.Linear(7, 5)
        self.n_call = 0
        rng = np.random.default_rng(1)
        for link in self.links():
            if isinstance(link, chainer.links.BatchNormalization):
                n = len(link.gamma.array)
                link.gamma.array[...] = rng.normal(1, 0.5, n)
                link.beta.array[...] = rng.normal(0, 0.5, n)
                link.avg_mean[...] = rng.normal(0, 0.5, n)
                link.avg_var[...] = rng.uniform(0.5, 2, n)

    def forward(self, x):
        self.n_call += 1
        h = self.bn1(self.conv1(x), relu=True)  # folded
        h = F.local_response_normalization(F.max_pooling_2d(h, 3, stride=2))
        s = self.layer2(h)
        h = F.side_by_side([self.left(s), self.right(s)])
        g = self.layer3(h)  # reads the halves twice: here, and in the sums
        a, b = F.split(h, [12, 12])
        h = F.side_by_side([self.left2(g, add=a), self.right2(g, add=b)])
        h = F.dropout(F.relu(self.conv4(h)), 0.5)
        h = F.add(F.average_pooling_2d(h, 2, stride=1), F.average_pooling_2d(h, 2, stride=1))
        h = self.bn5(self.fc5(h), relu=True)
        return self.fc7(F.relu(self.fc6(h)))


def make_images(n, size=24):
    return np.random.default_rng(n).standard_normal((n, 3, size, size)).astype(np.float32)


def call(model, x):
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        return model(x).array.astype(np.float32)


@pytest.mark.parametrize(
    ('dtype', 'tolerance'), [(None, 1e-5), pytest.param(np.dtype(bfloat16), 5e-2, marks=pytest.mark.bfloat16)]
)
def test_a_plan_computes_what_the_network_does(dtype, tolerance):
    model = Net()
    with chainer.using_config('compute_dtype', dtype):
        predict = Predictor(model)
        for n in (4, 1, 3, 4):
            x = make_images(n)
            predict(x)  # makes the plan
            planned = predict(x[::-1])
            expected = call(model, x[::-1])
            np.testing.assert_allclose(planned, expected, atol=tolerance * np.abs(expected).max(), rtol=0)
            assert planned.dtype == np.float32


def test_a_planned_network_runs_once_for_each_shape():
    model = Net()
    predict = Predictor(model)
    for n in (4, 4, 4, 2, 2, 4):
        predict(make_images(n))
    assert model.n_call == 2


def test_the_plans_of_the_last_shapes_are_kept():
    model = Net()
    predict = Predictor(model)
    for n in range(1, N_PLAN + 2):
        predict(make_images(n))
    assert len(predict._plans) == N_PLAN
    predict(make_images(N_PLAN))
    assert model.n_call == N_PLAN + 1


def test_one_that_has_not_been_called_can_be_copied():
    x, predict = make_images(1), Predictor(Net())
    copies = copy.deepcopy(predict), pickle.loads(pickle.dumps(predict))
    for other in copies:
        np.testing.assert_array_equal(other(x), predict(x))


def test_threads_get_their_own_answers():
    images = [make_images(1), make_images(1) + 1]
    predict = Predictor(Net())
    expected = [predict(x) for x in images]
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(predict, images * 200))
    for i, answer in enumerate(answers):
        np.testing.assert_array_equal(answer, expected[i % 2])


def test_batch_normalisation_and_rectifiers_are_folded_where_only_they_read_a_convolution(monkeypatch):
    layers = []
    monkeypatch.setattr(plan, 'fold', lambda *args: layers.extend(fold(*args)) or layers)
    Predictor(Net())(make_images(2))
    names = [type(layer.node).__name__ for layer in layers]
    # Folded: bn1, the one behind the two sums, bn5. Left: those of pooled maps and of maps that are read twice.
    assert names.count('FixedBatchNormalization') == 9 - 3
    assert 'ReLU' not in names


@pytest.mark.parametrize('how', ['unknown function', 'engine off', 'float64', 'can_plan = False', 'not a link'])
def test_what_cannot_be_planned_is_called(how):
    class Plain(Net):
        def forward(self, x):
            return chainer.functions.tanh(super().forward(x)) if how == 'unknown function' else super().forward(x)

    model = Plain()
    x = make_images(3)
    if how == 'float64':
        with chainer.using_config('dtype', np.float64):
            model = Plain()
        for parameter in model.params():
            parameter.array = parameter.array.astype(np.float64)
        x = x.astype(np.float64)
    with chainer.using_config('engine', 'plain' if how == 'engine off' else 'fused'):
        model.can_plan = how != 'can_plan = False'
        predict = Predictor(model if how != 'not a link' else lambda x: model(x))
        expected = call(model, x)
        before = model.n_call
        for n in range(1, 4):
            np.testing.assert_array_equal(predict(x).astype(np.float32), expected)
            assert model.n_call == before + n


def test_a_network_that_changes_its_images_in_place_is_called():
    class InPlace(Net):
        def forward(self, x):
            x -= x.mean((2, 3), keepdims=True)
            return super().forward(x)

    model = InPlace()
    predict = Predictor(model)
    for n in range(3):
        np.testing.assert_array_equal(predict(make_images(n + 1)), call(model, make_images(n + 1)))
    assert model.n_call == 6


def test_a_plan_keeps_the_weights_of_its_first_call():
    model = Net()
    predict = Predictor(model)
    x = make_images(2)
    before = predict(x)
    model.fc7.W.array[...] = 0
    np.testing.assert_allclose(predict(x), before, rtol=1e-4, atol=1e-5)
    assert np.abs(Predictor(model)(x)).max() == 0


def test_the_images_are_left_alone_and_the_logits_are_not_reused():
    predict = Predictor(Net())
    x = make_images(2)
    kept = x.copy()
    predict(x)
    first = predict(x)
    copy = first.copy()
    predict(make_images(2) + 1)
    np.testing.assert_array_equal(x, kept)
    np.testing.assert_array_equal(first, copy)
