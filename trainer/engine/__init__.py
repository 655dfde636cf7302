"""What makes `trainer.functions` fast, and whether it is used.

`trainer.engine.backend` says what a backend offers, `trainer.engine.context` which settings it heeds. Here is the
switchboard: which backend computes on an array, whether it can, and what the records say of it.
"""

from __future__ import annotations

import os
from typing import Any

import chainer
import numpy as np
from threadpoolctl import threadpool_limits

from trainer.engine import context as context  # its defaults are set when it is imported
from trainer.engine import cuda, onednn
from trainer.engine.backend import Backend
from trainer.engine.cores import default_threads
from trainer.engine.cuda import runtime as cuda_runtime
from trainer.engine.errors import EngineError
from trainer.engine.errors import EngineWarning as EngineWarning
from trainer.engine.onednn import has_bfloat16 as has_bfloat16
from trainer.engine.onednn import instruction_set as instruction_set
from trainer.engine.onednn.library import library
from trainer.engine.warn import warn_once

ENGINES = ('fused', 'plain')


def of(x: Any) -> Backend | None:
    """The backend of the device of an array or variable: `trainer.engine.onednn`, `trainer.engine.cuda`, or None."""
    array = x.array if isinstance(x, chainer.Variable) else x
    kind = type(array)
    run = cuda_runtime.current()
    if run is not None and kind is run.array_type:
        return cuda
    if kind is np.ndarray:
        return onednn
    if kind.__module__.partition('.')[0] == 'cupy':
        cuda_runtime.runtime()  # the first array on a GPU: from here on there is a runtime
        return of(array)
    return None


def serves(*arrays: Any) -> bool:
    """Whether a backend takes these (variables, arrays, or None), all of one device."""
    if chainer.config.engine != 'fused':
        return False
    backend = None
    for x in arrays:
        if x is None:
            continue
        array: Any = x.array if isinstance(x, chainer.Variable) else x
        if backend is None:
            backend = of(array)
            kind = type(array)
        if backend is None or type(array) is not kind or array.size == 0 or not backend.takes(array.dtype):
            return False
        if array.ndim == 1 and not array.flags.c_contiguous:  # vectors are read without strides
            return False
    return is_available(backend)


def is_on_gpu(model: Any) -> bool:
    """Whether the GPU's backend takes a network as it lies."""
    parameters = list(model.params()) if isinstance(model, chainer.Link) else []
    return bool(parameters) and of(parameters[0]) is cuda and serves(*parameters)


def is_available(backend: Any = None) -> bool:
    """Whether a backend, by default the CPU's, can be used; warns once with the reason if not."""
    error = (backend or onednn).why_unavailable()
    if error is not None:
        name = 'GPU' if backend is cuda else 'CPU'
        warn_once(f'the {name} computes with plain Chainer, several times slower: {error}')
    return error is None


def refuse(error: EngineError, what: str) -> None:
    """Warn once that an operation goes to plain Chainer because the library refuses it."""
    warn_once(f'{what} is computed by plain Chainer: {error}')


# ---- for the records ----


def version() -> str | None:
    """Of oneDNN, if it is what computes on the CPU."""
    return None if chainer.config.engine == 'plain' or onednn.why_unavailable() is not None else library().version


def describe() -> str:
    """The CPU's backend, e.g. 'oneDNN 3.2.0 (AVX512-BF16), bfloat16'."""
    if version() is None:
        return 'plain Chainer on NumPy'
    return f'oneDNN {version()} ({instruction_set()})' + (
        ', bfloat16' if chainer.config.compute_dtype is not None else ''
    )


def cudnn_version() -> str | None:
    """Of cuDNN, if it is what computes on the GPU."""
    if chainer.config.engine == 'plain' or not is_available(cuda):
        return None
    return cuda_runtime.runtime().version()


def describe_gpu() -> str:
    """The GPU's backend, e.g. 'cuDNN 9.19.0, float16'."""
    version = cudnn_version()
    if version is None:
        return f'plain Chainer on CuPy {cuda_runtime.runtime().xp.__version__}'
    dtype = chainer.config.compute_dtype
    return f'cuDNN {version}, {"float32" if dtype is None else dtype}'


# ---- threads ----


def threads() -> int:
    """How many threads compute on the CPU."""
    return default_threads() if onednn.why_unavailable() is not None else library().threads.n


def set_threads(n: int) -> None:
    """Compute with `n` threads instead of OMP_NUM_THREADS or every core; before anything is computed."""
    os.environ['OMP_NUM_THREADS'] = str(n)  # for what is loaded later
    threadpool_limits(n)  # of NumPy's BLAS
    if onednn.why_unavailable() is None and not library().threads.set(n):
        warn_once(f'{library().threads.n} threads compute already: a process cannot change their number to {n}')
