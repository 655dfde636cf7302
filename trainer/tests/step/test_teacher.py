"""Distillation: the loss and its gradient as by hand, what a network learns from it, what is refused."""

import re

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest
from ml_dtypes import bfloat16

import trainer
import trainer.links
from trainer import Config, InputError, Teacher, TrainingError
from trainer.data.datasets import Data, Split
from trainer.data.order import EpochIterator
from trainer.run.records import read_run
from trainer.step.optimizer import MomentumSGD
from trainer.step.updater import Updater, UpdateSettings

N, N_CLASS = 20, 4
IMAGES = np.random.default_rng(0).standard_normal((N, 3, 6, 8)).astype(np.float32)
LABELS = (np.arange(N) % N_CLASS).astype(np.int32)


class Net(chainer.Chain):
    def __init__(self, seed=0, n_class=N_CLASS):
        super().__init__()
        np.random.seed(seed)
        with self.init_scope():
            self.fc = L.Linear(3 * 2 * 2, n_class)

    def forward(self, x):
        h, w = (n // 2 for n in x.shape[2:])
        return self.fc(F.average_pooling_2d(x, (h, w)))


class Normalised(chainer.Chain):
    """Batch normalisation, which a plan for inference folds into the convolution: the answers get other bits."""

    def __init__(self, seed=0):
        super().__init__()
        np.random.seed(seed)
        with self.init_scope():
            self.conv = trainer.links.Convolution2D(3, 16, 3, pad=1)
            self.bn = trainer.links.BatchNormalization(16)
            self.fc = trainer.links.Linear(16 * 2 * 2, N_CLASS)
        self.bn.avg_mean[:] = np.random.standard_normal(16)
        self.bn.avg_var[:] = np.random.uniform(0.1, 3, 16)

    def forward(self, x):
        h = self.bn(self.conv(x), relu=True)
        return self.fc(trainer.functions.average_pooling_2d(h, x.shape[2] // 2))


def softmax(logits):
    e = np.exp(logits.astype(np.float64))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize('dtype', [np.float32, np.float64, pytest.param(bfloat16, marks=pytest.mark.bfloat16)])
def test_loss_and_gradient_as_written(dtype):
    share, temperature = 0.7, 3.0
    teacher = Teacher(Net(1), share, temperature)
    teacher.model.cleargrads()
    y = chainer.Variable(np.random.default_rng(1).standard_normal((N, N_CLASS)).astype(dtype))
    of_labels = trainer.functions.softmax_cross_entropy(y, LABELS)
    loss = teacher.loss(IMAGES, y, of_labels)
    logits = y.array.astype(np.float64)
    wanted, p = softmax(teacher.model(IMAGES).array / temperature), softmax(logits / temperature)
    divergence = (wanted * np.log(wanted / p)).sum(1).mean()
    expected = (1 - share) * float(of_labels.array) + share * temperature**2 * divergence
    assert loss.dtype == (np.float64 if dtype is np.float64 else np.float32)
    assert float(loss.array) == pytest.approx(expected, rel=1e-5)
    loss.backward()
    gradient = (1 - share) * (softmax(logits) - np.eye(N_CLASS)[LABELS]) + share * temperature * (p - wanted)
    tolerance = (1e-2 if dtype is bfloat16 else 1e-4) * np.abs(gradient / N).max()  # of a sum of two that are rounded
    np.testing.assert_allclose(y.grad.astype(np.float64), gradient / N, rtol=0, atol=tolerance)
    assert all(parameter.grad is None for parameter in teacher.model.params())


def test_its_own_answers_leave_the_labels_alone():
    y = Net(1)(IMAGES)
    of_labels = F.softmax_cross_entropy(y, LABELS)
    loss = Teacher(Net(1), 0.25).loss(IMAGES, y, of_labels)
    assert float(loss.array) == pytest.approx(0.75 * float(of_labels.array), rel=1e-5)


@pytest.mark.parametrize('divide', [1, 3])
def test_what_a_batch_in_parts_learns_is_what_the_whole_learns(divide):
    def convert(batch, device):
        return IMAGES[batch.index], LABELS[batch.index]

    model = Net(0)
    optimizer = MomentumSGD(lr=0.1).setup(model)
    settings = UpdateSettings(seed=0, divide=divide, teacher=Teacher(Net(1)))
    updater = Updater(EpochIterator(N, N, 0), optimizer, convert, chainer.get_device('@numpy'), settings)
    updater.update()
    fresh = Net(0)
    fresh.cleargrads()
    y = fresh(IMAGES)
    loss = Teacher(Net(1)).loss(IMAGES, y, F.softmax_cross_entropy(y, LABELS))
    loss.backward()
    np.testing.assert_allclose(model.fc.W.array, fresh.fc.W.array - 0.1 * fresh.fc.W.grad, atol=1e-6)


@pytest.mark.usefixtures('no_rendering')
def test_a_run_learns_the_answers_and_is_resumed_to_the_bit(tmp_path):
    colours = np.random.default_rng(0).integers(0, 255, (N, 3, 1, 1), np.uint8)
    split = Split(np.tile(colours, (1, 1, 32, 32)), LABELS)
    data = Data('colours', split, split, tuple('abcd'), 'made for a test', is_jpeg=False)

    def run(name, epoch, seed=1, **more):
        model = Net(0)
        common = {
            'size': 32,
            'batch': 5,
            'lr': 0.1,
            'schedule': 'constant',
            'save_path': str(tmp_path / name),
            'run': name,
        }
        trainer.train(model, data, Config(**common, epoch=epoch, **more), teacher=Teacher(Normalised(seed), 1.0))
        return model

    whole = run('whole', 12)
    run('parts', 5)
    with pytest.raises(InputError, match=r'was trained with the teacher Normalised of checksum .*, not the teacher'):
        run('parts', 12, resume='auto', seed=2)
    np.testing.assert_array_equal(whole.fc.W.array, run('parts', 12, resume='auto').fc.W.array)
    summary = read_run(tmp_path / 'whole' / 'results' / 'whole').summary
    assert re.fullmatch(r'Normalised of checksum \w{8}, share 1, temperature 4', summary['teacher'])


def distance(model, teacher):
    """KL(teacher, model), mean over the images."""
    p, wanted = (softmax(net(IMAGES).array) for net in (model, teacher))
    return (wanted * np.log(wanted / p)).sum(1).mean()


def test_the_loss_that_is_reported_is_that_of_the_labels():
    def convert(batch, device):
        return IMAGES[batch.index], LABELS[batch.index]

    model, teacher = Net(0), Net(1)
    optimizer = MomentumSGD(lr=0.1).setup(model)
    settings = UpdateSettings(seed=0, teacher=Teacher(teacher, 1.0))
    updater = Updater(EpochIterator(N, N, 0), optimizer, convert, chainer.get_device('@numpy'), settings)
    at_first, of_labels = distance(model, teacher), float(F.softmax_cross_entropy(model(IMAGES), LABELS).array)
    with chainer.reporter.Reporter().scope(seen := {}):
        updater.update()
    assert seen['train/loss'] == pytest.approx(of_labels, rel=1e-5)
    for _ in range(50):
        updater.update()
    assert distance(model, teacher) < at_first / 5


def test_answers_that_are_not_finite():
    teacher = Net(1)
    teacher.fc.b.array[0] = np.nan
    y = Net(0)(IMAGES)
    with pytest.raises(TrainingError, match="the teacher's logits are not finite"):
        Teacher(teacher).loss(IMAGES, y, F.softmax_cross_entropy(y, LABELS))


def test_the_name_of_a_teacher_is_not_a_teacher(tmp_path):
    split = Split(np.zeros((4, 3, 32, 32), np.uint8), LABELS[:4])
    data = Data('black', split, split, tuple('abcd'), 'made for a test', is_jpeg=False)
    with pytest.raises(
        InputError, match=r"Config\(teacher='large\.npz'\) is only a name: give trainer\.train the network"
    ):
        trainer.train(Net(), data, Config(size=32, save_path=str(tmp_path), teacher='large.npz'))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize('share, temperature, message', [(1.5, 4, 'share'), (-1, 4, 'share'), (0.9, 0, 'temperature')])
def test_shares_and_temperatures_out_of_range(share, temperature, message):
    with pytest.raises(InputError, match=message):
        Teacher(Net(), share, temperature)


def test_another_number_of_classes():
    y = Net(0)(IMAGES)
    with pytest.raises(InputError, match=r"teacher's logits have shape \(20, 7\), the network's \(20, 4\)"):
        Teacher(Net(1, 7)).loss(IMAGES, y, F.softmax_cross_entropy(y, LABELS))
