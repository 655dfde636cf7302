"""Local response normalisation of channels-last maps."""

from __future__ import annotations

import functools

import numpy as np

from trainer.engine.backend import ResponseWindow
from trainer.engine.maps import Map, Shape, pixel_stride
from trainer.engine.onednn import library as dnn
from trainer.engine.onednn.convert import as_dense_map
from trainer.engine.onednn.library import Descriptor, library
from trainer.engine.onednn.operation import (
    DATA_TYPES,
    FLOAT32,
    Operation,
    as_pixels,
    describe_map,
    empty_map,
    empty_workspace,
    workspace_of,
)


def is_supported(window: ResponseWindow, x: Map) -> bool:
    """Whether the library computes it correctly.

    oneDNN 3.2 crashes at n = 1 and errs from 7 on; in bfloat16 its gradient is wrong where the channels do not fill
    its blocks of 16.
    """
    return window.n in (3, 5) and (x.dtype == FLOAT32 or x.shape[1] % 16 == 0)


def forward(x: Map, window: ResponseWindow, training: bool) -> tuple[Map, np.ndarray | None]:
    """y, and in training what the backward pass needs besides x."""
    x = as_dense_map(x)
    y = empty_map(x.shape, x.dtype)
    training = training and _is_gradient_fast()
    operation, n_byte = forward_operation(x.shape, pixel_stride(x), DATA_TYPES[x.dtype], window, training)
    workspace = empty_workspace(n_byte)
    operation.run(x, y, workspace)
    return y, workspace


@functools.lru_cache(256)
def forward_operation(
    shape: Shape, pixel: int, data_type: int, window: ResponseWindow, training: bool
) -> tuple[Operation, int]:
    """The operation on x, y, [workspace], and the bytes of that."""
    x, y = describe_map(shape, pixel, data_type), describe_map(shape, shape[1], data_type)
    descriptor = _forward_descriptor(x, y, window, training)
    workspace, n_byte = workspace_of(descriptor) if training else (None, 0)
    return Operation(descriptor, [(dnn.SRC, x), (dnn.DST, y), (dnn.WORKSPACE, workspace)]), n_byte


def _numbers(window: ResponseWindow) -> tuple[int, float, float, float]:
    """As oneDNN takes them: its alpha is divided by n."""
    return window.n, window.alpha * window.n, window.beta, window.k


def _forward_descriptor(x: Descriptor, y: Descriptor, window: ResponseWindow, training: bool) -> Descriptor:
    kind = dnn.FORWARD_TRAINING if training else dnn.FORWARD_INFERENCE
    lib = library()
    return lib.describe_primitive(
        'lrn_forward',
        *(lib.engine, kind, dnn.LRN_ACROSS_CHANNELS, x, y, *_numbers(window)),
    )


def backward(x: Map, workspace: np.ndarray | None, gy: Map, window: ResponseWindow) -> Map:
    """The gradient of x."""
    x, gy = as_dense_map(x), as_dense_map(gy)
    gx = empty_map(x.shape, x.dtype)
    if not _is_gradient_fast():
        _response_gradient(as_pixels(x), as_pixels(gy), as_pixels(gx), window)
        return gx
    operation = _backward(
        x.shape, pixel_stride(x), pixel_stride(gy), DATA_TYPES[x.dtype], window, workspace is not None
    )
    operation.run(x, gy, gx, workspace)
    return gx


def _is_gradient_fast() -> bool:
    """Whether the library has more than its reference code for it, which takes ten times as long as ours."""
    return library().has(dnn.INSTRUCTION_SETS['AVX-512'])


ROWS = 512  # pixels at a time, whose channels stay in the cache from one step to the next


def _response_gradient(x: np.ndarray, gy: np.ndarray, gx: np.ndarray, window: ResponseWindow) -> None:
    """The gradient of x into `gx`, of maps as rows (pixels, C), float32.

    gx = gy s^-beta - 2 alpha beta x sum(gy x s^(-beta - 1)), s = k + alpha sum(x^2), sums over n channels around each.

    ROWS pixels at a time, in the same scratch memory. What is summed over windows stands in the C columns of `room`
    from n // 2 on; those on either side stay 0, so that windows which reach over the edge need no case of their own.
    """
    n, k, alpha, beta = window
    c = x.shape[1]
    room = np.zeros((ROWS, c + n - 1), FLOAT32)
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
def _backward(
    shape: Shape, pixel_x: int, pixel_y: int, data_type: int, window: ResponseWindow, has_workspace: bool
) -> Operation:
    lib = library()
    x, gx = describe_map(shape, pixel_x, data_type), describe_map(shape, shape[1], data_type)
    gy = describe_map(shape, pixel_y, data_type)
    hint = _forward_descriptor(x, gx, window, True)
    descriptor = lib.describe_primitive(
        'lrn_backward',
        *(lib.engine, dnn.LRN_ACROSS_CHANNELS, gx, gy, x, *_numbers(window), hint),
    )
    workspace = lib.query(hint, dnn.WORKSPACE_MD) if has_workspace else None
    return Operation(descriptor, [(dnn.SRC, x), (dnn.DIFF_DST, gy), (dnn.DIFF_SRC, gx), (dnn.WORKSPACE, workspace)])
