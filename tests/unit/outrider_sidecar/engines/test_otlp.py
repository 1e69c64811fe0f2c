"""Everything encoded is read back with the official schema."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

from outrider_sidecar.core import attributes, errors
from outrider_sidecar.core.span import (
    CLIENT,
    DETACHED,
    SERVER,
    THROUGH_INGRESS,
    Admission,
    Attempt,
    Compression,
    Details,
    Generation,
    Span,
)
from outrider_sidecar.engines import otlp
from outrider_sidecar.engines.otlp import Encoder, split_address

START_NS = 1_763_800_000_000_000_001
TRACE_ID = b"4bf92f3577b34da6a3ce929d0e0e4736"
SPAN_ID = b"00f067aa0ba902b7"
PARENT_ID = b"b7ad6b7169203331"


def bare(**fields: Any) -> Span:
    given_fields = {
        "trace_id": TRACE_ID,
        "span_id": SPAN_ID,
        "parent_id": b"",
        "tracestate": b"",
        "flags": 0,
        "kind": CLIENT,
        "method": "/pkg.Svc/Method",
        "agent_id": "tax-eu-001",
        "endpoint": "",
        "start_unix_ns": START_NS,
        "total_us": 1_234,
        "status": 0,
    }
    return Span(**(given_fields | fields))


def decode(span: Span, encoder: Encoder | None = None) -> trace_pb2.Span:
    encoder = encoder or Encoder({})
    request = ExportTraceServiceRequest.FromString(encoder.request([encoder.span(span)]))
    ((parsed,),) = ([*scope.spans] for scope in request.resource_spans[0].scope_spans)
    assert not unknown(parsed)
    return parsed


def unknown(message: Any) -> bool:
    """Whether re-encoding by the schema changes the size: a field it does not know would be kept but not listed."""
    listed = type(message)()
    for descriptor, value in message.ListFields():
        if descriptor.is_repeated:
            getattr(listed, descriptor.name).extend(value)
        elif descriptor.message_type is not None:
            getattr(listed, descriptor.name).CopyFrom(value)
        else:
            setattr(listed, descriptor.name, value)
    return listed.ByteSize() != message.ByteSize()


def plain(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    assert kind is not None
    if kind == "array_value":
        return [plain(item) for item in value.array_value.values]
    return getattr(value, kind)


def attributes_of(message: Any) -> dict[str, Any]:
    values = {entry.key: plain(entry.value) for entry in message.attributes}
    assert len(values) == len(message.attributes), "an attribute name occurs twice"
    return values


def test_a_bare_call_carries_only_what_is_known():
    span = decode(bare())
    assert span.trace_id.hex().encode() == TRACE_ID
    assert span.span_id.hex().encode() == SPAN_ID
    assert span.parent_span_id == b""
    assert span.name == "pkg.Svc/Method"
    assert span.kind == trace_pb2.Span.SPAN_KIND_CLIENT
    assert span.start_time_unix_nano == START_NS
    assert span.end_time_unix_nano == START_NS + 1_234_000
    assert span.flags == trace_pb2.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
    assert not span.HasField("status")
    assert attributes_of(span) == {
        "rpc.system.name": "grpc",
        "rpc.method": "pkg.Svc/Method",
        "rpc.response.status_code": "OK",
        "gen_ai.agent.id": "tax-eu-001",
    }


def full() -> Span:
    return bare(
        parent_id=PARENT_ID,
        tracestate=b"vendor=1,other=2",
        flags=1,
        endpoint="127.0.0.1:9001",
        status=errors.UNAVAILABLE,
        error="the endpoint is gone: é",
        admission=Admission(1, "high", ("trim_context", "hedge_off")),
        connect_us=200,
        first_byte_us=70_000,
        request_bytes=2**21,
        reply_bytes=2**35,
        cache="miss",
        cache_tier="exact",
        variant="b",
        session="session-7",
        unit="9f86d081",
        attempts=(
            Attempt("127.0.0.1:9000", 10, 90, errors.UNAVAILABLE, "first"),
            Attempt("127.0.0.1:9001", 300, 700, errors.UNAVAILABLE, "retry"),
        ),
        generation=Generation("invoke_agent", "asked", "answered", "stop", 11, 22, 3, 4),
        compression=Compression(300, 201, ("columns/1", "lines/1"), 70, 0.25),
        notes=("compress: unknown encoding", "cache: too large"),
        hop=THROUGH_INGRESS | DETACHED,
        tenant="acme",
        details=Details(b"\x01\xfe" * 8, ("127.0.0.1:9000 0.03", "127.0.0.1:9001 0.01")),
    )


def test_every_field_of_a_full_call():
    span = decode(full())
    assert span.parent_span_id.hex().encode() == PARENT_ID
    assert span.trace_state == "vendor=1,other=2"
    assert span.flags == 1 | 0x300
    assert span.status.code == trace_pb2.Status.STATUS_CODE_ERROR
    assert span.status.message == "the endpoint is gone: é"
    assert attributes_of(span) == {
        "rpc.system.name": "grpc",
        "rpc.method": "pkg.Svc/Method",
        "rpc.response.status_code": "UNAVAILABLE",
        "error.type": "UNAVAILABLE",
        "server.address": "127.0.0.1",
        "server.port": 9001,
        "gen_ai.agent.id": "tax-eu-001",
        "gen_ai.conversation.id": "session-7",
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.request.model": "asked",
        "gen_ai.response.model": "answered",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 11,
        "gen_ai.usage.output_tokens": 22,
        "gen_ai.usage.cache_read.input_tokens": 3,
        "gen_ai.usage.cache_write.input_tokens": 4,
        "outrider.endpoint": "127.0.0.1:9001",
        "outrider.cache": "miss",
        "outrider.cache.tier": "exact",
        "outrider.variant": "b",
        "outrider.unit": "9f86d081",
        "outrider.queue_us": 1,
        "outrider.lane": "high",
        "outrider.degraded": ["trim_context", "hedge_off"],
        "outrider.connect_us": 200,
        "outrider.first_byte_us": 70_000,
        "outrider.request_bytes": 2**21,
        "outrider.reply_bytes": 2**35,
        "outrider.tokens_saved": 99,
        "outrider.compression.tokens_before": 300,
        "outrider.compression.compressors": ["columns/1", "lines/1"],
        "outrider.compression.us": 70,
        "outrider.compression.net": 0.25,
        "outrider.notes": ["compress: unknown encoding", "cache: too large"],
        "outrider.hop": "ingress",
        "outrider.detached": True,
        "outrider.tenant": "acme",
        "outrider.cache.key": "01fe" * 8,
        "outrider.pick": ["127.0.0.1:9000 0.03", "127.0.0.1:9001 0.01"],
    }


def test_every_attempt_is_an_event():
    first, second = decode(full()).events
    assert (first.name, first.time_unix_nano) == ("outrider.attempt", START_NS + 10_000)
    assert attributes_of(first) == {
        "outrider.endpoint": "127.0.0.1:9000",
        "rpc.response.status_code": "UNAVAILABLE",
        "outrider.attempt.reason": "first",
        "outrider.attempt_us": 90,
    }
    assert second.time_unix_nano == START_NS + 300_000
    plain_attempt = decode(bare(attempts=(("h:1", 0, 0, 0, ""),))).events[0]  # any tuple of that shape
    assert attributes_of(plain_attempt) == {
        "outrider.endpoint": "h:1",
        "rpc.response.status_code": "OK",
        "outrider.attempt_us": 0,
    }


def test_every_name_in_the_table_is_written_somewhere():
    resource = ("SERVICE_NAME", "SERVICE_INSTANCE_ID", "SERVICE_VERSION", "HOST_NAME", "NODE_NAME")
    encoder = Encoder({getattr(attributes, name): "x" for name in resource})
    written = encoder.request([encoder.span(full()), encoder.span(full()._replace(kind=SERVER, status=5))], 1)
    names = [value for name, value in vars(attributes).items() if name.isupper() and isinstance(value, str)]
    assert len(names) > 30
    assert [name for name in names if name.encode() not in written] == []


@pytest.mark.parametrize("kind", [CLIENT, SERVER])
@pytest.mark.parametrize("status", range(17))
def test_what_is_an_error_depends_on_the_kind(kind: int, status: int):
    span = decode(bare(kind=kind, status=status, error="why" if status else ""))
    found = attributes_of(span)
    name = errors.NAMES[status]
    is_error = status != 0 if kind == CLIENT else status in (2, 4, 12, 13, 14, 15)
    assert span.kind == kind
    assert found["rpc.response.status_code"] == name
    assert found.get("error.type") == (name if is_error else None)
    assert span.status.code == (trace_pb2.Status.STATUS_CODE_ERROR if is_error else trace_pb2.Status.STATUS_CODE_UNSET)
    assert span.status.message == ("why" if is_error else "")
    assert found.get("outrider.status_message") == ("why" if status and not is_error else None)


def test_an_error_without_text_is_still_an_error():
    span = decode(bare(status=14))
    assert (span.status.code, span.status.message) == (trace_pb2.Status.STATUS_CODE_ERROR, "")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:9001", ("127.0.0.1", 9001)),
        ("dns:agents.local:80", ("agents.local", 80)),
        ("[::1]:9001", ("::1", 9001)),
        ("::1", ("::1", 0)),
        ("[::1]", ("::1", 0)),
        ("unix:/run/agent.sock", ("/run/agent.sock", 0)),
        ("agents.local", ("agents.local", 0)),
        ("agents.local:http", ("agents.local:http", 0)),
    ],
)
def test_split_address(address: str, expected: tuple[str, int]):
    assert split_address(address) == expected
    found = attributes_of(decode(bare(endpoint=address)))
    assert found["server.address"] == expected[0]
    assert found.get("server.port", 0) == expected[1]
    assert found["outrider.endpoint"] == address


def test_a_request_holds_resource_scope_and_spans_in_order():
    resource = {"service.name": "sidecar", "process.pid": 7, "ok": True, "off": False, "ratio": 0.5, "tags": ["a", "b"]}
    encoder = Encoder(resource, "scope", "1.2")
    spans = [encoder.span(bare(session=str(number))) for number in range(300)]
    request = ExportTraceServiceRequest.FromString(encoder.request(spans, 41))
    (resource_spans,) = request.resource_spans
    (scope_spans,) = resource_spans.scope_spans
    assert attributes_of(resource_spans.resource) == resource
    assert (scope_spans.scope.name, scope_spans.scope.version) == ("scope", "1.2")
    assert attributes_of(scope_spans.scope) == {"outrider.batch.sequence": 41}
    assert resource_spans.schema_url == scope_spans.schema_url == attributes.SCHEMA_URL
    sessions = [attributes_of(span)["gen_ai.conversation.id"] for span in scope_spans.spans]
    assert sessions == [str(number) for number in range(300)]
    unnumbered = ExportTraceServiceRequest.FromString(encoder.request(spans[:1]))
    assert not unnumbered.resource_spans[0].scope_spans[0].scope.attributes


@pytest.mark.parametrize("value", [0, 1, 127, 128, 16_383, 16_384, 2**31, 2**32, 2**63 - 1])
def test_numbers_of_every_length(value: int):
    found = attributes_of(decode(bare(request_bytes=value)))
    assert found.get("outrider.request_bytes", 0) == value
    assert otlp.varint(value) == AnyValue(int_value=value).SerializeToString()[1:]


def test_key_value_agrees_with_the_generated_code():
    values: list[Any] = ["", "text", True, 5, -5, 1.5]
    for value in values:
        kind = {str: "string_value", bool: "bool_value", int: "int_value", float: "double_value"}[type(value)]
        theirs = KeyValue(key="k", value=AnyValue(**{kind: value}))
        assert KeyValue.FromString(otlp.key_value("k", value)) == theirs


def test_long_and_odd_texts_are_cut_and_made_valid():
    span = decode(bare(method="/" + "é" * 5_000, session="\ud800" * 3, status=13, error="x" * 5_000, agent_id="a\x00b"))
    found = attributes_of(span)
    assert span.name == "é" * otlp.TEXT_MAX_CHARS
    assert found["gen_ai.conversation.id"] == "???"
    assert span.status.message == "x" * otlp.TEXT_MAX_CHARS
    assert found["gen_ai.agent.id"] == "a\x00b"


def test_a_tracestate_that_is_no_text_does_not_spoil_the_batch():
    encoder = Encoder({})
    spans = [encoder.span(bare(tracestate=b"a=\xff")), encoder.span(bare(tracestate=b"a=1"))]
    parsed = ExportTraceServiceRequest.FromString(encoder.request(spans)).resource_spans[0].scope_spans[0].spans
    assert [span.trace_state for span in parsed] == ["", "a=1"]


def test_static_parts_are_kept_per_key_and_bounded():
    encoder = Encoder({})
    for number in range(3_000):
        assert decode(bare(method=f"/a/{number}"), encoder).name == f"a/{number}"
        decode(bare(attempts=(Attempt(f"h:{number}", 0, 1, 0),)), encoder)
        decode(bare(generation=Generation(model=f"m{number}")), encoder)
        decode(bare(admission=Admission(0, f"l{number}")), encoder)
    for kept in (encoder._statics, encoder._admissions, encoder._attempts, encoder._generations):
        assert 0 < len(kept) <= 1_024
    before = len(encoder._statics)
    decode(bare(method="/" + "x" * 60_000), encoder)
    assert len(encoder._statics) == before


NUMBER = st.integers(0, 2**40)
TEXT = st.text(max_size=20)
CALLS = st.builds(
    Span,
    trace_id=st.binary(min_size=16, max_size=16).map(lambda value: value.hex().encode()),
    span_id=st.binary(min_size=8, max_size=8).map(lambda value: value.hex().encode()),
    parent_id=st.sampled_from([b"", PARENT_ID]),
    tracestate=st.sampled_from([b"", b"a=1"]),
    flags=st.integers(0, 255),
    kind=st.sampled_from([CLIENT, SERVER]),
    method=TEXT,
    agent_id=TEXT,
    endpoint=TEXT,
    start_unix_ns=st.integers(0, 2**62),
    total_us=NUMBER,
    status=st.integers(0, 16),
    error=TEXT,
    admission=st.none() | st.builds(Admission, NUMBER, TEXT, st.lists(TEXT, max_size=2).map(tuple)),
    connect_us=NUMBER,
    first_byte_us=NUMBER,
    request_bytes=NUMBER,
    reply_bytes=NUMBER,
    cache=TEXT,
    cache_tier=TEXT,
    variant=TEXT,
    session=TEXT,
    unit=TEXT,
    attempts=st.lists(st.builds(Attempt, TEXT, NUMBER, NUMBER, st.integers(0, 16), TEXT), max_size=3).map(tuple),
    generation=st.none() | st.builds(Generation, TEXT, TEXT, TEXT, TEXT, NUMBER, NUMBER, NUMBER, NUMBER),
    compression=st.none()
    | st.builds(Compression, NUMBER, NUMBER, st.lists(TEXT, max_size=2).map(tuple), NUMBER, st.floats(-9, 9)),
    notes=st.lists(TEXT, max_size=3).map(tuple),
    hop=st.integers(0, 3),
    tenant=TEXT,
    details=st.none()
    | st.builds(Details, st.sampled_from([b"", bytes(range(16))]), st.lists(TEXT, max_size=2).map(tuple)),
)


@given(st.lists(CALLS, min_size=1, max_size=4))
def test_any_call_reads_back_alike_whether_or_not_its_parts_were_kept(calls: list[Span]):
    shared = Encoder({})
    for call in (*calls, *calls):
        span = decode(call, shared)
        assert span == decode(call)
        assert span.end_time_unix_nano == call.end_unix_ns
        assert len(span.events) == len(call.attempts)
        found = attributes_of(span)
        compression = call.compression or Compression()
        assert found.get("outrider.tokens_saved", 0) == max(0, compression.tokens_saved)
        assert found.get("outrider.compression.tokens_before", 0) == compression.tokens_before
        assert found.get("outrider.compression.compressors", []) == list(compression.compressors)
        assert found.get("outrider.compression.us", 0) == compression.us
        assert found.get("outrider.compression.net", 0) == compression.net
        assert found.get("outrider.notes", []) == list(call.notes)
        assert found.get("gen_ai.conversation.id", "") == call.session
        assert found.get("outrider.tenant", "") == call.tenant
        assert found.get("outrider.hop", "") == ("ingress" if call.hop & THROUGH_INGRESS else "")
        assert found.get("outrider.detached", False) is bool(call.hop & DETACHED)
        admission = call.admission or Admission(0, "")
        assert found.get("outrider.queue_us", 0) == admission.queue_us
        assert found.get("outrider.lane", "") == admission.lane
        assert found.get("outrider.degraded", []) == list(admission.degraded)
        details = call.details or Details()
        assert found.get("outrider.cache.key", "") == details.cache_key.hex()
        assert found.get("outrider.pick", []) == list(details.pick)


def test_the_encoder_does_not_depend_on_what_it_saw_before():
    source = random.Random(2)
    calls = [full()._replace(status=source.randrange(17), endpoint=f"h:{source.randrange(3)}") for _ in range(50)]
    encoder = Encoder({})
    assert [encoder.span(call) for call in calls] == [Encoder({}).span(call) for call in calls]
