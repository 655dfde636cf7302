"""What the engine asks of CUDA, in one place: memory, kernels, graphs.

There is one runtime, CuPy's.  Tests put another in its place that runs the same kernels on the CPU.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from trainer.engine.errors import EngineError
from trainer.engine.maps import Array

if TYPE_CHECKING:
    from trainer.engine.cuda.problem import Problem

OLDEST_CAPABILITY = 80


class Plan(Protocol):
    """A convolution ready to be sent to the device."""

    workspace_bytes: int
    seconds: float

    def run(self, pointers: Sequence[int], workspace: int, stream: int) -> None: ...


class Graph(Protocol):
    """A captured sequence of kernels, with the memory that they alone may use."""

    def launch(self) -> None: ...


class _CuPyGraph:
    def __init__(self, graph: Any, pool: Any) -> None:
        self._graph, self.pool = graph, pool

    def launch(self) -> None:
        self._graph.launch()


class Runtime:
    """CuPy on its current device."""

    def __init__(self) -> None:
        try:
            import cupy
        except ImportError as error:
            raise EngineError(f'CuPy is missing ({error}): install the extra cuda12 or cuda13') from None
        self.xp = cupy
        self.array_type: Any = cupy.ndarray
        self._streams: dict[int, Any] = {}

    def check(self) -> None:
        """Raise an EngineError, of one line, if something that the engine needs is missing or too old."""
        from trainer.engine.cuda import cudnn

        cudnn.load()
        capability = self.xp.cuda.Device().compute_capability
        if int(capability) < OLDEST_CAPABILITY:
            raise EngineError(
                f'the GPU has compute capability {capability[:-1]}.{capability[-1]}, where 8.0 (Ampere) is the least'
            )

    def version(self) -> str:
        """Of cuDNN, e.g. '9.19.0'."""
        from trainer.engine.cuda import cudnn

        return cudnn.version().removeprefix('cuDNN ')

    @property
    def device(self) -> int:
        return self.xp.cuda.Device().id

    @property
    def n_multiprocessor(self) -> int:
        return self.xp.cuda.Device().attributes['MultiProcessorCount']

    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Array:
        """Uninitialised, in C order."""
        return self.xp.empty(shape, dtype)

    def zeros(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Array:
        return self.xp.zeros(shape, dtype)

    def upload(self, source: np.ndarray, out: Array) -> None:
        """Copy to the device after the work under way, and wait for it; so not to be done every iteration."""
        out.set(source)  # type: ignore[attr-defined]
        self.synchronize()

    def download(self, x: Array) -> np.ndarray:
        """Copy to the host; waits for the work under way."""
        return x.get()  # type: ignore[attr-defined]

    def compile(self, source: str, options: tuple[str, ...]) -> Callable[[str], Any]:
        """A module of kernels: name -> kernel."""
        module = self.xp.RawModule(code=source, options=(*options, '-std=c++17'))
        return module.get_function

    def launch(self, kernel: Any, grid: tuple[int, ...], block: tuple[int, ...], arguments: Sequence[Any]) -> None:
        kernel(grid, block, tuple(np.uint64(0) if a is None else a for a in arguments))

    def plan(self, problem: Problem) -> Plan:
        """A plan of cuDNN for a convolution."""
        from trainer.engine.cuda import plans

        return plans.find_plan(problem)

    @property
    def stream(self) -> int:
        """The current stream's address."""
        return self.xp.cuda.get_current_stream().ptr

    def use_own_stream(self) -> None:
        """Send everything of this thread through a stream that can be captured; the default one cannot."""
        if self.device not in self._streams:
            self._streams[self.device] = self.xp.cuda.Stream(non_blocking=True)
        own = self._streams[self.device]
        if self.xp.cuda.get_current_stream() != own:
            own.__enter__()  # for good; that of `use()` is lost where a `with stream` ends, as in CuPy's own `get`

    def capture(self, function: Callable[[], None]) -> Graph:
        """The work that `function` sends to the device, noted down instead of done.

        What `function` allocates comes from a pool that the graph keeps: replays write to the same addresses, which
        nothing else may be given meanwhile.
        """
        stream = self.xp.cuda.get_current_stream()
        pool = self.xp.cuda.MemoryPool()
        was_collecting = gc.isenabled()
        gc.disable()  # what it frees may be in use by work under way
        try:
            stream.begin_capture()
            try:
                with self.xp.cuda.using_allocator(pool.malloc):
                    function()
            except BaseException:
                _abandon(stream)
                raise
            graph = stream.end_capture()
        finally:
            if was_collecting:
                gc.enable()
        graph.upload(stream)
        return _CuPyGraph(graph, pool)

    @property
    def is_capturing(self) -> bool:
        return self.xp.cuda.get_current_stream().is_capturing()

    def synchronize(self) -> None:
        self.xp.cuda.get_current_stream().synchronize()


def _abandon(stream: Any) -> None:
    try:
        stream.end_capture()
    except Exception:  # the capture may have become invalid by what raised; that is told
        return


_current: Runtime | None = None


def current() -> Runtime | None:
    """The runtime in use, or None so far."""
    return _current


def runtime() -> Runtime:
    """The runtime in use.

    Raises:
        EngineError: there is none.
    """
    global _current
    if _current is None:
        _current = Runtime()
    return _current


@contextmanager
def using(other: Any) -> Iterator[None]:
    """Put another runtime in its place."""
    global _current
    before, _current = _current, other
    try:
        yield
    finally:
        _current = before
