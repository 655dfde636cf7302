"""`trainer` comes before the first `import chainer` of any test.

With $CUPY_STANDIN, the folder of a module `standin` that runs CuPy's kernels on the CPU, the tests marked `gpu`
exercise the GPU's code paths without a GPU.
"""

import os
import sys

if 'CUPY_STANDIN' in os.environ:
    sys.path.insert(0, os.environ['CUPY_STANDIN'])
    import standin

    standin.install()
    sys.modules['cupy'].cuda.runtime.getDeviceCount = lambda: 1

import trainer  # noqa: F401
