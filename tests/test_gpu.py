"""The same training on the CPU and on CuPy: same pictures, same dropout masks, same losses."""

import chainer
import numpy as np
import pytest

from squeeze_net import NETWORKS
from trainer import Config
from trainer.augmentation import Sizes, TestView, TrainView
from trainer.datasets import load
from trainer.device import open_device
from trainer.evaluate import evaluate
from trainer.functions import DropoutKey, dropout
from trainer.iterator import EpochIterator
from trainer.loop import make_optimizer
from trainer.updater import Updater

N_ITERATION = 20


def train(name, gpu, dtype, batch=8):
    """Losses of the first iterations, and the test loss after them."""
    data = load('shapes', limit=16)
    device = open_device(gpu)
    config = Config(**(NETWORKS[name].recipe | {'size': 32, 'lr': 0.01}))
    np.random.seed(0)
    with chainer.using_config('dtype', np.dtype(dtype)):
        model = NETWORKS[name](10, 32)
        optimizer = make_optimizer(config).setup(model)
        view = TrainView(data.train, Sizes.of(32), seed=0)
        updater = Updater(EpochIterator(160, batch, seed=0), optimizer, view, device, seed=0)
        losses = []
        for _ in range(N_ITERATION):
            with chainer.reporter.Reporter().scope(observation := {}):
                updater.update()
            losses.append(observation['train/loss'])
        test = evaluate(model, TestView(data.test, Sizes.of(32)), 160, 10, 32, device)
    return np.array(losses), test.loss


@pytest.mark.gpu
@pytest.mark.parametrize('name', NETWORKS)
def test_losses_are_the_cpus(name):
    """In float64, where rounding has no time to grow: in float32 it flips a ReLU within a few iterations."""
    cpu_losses, cpu_test = train(name, -1, 'float64')
    gpu_losses, gpu_test = train(name, 0, 'float64')
    np.testing.assert_allclose(gpu_losses, cpu_losses, rtol=1e-8)
    assert gpu_test == pytest.approx(cpu_test, rel=1e-8)


@pytest.mark.gpu
@pytest.mark.parametrize('name', NETWORKS)
def test_first_losses_in_float32_are_the_cpus(name):
    cpu_losses, _ = train(name, -1, 'float32')
    gpu_losses, _ = train(name, 0, 'float32')
    np.testing.assert_allclose(gpu_losses[:2], cpu_losses[:2], rtol=1e-3)
    # From the third on, a rounding error has taken some ReLU or maximum across a tie.


@pytest.mark.gpu
def test_dropout_masks_are_the_cpus():
    device = open_device(0)
    x = np.ones((5, 7, 3, 3), np.float32)
    masks = []
    for images in (x, device.send(x)):
        with chainer.using_config('dropout_key', DropoutKey(3, 4)):
            masks.append(chainer.backends.cuda.to_cpu(dropout(images, 0.5).array))
    np.testing.assert_array_equal(*masks)
