"""What a native request gives up under pressure: context of little relevance, and the length of the answer.

Always holds: only whole `context` blocks and the one number `generation.max_output_tokens` are touched; every other
byte of the message, fields of a newer contract included, leaves as it came and in the order it came; what cannot be
read to its last field leaves whole, with a reason of `core.payload`. A block goes only if the caller rated it below
the bound and did not ask for it verbatim. The number is changed where it stands, as some readers replace a message
field that comes twice instead of merging it. A message that was compressed leaves uncompressed, as gRPC allows for
each message: the caller's compression saved a network that ends here, and redoing it costs more than all the rest.

Deliberately not here: when this is done (filter `degrade`), replies, protobuf's own library: it would put fields in
another order, and those it does not know behind all others.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from outrider_sidecar.core.payload import MALFORMED
from outrider_sidecar.payloads.wire import PREFIX_BYTES, Unreadable, one_message

# Wire types.
_VARINT: Final = 0
_FIXED64: Final = 1
_BYTES: Final = 2
_GROUP: Final = 3
_END_GROUP: Final = 4
_FIXED32: Final = 5

# Tags, field number << 3 | wire type.
_CONTEXT: Final = 8 << 3 | _BYTES  # of InvokeRequest
_GENERATION: Final = 10 << 3 | _BYTES
_RELEVANCE: Final = 5 << 3 | _FIXED32  # of ContextBlock
_VERBATIM: Final = 7 << 3 | _VARINT
_OUTPUT_TOKENS: Final = 5 << 3 | _VARINT  # of Generation

_MAX_VARINT_BYTES: Final = 10
_MAX_DEPTH: Final = 100  # of groups in groups, as protobuf's own readers
_FLOAT: Final = struct.Struct("<f")


class Rewritten(NamedTuple):
    """A request body to send on, and what was done to it. `reason`: why nothing was, where it could not be read."""

    body: bytes
    trimmed: int = 0  # context blocks left out
    capped: bool = False
    reason: str = ""


class _Broken(Exception):
    """No protobuf message."""


# Bytes from the first to before the second become the third.
_Edit = tuple[int, int, bytes]


def rewritten(body: bytes, encoding: bytes, relevance: float, output_tokens: int) -> Rewritten:
    """A body of one InvokeRequest without the context rated below `relevance` (0: all of it stays), asking for at most
    `output_tokens` of answer (0: as many as it did)."""
    try:
        message = one_message(body, encoding)
        edits, trimmed, capped = _edits(message, relevance, output_tokens)
    except Unreadable as error:
        return Rewritten(body, reason=error.reason)
    except _Broken:
        return Rewritten(body, reason=MALFORMED)
    if not edits:
        return Rewritten(body)
    pieces = [b""]
    at = 0
    for start, end, text in edits:
        pieces.append(message[at:start])
        pieces.append(text)
        at = end
    pieces.append(message[at:])
    size = sum(map(len, pieces))
    pieces[0] = b"\0" + size.to_bytes(PREFIX_BYTES - 1, "big")
    return Rewritten(b"".join(pieces), trimmed, capped)


def _edits(message: bytes, relevance: float, output_tokens: int) -> tuple[list[_Edit], int, bool]:
    """What to change, in the order of the message; how many blocks go; whether the answer is cut shorter."""
    edits: list[_Edit] = []
    least: float = _FLOAT.unpack(_FLOAT.pack(relevance))[0]  # as precise as what it is compared with
    capping = _Capping()
    size = len(message)
    at = 0
    while at < size:
        start = at
        tag = message[at]  # here and in `_goes` the usual case, tags and lengths of one byte, costs no call
        if 8 <= tag < 0x80:
            at += 1
        else:
            tag, at = _tag(message, at, size)
        if tag & 7 != _BYTES:
            at = _skip(message, at, size, tag)
            continue
        length_at = at
        if at < size and message[at] < 0x80:
            length = message[at]
            at += 1
        else:
            length, at = _varint(message, at, size)
        end = at + length
        if end > size:
            raise _Broken
        if tag == _CONTEXT:
            if relevance > 0.0 and _goes(message, at, end, least):
                edits.append((start, end, b""))
        elif tag == _GENERATION and output_tokens > 0:
            capping.read(message, start, length_at, at, end)
        at = end
    trimmed = len(edits)
    if output_tokens <= 0 or capping.tokens <= output_tokens:
        return edits, trimmed, False
    edits.append(capping.edit(message, output_tokens))
    edits.sort()
    return edits, trimmed, True


class _Capping:
    """Where `max_output_tokens` stands, or would. `tokens` is what it asks for: the last one said counts."""

    __slots__ = ("_end", "_length_at", "_number_at", "_number_end", "_start", "_value_at", "tokens")

    def __init__(self) -> None:
        self.tokens = 1 << 32  # not said
        self._start = -1  # of the field `generation` that says it, else of the last one; -1: there is none
        self._length_at = 0
        self._value_at = 0
        self._end = 0
        self._number_at = 0  # of the number in it
        self._number_end = 0

    def read(self, message: bytes, start: int, length_at: int, value_at: int, end: int) -> None:
        """One field `generation`."""
        number_at = number_end = end
        said = False
        at = value_at
        while at < end:
            tag, at = _tag(message, at, end)
            if tag == _OUTPUT_TOKENS:
                number_at = at
                value, at = _varint(message, at, end)
                number_end = at
                self.tokens = value & 0xFFFF_FFFF
                said = True
            else:
                at = _skip(message, at, end, tag)
        if said or self.tokens >> 32:
            self._start, self._length_at, self._value_at, self._end = start, length_at, value_at, end
            self._number_at, self._number_end = number_at, number_end

    def edit(self, message: bytes, output_tokens: int) -> _Edit:
        """The field with another number in it, or a new one behind all others."""
        number = _encoded(output_tokens)
        if self.tokens >> 32:
            number = bytes((_OUTPUT_TOKENS,)) + number
        if self._start < 0:
            return len(message), len(message), bytes((_GENERATION, len(number))) + number
        value = message[self._value_at : self._number_at] + number + message[self._number_end : self._end]
        return self._start, self._end, message[self._start : self._length_at] + _encoded(len(value)) + value


def _goes(message: bytes, at: int, end: int, least: float) -> bool:
    """Whether a context block is rated, below `least`, and may be left out."""
    rated = verbatim = False
    rating = 0.0
    while at < end:
        tag = message[at]
        if 8 <= tag < 0x80:
            at += 1
        else:
            tag, at = _tag(message, at, end)
        if tag & 7 == _BYTES:
            if at < end and message[at] < 0x80:
                at += 1 + message[at]
            else:
                length, at = _varint(message, at, end)
                at += length
            if at > end:
                raise _Broken
        elif tag == _RELEVANCE:
            if at + 4 > end:
                raise _Broken
            rating = _FLOAT.unpack_from(message, at)[0]
            rated = True
            at += 4
        elif tag == _VERBATIM:
            value, at = _varint(message, at, end)
            verbatim = value != 0
        else:
            at = _skip(message, at, end, tag)
    return rated and rating < least and not verbatim


def _tag(message: bytes, at: int, end: int) -> tuple[int, int]:
    """The tag there, and where it ends."""
    tag = message[at]
    if tag >= 0x80:
        tag, at = _varint(message, at, end)
    else:
        at += 1
    if not 8 <= tag < 1 << 32:
        raise _Broken
    return tag, at


def _varint(message: bytes, at: int, end: int) -> tuple[int, int]:
    """The number there, of 64 bits, and where it ends."""
    if at >= end:
        raise _Broken
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
    raise _Broken


def _skip(message: bytes, at: int, end: int, tag: int) -> int:
    """Where the value of a field ends."""
    kind = tag & 7
    if kind == _GROUP:
        return _skip_group(message, at, end, tag)
    if kind == _BYTES:
        length, at = _varint(message, at, end)
        at += length
    elif kind == _VARINT:
        _, at = _varint(message, at, end)
    elif kind == _FIXED32:
        at += 4
    elif kind == _FIXED64:
        at += 8
    else:
        raise _Broken
    if at > end:
        raise _Broken
    return at


def _skip_group(message: bytes, at: int, end: int, tag: int) -> int:
    """Where a group ends; nobody writes them any more, and readers keep them all the same."""
    awaited = [tag + _END_GROUP - _GROUP]
    while awaited:
        if at >= end:
            raise _Broken
        tag, at = _tag(message, at, end)
        kind = tag & 7
        if kind == _END_GROUP:
            if awaited.pop() != tag:
                raise _Broken
        elif kind == _GROUP:
            if len(awaited) >= _MAX_DEPTH:
                raise _Broken
            awaited.append(tag + _END_GROUP - _GROUP)
        else:
            at = _skip(message, at, end, tag)
    return at


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
