"""oneDNN, the CPU's library of neural network primitives, driven through its C API."""

from trainer.engine.onednn import convert, convolution, elementwise, linear, memory, normalization, pooling

__all__ = ['convert', 'convolution', 'elementwise', 'linear', 'memory', 'normalization', 'pooling']
