"""The GPU's kernels compile for every generation that is served, by NVIDIA's own compiler, without a GPU."""

import ctypes
import importlib.util
import itertools
from pathlib import Path

import pytest

from trainer.engine.cuda import kernel
from trainer.engine.cuda.kernel import BFLOAT16, FLOAT16, FLOAT32

MODULES = sorted(path.stem for path in kernel.FOLDER.glob('*.cu'))
VARIANTS = [(FLOAT16, 8), (FLOAT16, 1), (BFLOAT16, 8), (FLOAT32, 4), (FLOAT32, 1)]


@pytest.fixture(scope='module')
def nvrtc():
    spec = importlib.util.find_spec('nvidia')
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec is not None else []
    paths = [path for folder in folders for path in sorted(folder.glob('*/lib/libnvrtc*.so.*'))]
    paths = [path for path in paths if '.alt.' not in path.name]
    if not paths:
        pytest.skip('NVRTC is not installed (nvidia-cuda-nvrtc-cu12, part of the test requirements on Linux)')
    libraries = [ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL) for path in paths]  # its built-ins come first
    return next(library for library in libraries if hasattr(library, 'nvrtcCompileProgram'))


def architectures(library):
    n = ctypes.c_int()
    assert library.nvrtcGetNumSupportedArchs(ctypes.byref(n)) == 0
    found = (ctypes.c_int * n.value)()
    assert library.nvrtcGetSupportedArchs(found) == 0
    return list(found)


def compile_to_cubin(library, source, options):
    program = ctypes.c_void_p()
    assert library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b'kernels.cu', 0, None, None) == 0
    words = [option.encode() for option in (*options, '-std=c++17')]
    status = library.nvrtcCompileProgram(program, len(words), (ctypes.c_char_p * len(words))(*words))
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    assert status == 0, log.value.decode()
    assert library.nvrtcGetCUBINSize(program, ctypes.byref(size)) == 0
    cubin = ctypes.create_string_buffer(size.value)
    assert library.nvrtcGetCUBIN(program, cubin) == 0
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return cubin.raw


@pytest.mark.parametrize('module', MODULES)
@pytest.mark.parametrize('arch', [89, *(pytest.param(arch, marks=pytest.mark.long) for arch in (80, 90, 100))])
def test_compiles(arch, module, nvrtc):
    if arch not in architectures(nvrtc):
        assert arch == 100, f'the compiler does not know sm_{arch}'
        pytest.skip(f'the compiler does not know sm_{arch}')
    variants = VARIANTS if arch in (80, 90) else VARIANTS[::4]
    variants = itertools.product(variants, (FLOAT16, FLOAT32)) if module == 'copy' else [(v, None) for v in variants]
    for (dtype, n_vector), source in variants:
        options = kernel.options(dtype, n_vector, source)
        cubin = compile_to_cubin(nvrtc, kernel.source_of(module), (*options, f'-arch=sm_{arch}'))
        for name in kernel.signatures(module):
            assert name.encode() in cubin


def test_every_signature_is_understood():
    for module in MODULES:
        for name, types in kernel.signatures(module).items():
            assert types, name
            assert set(types) <= {'pointer', *kernel.SCALARS}, (module, name, types)
