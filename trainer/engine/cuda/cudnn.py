"""Convolutions by cuDNN, through its graph API; of several ways to compute one, the fastest here is found by trial.

What cuDNN 9.19 and 9.28 accept, asked without a device (nvidia-cudnn-frontend 1.18.0; properties of sm_80, sm_89 and
sm_90; channels last; the convolutions of SqueezeNet, AlexNet and VGG, fully connected layers as 1x1 ones of one pixel;
batches of 64, 77 and 256).  It says nothing of speed, nor that results are right.  "Precompiled" engines are within the
library; "compiled" ones say that NVRTC makes their kernels when a plan is built, which takes seconds.

| asked for | float16, bfloat16 | float32 without tensor cores |
| --- | --- | --- |
| forward, backward_data, backward_weights; C = 3, K = 10, two groups, odd batches | precompiled | precompiled |
| x or y with gaps between pixels (a slice of channels), in each of the three | precompiled (1) | precompiled (1) |
| backward_weights from half maps into float32 | compiled (2) | that is float32 |
| forward + bias in float32 | compiled | precompiled |
| forward + add, forward + bias + add | compiled | compiled, one engine |

1. By way of a packed copy in the workspace; of these, only a few plain engines need none.
2. Not for C = 3.  Not for two groups either, but for sm_90 under 9.28.

C = 3 costs a transform of x in the workspace in backward_weights (20 MB at 64 x 3 x 122 x 122), C = 4 as much, C = 8 a
quarter; forward has engines without one.  To exclude TF32, tensor cores have to be excluded: the note of inputs that
are converted down excludes nothing.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from ctypes import CDLL, RTLD_GLOBAL
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from trainer.engine.errors import EngineError
from trainer.files import atomic_write

FORWARD, BACKWARD_DATA, BACKWARD_WEIGHTS = 'forward', 'backward_data', 'backward_weights'
WRITTEN = {FORWARD: 3, BACKWARD_DATA: 1, BACKWARD_WEIGHTS: 2}  # which of Problem.operands()

FRONTEND = '1.18.0'  # later ones have other handles, and cannot plan without a device
OLDEST = 91900  # cuDNN's version, as it counts
MAX_WORKSPACE = 256 << 20  # bytes
ALIGNMENT = 16  # bytes; what cuDNN is promised of every address
N_CANDIDATE, N_SETTING, N_COMPILED = 8, 3, 3  # tried at most: in all, of one engine, of those compiled (seconds each)
N_LAUNCH, N_REPEAT = 10, 7  # of a trial
SLOWER = 1.03  # what an engine that is compiled, or whose results vary from run to run, must gain

NUMPY_TYPES = {'float16': np.float16, 'bfloat16': ml_dtypes.bfloat16, 'float32': np.float32}


class Tensor(NamedTuple):
    """An array (N, C, H, W) in memory, or weights (K, C / groups, R, S)."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]  # elements
    dtype: str  # float16, bfloat16 or float32

    @property
    def n_bytes(self) -> int:
        """From the first element to behind the last."""
        last = sum((length - 1) * stride for length, stride in zip(self.shape, self.strides, strict=True))
        return (last + 1) * np.dtype(NUMPY_TYPES[self.dtype]).itemsize


class Problem(NamedTuple):
    """y = x * w [+ b] [+ add], or the gradient of x, or of w; there are x.C / w.C groups."""

    kind: str
    x: Tensor  # written in BACKWARD_DATA
    w: Tensor  # written in BACKWARD_WEIGHTS
    y: Tensor  # its gradient, in both
    stride: tuple[int, int]  # (vertical, horizontal), px, as the two below
    pad: tuple[int, int]
    dilate: tuple[int, int]
    bias: bool = False  # (1, K, 1, 1), float32; like `add` of FORWARD only
    add: Tensor | None = None  # of y's shape

    def operands(self) -> dict[int, Tensor]:
        """What a plan takes, in that order: name in the graph -> tensor."""
        k = self.w.shape[0]
        bias = Tensor((1, k, 1, 1), (k, 1, k, k), 'float32') if self.bias else None
        listed = {1: self.x, 2: self.w, 3: self.y, 4: bias, 5: self.add}
        return {name: tensor for name, tensor in listed.items() if tensor is not None}


