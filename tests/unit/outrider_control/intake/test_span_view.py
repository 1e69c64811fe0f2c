"""Kept spans: what goes in comes out, cut where it is too large."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from outrider_control.intake.span_view import SPAN_MAX_BYTES, TEXT_MAX_BYTES, EventView, pack, view


def whole() -> Span:
    span = Span(trace_id=b"t" * 16, span_id=b"s" * 8, parent_span_id=b"p" * 8, name="n", kind=Span.SPAN_KIND_CLIENT)
    span.start_time_unix_nano, span.end_time_unix_nano = 5_000_000, 12_000_000
    span.status.code, span.status.message = 2, "broken"  # type: ignore[assignment]
    for key, kind, value in (
        ("text", "string_value", "é"), ("count", "int_value", -7), ("truth", "bool_value", True),
        ("share", "double_value", 0.5), ("raw", "bytes_value", b"\x01\xff"),
    ):  # fmt: skip
        setattr(span.attributes.add(key=key).value, kind, value)
    listed = span.attributes.add(key="list").value.array_value
    listed.values.add().string_value = "x"
    listed.values.add().kvlist_value.values.add(key="k").value.int_value = 1
    span.attributes.add(key="nothing")
    event = span.events.add(name="outrider.attempt", time_unix_nano=6_000_000)
    event.attributes.add(key="outrider.endpoint").value.string_value = "h:1"
    return span


def test_everything_is_there():
    seen = view(pack(b"service", b"instance", b"outrider", whole().SerializeToString()))
    assert (seen.trace_id, seen.span_id, seen.parent_id) == ("74" * 16, "73" * 8, "70" * 8)
    assert (seen.name, seen.kind, seen.status, seen.message) == ("n", "client", "ERROR", "broken")
    assert (seen.service, seen.instance, seen.scope, seen.ours) == ("service", "instance", "outrider", True)
    assert (seen.start_ns, seen.end_ns, seen.duration_ms) == (5_000_000, 12_000_000, 7.0)
    assert seen.attributes == {
        "text": "é", "count": -7, "truth": True, "share": 0.5, "raw": "01ff", "list": ["x", {"k": 1}], "nothing": None,
    }  # fmt: skip
    assert seen.events == (EventView("outrider.attempt", 6_000_000, {"outrider.endpoint": "h:1"}),)


def test_the_grpc_status_goes_before_the_span_s():
    span = whole()
    span.attributes.add(key="rpc.response.status_code").value.string_value = "NOT_FOUND"
    assert view(pack(b"", b"", b"lib", span.SerializeToString())).status == "NOT_FOUND"
    assert view(pack(b"", b"", b"lib", Span().SerializeToString())).status == "OK"


def test_large_texts_are_cut_and_the_rest_stays():
    span = whole()
    span.attributes.add(key="prompt").value.string_value = "é" * 100_000
    span.attributes.add(key="blob").value.bytes_value = b"x" * 100_000
    span.attributes.add(key="many").value.array_value.values.add().string_value = "x" * 100_000
    packed = pack(b"", b"", b"", span.SerializeToString())
    seen = view(packed)
    assert len(packed) < 4 * TEXT_MAX_BYTES
    assert len(seen.attributes["prompt"].encode()) <= TEXT_MAX_BYTES
    assert seen.attributes["prompt"].startswith("ééé")
    assert seen.attributes["many"].startswith("(cut: ")
    assert seen.attributes["text"] == "é"
    assert seen.events


def test_a_span_of_very_many_attributes_stays_bounded():
    span = whole()
    for number in range(5_000):
        span.attributes.add(key=f"key {number}").value.string_value = "x" * 90
    packed = pack(b"", b"", b"", span.SerializeToString())
    assert len(packed) <= SPAN_MAX_BYTES + 1_000
    assert view(packed).attributes["text"] == "é"


def test_deep_values_end():
    span = Span()
    value = span.attributes.add(key="deep").value
    for _ in range(20):
        value = value.array_value.values.add()
    value.string_value = "x"
    assert "(too deep)" in str(view(pack(b"", b"", b"", span.SerializeToString())).attributes)


def test_what_is_no_span_is_not_packed():
    with pytest.raises(DecodeError):
        pack(b"", b"", b"", b"\xff")


@given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda data: b"\x01" + data))
def test_other_bytes_are_a_value_error(data: bytes):
    try:
        view(data)
    except ValueError as error:
        assert "kept span" in str(error)


def test_every_cut_of_a_kept_span_is_a_span_or_a_value_error():
    packed = pack(b"service", b"instance", b"outrider", whole().SerializeToString())
    for end in range(len(packed)):
        try:
            view(packed[:end])
        except ValueError:
            pass
