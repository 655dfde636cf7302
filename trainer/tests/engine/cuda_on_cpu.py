"""A runtime for tests: the GPU's own kernels, compiled for the CPU and run thread by thread, on NumPy's arrays.

It shows that kernels and what launches them compute the right thing, that they neither race nor read what was not
written, and that a captured step does each time what it did when it was captured.  It shows nothing of speed, of
cuDNN (NumPy convolves in its place), or of what a real driver refuses.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from trainer.engine.errors import EngineError

POISON = 0xFF  # NaN in every floating-point type
DTYPES = {'float16': np.float16, 'float32': np.float32, 'bfloat16': ml_dtypes.bfloat16}


def has_compiler() -> bool:
    return shutil.which('g++') is not None


class CPURuntime:
    """Runs kernels on the CPU, on NumPy arrays.

    Args:
        xp: NumPy, or a module that stands for CuPy and whose arrays are NumPy's under another name.
        folder: for compiled kernels, which are kept from one test to the next.
        refused: says (a `Problem` ->) whether a convolution is to be refused, as cuDNN may.
    """

    device = 0
    n_multiprocessor = 2  # few, so that loops go round more than once
    stream = 0

    def __init__(
        self,
        xp: Any = np,
        folder: Path | None = None,
        refused: Callable[[Any], bool] = lambda problem: False,
    ) -> None:
        self.xp, self.array_type = xp, xp.ndarray
        self._folder = folder or Path(tempfile.gettempdir()) / 'chainer-image-trainer-kernels'
        self._folder.mkdir(parents=True, exist_ok=True)
        self._refused = refused
        self._recorded: list[Callable[[], None]] | None = None
        self._allocated: list[np.ndarray] = []  # while captured
        self.n_launch = 0
        self.order = 0  # of the threads and blocks: 0 .. 3

    def check(self) -> None:
        """Nothing is missing."""

    def version(self) -> str:
        return 'imitated'

    # ---- memory ----

    def empty(self, shape: Sequence[int], dtype: Any) -> np.ndarray:
        """Poisoned."""
        raw = np.full(int(np.prod(shape)) * np.dtype(dtype).itemsize + 64, POISON, np.uint8)
        start = -raw.ctypes.data % 64
        x = raw[start : start + int(np.prod(shape)) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)
        if self._recorded is not None:
            self._allocated.append(x)
        return x.view(self.array_type)

    def zeros(self, shape: Sequence[int], dtype: Any) -> np.ndarray:
        x = self.empty(shape, dtype)
        plain = x.view(np.ndarray)
        self._do(lambda: plain.fill(0))
        return x

    def upload(self, source: np.ndarray, out: np.ndarray) -> None:
        assert self._recorded is None, 'a copy from the host would be the same in every replay'
        assert type(source) is np.ndarray and type(out) is self.array_type
        out.view(np.ndarray)[...] = source

    def download(self, x: np.ndarray) -> np.ndarray:
        assert self._recorded is None, 'the host cannot wait for work that is being captured'
        assert type(x) is self.array_type
        return x.view(np.ndarray).copy()

    def synchronize(self) -> None:
        assert self._recorded is None, 'the host cannot wait for work that is being captured'

    def use_own_stream(self) -> None:
        pass

    # ---- kernels ----

    def compile(self, source: str, options: tuple[str, ...]) -> Callable[[str], Any]:
        kernels = re.split(r'(?=extern "C" __global__ void )', source)[1:]
        launchers = []
        for kernel in kernels:
            name = re.search(r'(\w+)\((?!N_THREAD)', kernel)[1]  # type: ignore[index]
            has_barrier = str('__shared__' in kernel).lower()
            launchers.append(
                f'extern "C" void launch_{name}(void** arguments, const unsigned* shape, unsigned order) '
                f'{{ launch([](void** a) {{ call({name}, a); }}, arguments, shape, {has_barrier}, order); }}'
            )
        defines = [f'#define {" ".join(option.removeprefix("-D").split("="))}' for option in options]
        header = Path(__file__).with_name('cuda_on_cpu.h').read_text(encoding='utf-8')
        text = '\n'.join([header, *defines, source, *launchers])
        path = self._folder / f'{hashlib.sha256(text.encode()).hexdigest()[:24]}.so'
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=self._folder) as folder:
                built = Path(folder) / 'kernels.so'
                command = [
                    'g++',
                    '-O2',
                    '-std=c++17',
                    '-w',
                    '-shared',
                    '-fPIC',
                    '-Wl,-Bsymbolic',
                    '-x',
                    'c++',
                    '-',
                    '-o',
                    str(built),
                ]
                subprocess.run(command, input=text, text=True, check=True, capture_output=True)
                built.replace(path)
        library = ctypes.CDLL(str(path))
        return lambda name: getattr(library, f'launch_{name}')

    def launch(self, kernel: Any, grid: tuple[int, ...], block: tuple[int, ...], arguments: Sequence[Any]) -> None:
        assert all(n > 0 for n in (*grid, *block)) and np.prod(block) <= 1024 and max(grid[1:]) < 65536, (grid, block)
        assert all(a is None or isinstance(a, (self.array_type, np.generic)) for a in arguments), 'not of the device'
        values = [np.asarray(_address(a)) for a in arguments]  # arrays of no dimension, which have an address
        pointers = (ctypes.c_void_p * len(values))(*(v.ctypes.data for v in values))
        shape = (ctypes.c_uint * 6)(*grid, *block)

        def run() -> None:
            kernel(pointers, shape, self.order)

        run.kept = values, [a for a in arguments if isinstance(a, np.ndarray)]  # type: ignore[attr-defined]
        self.n_launch += 1
        self._do(run)

    def plan(self, problem: Any) -> Any:
        if self._refused(problem):
            raise EngineError('refused, as asked')
        assert self._recorded is None, 'plans are made before a step is captured'
        return _Plan(problem, self)

    # ---- graphs ----

    def _do(self, function: Callable[[], None]) -> None:
        if self._recorded is None:
            function()
        else:
            self._recorded.append(function)

    @property
    def is_capturing(self) -> bool:
        return self._recorded is not None

    def capture(self, function: Callable[[], None]) -> Any:
        self._recorded, self._allocated = [], []
        try:
            function()
            return _Graph(self._recorded, self._allocated)
        finally:
            self._recorded = None


class _Graph:
    """Replays what was recorded, on memory that is poisoned first."""

    def __init__(self, calls: list[Callable[[], None]], arrays: list[np.ndarray]) -> None:
        self.calls, self.arrays = calls, arrays

    def launch(self) -> None:
        for x in self.arrays:
            x.view(np.uint8).fill(POISON) if x.flags.c_contiguous else x.fill(np.nan)
        for call in self.calls:
            call()


class _Plan:
    """A convolution by NumPy, in float64."""

    workspace_bytes = 64
    seconds = 0.0

    def __init__(self, problem: Any, run: CPURuntime) -> None:
        self.problem, self._runtime = problem, run

    def run(self, pointers: Sequence[int], workspace: int, stream: int) -> None:
        assert not any(pointer % 16 for pointer in pointers), 'cuDNN is promised multiples of 16 bytes'
        kept = list(pointers)
        self._runtime.n_launch += 1
        self._runtime._do(lambda: self._convolve(kept))

    def _convolve(self, pointers: list[int]) -> None:
        p = self.problem
        x, w, y, *rest = (_array_at(a, t) for a, t in zip(pointers, self._tensors(), strict=True))
        groups = x.shape[1] // w.shape[1]
        (n_out, n_in, kh, kw), (height, width) = w.shape, y.shape[2:]
        n, c, h, wd = x.shape
        padded = np.zeros((n, c, h + 2 * p.pad[0] + p.stride[0], wd + 2 * p.pad[1] + p.stride[1]))
        inside = np.s_[:, :, p.pad[0] : p.pad[0] + h, p.pad[1] : p.pad[1] + wd]
        out = np.zeros(w.shape if p.kind == 'backward_weights' else y.shape)
        if p.kind != 'backward_data':
            padded[inside] = x
        for g in range(groups):
            channels, outputs = slice(g * n_in, (g + 1) * n_in), slice(g * n_out // groups, (g + 1) * n_out // groups)
            for ky in range(kh):
                for kx in range(kw):
                    top, left = ky * p.dilate[0], kx * p.dilate[1]
                    rows = slice(top, top + height * p.stride[0], p.stride[0])
                    columns = slice(left, left + width * p.stride[1], p.stride[1])
                    window = padded[:, channels, rows, columns]
                    if p.kind == 'forward':
                        out[:, outputs] += np.einsum('nchw,kc->nkhw', window, w[outputs, :, ky, kx].astype(float))
                    elif p.kind == 'backward_data':
                        gy = y[:, outputs].astype(float)
                        window += np.einsum('nkhw,kc->nchw', gy, w[outputs, :, ky, kx].astype(float))
                    else:
                        gy = y[:, outputs].astype(float)
                        out[outputs, :, ky, kx] = np.einsum('nchw,nkhw->kc', window, gy)
        if p.kind == 'forward':
            y[...] = out + sum(r.astype(float) for r in rest)
        elif p.kind == 'backward_data':
            x[...] = padded[inside]
        else:
            w[...] = out

    def _tensors(self) -> list[Any]:
        p = self.problem
        n_out = p.w.shape[0]
        bias = p.y._replace(shape=(1, n_out, 1, 1), strides=(n_out, 1, 1, 1), dtype='float32')
        return [p.x, p.w, p.y, *([bias] if p.bias else []), *([p.add] if p.add is not None else [])]


def _address(argument: Any) -> Any:
    if argument is None:
        return np.uint64(0)
    return np.uint64(argument.ctypes.data) if isinstance(argument, np.ndarray) else argument


def _array_at(pointer: int, tensor: Any) -> np.ndarray:
    dtype = np.dtype(DTYPES[tensor.dtype])
    n = 1 + sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.strides, strict=True))
    flat = np.frombuffer((ctypes.c_char * (n * dtype.itemsize)).from_address(pointer), dtype)
    return np.lib.stride_tricks.as_strided(flat, tensor.shape, [s * dtype.itemsize for s in tensor.strides])
