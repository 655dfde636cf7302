"""What was found of all that makes training fast, what is missing, and how to install it: python -m trainer.doctor"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from typing import Any, NamedTuple

import chainer
import numpy as np

from trainer import engine
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
        return f'{mark}  {self.what:<22} {self.found or "not found"}' + (
            f'\n      {self.advice}' if self.advice else ''
        )


def examine() -> list[Finding]:
    """Everything, from the interpreter to the GPU."""
    return [
        Finding('Python', platform.python_version()),
        Finding('Chainer', chainer.__version__),
        Finding('NumPy', np.__version__),
        _examine_decoder(),
        *_examine_cpu(),
        _examine_cores(),
        *_examine_contention(),
        *_examine_gpu(),
        *_examine_mpi(),
    ]


def _examine_decoder() -> Finding:
    try:
        from PIL import features
    except ImportError as error:
        return Finding('Pillow', '', f'{error}: it decodes images; pip install pillow')
    if not features.check('libjpeg_turbo'):
        return Finding(
            'Pillow', _package('pillow'), 'built without libjpeg-turbo: JPEGs take two to four times as long'
        )
    return Finding('Pillow', f'{_package("pillow")}, libjpeg-turbo {features.version("libjpeg_turbo")}')


def _examine_cpu() -> list[Finding]:
    """The CPU's engine, the instructions it uses and its threads."""
    try:
        version = engine.library().version
    except EngineError as error:
        return [Finding('oneDNN', '', str(error))]
    cap = os.environ.get('ONEDNN_MAX_CPU_ISA')
    instructions = f'{engine.instruction_set()}{f" (ONEDNN_MAX_CPU_ISA={cap})" if cap else ""}'
    bfloat16 = '--precision bf16 is faster' if engine.has_bfloat16() else 'no bfloat16: --precision float32'
    n_thread = engine.threads()
    return [
        Finding('oneDNN', f'{version}, on {n_thread} thread{"s" if n_thread > 1 else ""}'),
        Finding('instructions', f'{instructions}; {bfloat16}'),
    ]


def _examine_cores() -> Finding:
    """How many are used, and what limits them."""
    n_all, n_bound, quota = os.cpu_count() or 1, len(bound_cores()), cpu_quota()
    n_core, n_thread = count_cores(), default_threads()
    limits = []
    if n_bound < n_all:
        limits.append(f'bound to {n_bound}')
    if quota is not None:
        limits.append(f'CPU quota {quota:.3g}')
    found = f'{n_core} of {n_all}' + (f' ({", ".join(limits)})' if limits else '')
    if n_thread == n_core:
        return Finding('usable cores', found)
    advice = ''
    if n_thread > n_core:
        advice = f'{n_thread} threads would wait for each other: unset OMP_NUM_THREADS, or set it to {n_core} or less'
    return Finding('usable cores', f'{found}, {n_thread} threads by OMP_NUM_THREADS', advice)


def _examine_contention() -> list[Finding]:
    """What other processes take of them now; nothing where the system does not tell."""
    contention = Contention()
    time.sleep(SECONDS_OF_SAMPLE)
    usage = contention.measure()
    if usage is None:
        return []
    is_busy = usage.taken >= CLEARLY
    advice = 'a run beside them takes up to twice as long: end them if you can' if is_busy else ''
    return [Finding('other processes', f'keep {usage.taken:.1f} of these cores busy', advice)]


def _examine_gpu() -> list[Finding]:
    try:
        import cupy
    except ImportError as error:
        return [
            Finding('CuPy', '', f'{error}; for a GPU: make install EXTRAS=cuda12 (or cuda13, as the driver allows)')
        ]
    found = [Finding('CuPy', cupy.__version__)]
    runtime = cupy.cuda.runtime
    found.append(Finding('CUDA of CuPy', _dotted(runtime.runtimeGetVersion())))
    try:
        driver = runtime.driverGetVersion()
        n_gpu = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        return [*found, Finding('GPU', '', f'{error}: is there an NVIDIA GPU, and its driver?'), *_examine_cudnn()]
    too_old = driver // 1000 < runtime.runtimeGetVersion() // 1000
    advice = 'older than what CuPy was built for: a newer driver, or EXTRAS=cuda12' if too_old else ''
    found.append(Finding('driver, up to CUDA', _dotted(driver), advice))
    for i in range(n_gpu):
        properties = runtime.getDeviceProperties(i)
        capability = f'{properties["major"]}.{properties["minor"]}'
        memory = f'{properties["totalGlobalMem"] / 2**30:.0f} GiB'
        is_old = properties['major'] < 8
        advice = 'older than compute capability 8.0: plain Chainer (--engine plain)' if is_old else ''
        found.append(Finding(f'GPU {i}', f'{properties["name"].decode()}, {capability}, {memory}', advice))
    return [*found, *_examine_cudnn()]


def _examine_cudnn() -> list[Finding]:
    from trainer.engine.cuda import cudnn

    found = []
    if importlib.util.find_spec('cudnn') is not None:
        found.append(Finding("cuDNN's front end", _package('nvidia-cudnn-frontend')))
    try:
        cudnn.load()
    except EngineError as error:
        return [*found, Finding('cuDNN', '', str(error))]
    return [*found, Finding('cuDNN', cudnn.version().removeprefix('cuDNN '))]


def _examine_mpi() -> list[Finding]:
    """For several processes; importing mpi4py would start MPI, so that its library is asked by another process."""
    advice = 'for several processes: install Open MPI (Debian: openmpi-bin), and the extra mpi'
    mpiexec = shutil.which('mpiexec')
    found = [Finding('mpiexec', mpiexec or '', '' if mpiexec else advice)]
    if importlib.util.find_spec('mpi4py') is None:
        return [*found, Finding('mpi4py', '', advice)]
    code = 'from mpi4py import MPI; print(MPI.Get_library_version().split(",")[0])'
    asked = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    if asked.returncode:
        return [*found, Finding('mpi4py', _package('mpi4py'), f'it finds no MPI library: {advice}')]
    found.append(Finding('mpi4py', f'{_package("mpi4py")}, {asked.stdout.strip()}'))
    try:
        from cupy.cuda import nccl

        found.append(Finding('NCCL', _dotted(nccl.get_version() // 100 * 10)))
    except ImportError as error:
        found.append(Finding('NCCL', '', f'{error}: for --communicator pure_nccl, nvidia-nccl-cu12 or -cu13'))
    return found


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
    faults: dict[str, Any] = {finding.what: finding.advice for finding in findings}
    has_gpu = any(finding.what.startswith('GPU ') for finding in findings)
    lines = ['-g -1 (CPU): ' + ('oneDNN, fast' if not faults['oneDNN'] else 'plain Chainer, some ten times slower')]
    if not has_gpu:
        return [*lines, '-g 0 (GPU): none to be used']
    missing = [what for what in ('CuPy', 'GPU 0', 'cuDNN') if faults.get(what)]
    engine_of_gpu = 'cuDNN and captured iterations, fast' if not missing else 'plain Chainer on CuPy, slow'
    return [*lines, f'-g 0 (GPU): {engine_of_gpu}']


def main() -> int:
    findings = examine()
    print(*findings, '', *conclude(findings), sep='\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
