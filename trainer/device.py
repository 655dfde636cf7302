"""The device to compute on, opened with a clear word if it cannot be, and described for the records."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import chainer
import numpy as np
from chainer.backend import Device

from trainer import engine
from trainer.engine.cuda.runtime import runtime
from trainer.errors import InputError

FLAT_OPTIMIZERS = ('momentum', 'nesterov')  # whose update is a kernel that knows the scale of the loss


def open_device(gpu: int) -> Device:
    """The Chainer device of `-g`: NumPy for -1, else CuPy on that GPU, made current.

    Raises:
        InputError: CuPy is missing or finds no such GPU; says what to do.
    """
    if gpu < 0:
        return chainer.get_device('@numpy')
    try:
        import cupy
    except ImportError as error:
        raise InputError(
            f'-g {gpu} needs CuPy ({error}): install the extra cuda12 or cuda13, whichever your driver supports, '
            'or use -g -1, the CPU'
        ) from None
    try:
        n_gpu = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise InputError(f'-g {gpu}: CuPy {cupy.__version__} finds no GPU ({error}); use -g -1, the CPU') from None
    if gpu >= n_gpu:
        raise InputError(f'-g {gpu}: there are {n_gpu} GPUs, numbered from 0')
    if not chainer.backends.cuda.available:
        reason = chainer.backends.cuda._resolution_error
        raise InputError(f'-g {gpu}: CuPy {cupy.__version__} cannot compute on the GPU: {reason}')
    device = chainer.get_device(f'@cupy:{gpu}')
    device.use()
    if chainer.config.engine == 'fused':
        runtime().use_own_stream()
    return device


def choose_precision(
    device: Device, precision: str, engine_name: str, optimizer: str, obstacle: str | None = None
) -> str:
    """What `--precision` means on a device: auto is fp16 where the GPU's engine computes and updates, else float32.

    Args:
        device: of `open_device`.
        precision, engine_name, optimizer: values of `--precision`, `--engine` and `--optimizer`.
        obstacle: why iterations cannot be captured on a GPU, for which fp16 needs them; None if nothing prevents it.
    Raises:
        InputError: the device or its engine does not compute in it; says which part is missing.
    """
    is_gpu = device.xp is not np
    if is_gpu and obstacle is not None and precision in ('auto', 'fp16'):
        if precision == 'fp16':
            raise InputError(
                f'--precision fp16 needs iterations captured on the GPU, but {obstacle}: use bf16 or float32'
            )
        precision = 'float32'
    if precision in ('float32', 'float64') or (precision == 'auto' and not is_gpu):
        return 'float32' if precision == 'auto' else precision
    if precision == 'fp16' and not is_gpu:
        raise InputError('--precision fp16 is for GPUs: use bf16 or float32 on a CPU')
    has_engine = engine_name == 'fused' and engine.is_available(engine.cuda if is_gpu else engine.onednn)
    if precision == 'auto':
        return 'fp16' if has_engine and optimizer in FLAT_OPTIMIZERS else 'float32'
    if not has_engine:
        raise InputError(
            f'--precision {precision} needs the engine of the {"GPU, cuDNN" if is_gpu else "CPU, oneDNN"}; '
            'plain Chainer computes in float32 or float64'
        )
    if precision == 'fp16' and optimizer not in FLAT_OPTIMIZERS:
        raise InputError(f'--precision fp16 scales the loss, which --optimizer {optimizer} does not undo: use bf16')
    if not is_gpu and not engine.has_bfloat16():
        raise InputError(f'--precision bf16 needs AVX512-BF16; this CPU has {engine.instruction_set()}: use float32')
    return precision


def describe(device: Any) -> str:
    """One line for the records: the processor and its threads, or the GPU."""
    if device.xp is not np:
        name = device.xp.cuda.runtime.getDeviceProperties(device.device.id)['name'].decode()
        return f'GPU, {name}, {engine.describe_gpu()}'
    n_thread = engine.threads()
    threads = '1 thread' if n_thread == 1 else f'{n_thread} threads'
    return f'CPU, {processor()}, {threads}, {engine.describe()}'


def processor() -> str:
    """The name of the processor, or its architecture where the system does not tell more."""
    cpu_info = Path('/proc/cpuinfo')
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.machine()


def versions(device: Device) -> dict[str, str]:
    """Versions of what computes, by name."""
    found = {'python': platform.python_version(), 'chainer': chainer.__version__, 'numpy': np.__version__}
    if device.xp is not np:
        found['cupy'] = device.xp.__version__
        if (cudnn := engine.cudnn_version()) is not None:
            found['cudnn'] = cudnn
    elif (onednn := engine.version()) is not None:
        found['onednn'] = onednn
    return found
