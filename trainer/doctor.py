"""What makes training fast: what is installed, what is missing, and how to install it: python -m trainer.doctor"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from typing import NamedTuple

import chainer
import numpy as np

from trainer import engine
from trainer.commands import command_parser, exit_with_message
from trainer.engine.cores import Contention, bound_cores, count_cores, cpu_quota, default_threads
from trainer.engine.errors import EngineError
from trainer.run.contention import CLEARLY

SECONDS_OF_SAMPLE = 0.3


class Finding(NamedTuple):
    """One line of the report."""

    what: str
    found: str  # a version or a name; empty if there is none
    advice: str = ''  # what to do about it

    def __str__(self) -> str:
        mark = 'ok' if self.found and not self.advice else '--'
        advice = textwrap.wrap(self.advice, 73, break_long_words=False, break_on_hyphens=False)
        return '\n      '.join([f'{mark}  {self.what:<22} {self.found or "not found"}', *advice])


def examine() -> list[Finding]:
    """Everything, from the interpreter to the GPU."""
    cpu = _examine_python, _examine_decoder, _examine_cpu, _examine_cores, _examine_contention
    return [finding for examination in (*cpu, _examine_gpu, _examine_mpi) for finding in examination()]


def _examine_python() -> Iterator[Finding]:
    yield Finding('Python', platform.python_version())
    yield Finding('Chainer', chainer.__version__)
    yield Finding('NumPy', np.__version__)


def _examine_decoder() -> Iterator[Finding]:
    try:
        from PIL import features
    except ImportError as error:
        yield Finding('Pillow', '', f'{error}: it decodes images; pip install pillow')
        return
    if features.check('libjpeg_turbo'):
        yield Finding('Pillow', f'{_package("pillow")}, libjpeg-turbo {features.version("libjpeg_turbo")}')
    else:
        slow = 'built without libjpeg-turbo: JPEGs take two to four times as long'
        yield Finding('Pillow', _package('pillow'), slow)


def _examine_cpu() -> Iterator[Finding]:
    """The CPU's engine, the instructions it uses and its threads."""
    try:
        version = engine.library().version
    except EngineError as error:
        yield Finding('oneDNN', '', str(error))
        return
    n_thread = engine.threads()
    yield Finding('oneDNN', f'{version}, on {n_thread} thread{"s" if n_thread > 1 else ""}')
    cap = os.environ.get('ONEDNN_MAX_CPU_ISA')
    instructions = f'{engine.instruction_set()}{f" (ONEDNN_MAX_CPU_ISA={cap})" if cap else ""}'
    bfloat16 = '--precision bf16 is faster' if engine.has_bfloat16() else 'no bfloat16: --precision float32'
    yield Finding('instructions', f'{instructions}; {bfloat16}')


def _examine_cores() -> Iterator[Finding]:
    """How many are used, and what limits them."""
    n_all, n_bound, quota = os.cpu_count() or 1, len(bound_cores()), cpu_quota()
    n_core, n_thread = count_cores(), default_threads()
    limits = [f'bound to {n_bound}'] if n_bound < n_all else []
    limits += [] if quota is None else [f'CPU quota {quota:.3g}']
    found = f'{n_core} of {n_all}' + (f' ({", ".join(limits)})' if limits else '')
    found += '' if n_thread == n_core else f', {n_thread} threads by OMP_NUM_THREADS'
    advice = f'{n_thread} threads would wait for each other: unset OMP_NUM_THREADS, or set it to {n_core} or less'
    yield Finding('usable cores', found, advice if n_thread > n_core else '')


def _examine_contention() -> Iterator[Finding]:
    """How much of these cores other processes use now; nothing where the system does not tell."""
    contention = Contention()
    time.sleep(SECONDS_OF_SAMPLE)
    if (usage := contention.measure()) is not None:
        advice = 'a run beside them takes up to twice as long: end them if you can'
        found = f'keep {usage.taken:.1f} of these cores busy'
        yield Finding('other processes', found, advice if usage.taken >= CLEARLY else '')


