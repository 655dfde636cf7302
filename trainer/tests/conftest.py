"""`trainer` comes before the first `import chainer` of any test.

With $CUPY_STANDIN, the folder of a module `standin` that runs CuPy's kernels on the CPU, the tests marked `gpu`
exercise the GPU's code paths without a GPU: its arrays do not mix with NumPy's, and the engine's kernels run on them.
"""

import os
import sys

uses_standin = 'CUPY_STANDIN' in os.environ and 'standin' not in sys.modules  # the other conftest may have been first
if uses_standin:
    sys.path.insert(0, os.environ['CUPY_STANDIN'])
    import standin

    standin.install()
    cuda_runtime = sys.modules['cupy'].cuda.runtime
    cuda_runtime.getDeviceCount = lambda: 1
    cuda_runtime.getDeviceProperties = lambda device: {'name': b'stand-in'}

import pytest  # noqa: E402

import trainer  # noqa: E402, F401
from trainer import engine  # noqa: E402

if uses_standin:
    from trainer.engine.cuda import on_cpu, runtime

    runtime._current = on_cpu.CPURuntime(sys.modules['cupy'])


def pytest_runtest_setup(item):
    if item.get_closest_marker('bfloat16') and not engine.has_bfloat16():
        pytest.skip(f'bfloat16 takes AVX512-BF16; oneDNN computes with {engine.instruction_set()}')
