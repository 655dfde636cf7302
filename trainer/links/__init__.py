"""Links that networks are written with: Chainer's names and signatures, computed by `trainer.functions`.

Those that are not listed below are Chainer's own.
"""

from typing import Any

import chainer.links

from trainer.links.batch_normalization import BatchNormalization
from trainer.links.bn_relu_conv import BNReLUConv
from trainer.links.convolution_2d import Convolution2D
from trainer.links.linear import Linear

__all__ = ['BNReLUConv', 'BatchNormalization', 'Convolution2D', 'Linear']


def __getattr__(name: str) -> Any:
    return getattr(chainer.links, name)
