"""Pickles of NumPy arrays read as data: nothing they name is imported or called.

`pickle.load` runs whatever its file says.  Here `pickletools` splits the file into opcodes, and the few that
containers, strings, numbers and plain arrays are made of are interpreted below; any other opcode or name is refused.
A hostile file can neither run code nor allocate more than a small multiple of its own size.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
from enum import Enum, auto
from typing import Any, Literal

import numpy as np

from trainer.errors import InputError

MAX_BYTES = 256 << 20  # the largest file of CIFAR-10 and CIFAR-100 has 155 MB
MAX_OPCODES = 1 << 20  # that file has some 200,000; an opcode makes at most one object


def read_pickle(raw: bytes, name: str) -> Any:
    """The value a pickle holds: dicts, lists, tuples, strings, numbers, None and arrays of plain dtypes.

    Args:
        raw: the whole file, of any protocol, written by Python 2 or 3, at most MAX_BYTES.
        name: what messages call the file.
    Returns:
        The value; the 8-bit strings of Python 2 come as bytes.
    Raises:
        InputError: the file is too large, cut short, or holds anything but such data.
    """
    try:
        return _ArrayMachine(raw).run()
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(f'{name} cannot be read as a pickle of plain arrays: {str(error)[:120]}') from None


class _Global(Enum):
    """The names a pickled array refers to; nothing else may be named."""

    RECONSTRUCT = auto()
    FROMBUFFER = auto()
    SCALAR = auto()
    NDARRAY = auto()
    DTYPE = auto()
    ENCODE = auto()
    BYTES = auto()


_GLOBALS = {
    ('numpy', 'ndarray'): _Global.NDARRAY,
    ('numpy', 'dtype'): _Global.DTYPE,
    ('_codecs', 'encode'): _Global.ENCODE,  # how Python 3 writes bytes for Python 2 ...
    ('__builtin__', 'bytes'): _Global.BYTES,  # ... and b''
}
for _core in 'numpy.core', 'numpy._core':  # before and since NumPy 2
    _GLOBALS[f'{_core}.multiarray', '_reconstruct'] = _Global.RECONSTRUCT
    _GLOBALS[f'{_core}.multiarray', 'scalar'] = _Global.SCALAR
    _GLOBALS[f'{_core}.numeric', '_frombuffer'] = _Global.FROMBUFFER

_PLAIN_DTYPE = re.compile(r'[|<>=]?(b1|[iu][1248]|f[248])')


class StackMachine:
    """The stack machine of the pickle format, with the opcodes that data need.

    What names, calls and states mean is a subclass's matter; here, none is admitted.

    Args:
        raw: a pickle, or a file that stands at the beginning of one.
    """

    def __init__(self, raw: bytes | io.BytesIO) -> None:
        self.raw = raw
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: dict[int, Any] = {}

    def admit(self, module: str, name: str) -> Any:
        """What stands for a name on the stack."""
        raise ValueError(f'it names {module!r} {name!r}')

    def call(self, function: Any, arguments: Any) -> Any:
        """What becomes of calling what `admit` gave."""
        raise ValueError('it calls something')

    def set_state(self, target: Any, state: Any) -> None:
        raise ValueError('it sets a state')

    def load_persistent(self, identity: Any) -> Any:
        """What an identity stands for that the writer has kept outside the pickle."""
        raise ValueError('it refers to something outside')

    def run(self) -> Any:
        """The value.

        Raises:
            ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError: it is broken, or not
                data.
        """
        for count, (opcode, argument, _) in enumerate(pickletools.genops(self.raw)):
            if count == MAX_OPCODES:
                raise ValueError(f'it has more than {MAX_OPCODES} opcodes')
            if opcode.name == 'STOP':
                break
            self.step(opcode.name, argument)
        return self.stack.pop()

    def step(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        match opcode:
            case 'BININT1' | 'BININT2' | 'BININT' | 'INT' | 'LONG' | 'LONG1' | 'LONG4' | 'BINFLOAT' | 'FLOAT':
                stack.append(argument)
            case 'SHORT_BINSTRING' | 'BINSTRING' | 'STRING':  # 8-bit; pickletools decodes them as Latin-1
                stack.append(argument.encode('latin-1'))
            case 'SHORT_BINBYTES' | 'BINBYTES' | 'BINBYTES8' | 'BYTEARRAY8':
                stack.append(argument)
            case 'SHORT_BINUNICODE' | 'BINUNICODE' | 'BINUNICODE8' | 'UNICODE':
                stack.append(argument)
            case 'NONE':
                stack.append(None)
            case 'NEWTRUE' | 'NEWFALSE':
                stack.append(opcode == 'NEWTRUE')
            case 'BINPUT' | 'LONG_BINPUT' | 'PUT':
                self.memo[argument] = stack[-1]
            case 'MEMOIZE':
                self.memo[len(self.memo)] = stack[-1]
            case 'BINGET' | 'LONG_BINGET' | 'GET':
                stack.append(self.memo[argument])
            case 'MARK':
                self.marks.append(len(stack))
            case 'EMPTY_LIST' | 'LIST':
                stack.append(self.pop_to_mark() if opcode == 'LIST' else [])
            case 'APPEND' | 'APPENDS':
                items = self.pop_to_mark() if opcode == 'APPENDS' else [stack.pop()]
                _expect(stack[-1], list).extend(items)
            case 'EMPTY_TUPLE' | 'TUPLE':
                stack.append(tuple(self.pop_to_mark() if opcode == 'TUPLE' else ()))
            case 'TUPLE1' | 'TUPLE2' | 'TUPLE3':
                stack.append(tuple(self.pop(int(opcode[-1]))))
            case 'EMPTY_DICT' | 'DICT':
                stack.append(_pairs(self.pop_to_mark() if opcode == 'DICT' else []))
            case 'SETITEM' | 'SETITEMS':
                items = self.pop_to_mark() if opcode == 'SETITEMS' else self.pop(2)
                _expect(stack[-1], dict).update(_pairs(items))
            case 'GLOBAL':
                stack.append(self.admit(*argument.split(' ', 1)))
            case 'STACK_GLOBAL':
                stack.append(self.admit(*map(_text, self.pop(2))))
            case 'BINPERSID':
                stack.append(self.load_persistent(stack.pop()))
            case 'REDUCE':
                stack.append(self.call(*self.pop(2)))
            case 'BUILD':
                state = stack.pop()
                self.set_state(stack[-1], state)
            case 'PROTO' | 'FRAME':
                pass
            case _:
                raise ValueError(f'opcode {opcode} is not admitted')

    def pop(self, n: int) -> list[Any]:
        if len(self.stack) < n:
            raise ValueError('its stack runs empty')
        items = self.stack[-n:]
        del self.stack[-n:]
        return items

    def pop_to_mark(self) -> list[Any]:
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items


class _ArrayMachine(StackMachine):
    """Makes plain arrays."""

    def __init__(self, raw: bytes) -> None:
        if len(raw) > MAX_BYTES:
            raise ValueError(f'it has {len(raw)} bytes, more than {MAX_BYTES}')
        super().__init__(raw)
        self.budget = 2 * len(raw)  # bytes that calls may still make: an array of a str encoded just before

    def admit(self, module: str, name: str) -> _Global:
        if (admitted := _GLOBALS.get((module, name))) is None:
            raise ValueError(f'it names {module!r} {name!r}, which no plain array needs')
        return admitted

    def call(self, function: Any, arguments: Any) -> Any:
        match function, arguments:
            case _Global.RECONSTRUCT, (_Global.NDARRAY, (0,), 'b' | b'b'):
                return np.empty(0, np.int8)  # set_state fills it
            case _Global.DTYPE, (str() | bytes() as code, *_):
                return _Dtype(_text(code))
            case _Global.ENCODE, (str() as text, 'latin1' | 'latin-1'):
                self.spend(len(text))
                return text.encode('latin-1')
            case _Global.BYTES, ():
                return b''
            case _Global.SCALAR, (_Dtype(plain=dtype), bytes() as data):
                return self.array(data, dtype, (), 'C')[()]
            case _Global.FROMBUFFER, (
                bytes() | bytearray() as data,
                _Dtype(plain=dtype),
                tuple() as shape,
                'C' | 'F' as order,
            ):
                return self.array(data, dtype, shape, order)
        raise ValueError('it calls something with arguments no plain array has')

    def set_state(self, target: Any, state: Any) -> None:
        match target, state:
            case _Dtype(), (3, '|' | '<' | '>' | b'|' | b'<' | b'>' as order, None, None, None, -1, -1, 0):
                target.plain = target.plain.newbyteorder(_text(order))  # type: ignore[arg-type]
            case np.ndarray(), (1, tuple() as shape, _Dtype(plain=dtype), is_fortran, bytes() as data):
                self.check_size(data, dtype, shape)
                target.__setstate__((1, shape, dtype, bool(is_fortran), data))  # type: ignore[arg-type]
            case _:
                raise ValueError('it sets a state no plain array has')

    def array(
        self, data: bytes | bytearray, dtype: np.dtype, shape: tuple[Any, ...], order: Literal['C', 'F']
    ) -> np.ndarray:
        self.check_size(data, dtype, shape)
        return np.frombuffer(data, dtype).reshape(shape, order=order)

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

    def __init__(self, code: str) -> None:
        if not _PLAIN_DTYPE.fullmatch(code):
            raise ValueError(f'dtype {code!r} is not a plain number')
        self.plain = np.dtype(code)


def _pairs(items: list[Any]) -> dict[Any, Any]:
    keys = items[::2]
    if not all(isinstance(key, str | bytes | int) for key in keys):  # hashing deep tuples would overflow C's stack
        raise ValueError('a key is neither a string nor a number')
    return dict(zip(keys, items[1::2], strict=True))


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f'it holds something else where a {kind.__name__} is needed')
    return value


def _text(value: Any) -> str:
    return value.decode('latin-1') if isinstance(value, bytes) else _expect(value, str)
