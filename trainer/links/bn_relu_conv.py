"""BN-ReLU-Conv, the layer of pre-activation networks."""

from __future__ import annotations

from typing import Any

import chainer
import chainer.functions as F
import chainer.links as L


class BNReLUConv(chainer.Chain):
    """y = conv(relu(bn(x))), with He initialisation.

    Args:
        in_channels, out_channels: channels of x and y.
        ksize, stride, pad: of the convolution, px; `pad` zeros go around relu(bn(x)).

    x: (N, in_channels, H, W); y: (N, out_channels, H', W') with H' = (H + 2 pad - ksize) // stride + 1.

    Source: He et al., "Identity mappings in deep residual networks" (2016), section 4.1 (full pre-activation).
    """

    def __init__(self, in_channels: int, out_channels: int, ksize: int, stride: int = 1, pad: int = 0) -> None:
        super().__init__()
        with self.init_scope():
            self.bn = L.BatchNormalization(in_channels)
            self.conv = L.Convolution2D(
                in_channels, out_channels, ksize, stride, pad, initialW=chainer.initializers.HeNormal()
            )

    def forward(self, x: Any) -> chainer.Variable:
        return self.conv(F.relu(self.bn(x)))
