"""The GPU's engine: own kernels, cuDNN's convolutions, and whole training steps as CUDA graphs.

Its modules have the names and functions of those in `trainer.engine.onednn`, for arrays of CuPy.
"""

from trainer.engine.cuda import convert, convolution, elementwise, linear, loss, memory, normalization, pooling

__all__ = ['convert', 'convolution', 'elementwise', 'linear', 'loss', 'memory', 'normalization', 'pooling']
