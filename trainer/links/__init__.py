"""Links that networks are written with: Chainer's names and signatures, so that an engine can stand behind them."""

from chainer.links import BatchNormalization, Convolution2D, Linear

from trainer.links.bn_relu_conv import BNReLUConv

__all__ = ['BNReLUConv', 'BatchNormalization', 'Convolution2D', 'Linear']