class Handle:
    """cuDNN's context on a device; of one thread at a time."""

    def __init__(self) -> None:
        self.address: int = load().create_handle()
        self._stream = 0

    def use(self, stream: int) -> None:
        if stream != self._stream:
            load().set_stream(handle=self.address, stream=stream)
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


# ---- the library ----


@functools.cache
def load() -> Any:
    """cuDNN's Python interface.

    Raises:
        EngineError: something is missing or too old; one line, with the command that mends it.
    """
    major = _cuda_major()
    advice = f'pip install nvidia-cudnn-frontend=={FRONTEND} nvidia-cudnn-cu{major}'
    _preload(major)
    try:
        import cudnn
    except ImportError as error:
        raise EngineError(f"cuDNN's Python interface is missing ({error}): {advice}") from None
    if cudnn.__version__.split('.')[:2] != FRONTEND.split('.')[:2]:
        raise EngineError(f'nvidia-cudnn-frontend is {cudnn.__version__}, not {FRONTEND}: {advice}')
    try:
        found = cudnn.backend_version()
    except RuntimeError as error:
        raise EngineError(f"cuDNN's library is missing ({_in_one_line(error)}): {advice}") from None
    if found < OLDEST:
        raise EngineError(f'cuDNN is {_dotted(found)}, older than {_dotted(OLDEST)}: {advice}')
    return cudnn


def version() -> str:
    """E.g. 'cuDNN 9.28.0'."""
    return f'cuDNN {load().backend_version_string()}'


def _dotted(number: int) -> str:
    return f'{number // 10000}.{number // 100 % 100}.{number % 100}'


def _cuda_major() -> int:
    """CUDA's major version, by the CuPy that is installed."""
    with suppress(metadata.PackageNotFoundError):
        metadata.version('cupy-cuda13x')
        return 13
    return 12


def _preload(major: int) -> None:
    """Load what cuDNN will look for by its bare name, from NVIDIA's wheels, which the system does not search.

    NVRTC's built-in functions come first: without them it loads, and then compiles nothing.
    """
    spec = importlib.util.find_spec('nvidia')
    if spec is None:
        return
    folders = (f'cu{major}', 'cuda_runtime', 'cuda_nvrtc', 'cudnn')
    for name in (f'libcudart.so.{major}', f'libnvrtc-builtins.so.{major}*', f'libnvrtc.so.{major}', 'libcudnn.so.9'):
        for root in spec.submodule_search_locations or ():
            for folder in folders:
                for path in sorted((Path(root) / folder / 'lib').glob(name)):
                    with suppress(OSError):  # of no use, then; what needs it says so
                        CDLL(str(path), mode=RTLD_GLOBAL)


def _in_one_line(error: Exception, longest: int = 300) -> str:
    return ' '.join(str(error).split())[:longest]


# ---- graphs ----


def _graph(problem: Problem, avoided: Sequence[str] = (), **where: Any) -> Any:
    """cuDNN's graph of a problem, the engines for it listed and not yet built.

    Args:
        avoided: numerical notes of engines to leave out, beside those that would be imprecise.
        where: `handle`, or `device_property` in its place.
    Raises:
        EngineError: cuDNN knows no way to compute it.
    """
    cudnn = load()
    types = {'float16': cudnn.data_type.HALF, 'bfloat16': cudnn.data_type.BFLOAT16, 'float32': cudnn.data_type.FLOAT}
    single = cudnn.data_type.FLOAT
    try:
        graph = cudnn.pygraph(
            io_data_type=types[problem.x.dtype], intermediate_data_type=single, compute_data_type=single, **where
        )
        tensors = {
            name: graph.tensor(dim=t.shape, stride=t.strides, data_type=types[t.dtype], uid=name)
            for name, t in problem.operands().items()
            if name != WRITTEN[problem.kind]
        }
        _define(graph, problem, tensors, types)
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    except Exception as error:
        raise EngineError(_refusal(problem, error)) from None
    notes = ['FFT', 'WINOGRAD', 'WINOGRAD_TILE_4x4', 'WINOGRAD_TILE_6x6', 'WINOGRAD_TILE_13x13', *avoided]
    notes.append('REDUCED_PRECISION_REDUCTION')
    if (
        problem.x.dtype == 'float32'
    ):  # tensor cores would round it to TF32; the note of inputs converted down lacks that
        notes += ['TENSOR_CORE', 'DOWN_CONVERT_INPUTS']
    graph.deselect_numeric_notes([getattr(cudnn.numerical_note, note) for note in notes])
    graph.deselect_workspace_greater_than(MAX_WORKSPACE)
    return graph


