"""Reading protocol buffers of strangers: the number of their fields is bounded before the library builds objects.

An empty message takes two bytes of a file and about a hundred of memory, so the size of a file alone bounds little.

Source: Protocol Buffers documentation, "Encoding": a field is a varint of number and wire type, and its contents.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from trainer.errors import InputError

MAX_COST = 5_000_000  # a number, a text or an array costs 1
MESSAGE_COST = 25
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
WIDTHS = {FIXED64: 8, FIXED32: 4}
MAX_DEPTH = 100  # of messages in messages, as in the library


def define(package: str, messages: Mapping[str, Mapping[str, tuple[int, str]]], name: str) -> Any:
    """The class of a message.

    Args:
        package: a name of its own for each format.
        messages: name -> field -> (number, type), the type with '*' if repeated; the parser skips all other fields.
        name: of the message, one of `messages`.
    """
    file = descriptor_pb2.FileDescriptorProto(name=f'squeeze_net/{package}.proto', package=f'squeeze_net.{package}')
    for message, fields in messages.items():
        described = file.message_type.add(name=message)
        for field_name, (number, kind) in fields.items():
            field = described.field.add(name=field_name, number=number)
            field.label = field.LABEL_REPEATED if kind.endswith('*') else field.LABEL_OPTIONAL
            kind = kind.removesuffix('*')
            if kind in messages:
                field.type, field.type_name = field.TYPE_MESSAGE, f'.squeeze_net.{package}.{kind}'
            else:
                field.type = getattr(field, f'TYPE_{kind.upper()}')
                field.options.packed = kind in ('int64', 'float', 'double')
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f'squeeze_net.{package}.{name}'))


def parse(kind: Any, raw: memoryview, name: str) -> Any:
    """The message of class `kind` in the bytes `raw`.

    Args:
        name: of the kind of file, for the message of an error.
    Raises:
        InputError: not such a message, cut short, or of more parts than a network has.
    """
    try:
        cost = _cost(kind.DESCRIPTOR, raw, MAX_COST)
        if cost > MAX_COST:
            raise InputError(f'it has more parts than {name} of a network')
        return kind.FromString(bytes(raw))
    except (DecodeError, IndexError):
        raise InputError(f'it is not {name}, or is cut short') from None


def _cost(described: Any, raw: memoryview, most: int, depth: int = 0) -> int:
    """What the fields of a message and of the messages in it cost; anything above `most` where that is reached."""
    fields = described.fields_by_number
    at = cost = 0
    while at < len(raw) and cost <= most:
        key, at = _varint(raw, at)
        cost += 1
        if key & 7 == VARINT:
            _, at = _varint(raw, at)
        elif key & 7 == BYTES:
            n_byte, at = _varint(raw, at)
            if n_byte > len(raw) - at:
                raise DecodeError
            field = fields.get(key >> 3)
            if field is not None and field.message_type is not None:
                cost += MESSAGE_COST
                if depth < MAX_DEPTH:  # deeper, the library refuses
                    cost += _cost(field.message_type, raw[at : at + n_byte], most - cost, depth + 1)
            at += n_byte
        elif key & 7 in WIDTHS:
            at += WIDTHS[key & 7]
        else:
            raise DecodeError  # groups, which these files do not have
    return cost


def _varint(raw: memoryview, at: int) -> tuple[int, int]:
    """The number at a place, and the place after it."""
    value = shift = 0
    while True:
        byte = raw[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise DecodeError
