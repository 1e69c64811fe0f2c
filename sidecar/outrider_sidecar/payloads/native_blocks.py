"""The texts of a native request, where they stand, and the request with other texts in their place.

Always holds: every byte that is not of a replaced text, or of a length around one, leaves as it came and in the order
it came, fields of a newer contract included; a part that is left out takes with it what it leaves empty: a tool's
result, a message, a block of context. A JSON part whose text is no JSON any more becomes a text part. Parts that have
no text (blobs, links) and those that say two things at once are told of and never replaced.

Deliberately not here: what is replaced (filter `compress`), protobuf's own library (see `rewrite`).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from outrider_sidecar.payloads.fields import BYTES, FIXED32, VARINT, Broken, encoded, read_tag, read_varint, skip

# Tags, field number << 3 | wire type.
_MESSAGE: Final = 7 << 3 | BYTES  # of InvokeRequest
_CONTEXT: Final = 8 << 3 | BYTES
_ROLE: Final = 1 << 3 | VARINT  # of Message
_MESSAGE_PART: Final = 2 << 3 | BYTES
_MESSAGE_NAME: Final = 3 << 3 | BYTES
_CONTEXT_PART: Final = 3 << 3 | BYTES  # of ContextBlock
_SOURCE: Final = 4 << 3 | BYTES
_RELEVANCE: Final = 5 << 3 | FIXED32
_VERBATIM: Final = 7 << 3 | VARINT
_TEXT: Final = 1 << 3 | BYTES  # of Part
_JSON: Final = 2 << 3 | BYTES
_TOOL_CALL: Final = 3 << 3 | BYTES
_TOOL_RESULT: Final = 4 << 3 | BYTES
_REASONING: Final = 7 << 3 | BYTES
_RESULT_NAME: Final = 2 << 3 | BYTES  # of ToolResult
_RESULT_PART: Final = 3 << 3 | BYTES

_SESSION_ID: Final = 2 << 3 | BYTES  # of InvokeRequest
_TENANT_ID: Final = 4 << 3 | BYTES
_TOOL: Final = 9 << 3 | BYTES
_TOOL_NAME: Final = 1 << 3 | BYTES  # of Tool
_SCHEMA: Final = 3 << 3 | BYTES

_CONTENT: Final = frozenset(number << 3 | BYTES for number in range(1, 8))
_ROLES: Final = {1: "system", 2: "system", 3: "user", 4: "assistant", 5: "tool"}
_MAX_PARTS: Final = 20_000  # of one request: more of them are nobody's conversation

_Field = tuple[int, int, int, int, int]  # tag, where it begins, where its length stands, its value, its end


class Spot(NamedTuple):
    """One part, where it stands. `replaceable`: its text is all it says."""

    path: str  # "messages[3].parts[0]", "context[1].parts[0]"
    role: str  # "system", "user", "assistant", "tool", "context"
    source: str  # the tool's name, the title or path of the material
    text: str
    is_json: bool
    replaceable: bool
    verbatim: bool
    relevance: float  # of context; 1 where it is not rated
    turn: int  # user turns up to it; -1: the operator's, or context
    start: int  # of the field with the text
    end: int
    holders: tuple[tuple[int, int, int, int], ...]  # fields around it, outermost first, as in `_Field` without the tag


def located(message: bytes) -> list[Spot]:
    """All parts of an InvokeRequest: of messages, then of context. Broken: it is none."""
    spots: list[Spot] = []
    context: list[Spot] = []
    turn = -1
    count = 0
    contexts = 0
    for field in _fields(message, 0, len(message)):
        if field[0] == _MESSAGE:
            turn = _message(message, field, f"messages[{count}]", turn, spots)
            count += 1
        elif field[0] == _CONTEXT:
            _context(message, field, f"context[{contexts}]", context)
            contexts += 1
        if len(spots) + len(context) > _MAX_PARTS:
            raise Broken
    return spots + context


def replaced(message: bytes, spots: Sequence[Spot], texts: Sequence[str | None]) -> bytes:
    """The request with these texts in the spots; None leaves the part out."""
    edits: list[tuple[int, Spot, str | None]] = []
    left: dict[int, int] = {}  # parts in a field that begins there
    for spot, text in zip(spots, texts, strict=True):
        for holder in spot.holders:
            left[holder[0]] = left.get(holder[0], 0) + 1
        if text is None:
            for holder in spot.holders:
                left[holder[0]] -= 1
        if text is None or (text is not spot.text and text != spot.text and spot.replaceable):
            edits.append((spot.start, spot, text))
    if not edits:
        return message
    edits.sort(key=_start)
    return _content(message, 0, len(message), [(spot, text) for _, spot, text in edits], 0, left)


def _start(edit: tuple[int, Spot, str | None]) -> int:
    return edit[0]


def _content(
    message: bytes, at: int, end: int, edits: list[tuple[Spot, str | None]], depth: int, left: dict[int, int]
) -> bytes:
    pieces: list[bytes] = []
    index = 0
    while index < len(edits):
        spot, text = edits[index]
        if len(spot.holders) == depth:
            pieces += (message[at : spot.start], _field(spot, text))
            at = spot.end
            index += 1
            continue
        start, length_at, value_at, until = spot.holders[depth]
        first = index
        while index < len(edits) and edits[index][0].holders[depth][0] == start:
            index += 1
        pieces.append(message[at:start])
        if left[start]:
            value = _content(message, value_at, until, edits[first:index], depth + 1, left)
            pieces += (message[start:length_at], encoded(len(value)), value)
        at = until
    pieces.append(message[at:end])
    return b"".join(pieces)


def _field(spot: Spot, text: str | None) -> bytes:
    if text is None:
        return b""
    value = text.encode()
    tag = _JSON if spot.is_json and text.startswith(("{", "[")) else _TEXT
    return bytes((tag,)) + encoded(len(value)) + value


def _message(message: bytes, field: _Field, path: str, turn: int, spots: list[Spot]) -> int:
    """The parts of one message; the turn it belongs to."""
    found = _fields(message, field[3], field[4])
    number = 0
    name = ""
    for tag, _, _, value_at, end in found:
        if tag == _ROLE:
            number, _ = read_varint(message, value_at, end)
        elif tag == _MESSAGE_NAME:
            name = _text(message, value_at, end)
    role = _ROLES.get(number, "user")
    if role == "user":
        turn += 1
    at = 0
    for one in found:
        if one[0] == _MESSAGE_PART:
            holders = (field[1:],)
            mine = -1 if role == "system" else turn
            _part(message, one, f"{path}.parts[{at}]", role, name if role == "tool" else "", mine, holders, spots)
            at += 1
    return turn


def _part(
    message: bytes,
    field: _Field,
    path: str,
    role: str,
    source: str,
    turn: int,
    holders: tuple[tuple[int, int, int, int], ...],
    spots: list[Spot],
    verbatim: bool = False,
    relevance: float = 1.0,
) -> None:
    said = [one for one in _fields(message, field[3], field[4]) if one[0] in _CONTENT]
    if not said:
        return
    tag, start, _, value_at, end = said[-1]
    holders = (*holders, field[1:])
    alone = len(said) == 1
    if tag == _TOOL_RESULT and alone and role != "context":
        _result(message, said[-1], path, turn, holders, spots)
        return
    readable = tag in (_TEXT, _JSON)
    text = _text(message, value_at, end) if readable else _shown(message, tag, value_at, end)
    replaceable = readable and alone
    spots.append(
        Spot(path, role, source, text, tag == _JSON, replaceable, verbatim, relevance, turn, start, end, holders)
    )


def _result(
    message: bytes,
    field: _Field,
    path: str,
    turn: int,
    holders: tuple[tuple[int, int, int, int], ...],
    spots: list[Spot],
) -> None:
    found = _fields(message, field[3], field[4])
    name = ""
    for tag, _, _, value_at, end in found:
        if tag == _RESULT_NAME:
            name = _text(message, value_at, end)
    at = 0
    for one in found:
        if one[0] == _RESULT_PART:
            if len(holders) > 2:  # a result in a result: nobody's contract, and left as it is
                raise Broken
            inner = (*holders, field[1:])
            _part(message, one, f"{path}.tool_result.parts[{at}]", "tool", name, turn, inner, spots)
            at += 1


def _context(message: bytes, field: _Field, path: str, spots: list[Spot]) -> None:
    found = _fields(message, field[3], field[4])
    source = ""
    verbatim = False
    relevance = 1.0
    for tag, _, _, value_at, end in found:
        if tag == _SOURCE:
            source = _text(message, value_at, end)
        elif tag == _VERBATIM:
            value, _ = read_varint(message, value_at, end)
            verbatim = value != 0
        elif tag == _RELEVANCE:
            relevance = _float(message[value_at:end])
    at = 0
    for one in found:
        if one[0] == _CONTEXT_PART:
            holders = (field[1:],)
            _part(message, one, f"{path}.parts[{at}]", "context", source, -1, holders, spots, verbatim, relevance)
            at += 1


def _fields(message: bytes, at: int, end: int) -> list[_Field]:
    found: list[_Field] = []
    while at < end:
        start = at
        tag, at = read_tag(message, at, end)
        value_at = length_at = at
        if tag & 7 == BYTES:
            length, value_at = read_varint(message, at, end)
            at = value_at + length
            if at > end:
                raise Broken
        else:
            at = skip(message, at, end, tag)
        found.append((tag, start, length_at, value_at, at))
    return found


def _text(message: bytes, at: int, end: int) -> str:
    try:
        return message[at:end].decode()
    except UnicodeDecodeError:
        raise Broken from None


def _shown(message: bytes, tag: int, at: int, end: int) -> str:
    """What is counted of a part that is not text: a call and reasoning nearly whole, of others nothing."""
    return message[at:end].decode("utf-8", "replace") if tag in (_TOOL_CALL, _REASONING) else ""


def _float(raw: bytes) -> float:
    value: float = struct.unpack("<f", raw)[0]
    return value if value == value else 1.0


def identity(message: bytes) -> tuple[str, str]:
    """The session and the tenant an InvokeRequest names."""
    session = tenant = ""
    for tag, _, _, value_at, end in _fields(message, 0, len(message)):
        if tag == _SESSION_ID:
            session = _text(message, value_at, end)
        elif tag == _TENANT_ID:
            tenant = _text(message, value_at, end)
    return session, tenant


def in_order(message: bytes, tools: bool, keys: bool) -> bytes:
    """The request with its tools in the order of their names, and with the keys of their schemas sorted: what says the
    same every time is read from a provider's cache. Only schemas are touched that come out with the same numbers."""
    fields = _fields(message, 0, len(message))
    found = [(message[one[3] : one[4]], one) for one in fields if one[0] == _TOOL]
    if not found:
        return message
    values = [_sorted_schema(value) if keys else value for value, _ in found]
    if tools:
        values.sort(key=_tool_name)
    if values == [value for value, _ in found]:
        return message
    pieces: list[bytes] = []
    at = index = 0
    for tag, start, length_at, _, end in fields:
        if tag == _TOOL:
            value = values[index]
            pieces += (message[at:start], message[start:length_at], encoded(len(value)), value)
            at = end
            index += 1
    pieces.append(message[at:])
    return b"".join(pieces)


def _tool_name(tool: bytes) -> bytes:
    name = b""
    for tag, _, _, value_at, end in _fields(tool, 0, len(tool)):
        if tag == _TOOL_NAME:
            name = tool[value_at:end]
    return name


def _sorted_schema(tool: bytes) -> bytes:
    for tag, start, length_at, value_at, end in _fields(tool, 0, len(tool)):
        if tag == _SCHEMA:
            value = _sorted_json(_text(tool, value_at, end)).encode()
            return tool[:start] + tool[start:length_at] + encoded(len(value)) + value + tool[end:]
    return tool


def _sorted_json(text: str) -> str:
    """A document with its keys sorted; as it is where numbers, keys or escapes would not survive that."""
    try:
        read = json.loads(text)
        same = json.dumps(read, ensure_ascii=False, separators=(",", ":"))
        styles = (same, json.dumps(read, ensure_ascii=False), json.dumps(read, ensure_ascii=False, indent=2))
        if text not in styles:
            return text  # duplicate keys, numbers or escapes written otherwise, or whitespace that is no serializer's
        return json.dumps(read, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    except (ValueError, RecursionError):
        return text
