"""Protobuf's wire format, and the two OTLP messages everything has: `AnyValue` and `KeyValue`.

Always holds: any bytes give fields or `Malformed`; work is linear in their length. A text that is not UTF-8 is read
with replacement characters, a long one is cut. Groups (wire types 3 and 4), which OTLP does not have, are malformed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final

TEXT_MAX_CHARS: Final = 256  # of a text that is counted by; past it, it is cut
_DOUBLE: Final = struct.Struct("<d").unpack_from

Value = str | int | float | bool | None


class Malformed(ValueError):
    """Bytes that are not what they should be; says what and where."""


def varint(data: bytes, position: int) -> tuple[int, int]:
    """(value, position after it)."""
    value = shift = 0
    while True:
        if position >= len(data):
            raise Malformed("cut short within a number")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position
        shift += 7
        if shift > 63:
            raise Malformed("a number of more than 10 bytes")


def fields(data: bytes) -> Iterator[tuple[int, int, Any]]:
    """(field number, wire type, value) of every field: int for varint, bytes for the others."""
    position, end = 0, len(data)
    while position < end:
        tag, position = varint(data, position)
        wire = tag & 7
        if tag < 8 or tag > 0xFFFF_FFFF:
            raise Malformed("field number 0 or too large")
        if wire == 2:
            size, position = varint(data, position)
            stop = position + size
        elif wire == 0:
            value, position = varint(data, position)
            yield tag >> 3, 0, value
            continue
        elif wire == 1:
            stop = position + 8
        elif wire == 5:
            stop = position + 4
        else:
            raise Malformed(f"field {tag >> 3} of wire type {wire}")
        if stop > end:
            raise Malformed(f"field {tag >> 3} is cut short")
        yield tag >> 3, wire, data[position:stop]
        position = stop


def text(data: bytes, limit: int = TEXT_MAX_CHARS) -> str:
    # A UTF-8 character has at most four bytes: what is longer need not be decoded to be cut.
    return data[: limit * 4].decode("utf-8", "replace")[:limit]


def signed(number: int) -> int:
    """An int64 as its varint holds it."""
    return number - (1 << 64) if number >> 63 else number


def any_value(data: bytes) -> Value:
    """An `AnyValue`'s text, number or truth; None for what holds others."""
    value: Value = None
    for number, wire, content in fields(data):
        if number == 1 and wire == 2:
            value = text(content)
        elif number == 2 and wire == 0:
            value = bool(content)
        elif number == 3 and wire == 0:
            value = signed(content)
        elif number == 4 and wire == 1:
            value = _DOUBLE(content)[0]
        elif number in (5, 6, 7) and wire == 2:
            value = None
    return value


def key_value(data: bytes) -> tuple[bytes, Value]:
    key, value = b"", None
    for number, wire, content in fields(data):
        if wire == 2 and number == 1:
            key = content
        elif wire == 2 and number == 2:
            value = any_value(content)
    return key, value


def field_at(data: bytes, position: int) -> tuple[int, int]:
    """(where the content of the field at `position` begins, where the field ends)."""
    tag = data[position]
    if tag < 0x80:
        position += 1
    else:
        tag, position = varint(data, position)
    wire = tag & 7
    if tag < 8 or tag > 0xFFFF_FFFF:
        raise Malformed("field number 0 or too large")
    begin = position
    if wire == 2:
        size, begin = varint(data, position)
        position = begin + size
    elif wire == 0:
        position = varint(data, position)[1]
    elif wire == 1:
        position += 8
    elif wire == 5:
        position += 4
    else:
        raise Malformed(f"a span's field {tag >> 3} of wire type {wire}")
    if position > len(data):
        raise Malformed(f"a span's field {tag >> 3} is cut short")
    return begin, position
