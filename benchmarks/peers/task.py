"""What every contestant computes: networks, batches, the settings of the optimiser; and how it takes its own time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

N_CLASS = 10
DROPOUT = 0.5
SIZES_PX = {'squeezenet': 122, 'alexnet': 122, 'vgg_bn': 32}
N_PARAMETERS = {'squeezenet': 747_146, 'alexnet': 28_597_642, 'vgg_bn': 14_991_946}

LR = 1e-3  # changes no time; low enough that one batch again and again diverges in no network
MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4


def make_batch(network: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Random images (n, 3, size, size) float32, as if normalised, and labels (n,) int64; the same in every process."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, 3, SIZES_PX[network], SIZES_PX[network]), np.float32)
    return x, rng.integers(0, N_CLASS, n)


def check_n_parameters(network: str, n: int) -> None:
    """Refuse a network that is not the one the others compute."""
    if n != N_PARAMETERS[network]:
        raise ValueError(f'{network} has {n:,} parameters, not {N_PARAMETERS[network]:,}')


def time_each(run: Callable[[], Any], n: int) -> list[float]:
    """Seconds of each of n runs."""
    seconds = []
    for _ in range(n):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return seconds


def relative_difference(y: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference of two arrays of logits, as a part of the largest logit."""
    return float(np.abs(y - expected).max() / np.abs(expected).max())


def peak_rss_mib() -> float:
    """The most memory this process has had resident, MiB (Linux)."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith('VmHWM:'):
            return int(line.split()[1]) / 1024
    raise OSError('/proc/self/status has no VmHWM')
