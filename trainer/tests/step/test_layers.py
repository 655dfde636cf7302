import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np

from trainer.step.network import check_network


class Net(chainer.Chain):
    def __init__(self):
        super().__init__()
        with self.init_scope():
            self.fc = L.Linear(6, 5)
            self.conv = L.Convolution2D(3, 6, 3, stride=2, pad=1)
            self.bn = L.BatchNormalization(6)
            self.unused = L.Linear(2, 2)
            self.shift = chainer.Parameter(np.zeros(5, np.float32))

    def forward(self, x):
        h = F.relu(self.bn(self.conv(x)))
        return self.fc(F.mean(h, (2, 3))) + F.broadcast_to(self.shift, (len(x), 5))


def test_layers_in_the_order_of_their_calls():
    model = Net()
    mean = model.bn.avg_mean.copy()
    layers = check_network(model, 5, 24, 32)
    assert [tuple(layer.values()) for layer in layers] == [
        ('conv', [6, 16, 16], 3 * 6 * 9 + 6, 3 * 6 * 9 * 16 * 16),
        ('bn', [6, 16, 16], 12, 0),
        ('fc', [5], 35, 30),
        ('unused', None, 6, 0),
        ('other', None, 5, 0),
    ]
    assert sum(layer['parameters'] for layer in layers) == model.count_params()
    np.testing.assert_array_equal(model.bn.avg_mean, mean)
