"""oneDNN's C API through ctypes: the library, its engine and stream, descriptors, and errors in its own words."""

from __future__ import annotations

import ctypes
import functools
import site
import sys
import sysconfig
import threading
from collections.abc import Sequence
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any, TypeAlias

from trainer.engine.errors import EngineError
from trainer.engine.onednn.threads import Threads

Descriptor: TypeAlias = c_void_p  # a dnnl_memory_desc_t, or the descriptor of a primitive
Dims: TypeAlias = ctypes.Array[c_int64]
PostOp: TypeAlias = tuple[Any, ...]  # see `Library.attributes`

# Enumerators of dnnl_types.h, oneDNN 3.
CPU = 1
IN_ORDER = 1
BF16, F32, U8 = 2, 3, 6
FORMAT_ANY = 1
FORWARD_TRAINING, FORWARD_INFERENCE, BACKWARD = 64, 96, 128
CONVOLUTION_DIRECT = 1
ELTWISE_RELU, ELTWISE_RELU_FROM_DST = 0x20, 0x100
POOLING_MAX, POOLING_AVERAGE = 0x1FF, 0x2FF  # the average counts the padding, as Chainer's does
LRN_ACROSS_CHANNELS = 0xAFF
BINARY_ADD, BINARY_MUL = 0x1FFF0, 0x1FFF1
USE_GLOBAL_STATS, USE_SCALE, USE_SHIFT, FUSE_NORM_RELU = 1, 2, 4, 8
QUERY_IMPLEMENTATION = 8
SRC_MD, DIFF_SRC_MD, WEIGHTS_MD, DIFF_WEIGHTS_MD, DST_MD, DIFF_DST_MD, WORKSPACE_MD, SCRATCHPAD_MD = range(129, 137)
SRC, SRC_1, DST, WEIGHTS, BIAS, MEAN, VARIANCE, SCALE, SHIFT = 1, 2, 17, 33, 41, 49, 50, 51, 52
WORKSPACE, DIFF_SRC, DIFF_DST, DIFF_WEIGHTS, DIFF_BIAS, DIFF_SCALE, DIFF_SHIFT = 64, 129, 145, 161, 169, 255, 256
SCRATCHPAD = 80
ATTR_SCALES = 4096
SCRATCHPAD_OF_CALLER = 1

# Instruction sets, the bits of dnnl_cpu_isa_t; each holds those of the sets it builds on.
INSTRUCTION_SETS = {
    'SSE4.1': 0x1,
    'AVX': 0x3,
    'AVX2': 0x7,
    'AVX2-VNNI': 0xF,
    'AVX-512': 0x27,
    'AVX512-VNNI': 0x67,
    'AVX512-BF16': 0xE7,
    'AVX512-FP16': 0x1EF,
    'AMX': 0xFEF,
}


def post_op_arg(index: int) -> int:
    """The argument number that holds the operand of a binary post-op."""
    return 32768 * (index + 1) | SRC_1


class ExecuteArgument(ctypes.Structure):
    """A dnnl_exec_arg_t."""

    _fields_ = (('arg', c_int), ('memory', c_void_p))


# What a letter of a signature stands for.
_TYPES = {
    'a': POINTER(ExecuteArgument),
    'd': POINTER(c_int64),  # sizes
    'f': c_float,
    'i': c_int,
    'l': c_int64,
    'o': POINTER(c_void_p),  # where to put the object that is made
    'p': c_void_p,  # an object of the library, or memory
    'z': c_size_t,
}
# Name -> signature; every function of these returns a dnnl_status_t.
_SIGNATURES = {
    'engine_create': 'oiz',
    'stream_create': 'opi',
    'memory_desc_create_with_strides': 'oidid',
    'memory_desc_create_with_tag': 'oidii',
    'memory_create': 'oppp',
    'memory_set_data_handle': 'pp',
    'memory_destroy': 'p',
    'primitive_create': 'op',
    'primitive_execute': 'ppia',
    'primitive_desc_query': 'piip',
    'primitive_attr_create': 'o',
    'primitive_attr_set_post_ops': 'pp',
    'primitive_attr_set_scratchpad_mode': 'pi',
    'primitive_attr_set_scales_mask': 'pii',
    'post_ops_create': 'o',
    'set_verbose': 'i',
    'post_ops_append_binary': 'pip',
    'post_ops_append_sum': 'pfii',
    'post_ops_append_eltwise': 'piff',
    'reorder_primitive_desc_create': 'oppppp',
    'binary_primitive_desc_create': 'opipppp',
    'convolution_forward_primitive_desc_create': 'opiippppddddp',
    'convolution_backward_data_primitive_desc_create': 'opipppddddpp',
    'convolution_backward_weights_primitive_desc_create': 'opippppddddpp',
    'inner_product_forward_primitive_desc_create': 'opippppp',
    'inner_product_backward_data_primitive_desc_create': 'opppppp',
    'inner_product_backward_weights_primitive_desc_create': 'oppppppp',
    'batch_normalization_forward_primitive_desc_create': 'opippfip',
    'batch_normalization_backward_primitive_desc_create': 'opipppfipp',
    'pooling_forward_primitive_desc_create': 'opiippdddddp',
    'pooling_backward_primitive_desc_create': 'opippdddddpp',
    'eltwise_forward_primitive_desc_create': 'opiippffp',
    'eltwise_backward_primitive_desc_create': 'opipppffpp',
    'matmul_primitive_desc_create': 'opppppp',
    'lrn_forward_primitive_desc_create': 'opiipplfffp',
    'lrn_backward_primitive_desc_create': 'opippplfffpp',
}


