"""Local response normalisation of maps."""

from __future__ import annotations

from trainer.engine.backend import ResponseWindow
from trainer.engine.cuda.convert import as_map
from trainer.engine.cuda.kernel import Argument, launch
from trainer.engine.cuda.memory import empty_map
from trainer.engine.cuda.runtime import runtime
from trainer.engine.maps import Array, Map, pixel_stride

MAX_CHANNEL = 2048  # as in response.cu


def is_supported(window: ResponseWindow, x: Map) -> bool:
    """Whether the kernels compute it."""
    return window.n % 2 == 1 and x.shape[1] <= MAX_CHANNEL


def forward(x: Map, window: ResponseWindow, training: bool) -> tuple[Map, None]:
    """y; the backward pass needs nothing besides x."""
    x = as_map(x)
    y = empty_map(x.shape, x.dtype)
    _respond('response', [x, pixel_stride(x), y], x, window)
    return y, None


def backward(x: Map, workspace: Array | None, gy: Map, window: ResponseWindow) -> Map:
    """The gradient of x."""
    x, gy = as_map(x), as_map(gy)
    gx = empty_map(x.shape, x.dtype)
    _respond('response_gradient', [x, pixel_stride(x), gy, pixel_stride(gy), gx], x, window)
    return gx


def _respond(name: str, arrays: list[Argument], x: Map, window: ResponseWindow) -> None:
    n, c, h, w = x.shape
    n_thread = min(-(-c // 32) * 32, 256)
    arguments = [*arrays, c, n * h * w, window.n // 2, window.k, window.alpha, window.beta]
    launch('response', name, (min(n * h * w, 16 * runtime().n_multiprocessor),), (n_thread,), arguments, x.dtype)
