"""What is not a network of logits is refused in one sentence; errors of its own code stay what they are."""

import chainer
import ml_dtypes
import numpy as np
import pytest
from chainer import Sequential
from chainer import functions as CF
from chainer import links as CL

import trainer
import trainer.functions as F
import trainer.links as L
from trainer import InputError
from trainer.step.network import check_call, check_logits, check_network

N_CLASS, SIZE = 10, 32


class Net(chainer.Chain):
    """Calls a function with itself and the images."""

    def __init__(self, compute, **links):
        super().__init__()
        with self.init_scope():
            self.fc = L.Linear(None, N_CLASS)
            for name, link in links.items():
                setattr(self, name, link)
        self.compute = compute

    def forward(self, x):
        return self.compute(self, x)


class Outside(chainer.Chain):
    """Its layers are not registered."""

    def __init__(self):
        super().__init__()
        self.fc, self.more = L.Linear(None, N_CLASS), [L.Linear(3, 3)]

    def forward(self, x):
        return self.fc(x)


class WithLabels(Outside):
    def forward(self, x, t):
        return self.fc(x)


def average(h):
    return F.mean(h, (2, 3))


def conv(n_in=3, n_out=8, **flags):
    return L.Convolution2D(n_in, n_out, 3, pad=1, **flags)


def check(model, test_size=None):
    check_call(model)
    check_network(model, N_CLASS, SIZE, test_size)


SHARED = conv(8)
REFUSED = {
    'a map': (
        lambda: conv(3, 10),
        r'returned \(1, 10, 32, 32\); logits \(1, 10\) are expected: average over the map, as F\.mean\(h, \(2, 3\)\)',
    ),
    'a tuple': (lambda: Net(lambda net, x: (net.fc(x), x)), 'returned a tuple of 2; .* return them alone'),
    'a list': (lambda: Net(lambda net, x: [net.fc(x)]), 'returned a list of 1'),
    'a dict': (lambda: Net(lambda net, x: {'logits': net.fc(x)}), 'returned a dict of logits'),
    'nothing': (lambda: Net(lambda net, x: None), 'returned None; .* end its forward with `return`'),
    'an array': (lambda: Net(lambda net, x: net.fc(x).array), r'returned a numpy\.ndarray; .* not its array'),
    'integers': (lambda: Net(lambda net, x: CF.cast(net.fc(x), 'int32')), 'returned int32'),
    'classes': (lambda: Net(lambda net, x: CF.argmax(net.fc(x), 1)), r'returned \(1,\)'),
    'seven outputs': (
        lambda: Sequential(average, L.Linear(3, 7)),
        r'returned \(1, 7\); logits \(1, 10\) are expected: the data have 10 classes',
    ),
    'a classifier': (lambda: CL.Classifier(L.Linear(None, 10)), r'returns a loss: give its predictor'),
    'labels': (WithLabels, r'forward takes \(x, t\), but gets images \(N, 3, H, W\) alone'),
    'a function': (lambda: average, r'the network is a function; expected a chainer\.Chain'),
    'no forward': (lambda: chainer.Chain(fc=L.Linear(3, 10)), r'has no forward\(x\)'),
    'outside of init_scope': (Outside, 'has no parameters: assign fc, more within'),
    'no layers': (lambda: Sequential(average), 'has no parameters: assign its layers within'),
    'grey images': (
        lambda: Sequential(conv(1), average),
        r'layer 0 takes \(N, 1, H, W\), but gets \(1, 3, 32, 32\): images have 3 channels, RGB',
    ),
    "grey images, Chainer's layer": (lambda: CL.Convolution2D(1, 10, 3), r'layer Convolution2D takes \(N, 1, H, W\)'),
    'another width': (lambda: Sequential(conv(), L.BatchNormalization(16)), r'takes \(N, 16, H, W\), but gets \(1, 8,'),
    'another size': (
        lambda: Sequential(conv(), L.Linear(8 * 28 * 28, 10)),
        r'layer 1 takes 6272 values, but gets 8192 \(8 x 32 x 32\): average .* or give the --size that',
    ),
    'registered twice': (lambda: Sequential(conv(), SHARED, F.relu, SHARED, average), 'is the same layer as'),
    'an unused layer': (lambda: Net(lambda net, x: net.fc(x), b=L.Linear(None, 3)), 'does not use b/W'),
}


