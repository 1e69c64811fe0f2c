"""What a native request is changed in on its way: under pressure it gives up context of little relevance and the length
of the answer, for a variant it asks for another model or other parameters.

Always holds: only whole `context` blocks and single fields of `generation` are touched; every other
byte of the message, fields of a newer contract included, leaves as it came and in the order it came; what cannot be
read to its last field leaves whole, with a reason of `core.payload`. A block goes only if the caller rated it below
the bound and did not ask for it verbatim. The number is changed where it stands, as some readers replace a message
field that comes twice instead of merging it. A message that was compressed leaves uncompressed, as gRPC allows for
each message: the caller's compression saved a network that ends here, and redoing it costs more than all the rest.

Deliberately not here: when this is done (filters `degrade` and `generation`), replies, protobuf's own library: it would
put fields in another order, and those it does not know behind all others.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from outrider_sidecar.core.payload import MALFORMED
from outrider_sidecar.payloads.fields import BYTES, FIXED32, VARINT, Broken, encoded, read_tag, read_varint, skip
from outrider_sidecar.payloads.wire import PREFIX_BYTES, Unreadable, one_message

# Tags, field number << 3 | wire type.
_CONTEXT: Final = 8 << 3 | BYTES  # of InvokeRequest
_GENERATION: Final = 10 << 3 | BYTES
_RELEVANCE: Final = 5 << 3 | FIXED32  # of ContextBlock
_VERBATIM: Final = 7 << 3 | VARINT
_MODEL: Final = 1 << 3 | BYTES  # of Generation
_TEMPERATURE: Final = 2 << 3 | FIXED32
_TOP_P: Final = 3 << 3 | FIXED32
_OUTPUT_TOKENS: Final = 5 << 3 | VARINT

_FLOAT: Final = struct.Struct("<f")


class Rewritten(NamedTuple):
    """A request body to send on, and what was done to it. `reason`: why nothing was, where it could not be read."""

    body: bytes
    trimmed: int = 0  # context blocks left out
    capped: bool = False
    reason: str = ""


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
    except Broken:
        return Rewritten(body, reason=MALFORMED)
    return Rewritten(_edited(message, edits), trimmed, capped) if edits else Rewritten(body)


def regenerated(
    body: bytes,
    encoding: bytes,
    model: str,
    temperature: float | None,
    top_p: float | None,
    max_output_tokens: int | None,
) -> Rewritten:
    """A body of one InvokeRequest that asks for these in place of what it did; empty and None: as it did."""
    fields: dict[int, bytes] = {}
    if model:
        name = model.encode()
        fields[_MODEL] = encoded(len(name)) + name
    if temperature is not None:
        fields[_TEMPERATURE] = _FLOAT.pack(temperature)
    if top_p is not None:
        fields[_TOP_P] = _FLOAT.pack(top_p)
    if max_output_tokens is not None:
        fields[_OUTPUT_TOKENS] = encoded(max_output_tokens)
    try:
        message = one_message(body, encoding)
        edits = _replacing(message, fields)
    except Unreadable as error:
        return Rewritten(body, reason=error.reason)
    except Broken:
        return Rewritten(body, reason=MALFORMED)
    return Rewritten(_edited(message, edits))


def _replacing(message: bytes, fields: dict[int, bytes]) -> list[_Edit]:
    """Every `generation` without these fields, the last one (else a new one) with these values."""
    said = b"".join([bytes((tag,)) + value for tag, value in fields.items()])
    found: list[tuple[int, int, int, bytes]] = []
    size = len(message)
    at = 0
    while at < size:
        start = at
        tag, at = read_tag(message, at, size)
        if tag != _GENERATION:
            at = skip(message, at, size, tag)
            continue
        length_at = at
        length, at = read_varint(message, at, size)
        end = at + length
        if end > size:
            raise Broken
        found.append((start, length_at, end, _without(message, at, end, fields)))
        at = end
    if not found:
        return [(size, size, bytes((_GENERATION,)) + encoded(len(said)) + said)]
    edits: list[_Edit] = []
    for number, (start, length_at, end, left) in enumerate(found):
        value = left + said if number == len(found) - 1 else left
        edits.append((start, end, message[start:length_at] + encoded(len(value)) + value))
    return edits


def _without(message: bytes, at: int, end: int, fields: dict[int, bytes]) -> bytes:
    """The fields of a message but these."""
    kept: list[bytes] = []
    while at < end:
        start = at
        tag, at = read_tag(message, at, end)
        at = skip(message, at, end, tag)
        if tag not in fields:
            kept.append(message[start:at])
    return b"".join(kept)


def _edited(message: bytes, edits: list[_Edit]) -> bytes:
    """The body of the message with these edits, which are in its order."""
    pieces = [b""]
    at = 0
    for start, end, text in edits:
        pieces.append(message[at:start])
        pieces.append(text)
        at = end
    pieces.append(message[at:])
    size = sum(map(len, pieces))
    pieces[0] = b"\0" + size.to_bytes(PREFIX_BYTES - 1, "big")
    return b"".join(pieces)


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
            tag, at = read_tag(message, at, size)
        if tag & 7 != BYTES:
            at = skip(message, at, size, tag)
            continue
        length_at = at
        if at < size and message[at] < 0x80:
            length = message[at]
            at += 1
        else:
            length, at = read_varint(message, at, size)
        end = at + length
        if end > size:
            raise Broken
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
            tag, at = read_tag(message, at, end)
            if tag == _OUTPUT_TOKENS:
                number_at = at
                value, at = read_varint(message, at, end)
                number_end = at
                self.tokens = value & 0xFFFF_FFFF
                said = True
            else:
                at = skip(message, at, end, tag)
        if said or self.tokens >> 32:
            self._start, self._length_at, self._value_at, self._end = start, length_at, value_at, end
            self._number_at, self._number_end = number_at, number_end

    def edit(self, message: bytes, output_tokens: int) -> _Edit:
        """The field with another number in it, or a new one behind all others."""
        number = encoded(output_tokens)
        if self.tokens >> 32:
            number = bytes((_OUTPUT_TOKENS,)) + number
        if self._start < 0:
            return len(message), len(message), bytes((_GENERATION, len(number))) + number
        value = message[self._value_at : self._number_at] + number + message[self._number_end : self._end]
        return self._start, self._end, message[self._start : self._length_at] + encoded(len(value)) + value


def _goes(message: bytes, at: int, end: int, least: float) -> bool:
    """Whether a context block is rated, below `least`, and may be left out."""
    rated = verbatim = False
    rating = 0.0
    while at < end:
        tag = message[at]
        if 8 <= tag < 0x80:
            at += 1
        else:
            tag, at = read_tag(message, at, end)
        if tag & 7 == BYTES:
            if at < end and message[at] < 0x80:
                at += 1 + message[at]
            else:
                length, at = read_varint(message, at, end)
                at += length
            if at > end:
                raise Broken
        elif tag == _RELEVANCE:
            if at + 4 > end:
                raise Broken
            rating = _FLOAT.unpack_from(message, at)[0]
            rated = True
            at += 4
        elif tag == _VERBATIM:
            value, at = read_varint(message, at, end)
            verbatim = value != 0
        else:
            at = skip(message, at, end, tag)
    return rated and rating < least and not verbatim
