"""Opens ChainerMN's communicators. No file outside `trainer/parallel/` knows ChainerMN."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import numpy as np

from trainer.errors import InputError


def open_communicator(name: str, gpu: int, grad_dtype: str) -> Any:
    """A communicator of ChainerMN.

    Args:
        name: 'naive', 'flat' or 'pure_nccl'.
        gpu: the first GPU of this machine that is used; -1 for the CPU.
        grad_dtype: of the gradients that are sent.
    Raises:
        InputError: MPI or ChainerMN is missing, or the communicator does not suit the device.
    """
    if name != 'naive' and gpu < 0:
        raise InputError(f'--communicator {name} is for GPUs, -g 0: on CPUs it is naive')
    if name != 'pure_nccl' and gpu >= 0 and not _is_cuda_aware():
        raise InputError(f'--communicator {name} gives GPU memory to MPI, which this one cannot read: take pure_nccl')
    try:
        import chainermn
        from chainermn.communicators import _memory_utility
    except ImportError as error:
        raise InputError(
            f'--communicator {name} needs MPI ({error}): install Open MPI (Debian: openmpi-bin) and the extra mpi'
        ) from None
    _memory_utility.unpack_params = _unpack_params
    options = {} if grad_dtype == 'float32' else {'allreduce_grad_dtype': np.dtype(grad_dtype)}
    try:
        communicator = chainermn.create_communicator(name, **options)
    except (RuntimeError, ImportError, AttributeError) as error:
        raise InputError(f'--communicator {name}: {error}') from None
    # Its kernels take `half` from a header of CuPy that no longer has it; `set_config` does not reach the attribute.
    communicator.batched_copy = False
    return communicator


def _is_cuda_aware() -> bool:
    """Whether MPI is an Open MPI that reads the memory of GPUs; others would crash without a message."""
    if shutil.which('ompi_info') is None:
        return False
    told = subprocess.run(['ompi_info', '--parsable', '--all'], capture_output=True, text=True).stdout
    return 'mpi_built_with_cuda_support:value:true' in told


def _unpack_params(
    params: Any, attr_name: str, buffer: Any, transfer_dtype: Any, zero_fill: bool, stream: Any = None
) -> None:
    """ChainerMN's own asks CuPy for `array(copy=False)` of another dtype, which CuPy 14 refuses as NumPy 2 does."""
    offset = 0
    for param in params:
        value = getattr(param, attr_name)
        if attr_name == 'grad' and value is None and zero_fill:
            value = param.xp.empty_like(param.data)
            param.grad = value
        n_byte = value.size * np.dtype(transfer_dtype).itemsize
        received = value if value.dtype == transfer_dtype else param.xp.empty_like(value, dtype=transfer_dtype)
        buffer.to_device(received, n_byte, offset, stream)
        offset += n_byte
        if received is not value:
            value[...] = received.astype(value.dtype)
