"""AlexNet, the baseline that SqueezeNet's paper measures itself against."""

from __future__ import annotations

from typing import Any

import chainer
from chainer.utils.conv import get_conv_outsize

import trainer.functions as F
import trainer.links as L
from squeeze_net.networks.finetuning import RECIPE


class AlexNet(chainer.Chain):
    """Krizhevsky's five convolutions with local response normalisation and three fully connected layers.

    | layer | shape | output at 122 px | parameters |
    | --- | --- | --- | --- |
    | conv1 11x11/4 pad 5, ReLU, LRN, max pool 3x3/2 | 3 -> 96 | 96 x 15 x 15 | 34,944 |
    | conv2 5x5 pad 2 in two groups, ReLU, LRN, max pool | 96 -> 256 | 256 x 7 x 7 | 307,456 |
    | conv3 3x3 pad 1, ReLU | 256 -> 384 | 384 x 7 x 7 | 885,120 |
    | conv4 3x3 pad 1 in two groups, ReLU | 384 -> 384 | 384 x 7 x 7 | 663,936 |
    | conv5 3x3 pad 1 in two groups, ReLU, max pool | 384 -> 256 | 256 x 3 x 3 | 442,624 |
    | fc6, ReLU, dropout | 2,304 -> 4,096 | 4,096 | 9,441,280 |
    | fc7, ReLU, dropout | 4,096 -> 4,096 | 4,096 | 16,781,312 |
    | fc8 | 4,096 -> n_class | n_class | 40,970 |

    28,597,642 parameters at 10 classes and 122 px; 60,965,224 at 1,000 classes and 227 px, as published.
    conv1 is padded below 227 px, so that small images, down to 29 px, leave a map.

    Args:
        n_class: number of classes.
        size: height and width of the images, px; fc6 fixes it, so the network is tested at its training size.
        dropout: ratio of the dropout after fc6 and fc7.

    x: (N, 3, size, size) RGB; returns logits (N, n_class).

    Source: Krizhevsky et al., "ImageNet classification with deep convolutional neural networks" (2012), section 3. Here
    with He initialisation: the paper's N(0, 0.01) with biases of 1 stands still for epochs on small data.
    """

    recipe: dict[str, Any] = {
        'lr': 0.01,
        'weight_decay': 5e-4,
    }  # no normalisation: 0.1 would diverge; paper, section 5
    finetuning: dict[str, Any] = RECIPE | {'lr': 0.001, 'freeze': 'conv[12]'}
    fixed_size = True

    def __init__(self, n_class: int = 10, size: int = 122, dropout: float = 0.5) -> None:
        conv1_pad = 0 if size >= 227 else 5
        map_size = get_conv_outsize(size, 11, 4, conv1_pad)
        for _ in range(3):
            map_size = get_conv_outsize(map_size, 3, 2, 0, cover_all=True)
        if map_size < 1:
            raise ValueError(f'images of {size} px leave no map: AlexNet needs 29 px or more')
        super().__init__()
        self.dropout = dropout
        he = chainer.initializers.HeNormal()
        with self.init_scope():
            self.conv1 = L.Convolution2D(3, 96, 11, stride=4, pad=conv1_pad, initialW=he)
            self.conv2 = L.Convolution2D(96, 256, 5, pad=2, groups=2, initialW=he)
            self.conv3 = L.Convolution2D(256, 384, 3, pad=1, initialW=he)
            self.conv4 = L.Convolution2D(384, 384, 3, pad=1, groups=2, initialW=he)
            self.conv5 = L.Convolution2D(384, 256, 3, pad=1, groups=2, initialW=he)
            self.fc6 = L.Linear(256 * map_size**2, 4096, initialW=he)
            self.fc7 = L.Linear(4096, 4096, initialW=he)
            self.fc8 = L.Linear(4096, n_class, initialW=he)

    def forward(self, x: Any) -> chainer.Variable:
        h = max_pool(F.local_response_normalization(F.relu(self.conv1(x))))
        h = max_pool(F.local_response_normalization(F.relu(self.conv2(h))))
        h = F.relu(self.conv3(h))
        h = F.relu(self.conv4(h))
        h = max_pool(F.relu(self.conv5(h)))
        h = F.dropout(F.relu(self.fc6(h)), self.dropout)
        h = F.dropout(F.relu(self.fc7(h)), self.dropout)
        return self.fc8(h)


def max_pool(x: Any) -> chainer.Variable:
    """3x3/2, without padding, as in the paper (section 3.4: overlapping)."""
    return F.max_pooling_2d(x, 3, stride=2, cover_all=True)
