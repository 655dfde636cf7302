"""Which weights may teach a run."""

import chainer
import numpy as np
import pytest

import trainer
from squeeze_net import Airbench94, make_network, weights
from squeeze_net.weights import Weights
from trainer import InputError
from trainer.data.augmentation import Sizes
from trainer.data.metadata import Metadata
from trainer.data.preprocessing import PREPROCESSINGS

CLASSES = 'cat', 'dog', 'frog'


@pytest.fixture
def file_of(tmp_path):
    """Writes weights of 3 classes, trained at a size, to a file."""

    def write(network='airbench94', size=64, preprocess='experiment', classes=CLASSES, has_view=True):
        model, path = make_network(network, 3, size), tmp_path / f'{network}.npz'
        view = Sizes.of(size, getattr(model, 'fixed_size', False)).preprocessing(PREPROCESSINGS[preprocess])
        view = view if has_view else None
        weights.write(Weights(weights.tensors_of(model), Metadata(network, 3, view, classes)), path)
        return str(path)

    return write


def test_a_network_of_another_kind_with_its_share_of_the_loss(file_of, capsys):
    path = file_of()
    teacher = weights.teacher(trainer.Config(teacher=path, distill=0.7, size=96, progressive_size='64=1'), CLASSES)
    assert (teacher.share, teacher.temperature) == (0.7, 4)
    kept = weights.read(path).tensors
    np.testing.assert_array_equal(teacher.model.fc.W.array, kept['fc/W'])
    assert capsys.readouterr().out == 'teacher: airbench94, 1,971,003 parameters\n'


def test_without_one():
    assert weights.teacher(trainer.Config(), CLASSES) is None
    with pytest.raises(InputError, match=r'--distill 0\.5 is the share of a --teacher FILE, which is missing'):
        trainer.Config(distill=0.5)


@pytest.mark.parametrize(
    ('made', 'given', 'message'),
    [
        (
            {},
            {'classes': ('cat', 'dog', 'frog', 'newt')},
            r'airbench94 of 3 classes, expected one of squeezenet, .* with the 4 classes of the data$',
        ),
        (
            {},
            {'classes': ('cat', 'frog', 'dog')},
            r"knows other classes than the data, or in another order: class 1 is 'dog', expected 'frog'$",
        ),
        ({'preprocess': 'caffe'}, {}, 'expects images of --preprocess caffe, the network those of experiment$'),
    ],
)
def test_one_that_does_not_suit_the_run_is_refused(file_of, made, given, message):
    path = file_of(**made)
    classes = given.pop('classes', CLASSES)
    with pytest.raises(InputError, match=f'^--teacher {path} .*{message}'):
        weights.teacher(trainer.Config(teacher=path, **given), classes)


def test_one_of_a_fixed_size_suits_a_run_of_that_size_alone(file_of, monkeypatch):
    monkeypatch.setattr(Airbench94, 'fixed_size', True)
    path = file_of(size=64)
    assert weights.teacher(trainer.Config(teacher=path, size=64), CLASSES) is not None
    with pytest.raises(InputError, match=r'takes images of 64 px only, the training has 96 px$'):
        weights.teacher(trainer.Config(teacher=path, size=96), CLASSES)
    with pytest.raises(InputError, match=r'takes images of 64 px only, the training has 48 and 64 px$'):
        weights.teacher(trainer.Config(teacher=path, size=64, progressive_size='48=1'), CLASSES)


def test_one_of_a_fixed_size_that_its_file_does_not_tell_has_the_usual_size(file_of, monkeypatch):
    monkeypatch.setattr(Airbench94, 'fixed_size', True)
    with pytest.raises(InputError, match=r'takes images of 122 px only, the training has 64 px$'):
        weights.teacher(trainer.Config(teacher=file_of(has_view=False), size=64), CLASSES)


@pytest.mark.parametrize('classes', [None, ('Cat', 'DOG', 'frog'), ('0', '1', '2')])
def test_names_that_may_be_the_same_are_no_hindrance(file_of, classes):
    assert weights.teacher(trainer.Config(teacher=file_of(classes=classes), size=64), CLASSES) is not None


def test_it_computes_in_the_precision_of_the_run(file_of):
    config = trainer.Config(teacher=file_of(), size=64, precision='float64')
    teacher = weights.teacher(config, CLASSES)
    with config.using_precision():
        y = chainer.Variable(np.zeros((2, 3)))
        of_labels = chainer.functions.softmax_cross_entropy(y, np.zeros(2, np.int32))
        assert teacher.loss(np.ones((2, 3, 64, 64)), y, of_labels).dtype == np.float64


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match='nobody'):
        weights.teacher(trainer.Config(teacher=str(tmp_path / 'nobody.npz')), CLASSES)
