"""Philox4x32-10, the counter-based generator behind dropout masks, for NumPy and CuPy arrays alike."""

from __future__ import annotations

from typing import Any

import numpy as np

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
N_ROUND = 10


def philox4x32(counter: tuple[Any, Any, Any, Any], seed: int) -> tuple[Any, Any, Any, Any]:
    """Four random words for every counter.

    Args:
        counter: four uint32 arrays that broadcast together, least significant word first.
        seed: 0 .. 2**64 - 1, the key: its low word, then its high word.
    Returns:
        Four uint32 arrays of the broadcast shape.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011), section 3.3; the known answers of its
    library are in tests/functions/test_philox.py.
    """
    c0, c1, c2, c3 = counter
    key = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(N_ROUND):
        product0 = c0.astype(np.uint64) * np.uint64(MULTIPLIERS[0])
        product2 = c2.astype(np.uint64) * np.uint64(MULTIPLIERS[1])
        c0 = (product2 >> np.uint64(32)).astype(np.uint32) ^ c1 ^ np.uint32(key[0])
        c1 = product2.astype(np.uint32)
        c2 = (product0 >> np.uint64(32)).astype(np.uint32) ^ c3 ^ np.uint32(key[1])
        c3 = product0.astype(np.uint32)
        key = [(k + w) & 0xFFFFFFFF for k, w in zip(key, WEYL, strict=True)]
    return c0, c1, c2, c3
