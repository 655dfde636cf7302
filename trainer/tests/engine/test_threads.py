"""How many threads compute, and that nothing but their number decides the bits."""

import os
import subprocess
import sys
import warnings

import chainer
import numpy as np
import pytest
from ml_dtypes import bfloat16

import trainer.functions as F
from trainer import engine
from trainer.engine.cores import bound_cores
from trainer.engine.errors import EngineWarning
from trainer.engine.onednn import response_normalization

needs_engine = pytest.mark.skipif(not engine.is_available(), reason='oneDNN is not installed')
needs_two_cores = pytest.mark.skipif(len(bound_cores()) < 2, reason='this process may use one core only')
RNG = np.random.default_rng(0)
X, W = (RNG.standard_normal(shape).astype(np.float32) for shape in ((8, 16, 20, 20), (32, 16, 3, 3)))

COMPUTE = """
import numpy as np, trainer, warnings
import trainer.functions as F
from trainer import engine

def compute():
    F.convolution_2d(np.ones((2, 3, 8, 8), 'f'), np.ones((4, 3, 3, 3), 'f'))
"""


def run(code, **environment):
    environment = {k: v for k, v in os.environ.items() if k != 'OMP_NUM_THREADS'} | environment
    done = subprocess.run([sys.executable, '-c', COMPUTE + code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.long
@needs_engine
@needs_two_cores
def test_the_number_of_threads_is_asked_for_or_that_of_the_cores():
    code = 'compute(); print(engine.threads(), engine.library().threads._max_concurrency(None))'
    n = str(len(bound_cores()))
    assert run(code) == [n, n]
    assert run(code, OMP_NUM_THREADS='1') == ['1', '1']
    assert run('engine.set_threads(1);' + code, OMP_NUM_THREADS='2') == ['1', '1']
    assert run('engine.set_threads(4096);' + code) == [n, n]  # more than there are cores


@needs_engine
@needs_two_cores
def test_threads_that_compute_already_stay_and_a_line_says_so():
    code = """
compute()
with warnings.catch_warnings(record=True) as caught:
    engine.set_threads(2)
    assert not caught
    engine.set_threads(1)
print(engine.threads(), str(caught[0].message).replace(' ', '_'))
"""
    expected = ['2', '2_threads_compute_already:_a_process_cannot_change_their_number_to_1']
    assert run(code, OMP_NUM_THREADS='2') == expected


def step():
    """Output and gradients of a convolution."""
    x, w = chainer.Variable(X), chainer.Variable(W)
    y = F.convolution_2d(x, w, pad=1)
    y.grad = y.array
    y.backward()
    return y.array, x.grad, w.grad


@needs_engine
def test_a_busy_process_changes_no_bit():
    quiet = step()
    busy = [subprocess.Popen([sys.executable, '-c', 'while True: pass']) for _ in range(2)]
    try:
        for _ in range(20):
            for got, expected in zip(step(), quiet, strict=True):
                np.testing.assert_array_equal(got, expected)
    finally:
        for process in busy:
            process.kill()
            process.wait()


@needs_engine
def test_bfloat16_is_computed_in_float32_where_the_processor_lacks_it(monkeypatch):
    monkeypatch.setattr(engine.onednn, 'has_bfloat16', lambda: False)
    monkeypatch.setattr(engine.onednn, 'instruction_set', lambda: 'AVX2')
    engine.warn_once.cache_clear()
    expected = F.convolution_2d(X, W).array
    with (
        pytest.warns(
            EngineWarning, match='bfloat16 is computed in float32: it takes AVX512-BF16, and this CPU has AVX2'
        ),
        chainer.using_config('compute_dtype', np.dtype(bfloat16)),
    ):
        got = F.convolution_2d(X, W).array
    np.testing.assert_array_equal(got, expected)
    with warnings.catch_warnings():
        warnings.simplefilter('error')  # said once
        y = F.convolution_2d(X.astype(bfloat16), W).array
    np.testing.assert_allclose(y, expected, atol=0.05 * np.abs(expected).max())


@needs_engine
@pytest.mark.parametrize('n', [3, 5])
def test_the_gradient_of_response_normalisation_without_the_librarys(n, monkeypatch):
    x = 3 * RNG.standard_normal((40, 24, 5, 7)).astype(np.float32)  # more pixels than are computed at a time
    results = []
    for engine_name in ('fused', 'plain'):
        variable = chainer.Variable(x)
        with chainer.using_config('engine', engine_name):
            monkeypatch.setattr(response_normalization, '_is_gradient_fast', lambda: False)
            y = F.local_response_normalization(variable, n, 1, 0.1, 0.75 if n == 5 else 0.6)
            y.grad = np.cos(x)
            y.backward()
        results.append(variable.grad)
    np.testing.assert_allclose(*results, rtol=1e-4, atol=1e-5)
