"""The networks train on the engine as on plain Chainer."""

import chainer
import numpy as np
import pytest

import trainer.functions as F
from squeeze_net import NETWORKS
from trainer import engine
from trainer.step.optimizer import MomentumSGD
from trainer.step.predictor import Predictor

pytestmark = pytest.mark.skipif(not engine.is_available(), reason='oneDNN is not installed')
SIZES = {'squeezenet': 48, 'alexnet': 64, 'vgg_bn': 32, 'airbench94': 64}


def train(name, engine_name, precision, n):
    rng = np.random.default_rng(0)
    np.random.seed(0)
    dtype = np.dtype('bfloat16') if precision == 'bf16' else None
    with chainer.using_config('engine', engine_name), chainer.using_config('compute_dtype', dtype):
        model = NETWORKS[name](10, SIZES[name])
        optimizer = MomentumSGD(lr=0.005).setup(model)
        losses = []
        x = rng.standard_normal((8, 3, SIZES[name], SIZES[name])).astype(np.float32)
        t = np.arange(8, dtype=np.int32)
        for i in range(n):
            with chainer.using_config('dropout_key', F.DropoutKey(0, i)):
                loss = F.softmax_cross_entropy(model(x), t)
            model.cleargrads()
            loss.backward()
            optimizer.update()
            losses.append(float(loss.array))
    return losses


@pytest.mark.parametrize(
    'name', ['squeezenet', *(pytest.param(name, marks=pytest.mark.long) for name in SIZES if name != 'squeezenet')]
)
def test_losses_track_plain_chainers(name):
    """Later ones drift apart: a rounding error takes some ReLU or maximum across a tie, on Chainer alone as well."""
    ours, chainers = train(name, 'fused', 'float32', 3), train(name, 'plain', 'float32', 3)
    np.testing.assert_allclose(ours[:2], chainers[:2], rtol=1e-3)
    np.testing.assert_allclose(ours, chainers, rtol=1e-2)


@pytest.mark.skipif(not engine.has_bfloat16(), reason='this processor has no AVX512-BF16')
@pytest.mark.parametrize('name', SIZES)
def test_bf16_losses_are_near_those_of_float32(name):
    ours, float32 = train(name, 'fused', 'bf16', 3), train(name, 'fused', 'float32', 3)
    np.testing.assert_allclose(ours, float32, rtol=0.1)


@pytest.mark.long
def test_twenty_updates_reach_the_same_loss():
    ours, chainers = (np.array(train('squeezenet', name, 'float32', 20)) for name in ('fused', 'plain'))
    np.testing.assert_allclose(ours, chainers, rtol=0.2)
    assert ours[-1] < 0.8 * ours[0]


@pytest.mark.parametrize('name', NETWORKS)
def test_inference_of_every_network_is_planned(name):
    """One that is not is many times as slow, and as right."""
    np.random.seed(0)
    model = NETWORKS[name](5, 64)
    predict = Predictor(model)
    x = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
    predict(x)
    assert predict._plans
    planned = predict(x)
    with chainer.using_config('train', False), chainer.using_config('engine', 'plain'):
        expected = model(x).array
    np.testing.assert_allclose(planned, expected, atol=1e-4 * np.abs(expected).max() + 1e-6)
