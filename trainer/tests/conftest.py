"""`trainer` comes before the first `import chainer` of any test.

With $CUPY_STANDIN, the folder of a module `standin` that runs CuPy's kernels on the CPU, the tests marked `gpu`
exercise the GPU's code paths without a GPU: its arrays do not mix with NumPy's, and the engine's kernels run on them.
"""

import os
import sys
from pathlib import Path

if n_worker := int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', '0')):  # they share the cores; NumPy is not loaded yet
    n_core = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    os.environ.setdefault('OPENBLAS_NUM_THREADS', str(max(1, n_core // n_worker)))
    os.environ.setdefault('OMP_NUM_THREADS', str(max(2, n_core // n_worker)))  # two at least, as on most machines

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
    from cuda_on_cpu import CPURuntime

    from trainer.engine.cuda import runtime

    runtime._current = CPURuntime(sys.modules['cupy'])


def pytest_runtest_setup(item):
    if item.get_closest_marker('bfloat16') and not engine.has_bfloat16():
        pytest.skip(f'bfloat16 takes AVX512-BF16; oneDNN computes with {engine.instruction_set()}')


@pytest.fixture
def no_rendering(monkeypatch):
    """For tests of many short runs, whose time is mostly that of drawing: figures are made, their files stay empty."""
    monkeypatch.setattr('matplotlib.figure.Figure.savefig', lambda *_, **__: None)


@pytest.fixture
def installed_fonts(monkeypatch, tmp_path):
    """Says which fonts there are besides the plots' own: files of matplotlib, or one that is none."""
    import matplotlib

    from trainer import fonts

    def install(*names):
        (tmp_path / 'broken.ttf').write_bytes(b'no font')
        folder = Path(matplotlib.get_data_path(), 'fonts', 'ttf')
        found = [str(tmp_path / name if name == 'broken.ttf' else folder / name) for name in names]
        monkeypatch.setattr('matplotlib.font_manager.findSystemFonts', lambda: found)
        fonts._substitutes.cache_clear()

    yield install
    fonts._substitutes.cache_clear()
