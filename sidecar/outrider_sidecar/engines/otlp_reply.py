"""What a collector answers: partial success, and how long to wait before a retry.

Always holds: bytes that do not parse say nothing; they never raise. Only the fields named here are read.

Deliberately not here: what follows from an answer (`engines.export_queue`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

_RETRY_INFO = b"/google.rpc.RetryInfo"


class PartialSuccess(NamedTuple):
    rejected: int
    message: str


def partial_success(reply: bytes) -> PartialSuccess:
    """`partial_success` (1) of an ExportTraceServiceResponse: rejected_spans (1), error_message (2)."""
    rejected, message = 0, ""
    for number, value in _fields(_submessage(reply, 1)):
        if number == 1 and isinstance(value, int):
            rejected = value
        elif number == 2 and isinstance(value, bytes):
            message = value[:1024].decode("utf-8", "replace")
    return PartialSuccess(rejected, message)


def retry_delay_s(details: bytes) -> float | None:
    """The RetryInfo delay in a `google.rpc.Status` (the decoded grpc-status-details-bin), None without one."""
    for number, value in _fields(details):
        if number != 3 or not isinstance(value, bytes):
            continue
        if bytes(_last(value, 1) or b"").endswith(_RETRY_INFO):
            duration = dict(_fields(_submessage(_submessage(value, 2), 1)))
            seconds, nanos = duration.get(1, 0), duration.get(2, 0)
            if isinstance(seconds, int) and isinstance(nanos, int) and seconds < 2**63 and nanos < 1_000_000_000:
                return seconds + nanos / 1e9
    return None


def _submessage(message: bytes, number: int) -> bytes:
    return _last(message, number) or b""


def _last(message: bytes, number: int) -> bytes | None:
    found = None
    for field_number, value in _fields(message):
        if field_number == number and isinstance(value, bytes):
            found = value
    return found


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, varint or bytes) of each field up to the first that is malformed; fixed-width ones are skipped."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        wire_type = tag & 7
        if wire_type == 0:
            value, position = _varint(message, position)
            if position > len(message):
                return
            yield tag >> 3, value
        elif wire_type == 2:
            size, position = _varint(message, position)
            if position + size > len(message):
                return
            yield tag >> 3, message[position : position + size]
            position += size
        elif wire_type in (1, 5):
            position += 8 if wire_type == 1 else 4
        else:
            return


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """The number and the position after it; past the end of `message` where it is cut off or too long."""
    value = shift = 0
    while position < len(message) and shift < 70:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position
        shift += 7
    return 0, len(message) + 1
