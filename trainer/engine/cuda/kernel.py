"""Kernels by name: compiled for a storage type when first launched, their arguments checked against their signature."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np

from trainer.engine.cuda.runtime import Runtime, runtime
from trainer.engine.maps import DType

FLOAT16, BFLOAT16, FLOAT32 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)
STORAGE = {FLOAT16: 'Half', BFLOAT16: 'Bfloat16', FLOAT32: 'float'}
FOLDER = Path(__file__).parent / 'kernels'
SCALARS = {
    'int': np.int32,
    'long long': np.int64,
    'unsigned long long': np.uint64,
    'float': np.float32,
}
Argument: TypeAlias = Any  # of a kernel: an array, a number, or None for a null pointer
N_THREAD = 256  # of a block that is one-dimensional


@functools.cache
def source_of(module: str) -> str:
    """The text of kernels/<module>.cu, what it includes in its place."""
    text = (FOLDER / f'{module}.cu').read_text(encoding='utf-8')
    return text.replace('#include "common.cuh"', (FOLDER / 'common.cuh').read_text(encoding='utf-8'))


@functools.cache
def signatures(module: str) -> dict[str, list[str]]:
    """Kernel -> types of its arguments: those of SCALARS, or 'pointer'."""
    text = source_of(module)
    for name, lines in re.findall(r'#define (\w+_ARGUMENTS)((?:[^\n]*\\\n)*[^\n]*)', text):
        text = text.replace(f'{name},', lines.replace('\\\n', ' ').strip() + ',')
    kernels = {}
    for name, arguments in re.findall(r'__global__ void (?:__launch_bounds__\(\w+\) )?(\w+)\(([^)]*)\)', text):
        types = []
        for argument in arguments.split(','):
            if '*' in argument:
                types.append('pointer')
            else:
                types.append(argument.rsplit(maxsplit=1)[0].replace('const', '').strip())
        kernels[name] = types
    return kernels


def options(dtype: DType, n_vector: int, source: DType | None = None) -> tuple[str, ...]:
    """The compiler's, for maps of `dtype` read `n_vector` elements at a time (and for copies, from `source`)."""
    given = (f'-DSTORAGE={STORAGE[np.dtype(dtype)]}', f'-DVECTOR={n_vector}')
    return given if source is None else (*given, f'-DSOURCE={STORAGE[np.dtype(source)]}')


def launch(
    module: str,
    name: str,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    arguments: Sequence[Argument],
    dtype: DType = FLOAT32,
    n_vector: int = 1,
    source: DType | None = None,
) -> None:
    """Run kernel `name` of kernels/<module>.cu.

    Args:
        grid, block: blocks, and threads of a block; up to three dimensions.
        arguments: arrays, or None for a null pointer, and numbers, in the order of the kernel's signature. An array's
            first element is what the kernel is pointed to; its strides are arguments of their own.
        dtype: storage type of the maps.
        n_vector: elements that a thread reads at once.
        source: storage type of what a copy reads.
    """
    run = runtime()
    kernel = _kernel(run, run.device, module, name, np.dtype(dtype), n_vector, source)
    types = signatures(module)[name]
    if len(types) != len(arguments):
        raise TypeError(f'{module}.{name} takes {len(types)} arguments, not {len(arguments)}')
    values: list[Any] = [a if kind == 'pointer' else SCALARS[kind](a) for kind, a in zip(types, arguments, strict=True)]
    run.launch(kernel, (*grid, 1, 1)[:3], (*block, 1, 1)[:3], values)


@functools.cache
def _kernel(
    run: Runtime, device: int, module: str, name: str, dtype: DType, n_vector: int, source: DType | None
) -> Any:
    return _module(run, device, module, dtype, n_vector, source)(name)


@functools.cache
def _module(
    run: Runtime, device: int, module: str, dtype: DType, n_vector: int, source: DType | None
) -> Callable[[str], Any]:
    return run.compile(source_of(module), options(dtype, n_vector, source))


def vector_of(dtype: DType, *numbers: int) -> int:
    """Elements to read at once: 16 bytes if that divides all of the numbers, else 1.

    The numbers are columns, strides and misalignments, in elements: with all of them divisible, a thread's elements
    are of one row, and every read starts on a multiple of 16 bytes.
    """
    n = 16 // np.dtype(dtype).itemsize
    return n if all(number % n == 0 for number in numbers) else 1


def grid_of(n_thread_wanted: int, n_wave: int = 8) -> tuple[int]:
    """Blocks of N_THREAD for a loop over that number of elements: one each, or enough to fill the GPU.

    The kernels loop (`for i = thread; i < n; i += threads`), so that any grid computes everything.
    """
    return (max(1, min(-(-n_thread_wanted // N_THREAD), runtime().n_multiprocessor * n_wave)),)
