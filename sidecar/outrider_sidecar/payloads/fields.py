"""Protobuf's wire format, field by field, for who changes a message and leaves every other byte as it came.

Always holds: `Broken` is the only error, of bytes that are no message; nothing is read past `end`.

Deliberately not here: which fields mean what (`rewrite`, `native_blocks`).
"""

from __future__ import annotations

from typing import Final

# Wire types.
VARINT: Final = 0
FIXED64: Final = 1
BYTES: Final = 2
GROUP: Final = 3
END_GROUP: Final = 4
FIXED32: Final = 5

_MAX_VARINT_BYTES: Final = 10
_MAX_DEPTH: Final = 100  # of groups in groups, as protobuf's own readers


class Broken(Exception):
    """No protobuf message."""


def read_tag(message: bytes, at: int, end: int) -> tuple[int, int]:
    """The tag there, and where it ends."""
    tag = message[at]
    if tag >= 0x80:
        tag, at = read_varint(message, at, end)
    else:
        at += 1
    if not 8 <= tag < 1 << 32:
        raise Broken
    return tag, at


def read_varint(message: bytes, at: int, end: int) -> tuple[int, int]:
    """The number there, of 64 bits, and where it ends."""
    if at >= end:
        raise Broken
    byte = message[at]
    at += 1
    if byte < 0x80:
        return byte, at
    value = byte & 0x7F
    last = min(end, at + _MAX_VARINT_BYTES - 1)
    shift = 7
    while at < last:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
        shift += 7
    raise Broken


def skip(message: bytes, at: int, end: int, tag: int) -> int:
    """Where the value of a field ends."""
    kind = tag & 7
    if kind == GROUP:
        return _skip_group(message, at, end, tag)
    if kind == BYTES:
        length, at = read_varint(message, at, end)
        at += length
    elif kind == VARINT:
        _, at = read_varint(message, at, end)
    elif kind == FIXED32:
        at += 4
    elif kind == FIXED64:
        at += 8
    else:
        raise Broken
    if at > end:
        raise Broken
    return at


def _skip_group(message: bytes, at: int, end: int, tag: int) -> int:
    """Where a group ends; nobody writes them any more, and readers keep them all the same."""
    awaited = [tag + END_GROUP - GROUP]
    while awaited:
        if at >= end:
            raise Broken
        tag, at = read_tag(message, at, end)
        kind = tag & 7
        if kind == END_GROUP:
            if awaited.pop() != tag:
                raise Broken
        elif kind == GROUP:
            if len(awaited) >= _MAX_DEPTH:
                raise Broken
            awaited.append(tag + END_GROUP - GROUP)
        else:
            at = skip(message, at, end, tag)
    return at


def encoded(value: int) -> bytes:
    """A number as a varint."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
