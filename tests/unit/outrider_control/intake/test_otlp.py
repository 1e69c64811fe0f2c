"""What is read by hand is what the official classes read, on anything they accept; the rest is `Malformed`."""

from __future__ import annotations

import random
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from outrider_control.intake import otlp, wire
from outrider_control.intake.otlp import SpanReader
from outrider_control.intake.wire import Malformed
from outrider_sidecar.core import span as sidecar
from outrider_sidecar.engines.otlp import Encoder

START_NS = 1_763_800_000_000_000_001
NAMES = sorted(name.decode() for name in otlp._SLOTS)


def key_values() -> st.SearchStrategy[KeyValue]:
    def made(name: str, value: Any) -> KeyValue:
        pair = KeyValue(key=name)
        if isinstance(value, str):
            pair.value.string_value = value
        elif isinstance(value, bool):
            pair.value.bool_value = value
        elif isinstance(value, int):
            pair.value.int_value = value
        elif isinstance(value, float):
            pair.value.double_value = value
        elif isinstance(value, bytes):
            pair.value.bytes_value = value
        elif isinstance(value, list):
            pair.value.array_value.values.add().string_value = "in a list"
        return pair

    names = st.sampled_from(NAMES) | st.sampled_from(("rpc.system.name", "x" * 200, "")) | st.text(max_size=40)
    values = st.one_of(
        st.text(max_size=300), st.integers(-(2**63), 2**63 - 1), st.integers(0, 20_000), st.booleans(),
        st.floats(allow_nan=False), st.binary(max_size=9), st.just([]), st.none(),
    )  # fmt: skip
    return st.builds(made, names, values)


def spans() -> st.SearchStrategy[Span]:
    return st.builds(
        Span,
        trace_id=st.binary(min_size=16, max_size=16) | st.binary(max_size=20),
        span_id=st.binary(min_size=8, max_size=8) | st.binary(max_size=10),
        parent_span_id=st.binary(max_size=8),
        trace_state=st.text(max_size=10),
        name=st.text(max_size=200),
        kind=st.sampled_from(range(6)),
        start_time_unix_nano=st.integers(0, 2**64 - 1),
        end_time_unix_nano=st.integers(0, 2**64 - 1),
        attributes=st.lists(key_values(), max_size=12),
        dropped_attributes_count=st.integers(0, 2**32 - 1),
        events=st.lists(st.builds(Span.Event, name=st.text(max_size=9), attributes=st.lists(key_values())), max_size=2),
        flags=st.integers(0, 2**32 - 1),
    )


def expected(span: Span) -> otlp.SpanFields:
    values: list[Any] = [None] * otlp.WIDTH
    for pair in span.attributes:
        slot = otlp._SLOTS.get(pair.key.encode())
        if slot is None:
            continue
        kind = pair.value.WhichOneof("value")
        value = (
            getattr(pair.value, kind) if kind in ("string_value", "int_value", "bool_value", "double_value") else None
        )
        values[slot] = value[: wire.TEXT_MAX_CHARS] if isinstance(value, str) else value
    return otlp.SpanFields(
        span.trace_id, span.span_id, span.kind, span.start_time_unix_nano, span.end_time_unix_nano,
        span.status.code == 2, values,
    )  # fmt: skip


@given(st.lists(spans(), max_size=4), st.sampled_from(range(3)))
def test_spans_are_read_as_the_official_classes_read_them(given_spans: list[Span], status: int):
    reader = SpanReader()
    for span in given_spans:
        span.status.code = status  # type: ignore[assignment]
        assert reader.span(span.SerializeToString()) == expected(span)


ADMISSIONS = (
    None,
    sidecar.Admission(7),
    sidecar.Admission(300, "high"),
    sidecar.Admission(40_000, "low", ("trim_context", "hedge_off")),
    sidecar.Admission(0, "critical"),
)


def sidecar_span(draw: random.Random) -> sidecar.Span:
    return sidecar.Span(
        b"%032x" % draw.getrandbits(128), b"%016x" % draw.getrandbits(64),
        b"%016x" % draw.getrandbits(64) if draw.random() < 0.5 else b"", b"k=v" if draw.random() < 0.1 else b"", 1,
        draw.choice((sidecar.SERVER, sidecar.CLIENT)), f"/pkg.Svc/M{draw.randrange(3)}", f"agent-{draw.randrange(4)}",
        draw.choice(("", "127.0.0.1:9001", "[::1]:9001")), START_NS + draw.randrange(10**9), draw.randrange(10**7),
        draw.choice((0, 0, 1, 5, 14)), draw.choice(("", "broken")), draw.choice(ADMISSIONS), 0,
        draw.choice((0, 5, 200, 90_000)), draw.choice((0, 900)), draw.choice((0, 20_000)),
        draw.choice(("", "hit", "miss")), draw.choice(("", "semantic")), draw.choice(("", "b")),
        draw.choice(("", "session")), draw.choice(("", "unit")),
        (sidecar.Attempt("a:1", 1, 2, 14, "retry"),) if draw.random() < 0.2 else (),
        draw.choice((None, sidecar.Generation("chat", "m", "", "", 10, 3_000, 200, 1))),
        draw.choice((None, sidecar.Compression(230, 100, ("columns/1",), 5))), draw.choice(((), ("cache: no",))),
    )  # fmt: skip


