"""OTLP traces read by hand: the bytes of an `ExportTraceServiceRequest` to what figures need of each span.

Always holds: bytes that are no protobuf of that shape raise `Malformed`, whatever they are; nothing else is raised and
nothing is kept of the input but bounded memos. A text that is not UTF-8 is read with replacement characters. Fields
and attributes nobody counts are stepped over, not decoded. The bytes of each span are handed on as they came.

Deliberately not here: what a span counts for (`samples`), whole spans for people (`span_view`). Field numbers:
opentelemetry-proto 1.x, trace/v1, common/v1, resource/v1. Reading by hand takes about two thirds of what walking the
generated classes does (`bench/intake.py` measures both), and keeps each span's own bytes without encoding it again.
"""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple

from outrider_control.intake import names
from outrider_control.intake.wire import Malformed, Value, field_at, fields, key_value, text, varint

_MEMO_MAX: Final = 8_192
_MEMO_TEXT_MAX_BYTES: Final = 1_024
_MEMO_RUN_MAX_BYTES: Final = 2_048

# Where an attribute's value is put in `SpanFields.values`.
(
    AGENT_ID, METHOD, STATUS, ENDPOINT, VARIANT, TENANT, CACHE, TIER, HOP, DETACHED, QUEUE_US, FIRST_BYTE_US,
    TOKENS_SAVED, INPUT_TOKENS, OUTPUT_TOKENS, CACHE_READ_TOKENS, CACHE_WRITE_TOKENS, REQUEST_MODEL, RESPONSE_MODEL,
    PROVIDER, SERVICE, STATUS_NUMBER, FIRST_CHUNK_S, UNIT, WIDTH,
) = range(25)  # fmt: skip

_SLOTS: Final[dict[bytes, int]] = {
    name.encode(): slot
    for name, slot in (
        (names.AGENT_ID, AGENT_ID),
        (names.RPC_METHOD, METHOD),
        (names.RPC_STATUS_CODE, STATUS),
        (names.ENDPOINT, ENDPOINT),
        (names.VARIANT, VARIANT),
        (names.TENANT, TENANT),
        (names.CACHE, CACHE),
        (names.CACHE_TIER, TIER),
        (names.HOP, HOP),
        (names.DETACHED, DETACHED),
        (names.QUEUE_US, QUEUE_US),
        (names.FIRST_BYTE_US, FIRST_BYTE_US),
        (names.TOKENS_SAVED, TOKENS_SAVED),
        (names.INPUT_TOKENS, INPUT_TOKENS),
        (names.OUTPUT_TOKENS, OUTPUT_TOKENS),
        (names.CACHE_READ_TOKENS, CACHE_READ_TOKENS),
        (names.CACHE_WRITE_TOKENS, CACHE_WRITE_TOKENS),
        (names.CACHE_CREATION_TOKENS, CACHE_WRITE_TOKENS),
        (names.REQUEST_MODEL, REQUEST_MODEL),
        (names.RESPONSE_MODEL, RESPONSE_MODEL),
        (names.PROVIDER, PROVIDER),
        (names.SYSTEM, PROVIDER),
        (names.RPC_SERVICE, SERVICE),
        (names.RPC_GRPC_STATUS_CODE, STATUS_NUMBER),
        (names.FIRST_CHUNK_S, FIRST_CHUNK_S),
        (names.UNIT, UNIT),
    )
}
_TEMPLATE: Final[list[Any]] = [None] * WIDTH
_NO_IDS: Final = (b"", b"", 0, 0)
# Our encoder's spans begin so: trace id, span id, parent (or none), start, end, flags; then what is alike for all calls
# of a kind; then, from this key on, what differs from call to call.
_CHILD: Final = struct.Struct("<2s16s2s8s2s8xBQBQ2s4x")
_ROOT: Final = struct.Struct("<2s16s2s8sBQBQ2s4x")
_ANCHOR: Final = b"\x0a\x16" + names.FIRST_BYTE_US.encode()
_FIXED64: Final = struct.Struct("<Q").unpack_from


class Origin(NamedTuple):
    """Whom a group of spans comes from: resource and scope."""

    service: str  # service.name
    instance: str  # service.instance.id
    agent_id: str  # gen_ai.agent.id of the resource
    scope: str  # its name
    sequence: int  # of the batch; -1: not numbered


class Group(NamedTuple):
    """The spans of one scope of one resource."""

    origin: Origin
    spans: list[bytes]


