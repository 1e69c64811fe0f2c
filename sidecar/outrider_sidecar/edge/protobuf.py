"""The protobuf wire format, as far as the sidecar's own tiny messages need it: no protobuf is loaded for them.

Always holds: bytes that do not parse say nothing; they never raise.

Deliberately not here: the native Agent API (`payloads.native`) and OTLP (engines `otlp`).
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}


def bytes_field(number: int, value: bytes) -> bytes:
    """A field of bytes, text or a message; proto3 leaves an empty text out, which is up to the caller."""
    return _encode(number << 3 | _BYTES) + _encode(len(value)) + value


def varint_field(number: int, value: int) -> bytes:
    """A field of an enum or an unsigned number."""
    return _encode(number << 3 | _VARINT) + _encode(value)


def last_bytes(message: bytes, number: int) -> bytes:
    """The field's value as sent last; empty where there is none."""
    found = b""
    for field_number, value in fields(message):
        if field_number == number and isinstance(value, bytes):
            found = value
    return found


def last_varint(message: bytes, number: int) -> int:
    """The field's value as sent last; 0 where there is none."""
    found = 0
    for field_number, value in fields(message):
        if field_number == number and isinstance(value, int):
            found = value
    return found


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, varint or bytes) of each field up to the first that is malformed; fixed-width ones are skipped."""
    at, end = 0, len(message)
    while at < end:
        tag, at = _decode(message, at)
        kind = tag & 7
        if kind == _VARINT:
            value, at = _decode(message, at)
            if at > end:
                return
            yield tag >> 3, value
        elif kind == _BYTES:
            size, at = _decode(message, at)
            if at + size > end:
                return
            yield tag >> 3, message[at : at + size]
            at += size
        elif kind in _FIXED_BYTES:
            at += _FIXED_BYTES[kind]
        else:
            return


def _encode(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _decode(message: bytes, at: int) -> tuple[int, int]:
    """The number and the position after it; past the end of `message` where it is cut off or too long."""
    value = shift = 0
    while at < len(message) and shift < 70:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
        shift += 7
    return 0, len(message) + 1
