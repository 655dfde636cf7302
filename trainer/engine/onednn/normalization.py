"""Batch normalisation with a rectifier in the same pass, and local response normalisation, of channels-last maps."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from trainer.engine.onednn import library as dnn
from trainer.engine.onednn.convert import as_dense_map
from trainer.engine.onednn.library import library
from trainer.engine.onednn.operation import (
    BUFFERS,
    DATA_TYPES,
    FLOAT32,
    Operation,
    as_pixels,
    describe_map,
    describe_vector,
    empty,
    empty_map,
    pixel_stride,
)

SHARES_STATISTICS = False  # `batch_normalization` computes them in one pass with what it makes of them
ADDS_EARLIER = False  # `batch_normalization_backward` leaves gradients that there were before to others


class Running(NamedTuple):
    """Statistics that move along with those of the batches: running = decay * running + (1 - decay) * batch's."""

    mean: np.ndarray  # (C,) float32
    variance: np.ndarray
    decay: float

    def move(self, statistics: Sequence[BatchStatistics], n: int) -> None:
        """Towards those of a batch of n elements a channel, a part after the other."""
        first = 0
        for part in statistics:
            c = slice(first, first + len(part.mean))
            _move(self.mean[c], part.mean, self.decay)
            _move(self.variance[c], part.variance * np.float32(n / max(n - 1, 1)), self.decay)
            first = c.stop


def _move(running: np.ndarray, current: np.ndarray, decay: float) -> None:
    running *= decay
    running += (1 - decay) * current


class BatchStatistics(NamedTuple):
    """What the backward pass of a batch normalisation needs beside x and gamma."""

    mean: np.ndarray  # (C,) float32
    variance: np.ndarray  # (C,) float32, biased
    signs: np.ndarray | None  # a bit an element: was it rectified away? None without rectifier


