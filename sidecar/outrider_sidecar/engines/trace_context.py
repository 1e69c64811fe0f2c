"""W3C Trace Context (Level 2): reading `traceparent` and `tracestate`, making ids, writing the outgoing header.

Always holds: ids are lower-case hex bytes, never all zero; what is not valid is treated as absent, never repaired;
randomness comes in as an argument. A forwarded context keeps trace id, flags and tracestate: only the span id is new.

Deliberately not here: whether a trace is sampled (`engines.sampler`), baggage.
"""

from __future__ import annotations

from binascii import hexlify
from collections.abc import Callable, Sequence
from typing import Final

GetRandBits = Callable[[int], int]  # random.Random(...).getrandbits, or SystemRandom's
TraceParent = tuple[bytes, bytes, int]  # trace id (32 hex digits), parent span id (16), flags

# What every hex digit and every dash is in the shape of a header; all else is an x.
_SHAPE: Final = bytes(0x30 if byte in b"0123456789abcdef" else 0x2D if byte == 0x2D else 0x78 for byte in range(256))
_SHAPED: Final = b"00-%b-%b-00" % (b"0" * 32, b"0" * 16)
_ZERO_TRACE: Final = b"0" * 32
_ZERO_SPAN: Final = b"0" * 16
_FLAGS_OF: Final = {b"%02x" % flags: flags for flags in range(256)}
_KNOWN_FLAGS: Final = 0x03  # sampled, and Level 2's random-trace-id; others must not be passed on
_FLAGS_TEXT: Final = tuple(b"%02x" % (flags & _KNOWN_FLAGS) for flags in range(256))
_LENGTH: Final = 55  # of version 00; later versions may only append "-..."

_STATE_MAX_BYTES: Final = 512  # what everyone must be able to pass on
_STATE_MAX_MEMBERS: Final = 32
_STATE_LONG_MEMBER_BYTES: Final = 128  # the first to go when the whole is too long
_STATE_CHARS: Final = bytes(range(0x20, 0x7F)) + b"\t"


def parse(value: bytes) -> TraceParent | None:
    """The ids and flags of one `traceparent`, or None if it is invalid; several such headers count as none."""
    # With every hex digit a 0 the header is this one: one C call checks all characters of a version 00 header.
    if value.translate(_SHAPE) != _SHAPED:
        value = _later_version(value)
        if not value:
            return None
    trace_id = value[3:35]
    parent_id = value[36:52]
    flags = _FLAGS_OF.get(value[53:55])
    if flags is None or value[:2] == b"ff" or trace_id == _ZERO_TRACE or parent_id == _ZERO_SPAN:
        return None
    return trace_id, parent_id, flags


def _later_version(value: bytes) -> bytes:
    """The part of a longer header that every version shares, or b"" where none may be read."""
    shared = value[:_LENGTH]
    if value[:2] == b"00" or value[_LENGTH : _LENGTH + 1] != b"-" or shared.translate(_SHAPE) != _SHAPED:
        return b""
    return shared


def new_ids(getrandbits: GetRandBits) -> tuple[bytes, bytes]:
    """A trace id and a span id of one draw: of two, formatted one by one, it takes half the time."""
    bits: int = getrandbits(192)
    digits = hexlify(bits.to_bytes(24, "big"))
    trace_id, span_id = digits[:32], digits[32:]
    if trace_id == _ZERO_TRACE:
        trace_id = trace_id[:-1] + b"1"
    if span_id == _ZERO_SPAN:
        span_id = span_id[:-1] + b"1"
    return trace_id, span_id


def new_span_id(getrandbits: GetRandBits) -> bytes:
    """A span id under a trace that is there."""
    bits: int = getrandbits(64) or 1
    return hexlify(bits.to_bytes(8, "big"))


def build(trace_id: bytes, span_id: bytes, flags: int) -> bytes:
    """A version 00 `traceparent`."""
    return b"00-%b-%b-%b" % (trace_id, span_id, _FLAGS_TEXT[flags & 0xFF])


def tracestate(values: Sequence[bytes]) -> bytes:
    """All `tracestate` headers of a call as one value to pass on; b"" for none or for one that is not valid.

    Within 512 bytes it stays byte for byte (several headers are joined by commas). Beyond, whole members go: those
    over 128 bytes first, then from the right, as the specification asks.
    """
    if not values:
        return b""
    value = values[0] if len(values) == 1 else b",".join(values)
    if value.translate(None, _STATE_CHARS):
        return b""
    if len(value) <= _STATE_MAX_BYTES and value.count(b",") < _STATE_MAX_MEMBERS:
        return value
    members = [member for member in (part.strip() for part in value.split(b",")) if member]
    if len(members) > _STATE_MAX_MEMBERS:
        return b""
    size_bytes = sum(map(len, members)) + len(members) - 1
    if size_bytes > _STATE_MAX_BYTES:
        members = [member for member in members if len(member) <= _STATE_LONG_MEMBER_BYTES]
        size_bytes = sum(map(len, members)) + len(members) - 1
    while size_bytes > _STATE_MAX_BYTES:
        size_bytes -= len(members.pop()) + 1
    return b",".join(members)
