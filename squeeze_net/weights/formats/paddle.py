"""PaddlePaddle's `.pdparams`: a pickle of a dictionary of arrays, read without running what it names.

Source: `paddle.save` of a state dict (Paddle 2 and 3), and PaddleClas and `paddle.vision` for the names.
"""

from __future__ import annotations

import numpy as np

from squeeze_net.weights.formats.matching import read_named
from squeeze_net.weights.record import Weights
from trainer.data.datasets.restricted_pickle import read_pickle
from trainer.errors import InputError

CLASSIFIER = '_conv9.weight'  # of Paddle's own SqueezeNet


def read(raw: memoryview) -> Weights:
    """The arrays of the dictionary.

    Paddle's SqueezeNet halves the input of its classifier in test mode ('downscale_in_infer'), where other frameworks
    double it in training; here the halves are in the weights.

    Raises:
        InputError: no such file, or one that holds more than arrays.
    """
    state = read_pickle(bytes(raw), 'it')
    if not isinstance(state, dict):
        raise InputError('it holds no dictionary of arrays')
    tensors = {}
    for name, value in state.items():
        name = name.decode('utf-8', 'replace') if isinstance(name, bytes) else name
        if isinstance(name, str) and isinstance(value, np.ndarray):
            tensors[name] = np.array(value, subok=False)
    weights = read_named(tensors)
    if CLASSIFIER in tensors and 'conv10/W' in weights.tensors:
        weights.tensors['conv10/W'] *= np.float32(0.5)
    return weights
