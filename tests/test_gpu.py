"""Training on CuPy: plain Chainer does what the CPU does, and the engine does what plain Chainer does."""

import chainer
import numpy as np
import pytest

from squeeze_net import NETWORKS
from trainer import Config, train
from trainer.data.augmentation import Sizes, TestView, TrainView
from trainer.data.datasets import load
from trainer.data.order import EpochIterator
from trainer.device import open_device
from trainer.step.captured import CapturedUpdater
from trainer.step.evaluate import evaluate
from trainer.step.optimizer import make_optimizer
from trainer.step.updater import Updater, UpdateSettings

pytestmark = pytest.mark.gpu
N_ITERATION = 20
EXPERIMENT = ('squeezenet', 'alexnet', 'vgg_bn', 'airbench94')


def losses(name, gpu, dtype, engine='plain', batch=8):
    """Losses of the first iterations, and the test loss after them."""
    data = load('shapes', limit=16)
    config = Config(**(NETWORKS[name].recipe | {'size': 32, 'lr': 0.01}))
    np.random.seed(0)
    with chainer.using_config('dtype', np.dtype(dtype)), chainer.using_config('engine', engine):
        device = open_device(gpu)
        model = NETWORKS[name](10, 32)
        model.to_device(device)
        optimizer = make_optimizer(config.optimizer, config.rate, config.momentum).setup(model)
        view = TrainView(data.train, Sizes.of(32), seed=0)
        arguments = EpochIterator(160, batch, seed=0), optimizer, view, device, UpdateSettings(0)
        updater = Updater(*arguments) if engine == 'plain' else CapturedUpdater(*arguments, interval=1)
        found = []
        for _ in range(N_ITERATION):
            with chainer.reporter.Reporter().scope(observation := {}):
                updater.update()
            found.append(observation['train/loss'])
        test = evaluate(model, TestView(data.test, Sizes.of(32)), 160, 10, 32, device)
    return np.array(found), test.loss


@pytest.mark.parametrize('name', EXPERIMENT)
def test_losses_are_the_cpus(name):
    """In float64, where rounding has no time to grow: in float32 it flips a ReLU within a few iterations."""
    cpu_losses, cpu_test = losses(name, -1, 'float64')
    gpu_losses, gpu_test = losses(name, 0, 'float64')
    np.testing.assert_allclose(gpu_losses, cpu_losses, rtol=1e-8)
    assert gpu_test == pytest.approx(cpu_test, rel=1e-8)


@pytest.mark.cudnn
@pytest.mark.parametrize('engine', ['plain', 'fused'])
@pytest.mark.parametrize('name', EXPERIMENT)
def test_first_losses_in_float32_are_the_cpus(name, engine):
    cpu_losses, _ = losses(name, -1, 'float32')
    gpu_losses, _ = losses(name, 0, 'float32', engine)
    np.testing.assert_allclose(gpu_losses[:2], cpu_losses[:2], rtol=1e-3)
    # From the third on, a rounding error has taken some ReLU or maximum across a tie.


@pytest.mark.cudnn
@pytest.mark.slow
def test_the_engine_learns_as_plain_chainer_does(tmp_path):
    """Fifteen epochs, in float16 and captured against float32 and plain; mean of two seeds."""
    data = load('shapes', limit=200)
    accuracy = {}
    for engine, precision in ('fused', 'fp16'), ('plain', 'float32'):
        found = []
        for seed in range(2):
            flags = {'size': 32, 'batch': 32, 'lr': 0.05, 'epoch': 15, 'schedule': 'cosine', 'seed': seed, 'gpu': 0}
            config = Config(**flags, engine=engine, precision=precision, save_path=str(tmp_path), run=f'{engine}{seed}')
            np.random.seed(seed)
            with config.using_precision():
                model = NETWORKS['squeezenet'](10, 32)
            found.append(train(model, data, config).summary['last']['test_accuracy'])
        accuracy[engine] = np.mean(found)
    assert accuracy['fused'] > accuracy['plain'] - 0.03


def test_the_engines_stream_stays_the_current_one():
    """It can be captured; CuPy itself computes `with` other streams, and leaves these for what is on its stack."""
    import cupy

    open_device(0)
    own = cupy.cuda.get_current_stream()
    with cupy.cuda.Stream(non_blocking=True):
        pass
    assert cupy.cuda.get_current_stream() == own != cupy.cuda.Stream.null
    cupy.zeros((3, 4)).T.get()
    assert cupy.cuda.get_current_stream() == own
