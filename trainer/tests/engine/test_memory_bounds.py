"""No primitive writes beyond its memory: the C library's checking allocator ends the process if one does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer import engine

CHECKER = Path(f'/lib/{os.uname().machine}-linux-gnu/libc_malloc_debug.so.0')
pytestmark = [
    pytest.mark.skipif(not engine.is_available(), reason='oneDNN is not installed'),
    pytest.mark.skipif(not CHECKER.exists(), reason=f'{CHECKER} is not there'),
]
PROGRAM = """
import numpy as np
import trainer.functions as F
from chainer import Variable

rng = np.random.default_rng(0)
for channels, stride, side in [(c, s, n) for c in (1, 10, 20, 37) for s in (2, 3) for n in (1, 5, 8, 10)]:
    x = Variable(rng.standard_normal((1, channels, side, 10)).astype('f'))
    W = Variable(rng.standard_normal((10, channels, 1, 1)).astype('f'))
    y = F.convolution_2d(x, W, stride=stride)
    gy = y.grad = rng.standard_normal(y.shape).astype('f')
    y.backward()
    expected = np.einsum('nohw,nihw->oi', gy, x.array[:, :, ::stride, ::stride])
    np.testing.assert_allclose(W.grad[:, :, 0, 0], expected, atol=1e-4)
"""


def test_convolutions_of_one_pixel_that_skip_pixels():
    checking = os.environ | {'LD_PRELOAD': str(CHECKER), 'MALLOC_CHECK_': '3'}
    done = subprocess.run([sys.executable, '-c', PROGRAM], env=checking, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
