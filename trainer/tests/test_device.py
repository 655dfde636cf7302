"""Which precision a device computes in, and what it refuses."""

from types import SimpleNamespace

import numpy as np
import pytest

from trainer import device, engine
from trainer.errors import InputError

CPU, GPU = SimpleNamespace(xp=np), SimpleNamespace(xp='CuPy')


@pytest.fixture(autouse=True)
def engines(monkeypatch):
    """Both engines are there, and the CPU knows bfloat16."""
    monkeypatch.setattr(engine, 'is_available', lambda of=None: True)
    monkeypatch.setattr(engine, 'has_bfloat16', lambda: True)


def choose(target, precision='auto', engine='fused', optimizer='momentum', obstacle=None):
    return device.choose_precision(target, precision, engine, optimizer, obstacle)


@pytest.mark.parametrize(
    ('target', 'flags', 'chosen'),
    [
        (CPU, {}, 'float32'),
        (CPU, {'precision': 'bf16'}, 'bf16'),
        (GPU, {}, 'fp16'),
        (GPU, {'optimizer': 'nesterov'}, 'fp16'),
        (GPU, {'optimizer': 'adam'}, 'float32'),
        (GPU, {'engine': 'plain'}, 'float32'),
        (GPU, {'precision': 'bf16'}, 'bf16'),
        (GPU, {'precision': 'float64'}, 'float64'),
        (GPU, {'obstacle': 'images are read from files'}, 'float32'),
        (GPU, {'precision': 'bf16', 'obstacle': 'images are read from files'}, 'bf16'),
        (CPU, {'obstacle': 'images are read from files'}, 'float32'),
    ],
)
def test_precision(target, flags, chosen):
    assert choose(target, **flags) == chosen


@pytest.mark.parametrize(
    ('target', 'flags', 'words'),
    [
        (CPU, {'precision': 'fp16'}, 'fp16 is for GPUs: use bf16 or float32'),
        (CPU, {'precision': 'bf16', 'engine': 'plain'}, 'needs the engine of the CPU, oneDNN'),
        (GPU, {'precision': 'fp16', 'engine': 'plain'}, 'needs the engine of the GPU, cuDNN'),
        (
            *(GPU, {'precision': 'fp16', 'obstacle': 'images are read from files'}),
            'fp16 needs iterations captured on the GPU, but images are read from files: use bf16 or float32',
        ),
        (GPU, {'precision': 'fp16', 'optimizer': 'adam'}, '--optimizer adam does not undo: use bf16'),
    ],
)
def test_refusals(target, flags, words):
    with pytest.raises(InputError, match=words):
        choose(target, **flags)


def test_without_the_gpus_engine_auto_is_float32(monkeypatch):
    monkeypatch.setattr(engine, 'is_available', lambda of=None: of is not engine.cuda)
    assert choose(GPU) == 'float32'


def test_bf16_needs_a_processor_that_has_it(monkeypatch):
    monkeypatch.setattr(engine, 'has_bfloat16', lambda: False)
    monkeypatch.setattr(engine, 'instruction_set', lambda: 'AVX2')
    with pytest.raises(InputError, match='--precision bf16 needs AVX512-BF16; this CPU has AVX2: use float32'):
        choose(CPU, 'bf16')