class SpanFields(NamedTuple):
    """What is read of one span."""

    trace_id: bytes
    span_id: bytes
    kind: int  # 0..5 as in OTLP
    start_ns: int
    end_ns: int
    failed: bool  # span status ERROR
    values: list[Any]  # by slot; None: absent


class SpanReader:
    """Reads requests. What repeats from batch to batch (resources, scopes, texts) is decoded once and remembered."""

    __slots__ = ("_resources", "_runs", "_texts")

    def __init__(self) -> None:
        self._resources: dict[bytes, tuple[str, str, str]] = {}
        self._texts: dict[bytes, str] = {}
        self._runs: dict[bytes, tuple[int, list[Any]]] = {}  # what our encoder writes alike for many calls

    def groups(self, request: bytes) -> list[Group]:
        """The request's spans by resource and scope, not read yet."""
        found: list[Group] = []
        for number, wire, content in fields(request):
            if number != 1 or wire != 2:
                continue
            resource, scopes = b"", []
            for inner, inner_wire, part in fields(content):
                if inner_wire != 2:
                    continue
                if inner == 1:
                    resource += part  # fields of one message may come in pieces; together they are the message
                elif inner == 2:
                    scopes.append(part)
            service, instance, agent_id = self._resource(resource)
            for part in scopes:
                scope, sequence, spans = _scope_spans(part)
                found.append(Group(Origin(service, instance, agent_id, scope, sequence), spans))
        return found

    def _resource(self, data: bytes) -> tuple[str, str, str]:
        known = self._resources.get(data)
        if known is not None:
            return known
        values: dict[bytes, Value] = {}
        for number, wire, content in fields(data):
            if number == 1 and wire == 2:
                key, value = key_value(content)
                values[key] = value
        wanted = (names.SERVICE_NAME, names.SERVICE_INSTANCE_ID, names.AGENT_ID)
        service, instance, agent_id = (_as_text(values.get(name.encode())) for name in wanted)
        read = (service, instance, agent_id)
        if len(data) <= _MEMO_TEXT_MAX_BYTES * 4:
            if len(self._resources) >= _MEMO_MAX // 8:
                self._resources.clear()
            self._resources[data] = read
        return read

    def span(self, data: bytes) -> SpanFields:
        """One span."""
        anchor = data.find(_ANCHOR) - 2
        try:
            if anchor > 0:
                # One of ours: the head has a fixed shape, and what follows up to the anchor is one of few byte strings.
                if len(data) >= _CHILD.size and data[28] == 0x22:
                    a, trace_id, b, span_id, c, d, start_ns, e, end_ns, f = _CHILD.unpack_from(data)
                    begin = _CHILD.size
                    plain = c == b"\x22\x08"
                else:
                    a, trace_id, b, span_id, d, start_ns, e, end_ns, f = _ROOT.unpack_from(data)
                    begin = _ROOT.size
                    plain = True
                if plain and a == b"\x0a\x10" and b == b"\x12\x08" and d == 0x39 and e == 0x41 and f == b"\x85\x01":
                    run = data[begin:anchor]
                    known = self._runs.get(run) or self._run(run)
                    if known is not None:
                        kind, template = known
                        values = template.copy()
                        kind, failed, ids = self._rest(data, anchor, values, kind, False)
                        if ids == _NO_IDS:
                            return SpanFields(trace_id, span_id, kind, start_ns, end_ns, failed, values)
            values = _TEMPLATE.copy()
            kind, failed, ids = self._rest(data, 0, values, 0, False)
        except (IndexError, struct.error):
            raise Malformed("a span is cut short") from None
        return SpanFields(ids[0], ids[1], kind, ids[2], ids[3], failed, values)

    def _run(self, run: bytes) -> tuple[int, list[Any]] | None:
        """(kind, values) of a span's fields that are all within `run`; None where it is no whole number of fields."""
        values = _TEMPLATE.copy()
        try:
            kind, failed, ids = self._rest(run, 0, values, 0, False)
        except (Malformed, IndexError, struct.error):
            return None
        if failed or ids != _NO_IDS:
            return None
        known = (kind, values)
        if len(run) <= _MEMO_RUN_MAX_BYTES:
            if len(self._runs) >= _MEMO_MAX // 2:
                self._runs.clear()
            self._runs[run] = known
        return known

    def _rest(
        self, data: bytes, position: int, values: list[Any], kind: int, failed: bool
    ) -> tuple[int, bool, tuple[bytes, bytes, int, int]]:
        """(kind, failed, ids and times) from `position` on; attributes go to `values`.

        The loop is one function on purpose: it runs some ten times a span.
        """
        trace_id = span_id = b""
        start_ns = end_ns = 0
        slots, texts = _SLOTS, self._texts
        end = len(data)
        while position < end:
            tag = data[position]
            if tag == 0x4A:
                size = data[position + 1]
                if size >= 0x80:
                    size, begin = varint(data, position + 1)
                else:
                    begin = position + 2
                position = begin + size
                if position > end:
                    raise Malformed("a span's attribute is cut short")
                # KeyValue: 0A len key 12 len (AnyValue: 0A len text | 18 varint | ...), where lengths have one byte.
                at = begin + 2 + data[begin + 1]
                slot = slots.get(data[begin + 2 : at])
                if slot is None:
                    if data[begin] != 0x0A or data[begin + 1] >= 0x80 or at > position:
                        self._attribute(data[begin:position], values)
                elif (
                    data[begin] == 0x0A
                    and at + 4 <= position
                    and data[at] == 0x12
                    and at + 2 + data[at + 1] == position
                ):
                    shape = data[at + 2]
                    if shape == 0x0A and at + 4 + data[at + 3] == position:
                        raw = data[at + 4 : position]
                        value = texts.get(raw)
                        values[slot] = value if value is not None else self._text(raw)
                    elif shape == 0x18 and at + 4 == position and data[at + 3] < 0x80:
                        values[slot] = data[at + 3] & 0x7F
                    elif shape == 0x18 and at + 5 == position and data[at + 3] >= 0x80 > data[at + 4]:
                        values[slot] = data[at + 3] & 0x7F | (data[at + 4] & 0x7F) << 7
                    elif (
                        shape == 0x18 and at + 6 == position and min(data[at + 3], data[at + 4]) >= 0x80 > data[at + 5]
                    ):
                        values[slot] = data[at + 3] & 0x7F | (data[at + 4] & 0x7F) << 7 | data[at + 5] << 14
                    else:
                        self._attribute(data[begin:position], values)
                else:
                    self._attribute(data[begin:position], values)
            elif tag == 0x39:
                start_ns = _FIXED64(data, position + 1)[0]
                position += 9
            elif tag == 0x41:
                end_ns = _FIXED64(data, position + 1)[0]
                position += 9
            elif tag == 0x30:
                kind, position = varint(data, position + 1)
            else:
                begin, position = field_at(data, position)
                if tag == 0x0A:
                    trace_id = data[begin:position]
                elif tag == 0x12:
                    span_id = data[begin:position]
                elif tag == 0x7A:
                    failed = _status(data[begin:position], failed)
        return kind, failed, (trace_id, span_id, start_ns, end_ns)

    def _text(self, raw: bytes) -> str:
        value = text(raw)
        if len(self._texts) >= _MEMO_MAX:
            self._texts.clear()
        self._texts[raw] = value
        return value

    def _attribute(self, data: bytes, values: list[Any]) -> None:
        """The slow way, for whatever shape an attribute has."""
        key, value = key_value(data)
        slot = _SLOTS.get(key)
        if slot is not None:
            values[slot] = value


