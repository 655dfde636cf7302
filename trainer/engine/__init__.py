"""What makes `trainer.functions` fast, and whether it is used.

`chainer.config.engine` (per thread, as all of Chainer's configuration) is 'fused', the fast engine of the device where
there is one, or 'plain', Chainer alone.  `chainer.config.compute_dtype` is the precision of activations in
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

from trainer.engine import cuda, onednn
from trainer.engine.cuda import runtime as cuda_runtime
from trainer.engine.errors import EngineError, EngineWarning
from trainer.engine.onednn.library import library

ENGINES = ('fused', 'plain')
chainer.global_config.engine = 'fused'  # type: ignore[attr-defined]
chainer.global_config.compute_dtype = None  # type: ignore[attr-defined]
chainer.global_config.dead_biases = frozenset()  # type: ignore[attr-defined]


def of(x: Any) -> Any:
    """The engine of the device of an array or variable: `trainer.engine.onednn`, `trainer.engine.cuda`, or None."""
    array = x.array if isinstance(x, chainer.Variable) else x
    kind = type(array)
    run = cuda_runtime.current()
    if run is not None and kind is run.array_type:
        return cuda
    if kind is np.ndarray:
        return onednn
    if kind.__module__.partition('.')[0] == 'cupy':
        cuda_runtime.runtime()
        return of(array)
    return None


def serves(*arrays: Any) -> bool:
    """Whether an engine takes these (variables, arrays, or None), all of one device."""
    if chainer.config.engine != 'fused':
        return False
    engine = None
    for x in arrays:
        if x is None:
            continue
        array: Any = x.array if isinstance(x, chainer.Variable) else x
        if engine is None:
            engine = of(array)
            kind = type(array)
        if engine is None or type(array) is not kind or array.size == 0 or array.dtype not in engine.memory.DTYPES:
            return False
    return is_available(engine)


def is_on_gpu(model: Any) -> bool:
    """Whether the GPU's engine takes a network as it lies."""
    parameters = list(model.params()) if isinstance(model, chainer.Link) else []
    return bool(parameters) and of(parameters[0]) not in (onednn, None) and serves(*parameters)


@functools.cache
def _load_onednn() -> EngineError | None:
    try:
        library()
    except EngineError as error:
        return error
    return None


@functools.cache
def _load_cuda(run: Any) -> EngineError | None:
    try:
        run.check()
    except EngineError as error:
        return error
    return None


def is_available(engine: Any = None) -> bool:
    """Whether an engine, by default the CPU's, can be used; says why not, once."""
    is_gpu = engine is cuda
    error = _load_cuda(cuda_runtime.runtime()) if is_gpu else _load_onednn()
    if error is not None:
        _warn_once(f'the {"GPU" if is_gpu else "CPU"} computes with plain Chainer, several times slower: {error}')
    return error is None


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, EngineWarning, stacklevel=3)


def refuse(error: EngineError, what: str) -> None:
    """Say once that an operation goes to plain Chainer because the library refuses it."""
    _warn_once(f'{what} is computed by plain Chainer: {error}')


def version() -> str | None:
    """Of oneDNN, if it is what computes on the CPU."""
    return None if chainer.config.engine == 'plain' or _load_onednn() is not None else library().version


def describe() -> str:
    """The CPU's engine for the records, e.g. 'oneDNN 3.2.0, bfloat16'."""
    if version() is None:
        return 'plain Chainer on NumPy'
    return f'oneDNN {version()}' + (', bfloat16' if chainer.config.compute_dtype is not None else '')


def cudnn_version() -> str | None:
    """Of cuDNN, if it is what computes on the GPU."""
    if chainer.config.engine == 'plain' or not is_available(cuda):
        return None
    return cuda_runtime.runtime().version()


def describe_gpu() -> str:
    """The GPU's engine for the records, e.g. 'cuDNN 9.19.0, float16'."""
    version = cudnn_version()
    if version is None:
        return f'plain Chainer on CuPy {cuda_runtime.runtime().xp.__version__}'
    dtype = chainer.config.compute_dtype
    return f'cuDNN {version}, {"float32" if dtype is None else dtype}'


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
    _load_onednn()
    threadpool_limits(n)  # of OpenMP and of NumPy's BLAS