def dims(values: Sequence[int]) -> Dims:
    """A dnnl_dims_t, as far as it is used."""
    return (c_int64 * len(values))(*values)


_STARTING = threading.RLock()  # the first use may be made by several threads at once


class Library:
    """The loaded library with one CPU engine and one stream.

    The stream is in order and of the CPU: `primitive_execute` returns when the work is done. What `create` returns is
    never destroyed, except memory objects: descriptors and primitives are made once for each shape and remembered.

    `call('name', ...)` calls dnnl_name and raises `EngineError` in the library's words unless it succeeds;
    `create('name', ...)` does the same for functions that hand an object back through their first argument.
    """

    def __init__(self, path: Path | str, threads: Threads) -> None:
        self.threads = threads
        self._c = ctypes.CDLL(str(path))
        self._functions = {}
        for name, signature in _SIGNATURES.items():
            function = getattr(self._c, f'dnnl_{name}', None)
            if function is None:
                raise EngineError(f'{path} is not oneDNN 3: it lacks dnnl_{name}')
            function.argtypes, function.restype = [_TYPES[letter] for letter in signature], c_int
            self._functions[name] = function
        self._c.dnnl_status2str.restype, self._c.dnnl_status2str.argtypes = c_char_p, (c_int,)
        self._c.dnnl_primitive_desc_query_md.restype = c_void_p
        self._c.dnnl_primitive_desc_query_md.argtypes = c_void_p, c_int, c_int
        self._c.dnnl_memory_desc_get_size.restype, self._c.dnnl_memory_desc_get_size.argtypes = c_size_t, (c_void_p,)
        self._c.dnnl_memory_desc_equal.argtypes = c_void_p, c_void_p
        self._c.dnnl_version.restype = POINTER(c_int * 3)
        self._c.dnnl_get_effective_cpu_isa.restype = c_int
        self.execute = self._functions['primitive_execute']
        self.set_data_handle = self._functions['memory_set_data_handle']
        self.memory_destroy = self._functions['memory_destroy']

    def call(self, name: str, *arguments: Any) -> None:
        self.check(self._functions[name](*arguments), name)

    def create(self, name: str, *arguments: Any) -> c_void_p:
        made = c_void_p()
        self.call(name, byref(made), *arguments)
        return made

    def check(self, status: int, name: str) -> None:
        if status:
            raise EngineError(f'oneDNN {self.version}: dnnl_{name} says {self._c.dnnl_status2str(status).decode()}')

    @property
    def engine(self) -> c_void_p:
        """Of the CPU; the first use fixes the number of threads."""
        return self._engine_and_stream[0]

    @property
    def stream(self) -> c_void_p:
        return self._engine_and_stream[1]

    @property
    def _engine_and_stream(self) -> tuple[c_void_p, c_void_p]:
        with _STARTING:
            return self._start()

    @functools.cache  # noqa: B019 - the library is one, and lives as long as the process
    def _start(self) -> tuple[c_void_p, c_void_p]:
        self.threads.start()
        engine = self.create('engine_create', CPU, 0)
        return engine, self.create('stream_create', engine, IN_ORDER)

    @functools.cached_property
    def instruction_set(self) -> int:
        """The bits (of `dnnl_cpu_isa_t`) of what the processor has and ONEDNN_MAX_CPU_ISA allows."""
        return int(self._c.dnnl_get_effective_cpu_isa())

    def has(self, instruction_set: int) -> bool:
        return self.instruction_set & instruction_set == instruction_set

    @functools.cached_property
    def version(self) -> str:
        major, minor, patch = self._c.dnnl_version().contents
        return f'{major}.{minor}.{patch}'

    def describe(self, shape: Sequence[int], strides: Sequence[int], data_type: int) -> Descriptor:
        """A memory descriptor; strides in elements."""
        name = 'memory_desc_create_with_strides'
        return self.create(name, len(shape), dims(shape), data_type, dims(strides))

    def describe_any(self, shape: Sequence[int], data_type: int) -> Descriptor:
        """A memory descriptor whose layout the primitive may choose."""
        return self.create('memory_desc_create_with_tag', len(shape), dims(shape), data_type, FORMAT_ANY)

    def query(self, primitive_descriptor: c_void_p, which: int) -> c_void_p:
        """A memory descriptor that a primitive has chosen; it belongs to the primitive's descriptor, which stays."""
        return c_void_p(self._c.dnnl_primitive_desc_query_md(primitive_descriptor, which, 0))

    def describe_primitive(self, kind: str, *arguments: Any, attributes: c_void_p | None = None) -> Descriptor:
        """The descriptor of a primitive.

        Args:
            kind: 'convolution_forward', say.
            arguments: those of dnnl_<kind>_primitive_desc_create, without the attributes.
            attributes: None for those without post-ops.
        """
        attributes = self.attributes() if attributes is None else attributes
        return self.create(f'{kind}_primitive_desc_create', *arguments, attributes)

    def implementation(self, primitive_descriptor: c_void_p) -> str:
        text = c_char_p()
        self.call('primitive_desc_query', primitive_descriptor, QUERY_IMPLEMENTATION, 0, byref(text))
        return (text.value or b'').decode()

    def size(self, descriptor: c_void_p) -> int:
        """Bytes."""
        return int(self._c.dnnl_memory_desc_get_size(descriptor))

    def is_same(self, one: c_void_p, other: c_void_p) -> bool:
        return bool(self._c.dnnl_memory_desc_equal(one, other))

    def attributes(self, post_ops: Sequence[PostOp] = ()) -> c_void_p:
        """Attributes with post-ops ('add', descriptor), ('mul', descriptor), ('sum',) or ('relu',).

        A sum adds what the output holds beforehand. The scratchpad is an argument of the primitive: a scratchpad of the
        library would be of the thread that makes the primitive, and missing in others.
        """
        attributes = self.create('primitive_attr_create')
        self.call('primitive_attr_set_scratchpad_mode', attributes, SCRATCHPAD_OF_CALLER)
        if not post_ops:
            return attributes
        chain = self.create('post_ops_create')
        for kind, *operand in post_ops:
            if kind == 'relu':
                self.call('post_ops_append_eltwise', chain, ELTWISE_RELU, 0.0, 0.0)
            elif kind == 'sum':
                self.call('post_ops_append_sum', chain, 1.0, 0, 0)
            else:
                algorithm = {'add': BINARY_ADD, 'mul': BINARY_MUL}[kind]
                self.call('post_ops_append_binary', chain, algorithm, *operand)
        self.call('primitive_attr_set_post_ops', attributes, chain)
        return attributes


def library() -> Library:
    """The library, loaded at the first call, also where several threads make it.

    Raises:
        EngineError: it is not installed, or cannot be loaded; the message says what to do.
    """
    with _STARTING:
        return _load()


@functools.cache
def _load() -> Library:
    path = find()
    if path is None:
        raise EngineError('oneDNN is not installed (pip install onednn-cpu-tbb, on x86-64 Linux)')
    try:
        return Library(path, Threads(path.parent))
    except OSError as error:
        advice = 'pip install --force-reinstall onednn-cpu-tbb intel-cmplr-lib-rt'
        raise EngineError(f'oneDNN cannot be loaded ({error}): {advice}') from None


def find() -> Path | None:
    """Where the wheel `onednn-cpu-tbb` puts the library: lib/ of the environment."""
    prefixes = sys.prefix, sysconfig.get_path('data'), sys.base_prefix, site.getuserbase()
    for prefix in dict.fromkeys(prefixes):
        path = Path(prefix) / 'lib' / 'libdnnl.so.3'
        if path.exists():
            return path
    return None