def _define(graph: Any, problem: Problem, tensors: dict[int, Any], types: dict[str, Any]) -> None:
    geometry = {'padding': problem.pad, 'stride': problem.stride, 'dilation': problem.dilate}
    name = WRITTEN[problem.kind]
    written = problem.operands()[name]
    if problem.kind == FORWARD:
        y = graph.conv_fprop(tensors[1], tensors[2], **geometry)
        for other in (4, 5):
            if other in tensors:
                y.set_data_type(types['float32'])
                y = graph.add(y, tensors[other])
    elif problem.kind == BACKWARD_DATA:
        y = graph.conv_dgrad(tensors[3], tensors[2], **geometry)
    else:
        y = graph.conv_wgrad(tensors[1], tensors[3], **geometry)
        if written.dtype != problem.x.dtype:  # the engines that write another type are those that fuse an operation
            y.set_data_type(types['float32']).set_dim(written.shape).set_stride(written.strides)
            y = graph.identity(y)
    y.set_output(True).set_uid(name)
    y.set_data_type(types[written.dtype]).set_dim(written.shape).set_stride(written.strides)


def _refusal(problem: Problem, error: Exception | str) -> str:
    shapes = ', '.join(f'{t.dtype} {t.shape}' for t in problem.operands().values())
    words = _in_one_line(error) if isinstance(error, Exception) else error
    return f'cuDNN refuses the convolution ({problem.kind} of {shapes}): {words}'


# ---- without a device ----

DEVICES = {  # compute capability -> what tells cuDNN's heuristics about a device that has it
    (8, 0): ('NVIDIA A100-SXM4-80GB', 108, 41943040, 166912, 2048, 32),
    (8, 9): ('NVIDIA GeForce RTX 4090', 128, 75497472, 101376, 1536, 24),
    (9, 0): ('NVIDIA H200', 132, 62914560, 232448, 2048, 32),
}


def is_supported(problem: Problem, capability: tuple[int, int], precompiled: bool = False) -> bool:
    """Whether cuDNN knows an engine for a problem; asked without a device.

    cuDNN 9.28 wants libcuda.so.1 for that all the same, 9.19 for engines that are compiled.

    Args:
        capability: of `DEVICES`.
        precompiled: count only engines within the library.
    Raises:
        EngineError: the library is missing, or does not answer.
    """
    cudnn = load()
    where = {'device_property': _device_property(capability)}
    try:
        graph = _graph(problem, **where)
        if precompiled:
            graph.deselect_behavior_notes([cudnn.behavior_note.RUNTIME_COMPILATION])
        graph.check_support()
    except (EngineError, RuntimeError, cudnn.cudnnGraphNotSupportedError):
        return False
    return True


@functools.cache
def _device_property(capability: tuple[int, int]) -> Any:
    name, n_multiprocessor, l2_bytes, shared_bytes, n_thread, n_block = DEVICES[capability]
    described = {
        'deviceVer': capability[0] * 100 + capability[1] * 10,
        'driverVer': 13000,
        'cudaDeviceId': 0,
        'maxGridSize': [2**31 - 1, 65535, 65535],
        'maxBlockSize': [1024, 1024, 64],
        'regsPerBlock': 65536,
        'multiProcessorCount': n_multiprocessor,
        'smClockRateKHz': 1980000,
        'memClockRateKHz': 3201000,
        'memoryBusWidth': 5120,
        'l2CacheSize': l2_bytes,
        'warpSize': 32,
        'maxSharedMemoryPerBlock': 49152,
        'maxSharedMemoryPerBlockOptin': shared_bytes,
        'reservedSharedMemoryPerBlock': 1024,
        'maxRegistersPerSM': 65536,
        'pciDeviceId': 0,
        'maxCtasPerSM': n_block,
        'maxThreadsPerBlock': 1024,
        'maxThreadsPerSM': n_thread,
        'isTccDriver': 0,
        'supportCoopLaunch': 1,
        'totalGlobalMem': 24 << 30,
        'oversizedSharedMemoryPerBlock': 0,
        'smCountOrigin': 1,
        'deviceName': name,
    }
    try:
        return load().create_device_properties(json.dumps(described))
    except RuntimeError as error:
        raise EngineError(f'cuDNN does not answer without a device: {_in_one_line(error)}') from None


