"""The link with the parameters of a convolution."""

from __future__ import annotations

import chainer

import trainer.functions as F
from trainer.functions.node import Input


class Convolution2D(chainer.links.Convolution2D):
    """As `chainer.links.Convolution2D`, computed by `trainer.functions.convolution_2d`, whose `add` it takes, too.

    x: (N, in_channels, H, W) floating point, or `SideBySide`; y: (N, out_channels, H', W').
    """

    def forward(self, x: Input, add: Input | None = None) -> chainer.Variable:
        if self.W.raw_array is None:
            self._initialize_params(x.shape[1])
        window = {'stride': self.stride, 'pad': self.pad, 'dilate': self.dilate, 'groups': self.groups}
        return F.convolution_2d(x, self.W, self.b, **window, add=add)
