"""What makes `trainer.functions` fast, and whether it is used.

`chainer.config.engine` (per thread, as all of Chainer's configuration) is 'fused', the fast engine of the device where
there is one, or 'plain', Chainer alone.  `chainer.config.compute_dtype` is the precision of activations in
convolutions and fully connected layers, or None for that of their input.
"""

from __future__ import annotations

import functools
import os
import warnings
from typing import Any

import chainer
import numpy as np
from threadpoolctl import threadpool_limits

from trainer.engine import cuda, onednn
from trainer.engine.cores import default_threads
from trainer.engine.cuda import runtime as cuda_runtime
from trainer.engine.errors import EngineError, EngineWarning
from trainer.engine.onednn.library import INSTRUCTION_SETS, library
from trainer.engine.onednn.operation import BFLOAT16

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
        if engine is onednn and array.dtype == BFLOAT16 and not computes_in(BFLOAT16):
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
    """The CPU's engine for the records, e.g. 'oneDNN 3.2.0 (AVX512-BF16), bfloat16'."""
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
    """The GPU's engine for the records, e.g. 'cuDNN 9.19.0, float16'."""
    version = cudnn_version()
    if version is None:
        return f'plain Chainer on CuPy {cuda_runtime.runtime().xp.__version__}'
    dtype = chainer.config.compute_dtype
    return f'cuDNN {version}, {"float32" if dtype is None else dtype}'


def instruction_set() -> str | None:
    """The widest that oneDNN computes with, e.g. 'AVX2': what the processor has and ONEDNN_MAX_CPU_ISA allows."""
    if _load_onednn() is not None:
        return None
    return [name for name, bits in INSTRUCTION_SETS.items() if library().has(bits)][-1]


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself.

    With AVX-512 alone oneDNN 3.2 computes it by way of float32, slower than in float32 and not always rightly; with
    less than that it refuses.
    """
    return _load_onednn() is None and library().has(INSTRUCTION_SETS['AVX512-BF16'])


def computes_in(dtype: Any) -> bool:
    """Whether the CPU's engine computes in this `compute_dtype`; says once if it does not."""
    if dtype != BFLOAT16 or has_bfloat16():
        return True
    _warn_once(f'bfloat16 is computed in float32: it takes AVX512-BF16, and this CPU has {instruction_set()}')
    return False


def threads() -> int:
    """How many threads compute on the CPU."""
    return default_threads() if _load_onednn() is not None else library().threads.n


def set_threads(n: int) -> None:
    """Compute with `n` threads instead of OMP_NUM_THREADS or every core; before anything is computed."""
    os.environ['OMP_NUM_THREADS'] = str(n)  # for what is loaded later
    threadpool_limits(n)  # of NumPy's BLAS
    if _load_onednn() is None and not library().threads.set(n):
        _warn_once(f'{library().threads.n} threads compute already: a process cannot change their number to {n}')
