"""Functions that networks are written with: Chainer's names and signatures, computed by the engine where it serves.

Those that are not listed below are Chainer's own.
"""

from typing import Any

import chainer.functions

from trainer.functions.add import add
from trainer.functions.batch_normalization import batch_normalization, fixed_batch_normalization
from trainer.functions.concat import SideBySide, concat, side_by_side, split
from trainer.functions.convolution_2d import convolution_2d
from trainer.functions.dropout import DropoutKey, dropout
from trainer.functions.linear import linear
from trainer.functions.local_response_normalization import local_response_normalization
from trainer.functions.loss import accuracy, softmax_cross_entropy
from trainer.functions.pooling_2d import average_pooling_2d, max_pooling_2d, mean
from trainer.functions.relu import relu

__all__ = [
    'DropoutKey',
    'SideBySide',
    'accuracy',
    'add',
    'average_pooling_2d',
    'batch_normalization',
    'concat',
    'convolution_2d',
    'dropout',
    'fixed_batch_normalization',
    'linear',
    'local_response_normalization',
    'max_pooling_2d',
    'mean',
    'relu',
    'side_by_side',
    'softmax_cross_entropy',
    'split',
]


def __getattr__(name: str) -> Any:
    return getattr(chainer.functions, name)
