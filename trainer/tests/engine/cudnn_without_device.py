"""What cuDNN accepts, asked without a device: a test instrument."""

from __future__ import annotations

import functools
import json
from typing import Any

from trainer.engine.cuda.cudnn import in_one_line, load, make_graph
from trainer.engine.cuda.problem import Problem
from trainer.engine.errors import EngineError

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
    where = {'device_property': device_property(capability)}
    try:
        graph = make_graph(problem, **where)
        if precompiled:
            graph.deselect_behavior_notes([cudnn.behavior_note.RUNTIME_COMPILATION])
        graph.check_support()
    except (EngineError, RuntimeError, cudnn.cudnnGraphNotSupportedError):
        return False
    return True


@functools.cache
def device_property(capability: tuple[int, int]) -> Any:
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
        raise EngineError(f'cuDNN does not answer without a device: {in_one_line(error)}') from None
