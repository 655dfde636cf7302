"""The VGG-like network with batch normalisation behind the 92.45 % that was cited as AlexNet's."""

from __future__ import annotations

from typing import Any

import chainer
from chainer.utils.conv import get_conv_outsize

import trainer.functions as F
import trainer.links as L
from squeeze_net.networks.finetuning import RECIPE

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class ConvBNReLU(chainer.Chain):
    """y = relu(bn(conv3x3(x))), the height and width kept."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        with self.init_scope():
            self.conv = L.Convolution2D(in_channels, out_channels, 3, pad=1, initialW=chainer.initializers.HeNormal())
            self.bn = L.BatchNormalization(out_channels)

    def forward(self, x: Any) -> chainer.Variable:
        return self.bn(self.conv(x), relu=True)


class VGGBN(chainer.Chain):
    """Thirteen 3x3 convolutions with batch normalisation in five stages, and two fully connected layers.

    Stages of 64, 64 | 128, 128 | 256, 256, 256 | 512, 512, 512 | 512, 512, 512 channels, each followed by a max pool
    2x2/2; then fc1 (512 at 32 px -> 512) with BN and ReLU, and fc2 (512 -> n_class). Dropout stands before every
    convolution of a stage but its first (ratio 0.3 in the first stage, 0.4 in the others) and before both fully
    connected layers (0.5). 14,991,946 parameters at 10 classes and 32 px, its default size.

    Args:
        n_class: number of classes.
        size: height and width of the images, px; fc1 fixes it, so the network is tested at its training size.
        dropout: ratio before the fully connected layers; the stages use 0.6 (first) and 0.8 (others) of it.

    x: (N, 3, size, size) RGB; returns logits (N, n_class).

    Source: S. Zagoruyko, "92.45% on CIFAR-10 in Torch" (Torch blog, 2015), after Simonyan and Zisserman (2015).
    """

    recipe: dict[str, Any] = {'size': 32, 'weight_decay': 5e-4}
    finetuning: dict[str, Any] = RECIPE | {'lr': 0.01, 'freeze': 'conv[12]_*'}
    fixed_size = True

    def __init__(self, n_class: int = 10, size: int = 32, dropout: float = 0.5) -> None:
        map_size = size
        for _ in STAGES:
            map_size = get_conv_outsize(map_size, 2, 2, 0, cover_all=True)
        super().__init__()
        self.dropout = dropout
        with self.init_scope():
            in_channels = 3
            for s, stage in enumerate(STAGES, 1):
                for c, out_channels in enumerate(stage, 1):
                    setattr(self, f'conv{s}_{c}', ConvBNReLU(in_channels, out_channels))
                    in_channels = out_channels
            self.fc1 = L.Linear(512 * map_size**2, 512, initialW=chainer.initializers.HeNormal())
            self.bn1 = L.BatchNormalization(512)
            self.fc2 = L.Linear(512, n_class, initialW=chainer.initializers.HeNormal())

    def forward(self, x: Any) -> chainer.Variable:
        h = x
        for s, stage in enumerate(STAGES, 1):
            for c in range(1, len(stage) + 1):
                if c > 1:
                    h = F.dropout(h, (0.6 if s == 1 else 0.8) * self.dropout)
                h = self[f'conv{s}_{c}'](h)
            h = F.max_pooling_2d(h, 2, stride=2, cover_all=True)
        h = self.bn1(self.fc1(F.dropout(h, self.dropout)), relu=True)
        return self.fc2(F.dropout(h, self.dropout))
