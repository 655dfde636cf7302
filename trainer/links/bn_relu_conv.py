"""BN-ReLU-Conv, the layer of pre-activation networks."""

from __future__ import annotations

import chainer

from trainer.functions.node import Input
from trainer.links.batch_normalization import BatchNormalization
from trainer.links.convolution_2d import Convolution2D


class BNReLUConv(chainer.Chain):
    """y = conv(relu(bn(x))), with He initialisation.

    Args:
        in_channels, out_channels: channels of x and y.
        ksize, stride, pad: of the convolution, px; `pad` zeros go around relu(bn(x)).

    x: (N, in_channels, H, W) or maps side by side; y: (N, out_channels, H', W') with
    H' = (H + 2 pad - ksize) // stride + 1.
    Called with `add`, of the shape of y, it returns y + add.

    Source: He et al., "Identity mappings in deep residual networks" (2016), section 4.1 (full pre-activation).
    """

    def __init__(self, in_channels: int, out_channels: int, ksize: int, stride: int = 1, pad: int = 0) -> None:
        super().__init__()
        with self.init_scope():
            self.bn = BatchNormalization(in_channels)
            self.conv = Convolution2D(
                in_channels, out_channels, ksize, stride, pad, initialW=chainer.initializers.HeNormal()
            )

    def forward(self, x: Input, add: Input | None = None) -> chainer.Variable:
        return self.conv(self.bn(x, relu=True), add=add)
