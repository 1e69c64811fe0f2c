"""Kept spans: their bytes in the store, and what they say as plain data.

A kept span is a version byte, three texts with their lengths before them (`service.name`, `service.instance.id`, the
scope's name), and the OTLP `Span` as it was received but for texts that were cut.

Always holds: `view` reads whatever `pack` wrote; a text of a kept span has at most `TEXT_MAX_BYTES`, a kept span at
most about `SPAN_MAX_BYTES`. Bytes that are no kept span are a `ValueError`.

Deliberately not here: which spans are kept (`tail`), the protobuf of the operator's API (`api`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from outrider_control.intake.names import OUTRIDER_SCOPE, RPC_STATUS_CODE, STATUS_MESSAGE

VERSION: Final = 1
TEXT_MAX_BYTES: Final = 4_096
SPAN_MAX_BYTES: Final = 65_536
_TEXTS: Final = 3
_DEPTH_MAX: Final = 8  # of values within values
_KINDS: Final = ("internal", "internal", "server", "client", "producer", "consumer")


class EventView(NamedTuple):
    """One event of a span."""

    name: str
    at_ns: int  # unix
    attributes: dict[str, Any]


class SpanView(NamedTuple):
    """One kept span. Attribute values are str, bool, int, float, lists and dicts of them; bytes are hex."""

    trace_id: str  # 32 hex digits
    span_id: str  # 16 hex digits: of one of ours, the call id
    parent_id: str  # 16 hex digits; "": a root
    name: str
    kind: str  # internal, server, client, producer, consumer
    service: str  # service.name
    instance: str  # service.instance.id
    scope: str  # of the instrumentation
    ours: bool  # whether a sidecar of the mesh wrote it
    start_ns: int  # unix
    end_ns: int  # unix
    status: str  # gRPC status name where the span has one, else "OK" or "ERROR"
    message: str  # what went wrong
    attributes: dict[str, Any]
    events: tuple[EventView, ...]

    @property
    def duration_ms(self) -> float:
        return max(0, self.end_ns - self.start_ns) / 1e6


def pack(service: bytes, instance: bytes, scope: bytes, span: bytes) -> bytes:
    """A kept span's bytes. What is too large in it is cut. DecodeError: `span` is no OTLP `Span` that could be read."""
    read = Span.FromString(span)
    if len(span) > TEXT_MAX_BYTES:
        span = _cut(read)
    parts = [bytes((VERSION,))]
    for text in (service, instance, scope):
        text = text[:255]
        parts += (bytes((len(text),)), text)
    parts.append(span)
    return b"".join(parts)


def view(kept: bytes) -> SpanView:
    """What a kept span says. Raises ValueError for bytes that are none."""
    if not kept or kept[0] != VERSION:
        raise ValueError(f"kept span: unknown encoding {kept[:1].hex() or '(empty)'}; this version reads {VERSION:02x}")
    texts: list[str] = []
    position = 1
    for _ in range(_TEXTS):
        if position >= len(kept):
            raise ValueError("kept span: cut short")
        end = position + 1 + kept[position]
        texts.append(kept[position + 1 : end].decode("utf-8", "replace"))
        position = end
    if position > len(kept):
        raise ValueError("kept span: cut short")
    try:
        span = Span.FromString(kept[position:])
    except DecodeError as error:
        raise ValueError(f"kept span: {error}") from None
    service, instance, scope = texts
    attributes = _attributes(span.attributes)
    failed = span.status.code == Status.STATUS_CODE_ERROR
    return SpanView(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        name=span.name,
        kind=_KINDS[span.kind] if 0 <= span.kind < len(_KINDS) else "internal",
        service=service,
        instance=instance,
        scope=scope,
        ours=scope == OUTRIDER_SCOPE,
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        status=str(attributes.get(RPC_STATUS_CODE) or ("ERROR" if failed else "OK")),
        message=span.status.message or str(attributes.get(STATUS_MESSAGE, "")),
        attributes=attributes,
        events=tuple(
            EventView(event.name, event.time_unix_nano, _attributes(event.attributes)) for event in span.events
        ),
    )


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value, 0) for pair in pairs}


def _value(value: AnyValue, depth: int) -> Any:
    match value.WhichOneof("value"):
        case "string_value":
            return value.string_value
        case "int_value":
            return value.int_value
        case "bool_value":
            return value.bool_value
        case "double_value":
            return value.double_value
        case "bytes_value":
            return value.bytes_value.hex()
        case "array_value" if depth < _DEPTH_MAX:
            return [_value(item, depth + 1) for item in value.array_value.values]
        case "kvlist_value" if depth < _DEPTH_MAX:
            return {pair.key: _value(pair.value, depth + 1) for pair in value.kvlist_value.values}
        case None:
            return None
        case _:
            return "(too deep)"


def _cut(span: Span) -> bytes:
    """The same span with texts cut; then, where it is still too large, without links, and the last of the rest."""
    span.name = _cut_text(span.name)
    span.trace_state = _cut_text(span.trace_state)
    span.status.message = _cut_text(span.status.message)
    _cut_pairs(span.attributes)
    for event in span.events:
        event.name = _cut_text(event.name)
        _cut_pairs(event.attributes)
    for link in span.links:
        link.trace_state = _cut_text(link.trace_state)
        _cut_pairs(link.attributes)
    if span.ByteSize() > SPAN_MAX_BYTES:
        span.dropped_links_count += len(span.links)
        del span.links[:]
    left_bytes = SPAN_MAX_BYTES - span.ByteSize()
    while left_bytes < 0 and span.events:
        left_bytes += span.events[-1].ByteSize()
        del span.events[-1]
        span.dropped_events_count += 1
    while left_bytes < 0 and span.attributes:
        left_bytes += span.attributes[-1].ByteSize()
        del span.attributes[-1]
        span.dropped_attributes_count += 1
    return span.SerializeToString()


def _cut_pairs(pairs: Iterable[KeyValue]) -> None:
    for pair in pairs:
        pair.key = _cut_text(pair.key)
        _cut_value(pair.value)


def _cut_value(value: AnyValue) -> None:
    kind = value.WhichOneof("value")
    if kind == "string_value":
        value.string_value = _cut_text(value.string_value)
    elif kind == "bytes_value":
        value.bytes_value = value.bytes_value[:TEXT_MAX_BYTES]
    elif kind in ("array_value", "kvlist_value") and value.ByteSize() > TEXT_MAX_BYTES:
        value.string_value = f"(cut: {value.ByteSize()} bytes)"


def _cut_text(text: str) -> str:
    if len(text) * 4 <= TEXT_MAX_BYTES:
        return text
    data = text.encode()
    return text if len(data) <= TEXT_MAX_BYTES else data[: TEXT_MAX_BYTES - 3].decode("utf-8", "ignore") + "…"
