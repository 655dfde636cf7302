"""The link with the parameters of a convolution."""

from __future__ import annotations

from typing import Any

import chainer

import trainer.functions as F


class Convolution2D(chainer.links.Convolution2D):
    """As `chainer.links.Convolution2D`, computed by `trainer.functions.convolution_2d`, whose `add` it takes, too."""

    def forward(self, x: Any, add: Any = None) -> chainer.Variable:
        if self.W.raw_array is None:
            self._initialize_params(x.shape[1])
        window = {'stride': self.stride, 'pad': self.pad, 'dilate': self.dilate, 'groups': self.groups}
        return F.convolution_2d(x, self.W, self.b, **window, add=add)
