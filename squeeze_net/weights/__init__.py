"""Files of weights of every format that SqueezeNet was published in.

`read(path) -> Weights` and `write(weights, path)`; `load_model(path)` makes the network of it. `python -m
squeeze_net.weights SRC DST` converts.
"""

from squeeze_net.weights.file import Weights
from squeeze_net.weights.files import READERS, WRITTEN, load_model, loader, read, start_from, write
from squeeze_net.weights.model import tensors_of
from squeeze_net.weights.published import PUBLISHED, find

__all__ = [
    'PUBLISHED',
    'READERS',
    'WRITTEN',
    'Weights',
    'find',
    'load_model',
    'loader',
    'read',
    'start_from',
    'tensors_of',
    'write',
]
