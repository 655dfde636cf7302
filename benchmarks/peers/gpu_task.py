"""What the contestants on a GPU compute, and how each takes its own time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

N_CLASS = 10
LR, MOMENTUM, WEIGHT_DECAY = 1e-3, 0.9, 1e-4  # the rate changes no time


def make_images(n: int) -> tuple[np.ndarray, np.ndarray]:
    """As CIFAR-10's in shape, random in content, which no time depends on: (n, 3, 32, 32) uint8 and (n,) int32."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, 3, 32, 32), np.uint8), rng.integers(0, N_CLASS, n, np.int32)


def time_steps(step: Callable[[], Any], synchronize: Callable[[], Any], n: int) -> float:
    """Seconds a step, of n steps between two waits for the device."""
    synchronize()
    started = time.perf_counter()
    for _ in range(n):
        step()
    synchronize()
    return (time.perf_counter() - started) / n
