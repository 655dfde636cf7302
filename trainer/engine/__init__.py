"""What makes `trainer.functions` fast, and whether it is used.

`chainer.config.engine` (per thread, as all of Chainer's configuration) is 'auto', the fast engine of the device where
there is one, or 'chainer', plain Chainer.  `chainer.config.compute_dtype` is the precision of activations in
convolutions and fully connected layers, or None for that of their input.
"""

from __future__ import annotations

import functools
import os
import warnings
from pathlib import Path
from typing import Any

import chainer
import numpy as np
from threadpoolctl import threadpool_limits

from trainer.engine.errors import EngineError, EngineWarning
from trainer.engine.onednn import library as onednn

ENGINES = ('auto', 'chainer')
chainer.global_config.engine = 'auto'  # type: ignore[attr-defined]
chainer.global_config.compute_dtype = None  # type: ignore[attr-defined]


def serves(*arrays: Any) -> bool:
    """Whether the CPU engine takes these (variables, arrays, or None)."""
    if chainer.config.engine != 'auto':
        return False
    from trainer.engine.onednn.operation import BFLOAT16, FLOAT32

    for x in arrays:
        if x is not None:
            array = x.array if isinstance(x, chainer.Variable) else x
            if type(array) is not np.ndarray or array.size == 0 or array.dtype not in (FLOAT32, BFLOAT16):
                return False
    return is_available()


@functools.cache
def _load() -> EngineError | None:
    try:
        onednn.library()
    except EngineError as error:
        return error
    return None


def is_available() -> bool:
    """Whether the CPU engine can be used; says why not, once."""
    error = _load()
    if error is not None:
        _warn_once(f'the CPU computes with plain Chainer, several times slower: {error}')
    return error is None


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, EngineWarning, stacklevel=3)


def refuse(error: EngineError, what: str) -> None:
    """Say once that an operation goes to plain Chainer because the library refuses it."""
    _warn_once(f'{what} is computed by plain Chainer: {error}')


def version() -> str | None:
    """Of oneDNN, if it is what computes on the CPU."""
    return None if chainer.config.engine == 'chainer' or _load() is not None else onednn.library().version


def describe() -> str:
    """The CPU's engine for the records, e.g. 'oneDNN 3.2.0, bfloat16'."""
    if version() is None:
        return 'plain Chainer on NumPy'
    return f'oneDNN {version()}' + (', bfloat16' if chainer.config.compute_dtype is not None else '')


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself, so that `compute_dtype` bfloat16 is a gain."""
    try:
        with Path('/proc/cpuinfo').open() as lines:
            return any(line.startswith('flags') and ' avx512_bf16' in line for line in lines)
    except OSError:
        return False


def set_threads(n: int) -> None:
    """Compute with `n` threads from here on (of the calling thread), instead of OMP_NUM_THREADS or every core."""
    os.environ['OMP_NUM_THREADS'] = str(n)  # for what is loaded later, and for the records
    _load()
    threadpool_limits(n)  # of OpenMP and of NumPy's BLAS
