"""Random numbers as pure functions of (seed, epoch): NumPy's counter-based Philox, one key an epoch and purpose.

Whatever draws from here needs no state in a checkpoint beyond seed, epoch and position.
"""

from __future__ import annotations

import numpy as np

ORDER, AUGMENTATION = 0, 1
MIXING = 16  # of iterations in the place of epochs


def generator(seed: int, epoch: int, purpose: int) -> np.random.Generator:
    """The generator of one epoch's `purpose` (ORDER or AUGMENTATION), or one iteration's (MIXING).

    Args:
        seed: 0 .. 2**64 - 1.
        epoch: completed epochs (or iterations) before this one, 0 .. 2**32 - 1.
    """
    return np.random.Generator(np.random.Philox(key=np.array([seed, purpose << 32 | epoch], np.uint64)))
