"""Which weights may teach a run."""

import numpy as np
import pytest

import trainer
from squeeze_net import Airbench94, make_network, weights
from squeeze_net.weights import Weights
from trainer import InputError
from trainer.data.augmentation import Sizes
from trainer.data.metadata import Metadata
from trainer.data.preprocessing import PREPROCESSINGS


@pytest.fixture
def file_of(tmp_path):
    """Writes weights of 3 classes, trained at a size, to a file."""

    def write(network='airbench94', size=64, preprocess='experiment'):
        model, path = make_network(network, 3, size), tmp_path / f'{network}.npz'
        view = Sizes.of(size, getattr(model, 'fixed_size', False)).preprocessing(PREPROCESSINGS[preprocess])
        weights.write(Weights(weights.tensors_of(model), Metadata(network, 3, view)), path)
        return str(path)

    return write


def test_a_network_of_another_kind_with_its_share_of_the_loss(file_of, capsys):
    path = file_of()
    teacher = weights.teacher(trainer.Config(teacher=path, distill=0.7, size=96, progressive_size='64=1'), 3)
    assert (teacher.share, teacher.temperature) == (0.7, 4)
    kept = weights.read(path).tensors
    np.testing.assert_array_equal(teacher.model.fc.W.array, kept['fc/W'])
    assert capsys.readouterr().out == 'teacher: airbench94, 1,971,003 parameters\n'


def test_without_one():
    assert weights.teacher(trainer.Config(), 3) is None
    with pytest.raises(InputError, match=r'--distill 0\.5 is the share of a --teacher FILE, which is missing'):
        trainer.Config(distill=0.5)


@pytest.mark.parametrize(
    ('made', 'given', 'message'),
    [
        (
            {},
            {'n_class': 4},
            r'airbench94 of 3 classes, expected one of squeezenet, .* with the 4 classes of the data$',
        ),
        ({'preprocess': 'caffe'}, {}, 'expects images of --preprocess caffe, the network those of experiment$'),
    ],
)
def test_one_that_does_not_suit_the_run_is_refused(file_of, made, given, message):
    path = file_of(**made)
    n_class = given.pop('n_class', 3)
    with pytest.raises(InputError, match=f'^--teacher {path} .*{message}'):
        weights.teacher(trainer.Config(teacher=path, **given), n_class)


def test_one_of_a_fixed_size_suits_a_run_of_that_size_alone(file_of, monkeypatch):
    monkeypatch.setattr(Airbench94, 'fixed_size', True)
    path = file_of(size=64)
    assert weights.teacher(trainer.Config(teacher=path, size=64), 3) is not None
    with pytest.raises(InputError, match=r'takes images of 64 px only, the training has 96 px$'):
        weights.teacher(trainer.Config(teacher=path, size=96), 3)
    with pytest.raises(InputError, match=r'takes images of 64 px only, the training has 48 and 64 px$'):
        weights.teacher(trainer.Config(teacher=path, size=64, progressive_size='48=1'), 3)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match='nobody'):
        weights.teacher(trainer.Config(teacher=str(tmp_path / 'nobody.npz')), 3)