def batch_normalization(
    xs: Sequence[np.ndarray],
    gamma: np.ndarray,
    beta: np.ndarray,
    eps: float,
    relu: bool,
    running: Running | None = None,
) -> tuple[list[np.ndarray], list[BatchStatistics]]:
    """y = gamma (x - mean) / sqrt(variance + eps) + beta, [rectified], over the batch, the rows and the columns.

    Of maps side by side, each is normalised by itself; `running` is moved along, in place.
    """
    ys, statistics = [], []
    for x, c in zip(xs, _channels(xs), strict=True):
        y, found = _normalize(x, gamma[c], beta[c], eps, relu)
        ys.append(y)
        statistics.append(found)
    if running is not None:
        running.move(statistics, int(np.prod(xs[0].shape)) // xs[0].shape[1])
    return ys, statistics


def _channels(xs: Sequence[np.ndarray]) -> list[slice]:
    ends = np.cumsum([x.shape[1] for x in xs]).tolist()
    return [slice(end - x.shape[1], end) for end, x in zip(ends, xs, strict=True)]


def _normalize(
    x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, eps: float, relu: bool
) -> tuple[np.ndarray, BatchStatistics]:
    x = as_dense_map(x)
    y = empty_map(x.shape, x.dtype)
    mean, variance = empty(gamma.shape, FLOAT32), empty(gamma.shape, FLOAT32)
    operation, n_byte = forward_operation(x.shape, pixel_stride(x), DATA_TYPES[x.dtype], eps, relu, True)
    arrays = [x, y, gamma, beta, mean, variance]
    signs = None
    if relu:
        signs = BUFFERS.empty((n_byte,), (1,), n_byte, np.dtype(np.uint8))
        arrays.append(signs)
    operation.run(*arrays)
    return y, BatchStatistics(mean, variance, signs)


def fixed_batch_normalization(
    xs: Sequence[np.ndarray],
    gamma: np.ndarray,
    beta: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    eps: float,
    relu: bool,
) -> list[np.ndarray]:
    """The same with statistics that are given."""
    return [
        normalize_fixed(x, gamma[c], beta[c], mean[c], variance[c], eps, relu)
        for x, c in zip(xs, _channels(xs), strict=True)
    ]


def normalize_fixed(
    x: np.ndarray,
    gamma: np.ndarray,
    beta: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    eps: float,
    relu: bool,
    y: np.ndarray | None = None,
) -> np.ndarray:
    """Of one map, into `y` if that is given."""
    x = as_dense_map(x)
    if y is None:
        y = empty_map(x.shape, x.dtype)
    operation, _ = forward_operation(x.shape, pixel_stride(x), DATA_TYPES[x.dtype], eps, relu, False)
    operation.run(x, y, gamma, beta, mean, variance)
    return y


@functools.lru_cache(1024)
def forward_operation(
    shape: tuple[int, ...], pixel: int, data_type: int, eps: float, relu: bool, training: bool
) -> tuple[Operation, int]:
    lib = library()
    x, y, vector = describe_map(shape, pixel, data_type), describe_map(shape, shape[1], data_type), None
    descriptor = _forward_descriptor(x, y, eps, relu, training)
    vector = describe_vector(shape[1])
    arguments = [(dnn.SRC, x), (dnn.DST, y), (dnn.SCALE, vector), (dnn.SHIFT, vector)]
    arguments += [(dnn.MEAN, vector), (dnn.VARIANCE, vector)]
    n_byte = 0
    if relu and training:
        workspace = lib.query(descriptor, dnn.WORKSPACE_MD)
        arguments.append((dnn.WORKSPACE, workspace))
        n_byte = lib.size(workspace)
    return Operation(descriptor, arguments), n_byte


def _forward_descriptor(x: Any, y: Any, eps: float, relu: bool, training: bool) -> Any:
    flags = dnn.USE_SCALE | dnn.USE_SHIFT | (dnn.FUSE_NORM_RELU if relu else 0)
    flags |= 0 if training else dnn.USE_GLOBAL_STATS
    kind = dnn.FORWARD_TRAINING if training else dnn.FORWARD_INFERENCE
    lib = library()
    return lib.create('batch_normalization_forward_primitive_desc_create', lib.engine, kind, x, y, eps, flags, None)


def batch_normalization_backward(
    xs: Sequence[np.ndarray],
    gamma: np.ndarray,
    statistics: Sequence[BatchStatistics],
    gys: Sequence[np.ndarray | None],
    eps: float,
    ggamma: np.ndarray,
    gbeta: np.ndarray,
) -> list[np.ndarray | None]:
    """The gradients of xs; those of gamma and beta go into `ggamma` and `gbeta`."""
    gxs: list[np.ndarray | None] = []
    for x, gy, c, found in zip(xs, gys, _channels(xs), statistics, strict=True):
        if gy is None:  # a part that the loss does not depend on
            ggamma[c], gbeta[c] = 0, 0
            gxs.append(None)
        else:
            gxs.append(_normalize_backward(x, gamma[c], found, gy, eps, ggamma[c], gbeta[c]))
    return gxs


def _normalize_backward(
    x: np.ndarray,
    gamma: np.ndarray,
    statistics: BatchStatistics,
    gy: np.ndarray,
    eps: float,
    ggamma: np.ndarray,
    gbeta: np.ndarray,
) -> np.ndarray:
    x, gy = as_dense_map(x), as_dense_map(gy)
    gx = empty_map(x.shape, x.dtype)
    relu = statistics.signs is not None
    operation = _backward(x.shape, pixel_stride(x), pixel_stride(gy), DATA_TYPES[x.dtype], eps, relu)
    arrays = [x, gy, gx, gamma, statistics.mean, statistics.variance, ggamma, gbeta]
    if statistics.signs is not None:
        arrays.append(statistics.signs)
    operation.run(*arrays)
    return gx


@functools.lru_cache(1024)
def _backward(shape: tuple[int, ...], pixel_x: int, pixel_y: int, data_type: int, eps: float, relu: bool) -> Operation:
    lib = library()
    x, gx = describe_map(shape, pixel_x, data_type), describe_map(shape, shape[1], data_type)
    gy, vector = describe_map(shape, pixel_y, data_type), describe_vector(shape[1])
    flags = dnn.USE_SCALE | dnn.USE_SHIFT | (dnn.FUSE_NORM_RELU if relu else 0)
    hint = _forward_descriptor(x, gx, eps, relu, True)
    descriptor = lib.create(
        'batch_normalization_backward_primitive_desc_create',
        *(lib.engine, dnn.BACKWARD, gx, gy, x, eps, flags, hint, None),
    )
    arguments = [(dnn.SRC, x), (dnn.DIFF_DST, gy), (dnn.DIFF_SRC, gx), (dnn.SCALE, vector), (dnn.MEAN, vector)]
    arguments += [(dnn.VARIANCE, vector), (dnn.DIFF_SCALE, vector), (dnn.DIFF_SHIFT, vector)]
    if relu:
        arguments.append((dnn.WORKSPACE, lib.query(hint, dnn.WORKSPACE_MD)))
    return Operation(descriptor, arguments)


class ResponseWindow(NamedTuple):
    """Parameters of a local response normalisation: y = x / (k + alpha * sum of x^2 over n channels) ** beta."""

    n: int
    k: float
    alpha: float
    beta: float

    def numbers(self) -> tuple[int, float, float, float]:
        """As oneDNN takes them: its alpha is divided by n."""
        return self.n, self.alpha * self.n, self.beta, self.k


def is_right(window: ResponseWindow, x: np.ndarray) -> bool:
    """Whether the library computes it rightly.

    oneDNN 3.2 crashes at n = 1 and errs from 7 on; in bfloat16 its gradient is wrong where the channels do not fill
    its blocks of 16.
    """
    return window.n in (3, 5) and (x.dtype == FLOAT32 or x.shape[1] % 16 == 0)


def local_response_normalization(
    x: np.ndarray, window: ResponseWindow, training: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """y, and in training what the backward pass needs beside x."""
    x = as_dense_map(x)
    y = empty_map(x.shape, x.dtype)
    training = training and _is_gradient_fast()
    operation, n_byte = response_operation(x.shape, pixel_stride(x), DATA_TYPES[x.dtype], window, training)
    if not n_byte:
        operation.run(x, y)
        return y, None
    workspace = BUFFERS.empty((n_byte,), (1,), n_byte, np.dtype(np.uint8))
    operation.run(x, y, workspace)
    return y, workspace


@functools.lru_cache(256)
def response_operation(
    shape: tuple[int, ...], pixel: int, data_type: int, window: ResponseWindow, training: bool
) -> tuple[Operation, int]:
    lib = library()
    x, y = describe_map(shape, pixel, data_type), describe_map(shape, shape[1], data_type)
    descriptor = _response_descriptor(x, y, window, training)
    arguments = [(dnn.SRC, x), (dnn.DST, y)]
    workspace = lib.query(descriptor, dnn.WORKSPACE_MD)
    n_byte = lib.size(workspace) if training and workspace else 0
    if n_byte:
        arguments.append((dnn.WORKSPACE, workspace))
    return Operation(descriptor, arguments), n_byte


def _response_descriptor(x: Any, y: Any, window: ResponseWindow, training: bool) -> Any:
    kind = dnn.FORWARD_TRAINING if training else dnn.FORWARD_INFERENCE
    lib = library()
    return lib.create(
        'lrn_forward_primitive_desc_create',
        *(lib.engine, kind, dnn.LRN_ACROSS_CHANNELS, x, y, *window.numbers(), None),
    )


def local_response_normalization_backward(
    x: np.ndarray, workspace: np.ndarray | None, gy: np.ndarray, window: ResponseWindow
) -> np.ndarray:
    """The gradient of x."""
    x, gy = as_dense_map(x), as_dense_map(gy)
    gx = empty_map(x.shape, x.dtype)
    if not _is_gradient_fast():
        _response_gradient(as_pixels(x), as_pixels(gy), as_pixels(gx), window)
        return gx
    operation = _response_backward(
        x.shape, pixel_stride(x), pixel_stride(gy), DATA_TYPES[x.dtype], window, workspace is not None
    )
    operation.run(x, gy, gx, *([] if workspace is None else [workspace]))
    return gx


def _is_gradient_fast() -> bool:
    """Whether the library has more than its reference code for it, which takes ten times as long as ours."""
    return library().has(dnn.INSTRUCTION_SETS['AVX-512'])


ROWS = 512  # pixels at a time, whose channels stay in the cache from one step to the next


def _response_gradient(x: np.ndarray, gy: np.ndarray, gx: np.ndarray, window: ResponseWindow) -> None:
    """The gradient of x into `gx`, of maps as rows (pixels, C), float32.

    gx = gy s^-beta - 2 alpha beta x sum(gy x s^(-beta - 1)), s = k + alpha sum(x^2), sums over n channels around each.
    """
    n, k, alpha, beta = window
    c = x.shape[1]
    room = np.zeros((ROWS, c + n - 1), FLOAT32)  # what is summed, between zeros
    rooms = np.empty((2, ROWS, c), FLOAT32)
    for start in range(0, len(x), ROWS):
        rows = slice(start, start + ROWS)
        x_part, gy_part, gx_part = x[rows], gy[rows], gx[rows]
        padded, (s, factor) = room[: len(x_part)], rooms[:, : len(x_part)]
        middle = padded[:, n // 2 : n // 2 + c]
        np.multiply(x_part, x_part, out=middle)
        _sum_windows(padded, n, s)
        s *= alpha
        s += k
        _power(s, -beta, factor)
        np.multiply(gy_part, factor, out=gx_part)
        np.divide(gx_part, s, out=factor)
        np.multiply(factor, x_part, out=middle)
        _sum_windows(padded, n, s)
        s *= x_part
        s *= 2 * alpha * beta
        gx_part -= s


def _power(x: np.ndarray, exponent: float, out: np.ndarray) -> None:
    """x ** exponent; by square roots for that of the paper, since NumPy's power of float32 is slow without AVX-512."""
    if exponent != -0.75:
        np.power(x, exponent, out=out)
        return
    np.sqrt(x, out=out)
    out *= np.sqrt(out)
    np.divide(1, out, out=out)


def _sum_windows(x: np.ndarray, n: int, out: np.ndarray) -> None:
    """Sums of n neighbours: x (rows, C + n - 1) -> (rows, C)."""
    c = out.shape[1]
    np.add(x[:, :c], x[:, 1 : 1 + c], out=out)
    for i in range(2, n):
        out += x[:, i : i + c]


@functools.lru_cache(256)
def _response_backward(
    shape: tuple[int, ...], pixel_x: int, pixel_y: int, data_type: int, window: ResponseWindow, has_workspace: bool
) -> Operation:
    lib = library()
    x, gx = describe_map(shape, pixel_x, data_type), describe_map(shape, shape[1], data_type)
    gy = describe_map(shape, pixel_y, data_type)
    hint = _response_descriptor(x, gx, window, True)
    descriptor = lib.create(
        'lrn_backward_primitive_desc_create',
        *(lib.engine, dnn.LRN_ACROSS_CHANNELS, gx, gy, x, *window.numbers(), hint, None),
    )
    arguments = [(dnn.SRC, x), (dnn.DIFF_DST, gy), (dnn.DIFF_SRC, gx)]
    if has_workspace:
        arguments.append((dnn.WORKSPACE, lib.query(hint, dnn.WORKSPACE_MD)))
    return Operation(descriptor, arguments)