@pytest.mark.parametrize('kind', REFUSED)
def test_what_does_not_fit_is_refused(kind):
    make, message = REFUSED[kind]
    with pytest.raises(InputError, match=message):
        check(make())


ACCEPTED = {
    'nested and lazy': lambda: Sequential(Sequential(conv(None), L.BatchNormalization(8), Sequential(F.relu)), average),
    'repeated': lambda: Sequential(conv(), Sequential(conv(8), F.relu).repeat(2), average),
    'called twice': lambda: Net(lambda net, x: net.fc(net.b(net.b(x))), b=conv(3, 3)),
    "Chainer's own": lambda: Sequential(CL.Convolution2D(None, 8, 3), CL.BatchNormalization(8), average),
    'one layer': lambda: L.Linear(None, N_CLASS),
}


@pytest.mark.parametrize('kind', ACCEPTED)
def test_other_networks_get_their_shapes_and_keep_their_statistics(kind, capsys):
    model = ACCEPTED[kind]()
    takes_any_size = isinstance(model, Sequential)
    if takes_any_size:
        model.append(L.Linear(None, N_CLASS))
    check(model, test_size=40 if takes_any_size else SIZE)
    assert all(parameter.array is not None for parameter in model.params())
    for link in model.links():
        if isinstance(link, CL.BatchNormalization):
            assert not link.avg_mean.any() and link.N == 0
    assert capsys.readouterr().out == ''


def test_a_network_of_one_size_says_so():
    with pytest.raises(InputError, match=r'takes 3072 values, but gets 4332 .* set `fixed_size = True`.* at 32 px'):
        check(L.Linear(None, N_CLASS), test_size=38)


def test_probabilities_and_layers_that_do_not_learn_are_noted(capsys):
    check(Net(lambda net, x: F.softmax(net.fc(x))))
    assert 'look like probabilities; logits are expected: leave out softmax' in capsys.readouterr().out
    model = Net(lambda net, x: net.fc(x))
    model.others = [L.Linear(3, 3)]
    check(model)
    assert 'neither trained nor saved: others' in capsys.readouterr().out


def test_an_error_of_its_own_code_keeps_its_traceback():
    model = Net(lambda net, x: net.fc(x) + missing)  # noqa: F821
    with pytest.raises(NameError, match='missing') as error:
        check(model)
    assert error.value.__notes__ == ['(raised in the network, given an image of shape (1, 3, 32, 32))']
    assert any(entry.name == 'forward' and entry.path.name == 'test_network.py' for entry in error.traceback)


def test_logits_of_another_number_of_images():
    with pytest.raises(InputError, match=r'returned \(1, 10\); logits \(8, n_class\) are expected'):
        check_logits(chainer.Variable(np.zeros((1, 10), np.float32)), 8)


IN_TRAINING = {
    'a tuple': (
        lambda net, x: (net.fc(x),) if chainer.config.train else net.fc(x),
        r'logits \(4, n_class\)',
    ),
    'an array inside': (lambda net, x: chainer.Variable(net.fc(x).array), 'do not depend on the parameters: leave out'),
}


@pytest.mark.parametrize('kind', IN_TRAINING)
def test_what_shows_in_training_alone_is_refused_then(kind, tmp_path):
    compute, message = IN_TRAINING[kind]
    config = trainer.Config(model='net', size=SIZE, epoch=1, batch=4, save_path=str(tmp_path))
    with pytest.raises(InputError, match=message):
        trainer.train(Net(compute), trainer.datasets.load('shapes', limit=1), config)


def test_logits_of_half_precision_are_logits():
    for dtype in ('float16', ml_dtypes.bfloat16, 'float64'):
        check_logits(chainer.Variable(np.zeros((2, 3), dtype)), 2, 3)
