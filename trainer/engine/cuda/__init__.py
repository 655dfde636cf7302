"""The backend of GPUs: own kernels, cuDNN's convolutions, and whole training steps as CUDA graphs, on CuPy's arrays."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from trainer.engine.cuda import (
    batch_normalization,
    convert,
    convolution,
    elementwise,
    linear,
    loss,
    memory,
    pooling,
    response_normalization,
    runtime,
)
from trainer.engine.cuda.kernel import STORAGE
from trainer.engine.cuda.runtime import Runtime
from trainer.engine.errors import EngineError
from trainer.engine.maps import DType

if TYPE_CHECKING:  # of the parts of a package, the type checker compares no signatures with those of the contract
    from trainer.engine.backend import Losses, Parts

    _parts: Parts = (
        *(memory, convert, convolution, linear),
        *(elementwise, pooling, batch_normalization, response_normalization),
    )
    _loss: Losses = loss


def why_unavailable() -> EngineError | None:
    """None if CuPy, cuDNN and the GPU are there and new enough, else what is not."""
    return _why_unavailable(runtime.runtime())


@functools.cache
def _why_unavailable(run: Runtime) -> EngineError | None:
    try:
        run.check()
    except EngineError as error:
        return error
    return None


def takes(dtype: DType) -> bool:
    """Whether maps may be of this precision: float16, bfloat16 and float32."""
    return dtype in STORAGE


def computes_in(dtype: DType | type) -> bool:
    """Every GPU that serves computes in each of them."""
    return True
