"""Weights files of every format that SqueezeNet was published in.

`read(path) -> Weights` and `write(weights, path)`; `load_model(path)` makes the network of it. `python -m
squeeze_net.weights SRC DST` converts.
"""

from squeeze_net.weights.formats import FORMATS, WRITTEN
from squeeze_net.weights.io import finetuning, load_model, loader, read, read_teacher, teacher, write
from squeeze_net.weights.network import start_from, tensors_of
from squeeze_net.weights.published import PUBLISHED, find
from squeeze_net.weights.record import Weights

__all__ = [
    'FORMATS',
    'PUBLISHED',
    'WRITTEN',
    'Weights',
    'find',
    'finetuning',
    'load_model',
    'loader',
    'read',
    'read_teacher',
    'start_from',
    'teacher',
    'tensors_of',
    'write',
]