# ---- plans ----

_handles: dict[int, Handle] = {}  # by device
_plans: dict[tuple[int, Problem], Plan | str] = {}  # or why there is none


def plan(problem: Problem) -> Plan:
    """How to compute a convolution on the current device: known, or remembered on disk, or found by trial (seconds).

    Raises:
        EngineError: cuDNN refuses the problem, in its own words.
        RuntimeError: the current stream is being captured, which forbids trials.
    """
    import cupy

    device = cupy.cuda.Device().id
    found = _plans.get((device, problem))
    if found is None:
        if cupy.cuda.get_current_stream().is_capturing():
            raise RuntimeError(
                'a convolution has no plan yet, and none can be made while a CUDA graph is captured: warm up first, by'
                f' computing the same step once without capturing ({problem})'
            )
        if device not in _handles:
            _handles[device] = Handle()
        try:
            found = _make(problem, _handles[device], Cache(folder()), _key(problem, device))
        except EngineError as error:
            found = str(error)
        _plans[device, problem] = found
    if isinstance(found, str):
        raise EngineError(found)
    return found


def _key(problem: Problem, device: int) -> str:
    """What a plan on disk is good for."""
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(device)
    gpu = properties['name'].decode(errors='replace'), properties['multiProcessorCount']
    return json.dumps([version(), load().__version__, gpu, problem])


def _make(problem: Problem, handle: Handle, cache: Cache, key: str) -> Plan:
    known = cache.load(key)
    if known is not None:
        handle.use(0)  # cuDNN warms the plan up on the stream it was given last, which may be gone
        with suppress(Exception):  # cuDNN does not take it, whyever: tried again, then
            graph = load().pygraph(handle=handle.address)
            graph.deserialize(handle.address, list(known.data))
            return _plan(graph, handle, problem, graph.get_workspace_size(), known.engine, known.seconds)
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
        where: see `_graph`.
    """
    every = _graph(problem, **where)
    deterministic = _graph(problem, ['NONDETERMINISTIC'], **where)
    compiled = load().behavior_note.RUNTIME_COMPILATION
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
                refusals.append(f'{engine}: {_in_one_line(error)}')
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
                refusals.append(f'{candidate.engine}: {_in_one_line(error)}')
        stream.synchronize()
        handle.use(0)  # the stream goes
        del memory
    pool.free_all_blocks()
    if not tried:
        raise EngineError(_refusal(problem, refusals[-1] if refusals else 'no engine'))
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


# ---- plans on disk ----


class Known(NamedTuple):
    """A plan as it is kept."""

    engine: str
    seconds: float
    data: bytes  # cuDNN's own serialisation


def folder() -> Path:
    """Where plans are kept."""
    cache = os.environ.get('XDG_CACHE_HOME')
    return (Path(cache) if cache else Path.home() / '.cache') / 'chainer-image-trainer' / 'cudnn'


class Cache:
    """Plans in a folder, a file each: a line of JSON that says what it is for and the digest of the rest, cuDNN's data.

    A file that is cut short, changed, or for something else is as good as none.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, key: str) -> Path:
        return self._folder / f'{hashlib.sha256(key.encode()).hexdigest()[:32]}.plan'

    def load(self, key: str) -> Known | None:
        try:
            line, _, data = self.path(key).read_bytes().partition(b'\n')
            head = json.loads(line)
            if head['key'] == key and head['sha256'] == hashlib.sha256(data).hexdigest():
                return Known(str(head['engine']), float(head['seconds']), data)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return None

    def store(self, key: str, known: Known) -> None:
        """Raises OSError where it cannot be written."""
        self._folder.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(known.data).hexdigest()
        head = {'key': key, 'engine': known.engine, 'seconds': known.seconds, 'sha256': digest}
        with atomic_write(self.path(key)) as file:
            file.write(json.dumps(head).encode() + b'\n' + known.data)
