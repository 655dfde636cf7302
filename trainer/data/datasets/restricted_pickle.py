"""Pickles of NumPy arrays read as data: nothing they name is imported or called.

`pickle.load` runs whatever its file says. Here a first pass by `pickletools` admits only the opcodes of containers,
strings, numbers and calls, and bounds their number; then `pickle.Unpickler` reads the file, and gets stand-ins for the
few names that plain arrays need. A hostile file can neither run code nor allocate more than a small multiple of its
size: after the first pass every length lies inside the file, and each opcode makes at most one small object.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from trainer.errors import InputError

MAX_BYTES = 256 << 20  # the largest file of CIFAR-10 and CIFAR-100 has 155 MB
MAX_OPCODES = 1 << 20  # that file has some 200,000; an opcode makes at most one object
MAX_TUPLES = 1 << 14  # hashing a tuple that is nested more deeply than this could overflow C's stack
FAULTS: tuple[type[Exception], ...] = (pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError)
FAULTS += (AttributeError, OverflowError, RecursionError)

_NUMBERS = 'INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT NONE NEWTRUE NEWFALSE'
_STRINGS = (
    'STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 '
    'BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8'
)
_TUPLES = 'TUPLE TUPLE1 TUPLE2 TUPLE3'
_CONTAINERS = 'LIST EMPTY_LIST APPEND APPENDS EMPTY_TUPLE DICT EMPTY_DICT SETITEM SETITEMS MARK'
_MEMO = 'PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET'
_CALLS = 'GLOBAL STACK_GLOBAL REDUCE BUILD BINPERSID'
_ADMITTED = frozenset(f'{_NUMBERS} {_STRINGS} {_TUPLES} {_CONTAINERS} {_MEMO} {_CALLS} PROTO FRAME STOP'.split())
# What pickles of any Python object have besides.
ADMITTED_OF_OBJECTS = _ADMITTED | frozenset(['NEWOBJ', 'NEWOBJ_EX', 'EMPTY_SET', 'ADDITEMS', 'FROZENSET', 'POP', 'DUP'])
_PLAIN_DTYPE = re.compile(r'[|<>=]?(b1|[iu][1248]|f[248])')


def read_pickle(raw: bytes, name: str) -> Any:
    """The value a pickle holds: dicts, lists, tuples, strings, numbers, None and arrays of plain dtypes.

    Args:
        raw: the whole file, of any protocol, written by Python 2 or 3, at most MAX_BYTES.
        name: what messages call the file.
    Returns:
        The value; the 8-bit strings of Python 2 come as bytes, some arrays as a subclass of ndarray.
    Raises:
        InputError: the file is too large, cut short, or holds anything but such data.
    """
    try:
        if len(raw) > MAX_BYTES:
            raise ValueError(f'it has {len(raw)} bytes, more than {MAX_BYTES}')
        return _ArrayUnpickler(raw).load()
    except FAULTS as error:
        raise InputError(f'{name} cannot be read as a pickle of plain arrays: {str(error)[:120]}') from None


def check_opcodes(file: io.BytesIO, admitted: frozenset[str] = _ADMITTED) -> None:
    """Refuse the pickle at which a file stands unless it is whole and all its opcodes are admitted.

    The file then stands where it stood.

    Raises:
        ValueError: it is cut short, or has an opcode that data do not need, or too many of them.
    """
    start = file.tell()
    n_tuple = 0
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name not in admitted:
            raise ValueError(f'opcode {opcode.name} is not admitted')
        n_tuple += opcode.name.startswith('TUPLE')
        if count == MAX_OPCODES or n_tuple > MAX_TUPLES:
            raise ValueError(f'it has more than {MAX_OPCODES} opcodes or {MAX_TUPLES} tuples')
        # The memo is an array as long as its largest index.
        if opcode.name.endswith('PUT') and int(argument or 0) >= MAX_OPCODES:
            raise ValueError(f'it has a place {argument} in the memo, expected less than {MAX_OPCODES}')
    file.seek(start)


class DataUnpickler(pickle.Unpickler):
    """Reads a pickle whose every call goes to `call`.

    Args:
        file: stands at the beginning of a pickle, and after `load` at its end.
    Raises:
        ValueError: at construction, what `check_opcodes` raises.
    """

    names: frozenset[tuple[str, str]] = frozenset()  # module and name of what `call` knows
    admitted = _ADMITTED  # opcodes

    def __init__(self, file: io.BytesIO) -> None:
        check_opcodes(file, self.admitted)
        super().__init__(file, encoding='bytes')

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """A function of its own for each mention of a name, so that a pickle can set no attribute of a shared one."""
        if (module, name) not in self.names:
            raise ValueError(f'it names {module[:60]!r} {name[:60]!r}, which such data do not need')
        return lambda *arguments: self.call(f'{module}.{name}', arguments)

    def call(self, function: str, arguments: tuple[Any, ...]) -> Any:
        """The result of a call in the pickle."""
        raise NotImplementedError


class Opaque:
    """Stands for every object of a class that a reader does not know, and for the class: takes what it is given.

    Attributes:
        state: what the object's `__setstate__`, or its items, would have been; None if there are none.
    """

    __slots__ = ('state',)

    state: Any

    def __new__(cls, *_: Any, **__: Any) -> Opaque:
        self = super().__new__(cls)
        self.state = None
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state[0] if isinstance(state, tuple) and state else state  # (__dict__, slots)

    def __setitem__(self, key: Any, value: Any) -> None:
        if not isinstance(self.state, dict):
            self.state = {}
        self.state[key] = value

    def extend(self, items: Any) -> None:
        """Nobody asks for the items of an unknown list or set."""

    add = extend


_NDARRAY = 'ndarray'  # what stands for the class


class _ArrayUnpickler(DataUnpickler):
    """Makes plain arrays."""

    names = frozenset(
        (f'{package}.{module}', name)
        for package in ('numpy.core', 'numpy._core')  # before and since NumPy 2
        for module, name in (('multiarray', '_reconstruct'), ('multiarray', 'scalar'), ('numeric', '_frombuffer'))
    ) | {
        ('numpy', 'dtype'),
        ('_codecs', 'encode'),  # how Python 3 writes bytes for Python 2 ...
        ('__builtin__', 'bytes'),  # ... and b''
    }

    def __init__(self, raw: bytes) -> None:
        super().__init__(io.BytesIO(raw))
        self.budget = 2 * len(raw)  # bytes that calls may still make: an array of a str encoded just before

    def find_class(self, module: str, name: str) -> Any:
        return _NDARRAY if (module, name) == ('numpy', 'ndarray') else super().find_class(module, name)

    def call(self, function: str, arguments: tuple[Any, ...]) -> Any:
        match function.rpartition('.')[2], arguments:
            case '_reconstruct', ('ndarray', (0,), 'b' | b'b'):
                return _Array(self)
            case 'dtype', (str() | bytes() as code, *_):
                return _Dtype(_text(code))
            case 'encode', (str() as text, 'latin1' | 'latin-1'):
                self.spend(len(text))
                return text.encode('latin-1')
            case 'bytes', ():
                return b''
            case 'scalar', (_Dtype(plain=dtype), bytes() as data):
                self.check_size(data, dtype, ())
                return np.frombuffer(data, dtype)[0]
            case '_frombuffer', (
                bytes() | bytearray() as data,
                _Dtype(plain=dtype),
                tuple() as shape,
                'C' | 'F' as order,
            ):
                self.check_size(data, dtype, shape)
                return np.frombuffer(data, dtype).reshape(shape, order=order)
        raise ValueError('it calls something with arguments that no plain array has')

    def check_size(self, data: bytes | bytearray, dtype: np.dtype, shape: tuple[Any, ...]) -> None:
        """A declared shape allocates nothing before the bytes at hand are found to fill it exactly."""
        if not all(type(n) is int and n >= 0 for n in shape) or math.prod(shape) * dtype.itemsize != len(data):
            raise ValueError(f'an array declares another shape than its {len(data)} bytes of data fill')
        self.spend(len(data))

    def spend(self, n_bytes: int) -> None:
        self.budget -= n_bytes
        if self.budget < 0:
            raise ValueError('it unfolds the same bytes again and again')


class _Dtype:
    """A dtype under construction: its byte order comes after it, and NumPy's own are immutable."""

    __slots__ = ('plain',)

    def __init__(self, code: str) -> None:
        if not _PLAIN_DTYPE.fullmatch(code):
            raise ValueError(f'dtype {code!r} is not a plain number')
        self.plain = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        match state:
            case (3, '|' | '<' | '>' | b'|' | b'<' | b'>' as order, None, None, None, -1, -1, 0):
                self.plain = self.plain.newbyteorder(_text(order))  # type: ignore[arg-type]
            case _:
                raise ValueError('it sets a state that no plain dtype has')


class _Array(np.ndarray):
    """An array under construction, filled by the one state that comes after it."""

    def __new__(cls, unpickler: _ArrayUnpickler) -> _Array:
        array = np.empty(0, np.int8).view(cls)
        array.unpickler = unpickler
        return array

    def __array_finalize__(self, _: Any) -> None:
        self.unpickler: _ArrayUnpickler | None = None

    def __setstate__(self, state: Any) -> None:
        match self.unpickler, state:
            case _ArrayUnpickler() as unpickler, (1, tuple() as shape, _Dtype(plain=dtype), order, bytes() as data):
                unpickler.check_size(data, dtype, shape)
                super().__setstate__((1, shape, dtype, bool(order), data))  # type: ignore[arg-type]
                self.unpickler = None
            case _:
                raise ValueError('it sets a state that no plain array has')


def _text(value: str | bytes) -> str:
    return value.decode('latin-1') if isinstance(value, bytes) else value
