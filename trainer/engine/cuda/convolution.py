"""Convolution, forward and backward, of maps: cuDNN's, and what it does not take fused done by a kernel behind it."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from trainer.engine.cuda import elementwise
from trainer.engine.cuda.convert import as_map, convert
from trainer.engine.cuda.cudnn import BACKWARD_DATA, BACKWARD_WEIGHTS, FORWARD, Problem, Tensor
from trainer.engine.cuda.kernel import FLOAT32
from trainer.engine.cuda.memory import empty, empty_map
from trainer.engine.cuda.normalization import column_sums
from trainer.engine.cuda.runtime import runtime
from trainer.engine.cuda.weights import in_precision
from trainer.engine.errors import EngineError
from trainer.engine.maps import address, misalignments, pixel_stride

Pair = tuple[int, int]
# What a separate pass costs, roughly, where it is weighed against a fused one.
LAUNCH_SECONDS, BYTES_PER_SECOND = 2e-6, 2e12


ADDS_IN_PLACE = False  # `forward` would read what it has written: cuDNN promises nothing for that


class Convolution(NamedTuple):
    """What a convolution computes, but for its numbers; strides, pads and dilations are (vertical, horizontal), px."""

    x_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]  # (out, in / groups, kh, kw)
    stride: Pair
    pad: Pair
    dilate: Pair
    groups: int

    @property
    def y_shape(self) -> tuple[int, ...]:
        size = [
            (length + 2 * p - d * (k - 1) - 1) // s + 1
            for length, k, s, p, d in zip(
                self.x_shape[2:], self.weight_shape[2:], self.stride, self.pad, self.dilate, strict=True
            )
        ]
        return self.x_shape[0], self.weight_shape[0], *size

    def problem(self, kind: str, x: Any, W: Any, y: Any, **more: Any) -> Problem:
        return Problem(kind, _tensor(x), _tensor(W), _tensor(y), self.stride, self.pad, self.dilate, **more)


def _tensor(x: Any) -> Tensor:
    _, _, h, w = x.shape
    pixel = pixel_stride(x)
    return Tensor(x.shape, (h * w * pixel, 1, w * pixel, pixel), str(x.dtype))


def aligned(x: Any) -> Any:
    """`x` itself if it starts where cuDNN wants it, else a copy: a part of a batch may start anywhere."""
    return x if not any(misalignments(x)) else convert(x, empty_map(x.shape, x.dtype))


def describe(x: Any, W: Any, stride: Pair, pad: Pair, dilate: Pair, groups: int) -> Convolution:
    return Convolution(x.shape, W.shape, stride, pad, dilate, groups)


def as_weights(W: Any) -> Any:
    """As they are: in whatever order."""
    return W


def forward(conv: Convolution, x: Any, W: Any, b: Any, y: Any, add: Any = None) -> Any:
    """y = x * W + b [+ add]; x, y and add are of one precision, W and b float32."""
    x = aligned(as_map(x))
    W = in_precision(W, x.dtype)
    add = None if add is None else aligned(as_map(add))
    problem = conv.problem(FORWARD, x, W, y, bias=b is not None, add=None if add is None else _tensor(add))
    run = runtime()
    if _is_unfused:
        plan, is_fused = _plan(problem._replace(bias=False, add=None)), b is None and add is None
    else:
        plan, is_fused = _forward_plan(run, run.device, problem)
    if is_fused:
        _execute(plan, [x, W, y, *(a for a in (b, add) if a is not None)])
    else:
        _execute(plan, [x, W, y])
        elementwise.add_bias(y, b, add)
    return y


_is_unfused = False


@contextmanager
def without_fusion() -> Iterator[None]:
    """Within, biases and sums are added by kernels of their own, and no fused plan is tried."""
    global _is_unfused
    _is_unfused = True
    try:
        yield
    finally:
        _is_unfused = False


@functools.cache
def _forward_plan(run: Any, device: int, problem: Problem) -> tuple[Any, bool]:
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


def backward_data(conv: Convolution, W: Any, gy: Any, gx: Any) -> Any:
    """The gradient of x into `gx`, a map."""
    gy = aligned(as_map(gy))
    W = in_precision(W, gy.dtype)
    _execute(_plan(conv.problem(BACKWARD_DATA, gx, W, gy)), [gx, W, gy])
    return gx


def backward_weights(conv: Convolution, x: Any, gy: Any, gW: Any, gb: Any) -> None:
    """The gradients of W into `gW` and of b into `gb`, in float32; gb may be None."""
    x, gy = aligned(as_map(x)), aligned(as_map(gy))
    run = runtime()
    place = gW if pixel_stride(gW) == gW.shape[1] else empty_map(gW.shape, FLOAT32)
    plan, dtype = _weights_plan(run, run.device, conv.problem(BACKWARD_WEIGHTS, x, place, gy))
    written = place if dtype == FLOAT32 else empty_map(gW.shape, dtype)
    _execute(plan, [x, written, gy])
    if written is not gW:
        convert(written, gW)
    if gb is not None:
        column_sums(gy, gb)


@functools.cache
def _weights_plan(run: Any, device: int, problem: Problem) -> tuple[Any, Any]:
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


def _plan(problem: Problem) -> Any:
    run = runtime()
    return _known_plan(run, run.device, problem)


@functools.cache
def _known_plan(run: Any, device: int, problem: Problem) -> Any:
    return run.plan(problem)


def _execute(plan: Any, arrays: list[Any]) -> None:
    run = runtime()
    workspace = empty((max(plan.workspace_bytes, 1),), np.uint8)
    plan.run([address(a) for a in arrays], address(workspace), run.stream)
