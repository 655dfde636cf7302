"""The backend of the CPU: oneDNN, a library of neural network primitives, driven through its C API."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from trainer.engine.errors import EngineError
from trainer.engine.maps import DType
from trainer.engine.onednn import (
    batch_normalization,
    convert,
    convolution,
    elementwise,
    library,
    linear,
    memory,
    pooling,
    response_normalization,
)
from trainer.engine.onednn.operation import BFLOAT16, FLOAT32
from trainer.engine.warn import warn_once

loss = None  # Chainer's own takes a few microseconds: there is nothing to gain

if TYPE_CHECKING:  # of the parts of a package, the type checker compares no signatures with those of the contract
    from trainer.engine.backend import Parts

    _parts: Parts = (
        *(memory, convert, convolution, linear),
        *(elementwise, pooling, batch_normalization, response_normalization),
    )


@functools.cache
def why_unavailable() -> EngineError | None:
    """None if oneDNN can be loaded, else what it says."""
    try:
        library.library()
    except EngineError as error:
        return error
    return None


def takes(dtype: DType) -> bool:
    """Whether maps may be of this precision: float32, and bfloat16 where the processor has it."""
    return dtype == FLOAT32 or (dtype == BFLOAT16 and computes_in(dtype))


def computes_in(dtype: DType | type) -> bool:
    """Whether the CPU computes in this `compute_dtype`; warns once if it does not."""
    if np.dtype(dtype) != BFLOAT16 or has_bfloat16():
        return True
    warn_once(f'bfloat16 is computed in float32: it takes AVX512-BF16, and this CPU has {instruction_set()}')
    return False


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself.

    With AVX-512 alone oneDNN 3.2 computes it by way of float32, slower than in float32 and not always correctly; with
    less than that it refuses.
    """
    return why_unavailable() is None and library.library().has(library.INSTRUCTION_SETS['AVX512-BF16'])


def instruction_set() -> str | None:
    """The widest that oneDNN computes with, e.g. 'AVX2': what the processor has and ONEDNN_MAX_CPU_ISA allows."""
    if why_unavailable() is not None:
        return None
    return [name for name, bits in library.INSTRUCTION_SETS.items() if library.library().has(bits)][-1]
