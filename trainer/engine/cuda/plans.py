"""Plans of cuDNN: of several ways to compute a convolution the fastest, found by trial and kept on disk."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from trainer.engine.cuda import cudnn
from trainer.engine.cuda.plan_cache import Cache, Known, folder
from trainer.engine.cuda.problem import NUMPY_TYPES, Problem, Tensor
from trainer.engine.errors import EngineError
from trainer.engine.warn import warn_once

ALIGNMENT = 16  # bytes; what cuDNN is promised of every address
N_CANDIDATE, N_SETTING, N_COMPILED = 8, 3, 3  # tried at most: in all, of one engine, of those compiled (seconds each)
N_LAUNCH, N_REPEAT = 10, 7  # of a trial
SLOWER = 1.03  # what an engine that is compiled, or whose results vary from run to run, must gain


class Handle:
    """cuDNN's context on a device; of one thread at a time."""

    def __init__(self) -> None:
        self.address: int = cudnn.load().create_handle()
        self._stream = 0

    def use(self, stream: int) -> None:
        if stream != self._stream:
            cudnn.load().set_stream(handle=self.address, stream=stream)
            self._stream = stream


class Plan:
    """A convolution ready to be sent to the device.

    workspace_bytes: scratch memory that `run` needs.
    engine: cuDNN's name of what computes it, and how that is set.
    seconds: what a run took when it was tried, in a CUDA graph.
    """

    def __init__(
        self, graph: Any, handle: Handle, names: Sequence[int], workspace_bytes: int, engine: str, seconds: float
    ) -> None:
        self._graph, self._handle, self._names = graph, handle, tuple(names)
        self.workspace_bytes, self.engine, self.seconds = workspace_bytes, engine, seconds

    def run(self, pointers: Sequence[int], workspace: int, stream: int) -> None:
        """Compute on a stream, which may be one that is captured.

        Args:
            pointers: addresses of x, w, y, [b], [add], multiples of 16 bytes.
            workspace: that of `workspace_bytes` of scratch memory.
            stream: that of the stream.
        """
        for pointer in pointers:
            if pointer % ALIGNMENT:
                raise ValueError(f'cuDNN is promised addresses that are multiples of {ALIGNMENT}, not {pointer:#x}')
        self._handle.use(stream)
        self._graph.execute(dict(zip(self._names, pointers, strict=True)), workspace, handle=self._handle.address)


# ---- of the process ----

_handles: dict[int, Handle] = {}  # by device
_plans: dict[tuple[int, Problem], Plan | str] = {}  # or why there is none


def find_plan(problem: Problem) -> Plan:
    """How to compute a convolution on the current device: known, or remembered on disk, or found by trial (seconds).

    Raises:
        EngineError: cuDNN refuses the problem, in its own words.
        RuntimeError: the current stream is being captured, which forbids trials.
    """
    import cupy

    device = cupy.cuda.Device().id
    plan = _plans.get((device, problem))
    if plan is None:
        if cupy.cuda.get_current_stream().is_capturing():
            raise RuntimeError(
                'a convolution has no plan yet, and none can be made while a CUDA graph is captured: warm up first, by'
                f' computing the same step once without capturing ({problem})'
            )
        if device not in _handles:
            _handles[device] = Handle()
        try:
            plan = _make(problem, _handles[device], Cache(folder()), _key(problem, device))
        except EngineError as error:
            plan = str(error)
        _plans[device, problem] = plan
    if isinstance(plan, str):
        raise EngineError(plan)
    return plan


def _key(problem: Problem, device: int) -> str:
    """What a plan on disk is good for."""
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(device)
    gpu = properties['name'].decode(errors='replace'), properties['multiProcessorCount']
    return json.dumps([cudnn.version(), cudnn.load().__version__, gpu, problem])


def _make(problem: Problem, handle: Handle, cache: Cache, key: str) -> Plan:
    known = cache.load(key)
    if known is not None:
        handle.use(0)  # cuDNN warms the plan up on the stream it was given last, which may be gone
        try:
            graph = cudnn.load().pygraph(handle=handle.address)
            graph.deserialize(handle.address, list(known.data))
            return _plan(graph, handle, problem, graph.get_workspace_size(), known.engine, known.seconds)
        except Exception as error:  # whyever; it is found anew
            warn_once(f'cuDNN refuses a plan from the cache, and it is searched for anew: {cudnn.in_one_line(error)}')
    best, seconds = _fastest(problem, handle)
    best.graph.build_plan_at_index(best.place)  # nothing is left to build: makes it the one that the graph executes
    with suppress(Exception):  # a folder that cannot be written, or a plan that cannot: it is found again next time
        cache.store(key, Known(best.engine, seconds, bytes(best.graph.serialize())))
    return _plan(best.graph, handle, problem, best.workspace_bytes, best.engine, seconds)


