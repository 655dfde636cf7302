"""The links are Chainer's: same parameters, same names, same numbers."""

import chainer
import chainer.functions as C
import numpy as np
import pytest
from ml_dtypes import bfloat16

import trainer.functions as F
import trainer.links as L
from trainer import engine

needs_engine = pytest.mark.skipif(not engine.is_available(), reason='oneDNN is not installed')


class Net(chainer.Chain):
    """Smooth enough that rounding stays rounding: no maxima, rectified only behind a normalisation."""

    def __init__(self, functions, links):
        super().__init__()
        self.functions = functions
        np.random.seed(0)
        with self.init_scope():
            self.conv1 = links.Convolution2D(3, 12, 3, pad=1)
            self.bn1 = links.BatchNormalization(12)
            self.conv2 = links.Convolution2D(12, 20, 3, pad=1, groups=2, nobias=True)
            self.fc = links.Linear(None, 10)

    def forward(self, x):
        F = self.functions
        h = F.relu(self.bn1(self.conv1(x)))
        h = F.add(h, self.conv2(h)[:, :12])
        return self.fc(F.average_pooling_2d(h, 2))


def train(model, n):
    optimizer = chainer.optimizers.SGD(0.01).setup(model)
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(n):
        x, t = rng.standard_normal((8, 3, 8, 8)).astype(np.float32), rng.integers(0, 10, 8).astype(np.int32)
        loss = F.softmax_cross_entropy(model(x), t)
        model.cleargrads()
        loss.backward()
        optimizer.update()
        losses.append(float(loss.array))
    return losses


def test_twenty_updates_have_the_losses_of_chainers_links_and_of_the_engine_switched_off():
    ours = train(Net(F, L), 20)
    with chainer.using_config('engine', 'plain'):
        switched_off = train(Net(F, L), 20)
    np.testing.assert_allclose(ours, switched_off, rtol=1e-3)
    np.testing.assert_allclose(ours, train(Net(C, chainer.links), 20), rtol=1e-3)


def test_a_file_of_chainers_links_is_read_and_predicts_alike(tmp_path):
    theirs, ours = Net(C, chainer.links), Net(F, L)
    train(theirs, 2)
    chainer.serializers.save_npz(tmp_path / 'model.npz', theirs)
    chainer.serializers.load_npz(tmp_path / 'model.npz', ours)
    x = np.random.default_rng(1).standard_normal((3, 3, 8, 8)).astype(np.float32)
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        expected, got = theirs(x).array, ours(x).array
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


X = np.random.default_rng(0).standard_normal((4, 6, 5, 5)).astype(np.float32)


def close(one, other):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('is_training', [True, False])
@pytest.mark.parametrize('has_backprop', [True, False])
@pytest.mark.parametrize(
    'options', [{}, {'use_gamma': False}, {'use_beta': False}, {'eps': 1e-3, 'decay': 0.5}], ids=str
)
def test_batch_normalization_and_its_statistics_are_chainers(options, is_training, has_backprop):
    ours, theirs = L.BatchNormalization(6, **options), chainer.links.BatchNormalization(6, **options)
    with chainer.using_config('train', is_training), chainer.using_config('enable_backprop', has_backprop):
        for x in (X, 2 * X + 1):
            close(ours(x).array, theirs(x).array)
            close(ours(x, relu=True).array, C.relu(theirs(x)).array)
    close(ours.avg_mean, theirs.avg_mean)
    close(ours.avg_var, theirs.avg_var)


def test_batch_normalization_in_fine_tuning_is_chainers():
    ours, theirs = L.BatchNormalization(6), chainer.links.BatchNormalization(6)
    for x in (X, 2 * X + 1):
        close(ours(x, finetune=True).array, theirs(x, finetune=True).array)
    assert ours.N == theirs.N == 2
    close(ours.avg_mean, theirs.avg_mean)
    close(ours.avg_var, theirs.avg_var)


def test_a_recomputed_forward_pass_moves_no_statistics():
    link = L.BatchNormalization(6)
    with chainer.using_config('in_recomputing', True):
        link(X)
    assert not link.avg_mean.any()


@pytest.mark.parametrize('options', [{}, {'use_gamma': False}, {'use_beta': False}], ids=str)
def test_fixed_batch_normalization_computes_in_training_as_in_the_test(options):
    link = L.BatchNormalization(6, **options)
    link(X)
    mean, var = link.avg_mean.copy(), link.avg_var.copy()
    link.is_fixed = True
    y = link(X, relu=True).array
    with chainer.using_config('train', False):
        close(y, link(X, relu=True).array)
    assert np.array_equal(link.avg_mean, mean) and np.array_equal(link.avg_var, var)


def test_links_find_out_their_inputs_at_the_first_call():
    x = chainer.Variable(X)
    pair = F.side_by_side([x, x])
    assert L.Convolution2D(None, 4, 3)(pair).shape == (4, 4, 3, 3)
    assert L.Linear(None, 4)(X).shape == (4, 4)
    assert L.Linear(None, 4)(X[0], n_batch_axes=2).shape == (6, 5, 4)
    assert L.BatchNormalization(axis=(0, 2, 3))(X).shape == X.shape


@pytest.mark.parametrize(
    'options', [{}, {'stride': 2, 'pad': 1}, {'dilate': 2}, {'groups': 3}, {'nobias': True}, {'pad': (0, 2)}], ids=str
)
def test_convolution_2d_is_chainers(options):
    ours, theirs = L.Convolution2D(6, 9, 3, **options), chainer.links.Convolution2D(6, 9, 3, **options)
    theirs.copyparams(ours)
    x, y = chainer.Variable(X), chainer.Variable(X)
    ours_y, theirs_y = ours(x), theirs(y)
    close(ours_y.array, theirs_y.array)
    C.sum(ours_y**2).backward()
    C.sum(theirs_y**2).backward()
    for one, other in [(x, y), *zip(ours.params(), theirs.params(), strict=True)]:
        np.testing.assert_allclose(one.grad, other.grad, rtol=1e-3, atol=1e-3)


@needs_engine
@pytest.mark.parametrize('is_training', [True, False])
@pytest.mark.parametrize(
    'options',
    [
        {},
        *({'use_gamma': False}, {'use_beta': False}),
    ],
    ids=str,
)
@pytest.mark.parametrize('kind', ['side by side', 'bfloat16'])
def test_batch_normalization_takes_what_the_other_links_return(kind, options, is_training):
    link = L.BatchNormalization(6, **options)
    x = chainer.Variable(X if kind == 'side by side' else X.astype(bfloat16))
    with chainer.using_config('train', is_training):
        y = link(F.side_by_side([x[:, :2], x[:, 2:]]) if kind == 'side by side' else x, relu=True)
        expected = link(X, relu=True)
    np.testing.assert_allclose(y.array.astype(np.float32), expected.array, atol=0.05, rtol=0.02)
