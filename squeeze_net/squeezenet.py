"""SqueezeNet with pre-activation (BN-ReLU-Conv) Fire modules and simple bypass, for CIFAR-10 enlarged to 122 px."""

from __future__ import annotations

from typing import Any

import chainer

import trainer.functions as F
import trainer.links as L
from squeeze_net.fire import PreActivationFire


class SqueezeNet(chainer.Chain):
    """The experiment's network; 747,146 parameters at 10 classes.

    | layer | in, squeeze, expand1x1, expand3x3 | output at 122 px |
    | --- | --- | --- |
    | conv1 7x7/2 pad 2, neither BN nor ReLU after it | 3 -> 96 | 96 x 60 x 60 |
    | max pool 3x3/2 pad 1, ceil mode | | 96 x 31 x 31 |
    | fire2, fire3 + bypass | (96, 16, 64, 64), (128, 16, 64, 64) | 128 x 31 x 31 |
    | fire4 | (128, 32, 128, 128) | 256 x 31 x 31 |
    | max pool | | 256 x 16 x 16 |
    | fire5 + bypass, fire6, fire7 + bypass | (256, 32, 128, 128) ... (384, 48, 192, 192) | 384 x 16 x 16 |
    | fire8 | (384, 64, 256, 256) | 512 x 16 x 16 |
    | max pool | | 512 x 9 x 9 |
    | fire9 + bypass, dropout | (512, 64, 256, 256) | 512 x 9 x 9 |
    | BN-ReLU-conv10 1x1, global average | 512 -> n_class | n_class |

    Args:
        n_class: number of classes.
        size: height and width of the training images, px; any other size from 3 px on can be fed, too.
        dropout: ratio of the dropout behind fire9.

    x: (N, 3, H, W) RGB, each image normalised to mean 0 and deviation 1; returns logits (N, n_class).

    Source: Iandola et al., "SqueezeNet" (2016), table 1 (v1.0) and section 6 (simple bypass).
    """

    recipe: dict[str, Any] = {}  # the trainer's defaults are made for it
    fixed_size = False

    def __init__(self, n_class: int = 10, size: int = 122, dropout: float = 0.5) -> None:
        if size < 3:
            raise ValueError(f'images of {size} px leave no map: SqueezeNet needs 3 px or more')
        super().__init__()
        self.dropout = dropout
        with self.init_scope():
            self.conv1 = L.Convolution2D(3, 96, 7, stride=2, pad=2, initialW=chainer.initializers.HeNormal())
            self.fire2 = PreActivationFire(96, 16, 64, 64)
            self.fire3 = PreActivationFire(128, 16, 64, 64, bypass=True)
            self.fire4 = PreActivationFire(128, 32, 128, 128)
            self.fire5 = PreActivationFire(256, 32, 128, 128, bypass=True)
            self.fire6 = PreActivationFire(256, 48, 192, 192)
            self.fire7 = PreActivationFire(384, 48, 192, 192, bypass=True)
            self.fire8 = PreActivationFire(384, 64, 256, 256)
            self.fire9 = PreActivationFire(512, 64, 256, 256, bypass=True)
            self.conv10 = L.BNReLUConv(512, n_class, ksize=1)

    def forward(self, x: Any) -> chainer.Variable:
        h = max_pool(self.conv1(x))
        h = self.fire4(self.fire3(self.fire2(h)))
        h = max_pool(h)
        h = self.fire8(self.fire7(self.fire6(self.fire5(h))))
        h = max_pool(h)
        h = F.dropout(self.fire9(h), self.dropout)
        return F.mean(self.conv10(h), axis=(2, 3))


def max_pool(x: Any) -> chainer.Variable:
    return F.max_pooling_2d(x, 3, stride=2, pad=1, cover_all=True)