def _plan(graph: Any, handle: Handle, problem: Problem, workspace_bytes: int, engine: str, seconds: float) -> Plan:
    return Plan(graph, handle, list(problem.operands()), workspace_bytes, engine, seconds)


class Candidate(NamedTuple):
    """One of a graph's engines, built."""

    graph: Any
    place: int  # among the graph's
    engine: str
    workspace_bytes: int
    is_compiled: bool
    is_deterministic: bool

    @property
    def handicap(self) -> float:
        return SLOWER ** (self.is_compiled + (not self.is_deterministic))


def _candidates(problem: Problem, refusals: list[str], **where: Any) -> Iterator[Candidate]:
    """Build engines worth a trial, one by one, in the order of cuDNN's heuristics.

    Args:
        refusals: why engines were not built is appended to it.
        where: see `cudnn.make_graph`.
    """
    every = cudnn.make_graph(problem, **where)
    deterministic = cudnn.make_graph(problem, ['NONDETERMINISTIC'], **where)
    compiled = cudnn.load().behavior_note.RUNTIME_COMPILATION
    n_built: Counter[str] = Counter()  # by engine
    n_compiled = 0
    engines = [every.get_plan_name_at_index(i) for i in range(every.get_execution_plan_count())]
    for engine, i in {engine: engines.index(engine) for engine in engines}.items():  # the last resorts repeat some
        family = engine.partition('_')[0]
        is_compiled = compiled in every.get_behavior_notes_for_plan_at_index(i)
        if n_built[family] == N_SETTING or (is_compiled and n_compiled == N_COMPILED):
            continue
        for graph in (deterministic, every):
            try:
                graph.build_plan_at_index(i)
            except Exception as error:
                refusals.append(f'{engine}: {cudnn.in_one_line(error)}')
                if 'Deselecting' in str(error):  # which costs nothing; the other graph may take it
                    continue
            else:
                n_built[family] += 1
                workspace_bytes = graph.get_workspace_size_plan_at_index(i)
                yield Candidate(graph, i, engine, workspace_bytes, is_compiled, graph is deterministic)
            n_compiled += is_compiled
            break
        if n_built.total() == N_CANDIDATE:
            return


def _fastest(problem: Problem, handle: Handle) -> tuple[Candidate, float]:
    """By trial, on scratch memory; and its seconds."""
    import cupy

    refusals: list[str] = []
    tried: list[tuple[float, Candidate]] = []
    pool = cupy.cuda.MemoryPool()  # of its own, so that nothing stays allocated
    with cupy.cuda.using_allocator(pool.malloc), cupy.cuda.Stream(non_blocking=True) as stream:
        memory = {name: _noise(tensor) for name, tensor in problem.operands().items()}
        pointers = {name: array.data.ptr for name, array in memory.items()}
        for candidate in _candidates(problem, refusals, handle=handle.address):
            try:
                tried.append((_seconds(candidate, pointers, handle, stream), candidate))
            except Exception as error:
                refusals.append(f'{candidate.engine}: {cudnn.in_one_line(error)}')
        stream.synchronize()
        handle.use(0)  # the stream goes
        del memory
    pool.free_all_blocks()
    if not tried:
        raise EngineError(cudnn.refusal(problem, refusals[-1] if refusals else 'no engine'))
    seconds, best = min(tried, key=lambda pair: pair[0] * pair[1].handicap)
    return best, seconds


def _noise(tensor: Tensor) -> Any:
    """Memory of a tensor full of normal numbers, as bytes; zeros would be multiplied at less power, thus faster."""
    import cupy

    normal = np.random.default_rng(0).standard_normal(1 << 16, np.float32)
    block = normal.astype(NUMPY_TYPES[tensor.dtype]).view(np.uint8)
    array = cupy.empty(tensor.n_bytes, np.uint8)
    n = min(len(block), len(array))
    array[:n].set(block[:n])
    while n < len(array):
        more = min(n, len(array) - n)
        array[n : n + more] = array[:more]
        n += more
    return array


def _seconds(candidate: Candidate, pointers: dict[int, int], handle: Handle, stream: Any) -> float:
    """Of one run among several in a CUDA graph, where the host cannot be the slower one; the least of some trials."""
    import cupy

    workspace = cupy.empty(max(candidate.workspace_bytes, 1), np.uint8)

    def run() -> None:
        candidate.graph.execute_plan_at_index(pointers, workspace.data.ptr, candidate.place, handle=handle.address)

    handle.use(stream.ptr)
    run()  # loads the kernels
    stream.synchronize()
    stream.begin_capture()
    try:
        for _ in range(N_LAUNCH):
            run()
    finally:
        captured = stream.end_capture()
    captured.launch(stream)
    trials = []
    for _ in range(N_REPEAT):
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        begin.record(stream)
        captured.launch(stream)
        end.record(stream)
        end.synchronize()
        trials.append(cupy.cuda.get_elapsed_time(begin, end) / 1e3 / N_LAUNCH)
    return min(trials)
