"""Random numbers as pure functions of (seed, epoch): NumPy's counter-based Philox, one key an epoch and purpose.

Whatever draws from here needs no state in a checkpoint beyond seed, epoch and position.
"""

from __future__ import annotations

import numpy as np

ORDER, AUGMENTATION, PICTURE, HOLDOUT = 0, 1, 2, 3
MIXING = 16  # of iterations in the place of epochs


def generator(seed: int, epoch: int, purpose: int) -> np.random.Generator:
    """The generator of one epoch's `purpose` (ORDER, AUGMENTATION or HOLDOUT), or one iteration's (MIXING).

    Args:
        seed: 0 .. 2**64 - 1.
        epoch: completed epochs (or iterations) before this one, 0 .. 2**32 - 1.
    """
    return np.random.Generator(np.random.Philox(key=np.array([seed, purpose << 32 | epoch], np.uint64)))


def uniform(seed: int, epoch: int, index: int, n: int) -> np.ndarray:
    """Uniform random numbers for one image in one epoch, independent of other images: (n,) float64 in [0, 1).

    Args:
        seed, epoch: as for `generator`.
        index: of the image.
    """
    key = np.array([seed, PICTURE << 32 | epoch], np.uint64)
    counter = np.array([0, index, 0, 0], np.uint64)  # each image has 2**64 blocks of the counter to itself
    return np.random.Generator(np.random.Philox(key=key, counter=counter)).random(n)
