"""The moving average of the weights, against a loop over them."""

import chainer
import numpy as np
import pytest

import trainer.functions as F
import trainer.links as L
from trainer import engine
from trainer.step.average import WeightAverage
from trainer.step.optimizer import MomentumSGD
from trainer.step.parameters import freeze


class Net(chainer.Chain):
    def __init__(self):
        super().__init__()
        np.random.seed(0)
        with self.init_scope():
            self.conv = L.Convolution2D(3, 5, 3)
            self.bn = L.BatchNormalization(5)
            self.fc = L.Linear(5 * 6 * 6, 4)

    def forward(self, x):
        return self.fc(self.bn(self.conv(x), relu=True))


def state(model):
    serializer = chainer.serializers.DictionarySerializer()
    serializer.save(model)
    return {name: np.array(value) for name, value in serializer.target.items()}


def steps(model, optimizer, average, n, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(n):
        x, t = rng.standard_normal((6, 3, 8, 8)).astype(np.float32), rng.integers(0, 4, 6).astype(np.int32)
        model.cleargrads()
        F.softmax_cross_entropy(model(x), t).backward()
        optimizer.update()
        average.update(getattr(optimizer, 'arena', None))
        yield state(model)


@pytest.mark.parametrize('frozen', [None, 'conv'])
@pytest.mark.parametrize('engine_name', ['fused', 'plain'])
@pytest.mark.parametrize('decay', [0.05, 0.9])
def test_is_that_of_a_naive_loop_to_the_bit(decay, engine_name, frozen):
    with chainer.using_config('engine', engine_name):
        model = Net()
        optimizer = MomentumSGD(lr=0.1).setup(model)
        freeze(model, frozen)
        average = WeightAverage(model, decay)
        expected = state(model)
        for t, values in enumerate(steps(model, optimizer, average, 15)):
            d = min(decay, (1 + t) / (10 + t))
            for name, value in values.items():
                is_count = value.dtype.kind != 'f'
                expected[name] = value if is_count else expected[name] + (value - expected[name]) * np.float32(1 - d)
        own = state(model)
        with average.in_place():
            found = state(model)
        assert (optimizer.arena is not None) == (engine_name == 'fused' and engine.is_available())
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
        np.testing.assert_array_equal(state(model)[name], own[name], err_msg=name)
    assert not np.array_equal(found['fc/W'], own['fc/W']) and not np.array_equal(found['bn/avg_var'], own['bn/avg_var'])


def test_the_network_has_its_own_weights_again_after_an_error():
    model = Net()
    average = WeightAverage(model, 0.9)
    model.fc.W.array[...] = 3
    with pytest.raises(KeyError), average.in_place():
        assert not (model.fc.W.array == 3).any()
        raise KeyError
    assert (model.fc.W.array == 3).all()


def test_is_saved_and_loaded(tmp_path):
    model = Net()
    optimizer, average = MomentumSGD(lr=0.1).setup(model), WeightAverage(model, 0.9)
    list(steps(model, optimizer, average, 5))
    chainer.serializers.save_npz(tmp_path / 'average.npz', average)
    other = WeightAverage(Net(), 0.9)
    chainer.serializers.load_npz(tmp_path / 'average.npz', other)
    assert other.t == 5
    average.apply(), other.apply()
    for name, value in state(model).items():
        if value.dtype.kind == 'f':
            np.testing.assert_array_equal(state(other.model)[name], value, err_msg=name)
