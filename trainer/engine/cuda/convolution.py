"""Convolution, forward and backward, of maps: cuDNN's, and what it does not take fused done by a kernel after it."""

from __future__ import annotations

import functools
import math
from typing import Any

import chainer
import numpy as np

from trainer.engine.backend import Convolution
from trainer.engine.cuda import elementwise
from trainer.engine.cuda.columns import column_sums
from trainer.engine.cuda.convert import as_map, convert
from trainer.engine.cuda.kernel import FLOAT32
from trainer.engine.cuda.memory import empty, empty_map
from trainer.engine.cuda.problem import BACKWARD_DATA, BACKWARD_WEIGHTS, FORWARD, Problem, Tensor
from trainer.engine.cuda.runtime import Plan, Runtime, runtime
from trainer.engine.cuda.weights import in_precision
from trainer.engine.errors import EngineError
from trainer.engine.maps import Array, DType, Map, address, misalignments, pixel_stride

# What a separate pass costs, roughly, where it is weighed against a fused one.
LAUNCH_SECONDS, BYTES_PER_SECOND = 2e-6, 2e12


def _problem(kind: str, conv: Convolution, x: Map, W: Map, y: Map, **more: Any) -> Problem:
    return Problem(kind, _tensor(x), _tensor(W), _tensor(y), conv.stride, conv.pad, conv.dilate, **more)


def _tensor(x: Map) -> Tensor:
    _, _, h, w = x.shape
    pixel = pixel_stride(x)
    return Tensor(x.shape, (h * w * pixel, 1, w * pixel, pixel), str(x.dtype))


def aligned(x: Map) -> Map:
    """`x` itself if it starts where cuDNN wants it, else a copy: a part of a batch may start anywhere."""
    return x if not any(misalignments(x)) else convert(x, empty_map(x.shape, x.dtype))


def as_weights(W: Array) -> Array:
    """As they are: in whatever order."""
    return W


def forward(conv: Convolution, x: Map, W: Array, b: Array | None, y: Map, add: Map | None = None) -> Map:
    """y = x * W + b [+ add]; where `add` is y, another map takes the sum, which cuDNN does not make in place."""
    if add is y:
        y = empty_map(y.shape, y.dtype)
    x = aligned(as_map(x))
    W = in_precision(W, x.dtype)
    add = None if add is None else aligned(as_map(add))
    problem = _problem(FORWARD, conv, x, W, y, bias=b is not None, add=None if add is None else _tensor(add))
    if chainer.config.fuses_sums:
        run = runtime()
        plan, is_fused = _forward_plan(run, run.device, problem)
    else:
        plan, is_fused = _plan(problem._replace(bias=False, add=None)), b is None and add is None
    if is_fused:
        _execute(plan, [x, W, y, *(a for a in (b, add) if a is not None)])
    else:
        _execute(plan, [x, W, y])
        elementwise.add_bias(y, b, add)
    return y


@functools.cache
def _forward_plan(run: Runtime, device: int, problem: Problem) -> tuple[Plan, bool]:
    """A plan, and whether it adds the bias and the other map, too: whichever is faster in all."""
    plain = problem._replace(bias=False, add=None)
    separate = run.plan(plain)
    if plain == problem:
        return separate, True
    try:
        fused = run.plan(problem)
    except EngineError:
        return separate, False
    n_byte = math.prod(problem.y.shape) * (2 if problem.y.dtype != 'float32' else 4)
    more = LAUNCH_SECONDS + n_byte * (2 + (problem.add is not None)) / BYTES_PER_SECOND
    return (fused, True) if fused.seconds <= separate.seconds + more else (separate, False)


def backward_data(conv: Convolution, W: Array, gy: Map, gx: Map) -> Map:
    """The gradient of x into `gx`, a map."""
    gy = aligned(as_map(gy))
    W = in_precision(W, gy.dtype)
    _execute(_plan(_problem(BACKWARD_DATA, conv, gx, W, gy)), [gx, W, gy])
    return gx


def backward_weights(conv: Convolution, x: Map, gy: Map, gW: Array, gb: Array | None) -> None:
    """The gradients of W into `gW` and of b into `gb`, in float32; gb may be None."""
    x, gy = aligned(as_map(x)), aligned(as_map(gy))
    run = runtime()
    place = gW if pixel_stride(gW) == gW.shape[1] else empty_map(gW.shape, FLOAT32)
    plan, dtype = _weights_plan(run, run.device, _problem(BACKWARD_WEIGHTS, conv, x, place, gy))
    written = place if dtype == FLOAT32 else empty_map(gW.shape, dtype)
    _execute(plan, [x, written, gy])
    if written is not gW:
        convert(written, gW)
    if gb is not None:
        column_sums(gy, gb)


@functools.cache
def _weights_plan(run: Runtime, device: int, problem: Problem) -> tuple[Plan, DType]:
    """A plan, and the precision it writes: float32 as asked, or that of the maps if that and a copy is faster."""
    plans = []
    for dtype, more in ((np.dtype(problem.x.dtype), LAUNCH_SECONDS), (FLOAT32, 0.0)):
        w = problem.w._replace(dtype=str(dtype))
        try:
            plan = run.plan(problem._replace(w=w))
        except EngineError as error:
            refusal = error
        else:
            plans.append((plan.seconds + more, plan, dtype))
    if not plans:
        raise refusal
    _, plan, dtype = min(plans, key=lambda item: item[0])
    return plan, dtype


def _plan(problem: Problem) -> Plan:
    run = runtime()
    return _known_plan(run, run.device, problem)


@functools.cache
def _known_plan(run: Runtime, device: int, problem: Problem) -> Plan:
    return run.plan(problem)


def _execute(plan: Plan, arrays: list[Array]) -> None:
    run = runtime()
    # Dropped when this returns, before cuDNN has used it: whoever gets the memory next works on the same stream. In a
    # captured graph it keeps its address, since the graph keeps the pool that it came from.
    workspace = empty((max(plan.workspace_bytes, 1),), np.uint8)
    plan.run([address(a) for a in arrays], address(workspace), run.stream)
