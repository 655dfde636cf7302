"""Functions that networks are written with: Chainer's names and signatures, so that an engine can stand behind them."""

from chainer.functions import (
    accuracy,
    average_pooling_2d,
    concat,
    local_response_normalization,
    max_pooling_2d,
    mean,
    relu,
    softmax_cross_entropy,
)

from trainer.functions.dropout import DropoutKey, dropout

__all__ = [
    'DropoutKey',
    'accuracy',
    'average_pooling_2d',
    'concat',
    'dropout',
    'local_response_normalization',
    'max_pooling_2d',
    'mean',
    'relu',
    'softmax_cross_entropy',
]