def _status(data: bytes, failed: bool) -> bool:
    """`Status.code` is ERROR; as before where the field is not there."""
    if data == b"\x18\x02":
        return True
    for number, wire, content in fields(data):
        if number == 3 and wire == 0:
            failed = content == 2
    return failed


def _scope_spans(data: bytes) -> tuple[str, int, list[bytes]]:
    """(scope name, sequence, spans) of a `ScopeSpans`."""
    name, sequence = "", -1
    spans: list[bytes] = []
    position, end = 0, len(data)
    while position < end:
        tag = data[position]
        begin, position = field_at(data, position)
        if tag == 0x12:
            spans.append(data[begin:position])
        elif tag == 0x0A:
            for inner, inner_wire, part in fields(data[begin:position]):
                if inner_wire == 2 and inner == 1:
                    name = _OURS if part == _OURS_BYTES else text(part)
                elif inner_wire == 2 and inner == 3:
                    key, value = key_value(part)
                    if key == _BATCH_SEQUENCE and type(value) is int:
                        sequence = value
    return name, sequence, spans


def _as_text(value: Value) -> str:
    return "" if value is None else str(value)


_OURS: Final = names.OUTRIDER_SCOPE
_OURS_BYTES: Final = _OURS.encode()
_BATCH_SEQUENCE: Final = names.BATCH_SEQUENCE.encode()