def test_spans_of_our_encoder_are_read_the_same_in_every_order_of_memory():
    draw = random.Random(5)
    encoder, reader = Encoder({"service.name": "s", "service.instance.id": "i"}), SpanReader()
    encoded = [encoder.span(sidecar_span(draw)) for _ in range(400)]
    for _ in range(3):
        draw.shuffle(encoded)
        request = encoder.request(encoded, 7)
        (group,) = reader.groups(request)
        assert group.origin == otlp.Origin("s", "i", "", "outrider", 7)
        official = ExportTraceServiceRequest.FromString(request).resource_spans[0].scope_spans[0].spans
        assert [reader.span(data) for data in group.spans] == [expected(span) for span in official]
    assert reader._runs  # the short way was taken


def test_a_key_within_a_text_does_not_mislead():
    """The text that marks where our encoder's spans begin to differ, in a place where it marks nothing."""
    span = Span(
        trace_id=b"t" * 16,
        span_id=b"s" * 8,
        kind=Span.SPAN_KIND_CLIENT,
        start_time_unix_nano=5,
        end_time_unix_nano=9,
        flags=1,
    )
    span.attributes.add(key="rpc.method").value.string_value = "\n\x16outrider.first_byte_us"
    span.attributes.add(key="outrider.cache").value.string_value = "hit"
    reader = SpanReader()
    for _ in range(2):
        assert reader.span(span.SerializeToString()) == expected(span)


def test_ids_that_come_again_after_the_anchor_win():
    span = Span(
        trace_id=b"t" * 16,
        span_id=b"s" * 8,
        kind=Span.SPAN_KIND_CLIENT,
        start_time_unix_nano=5,
        end_time_unix_nano=9,
        flags=1,
    )
    span.name = "n"
    span.attributes.add(key="outrider.first_byte_us").value.int_value = 5
    # In the order in which our encoder writes, and then a trace id again: the last one counts.
    head = Span(trace_id=span.trace_id, span_id=span.span_id).SerializeToString()
    times = Span(start_time_unix_nano=5, end_time_unix_nano=9).SerializeToString()
    rest = Span(name="n", kind=Span.SPAN_KIND_CLIENT, attributes=span.attributes).SerializeToString()
    data = head + times + Span(flags=1).SerializeToString() + rest + Span(trace_id=b"T" * 16).SerializeToString()
    assert SpanReader().span(data) == expected(Span.FromString(data))


@given(st.binary(max_size=200))
@example(b"\x4a\x01")
@example(b"\x4a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")
@example(b"\x39\x01")
@example(b"\x30" + b"\xff" * 11)
@example(b"\x0b\x0c")
def test_any_bytes_are_read_or_malformed(data: bytes):
    reader = SpanReader()
    try:
        reader.span(data)
    except Malformed as error:
        if "wire type" not in str(error):  # groups, which the official classes step over
            with pytest.raises(DecodeError):
                Span.FromString(data)
    try:
        groups = reader.groups(data)
    except Malformed:
        return
    for group in groups:
        for span in group.spans:
            try:
                reader.span(span)
            except Malformed:
                pass


@given(st.data())
def test_damaged_requests_are_read_or_malformed(data: st.DataObject):
    encoder = Encoder({"service.name": "s"})
    request = bytearray(encoder.request([encoder.span(sidecar_span(random.Random(1)))], 1))
    for _ in range(data.draw(st.integers(1, 4))):
        request[data.draw(st.integers(0, len(request) - 1))] = data.draw(st.integers(0, 255))
    reader = SpanReader()
    try:
        for group in reader.groups(bytes(request)):
            for span in group.spans:
                reader.span(span)
    except Malformed as error:
        assert str(error)


def test_texts_that_are_not_utf8_are_read_with_replacements():
    attribute = b"\x0a\x0agen_ai.age"[:2] + b"gen_ai.agent.id"
    pair = b"\x0a\x0f" + attribute[2:] + b"\x12\x04\x0a\x02\xff\xfe"
    assert SpanReader().span(b"\x4a" + bytes((len(pair),)) + pair).values[otlp.AGENT_ID] == "\ufffd\ufffd"


def test_memory_of_texts_is_bounded():
    reader = SpanReader()
    span = Span(trace_id=b"t" * 16)
    value = span.attributes.add(key="gen_ai.agent.id").value
    for number in range(20_000):
        value.string_value = f"agent {number}"
        reader.span(span.SerializeToString())
    assert len(reader._texts) <= 8_192
