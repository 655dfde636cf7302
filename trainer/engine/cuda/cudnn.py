"""Convolutions by cuDNN, through its graph API: the library, and the graphs of convolutions.

What cuDNN 9.19 and 9.28 accept, asked without a device (nvidia-cudnn-frontend 1.18.0; properties of sm_80, sm_89 and
sm_90; channels last; the convolutions of SqueezeNet, AlexNet and VGG, fully connected layers as 1x1 ones of one pixel;
batches of 64, 77 and 256).  These are not speed measurements, nor checks of results.  "Precompiled" engines are within
the library; "compiled" ones say that NVRTC makes their kernels when a plan is built, which takes seconds.

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
quarter; forward has engines without one.  To exclude TF32, tensor cores must be excluded: the note of inputs that
are converted down excludes nothing.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from contextlib import suppress
from ctypes import CDLL, RTLD_GLOBAL
from importlib import metadata
from pathlib import Path
from typing import Any

from trainer.engine.cuda.problem import BACKWARD_DATA, FORWARD, WRITTEN, Problem
from trainer.engine.errors import EngineError

FRONTEND = '1.18.0'  # later ones have other handles, and cannot plan without a device
OLDEST = 91900  # cuDNN's version, as it counts
MAX_WORKSPACE = 256 << 20  # bytes


@functools.cache
def load() -> Any:
    """cuDNN's Python interface.

    Raises:
        EngineError: something is missing or too old; one line, with the command that repairs it.
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
        installed = cudnn.backend_version()
    except RuntimeError as error:
        raise EngineError(f"cuDNN's library is missing ({in_one_line(error)}): {advice}") from None
    if installed < OLDEST:
        raise EngineError(f'cuDNN is {_dotted(installed)}, older than {_dotted(OLDEST)}: {advice}')
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


def in_one_line(error: Exception, longest: int = 300) -> str:
    """The text of an error, its white space collapsed, at most `longest` characters."""
    return ' '.join(str(error).split())[:longest]


# ---- graphs ----


def make_graph(problem: Problem, avoided: Sequence[str] = (), **where: Any) -> Any:
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
        raise EngineError(refusal(problem, error)) from None
    notes = ['FFT', 'WINOGRAD', 'WINOGRAD_TILE_4x4', 'WINOGRAD_TILE_6x6', 'WINOGRAD_TILE_13x13', *avoided]
    notes.append('REDUCED_PRECISION_REDUCTION')
    if problem.x.dtype == 'float32':  # tensor cores would round it to TF32; the second note alone lets them
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


def refusal(problem: Problem, error: Exception | str) -> str:
    """What an `EngineError` says of a convolution that cuDNN does not compute."""
    shapes = ', '.join(f'{t.dtype} {t.shape}' for t in problem.operands().values())
    words = in_one_line(error) if isinstance(error, Exception) else error
    return f'cuDNN refuses the convolution ({problem.kind} of {shapes}): {words}'