def _examine_gpu() -> Iterator[Finding]:
    try:
        import cupy
    except ImportError as error:
        advice = f'{error}; for a GPU: make install EXTRAS=cuda12 (or cuda13, as the driver allows)'
        yield Finding('CuPy', '', advice)
        return
    runtime = cupy.cuda.runtime
    yield Finding('CuPy', cupy.__version__)
    yield Finding('CUDA of CuPy', _dotted(runtime.runtimeGetVersion()))
    try:
        driver, n_gpu = runtime.driverGetVersion(), runtime.getDeviceCount()
        too_old = driver // 1000 < runtime.runtimeGetVersion() // 1000
        advice = 'older than what CuPy was built for: a newer driver, or EXTRAS=cuda12'
        yield Finding('driver, up to CUDA', _dotted(driver), advice if too_old else '')
        for i in range(n_gpu):
            properties = runtime.getDeviceProperties(i)
            name, memory = properties['name'].decode(), f'{properties["totalGlobalMem"] / 2**30:.0f} GiB'
            found = f'{name}, {properties["major"]}.{properties["minor"]}, {memory}'
            advice = 'older than compute capability 8.0: plain Chainer (--engine plain)'
            yield Finding(f'GPU {i}', found, advice if properties['major'] < 8 else '')
    except runtime.CUDARuntimeError as error:
        yield Finding('GPU', '', f'{error}: is there an NVIDIA GPU, and its driver?')
    yield from _examine_cudnn()


def _examine_cudnn() -> Iterator[Finding]:
    from trainer.engine.cuda import cudnn

    if importlib.util.find_spec('cudnn') is not None:
        yield Finding("cuDNN's front end", _package('nvidia-cudnn-frontend'))
    try:
        cudnn.load()
    except EngineError as error:
        yield Finding('cuDNN', '', str(error))
        return
    yield Finding('cuDNN', cudnn.version().removeprefix('cuDNN '))


def _examine_mpi() -> Iterator[Finding]:
    """For several processes; importing mpi4py would start MPI, so another process asks for its library."""
    advice = 'for several processes: install Open MPI (Debian: openmpi-bin), and the extra mpi'
    mpiexec = shutil.which('mpiexec')
    yield Finding('mpiexec', mpiexec or '', '' if mpiexec else advice)
    if importlib.util.find_spec('mpi4py') is None:
        yield Finding('mpi4py', '', advice)
        return
    code = 'from mpi4py import MPI; print(MPI.Get_library_version().split(",")[0])'
    asked = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    if asked.returncode:
        yield Finding('mpi4py', _package('mpi4py'), f'it finds no MPI library: {advice}')
        return
    yield Finding('mpi4py', f'{_package("mpi4py")}, {asked.stdout.strip()}')
    try:
        from cupy.cuda import nccl

        yield Finding('NCCL', _dotted(nccl.get_version() // 100 * 10))
    except ImportError as error:
        yield Finding('NCCL', '', f'{error}: for --communicator pure_nccl, nvidia-nccl-cu12 or -cu13')


def _package(name: str) -> str:
    try:
        return version_of(name)
    except PackageNotFoundError:
        return 'unknown'


def _dotted(version: int) -> str:
    """12090 -> 12.9."""
    return f'{version // 1000}.{version % 1000 // 10}'


def conclude(findings: list[Finding]) -> list[str]:
    """What is fast with that, and what falls back to plain Chainer."""
    faults = {finding.what: finding.advice for finding in findings}
    cpu = 'plain Chainer, some ten times slower' if faults['oneDNN'] else 'oneDNN, fast'
    gpu = 'cuDNN and captured iterations, fast'
    if not any(what.startswith('GPU ') for what in faults):
        gpu = 'no usable GPU'
    elif any(faults.get(what) for what in ('CuPy', 'GPU 0', 'cuDNN')):
        gpu = 'plain Chainer on CuPy, slow'
    return [f'-g -1 (CPU): {cpu}', f'-g 0 (GPU): {gpu}']


def main(argv: Sequence[str] | None = None) -> int:
    """Print what was found; the exit code is 0 whatever that is."""
    command_parser('python -m trainer.doctor', __doc__).parse_args(argv)
    findings = examine()
    print(*findings, '', *conclude(findings), sep='\n')
    return 0


if __name__ == '__main__':
    with exit_with_message('trainer.doctor'):
        sys.exit(main())
