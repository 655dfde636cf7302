"""A network that is cheap to train on CIFAR-10 and cheap to ask, to be a teacher of the others."""

from __future__ import annotations

from typing import Any

import chainer
import numpy as np

import trainer.functions as F
import trainer.links as L
from squeeze_net.networks.finetuning import RECIPE

# Standard deviations of the patches' cosine coefficients in CIFAR-10's normalised images: (colour, y, x).
DEVIATIONS = (
    (3.014, 0.687, 0.745, 0.290),
    (1.146, 0.146, 0.156, 0.0492),
    (0.544, 0.0806, 0.0834, 0.0298),
)


class ConvBNReLU(chainer.Chain):
    """y = relu(bn(pool(conv3x3(x)))), the max pool 2x2/2 if asked; its odd last row and column are left out."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        he = chainer.initializers.HeNormal()
        with self.init_scope():
            self.conv = L.Convolution2D(in_channels, out_channels, 3, pad=1, nobias=True, initialW=he)
            self.bn = L.BatchNormalization(out_channels)

    def forward(self, x: Any, pool: bool = False) -> chainer.Variable:
        h = self.conv(x)
        if pool:
            h = F.max_pooling_2d(h, 2, stride=2, cover_all=False)
        return self.bn(h, relu=True)


class Airbench94(chainer.Chain):
    """Seven convolutions for images of 32 px; 1,972,802 parameters at 10 classes, 118 million multiplications.

    | layer | | output at 32 px |
    | --- | --- | --- |
    | average pool, for training images of 64 px or more: to 32..47 px | | 3 x 32 x 32 |
    | conv1 2x2, ReLU: a fixed whitening | 3 -> 24 | 24 x 31 x 31 |
    | block1: conv 3x3, max pool 2x2/2, BN, ReLU; conv 3x3, BN, ReLU | 24 -> 64 -> 64 | 64 x 15 x 15 |
    | block2 | 64 -> 256 -> 256 | 256 x 7 x 7 |
    | block3 | 256 -> 256 -> 256 | 256 x 3 x 3 |
    | global max pool, fc | 256 -> n_class | n_class |

    It takes enlarged images, because it is to look at the same images as the network it teaches. conv1 computes the
    cosine transform of patches of 2x2 pixels and 3 colours, each coefficient divided by its standard deviation, and
    their negatives: what whitening by principal components comes to, up to 12 % of correlation.

    Args:
        n_class: number of classes.
        size: height and width of the training images, px; any other size from 9 px on can be fed, too, and is averaged
            to about what these are.

    x: (N, 3, H, W) RGB, each image normalised to mean 0 and deviation 1; returns logits (N, n_class).

    Source: K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (2024), sections 3.1 and 3.2; here with ReLU
    for GELU, scales in the batch normalisation, a bias of fc, and none of conv1 that learns for some epochs.
    """

    recipe: dict[str, Any] = {'size': 64, 'weight_decay': 5e-4, 'freeze': 'conv1'}
    finetuning: dict[str, Any] = RECIPE | {'lr': 0.01, 'freeze': 'conv1,block1_*'}
    fixed_size = False

    def __init__(self, n_class: int = 10, size: int = 64) -> None:
        if size < 9:
            raise ValueError(f'images of {size} px leave no map: Airbench94 needs 9 px or more')
        super().__init__()
        self.unit = size / max(1, size // 32)  # px of an image for each pixel of a pool's side; tests are a bit larger
        with self.init_scope():
            self.conv1 = L.Convolution2D(3, 24, 2, initialW=whitening())
            in_channels = 24
            for b, out_channels in enumerate((64, 256, 256), 1):
                setattr(self, f'block{b}_1', ConvBNReLU(in_channels, out_channels))
                setattr(self, f'block{b}_2', ConvBNReLU(out_channels, out_channels))
                in_channels = out_channels
            self.fc = L.Linear(in_channels, n_class, initialW=chainer.initializers.LeCunNormal(1 / 3))

    def forward(self, x: Any) -> chainer.Variable:
        factor = round(x.shape[2] / self.unit)
        h = F.average_pooling_2d(x, factor, stride=factor) if factor > 1 else x
        h = F.relu(self.conv1(h))
        for b in (1, 2, 3):
            h = self[f'block{b}_2'](self[f'block{b}_1'](h, pool=True))
        return self.fc(F.max_pooling_2d(h, h.shape[2:], stride=1))


def whitening() -> np.ndarray:
    """(24, 3, 2, 2): the cosine transform of patches, over its standard deviations, and the negative of it."""
    basis = np.kron(_cosines(3), np.kron(_cosines(2), _cosines(2))) / np.reshape(DEVIATIONS, (12, 1))
    return np.concatenate([basis, -basis]).reshape(24, 3, 2, 2).astype(np.float32)


def _cosines(n: int) -> np.ndarray:
    """(n, n): the orthonormal cosine transform (DCT-II), a row a frequency."""
    k, i = np.ogrid[:n, :n]
    rows = np.cos(np.pi * (2 * i + 1) * k / (2 * n))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
