"""What a call leaves behind: spans at a real OTLP collector, trace context, metrics, the access log."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.sidecars import Calls, Mesh, Peer, Sidecar, agent, channel_to, eventually, new_key, standalone, trailers

CACHED = {"cache_enabled": True, "cache_methods": ["/test.Agent/Other"]}
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(scope="module")
def collector(mesh: Mesh) -> Peer:
    return mesh.peer("collector")


@pytest.fixture(scope="module")
def sidecar(mesh: Mesh, peer: Peer, collector: Peer) -> Sidecar:
    config = {
        "default_agent": "solo",
        "agents": [agent("solo", peer, optimization=CACHED, retry={"backoff_ms": 1})],
        "telemetry": {"otlp": collector.address},
        "access_log": "access.jsonl",
        "ingress": {"listen": "127.0.0.1:0", "agent_id": "inner", "target": peer.address},
    }
    return mesh.sidecar(
        config,
        OTEL_BSP_SCHEDULE_DELAY="50",
        OTEL_SERVICE_NAME="payroll",
        OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test,team=a%20b",
        OTEL_EXPORTER_OTLP_HEADERS="x-token=s3cret",
    )


@pytest.fixture
def calls(sidecar: Sidecar) -> Iterator[Calls]:
    with channel_to(sidecar.target) as channel:
        yield Calls(channel)
    sidecar.settled()


def exported(collector: Peer) -> list[Span]:
    request = ExportTraceServiceRequest.FromString(collector.exported())
    return [span for one in request.resource_spans for scope in one.scope_spans for span in scope.spans]


def span_of(collector: Peer, call: Any) -> Span:
    """The span of an ended call, once it is at the collector; there is only one."""
    wanted = trailers(call)["x-outrider-call-id"]

    def found() -> list[Span]:
        return [span for span in exported(collector) if span.span_id.hex() == wanted]

    spans = eventually(found, f"span {wanted} is exported")
    assert len(spans) == 1
    return spans[0]


def plain_value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    found = getattr(value, kind)
    return [plain_value(one) for one in found.values] if kind == "array_value" else found


def attributes(holder: Any) -> dict[str, Any]:
    return {one.key: plain_value(one.value) for one in holder.attributes}


# -- spans -----------------------------------------------------------------------------------------------------------


def test_every_attribute_of_a_plain_call(calls: Calls, peer: Peer, collector: Peer) -> None:
    call = calls.unary(b"12345", size=100)
    span = span_of(collector, call)
    has = attributes(span)
    assert span.trace_id.hex() == trailers(call)["x-outrider-trace-id"]
    assert span.parent_span_id == b""
    assert span.name == "test.Agent/Unary"
    assert span.kind == Span.SPAN_KIND_CLIENT
    assert span.status.code == 0
    assert 0 < span.start_time_unix_nano < span.end_time_unix_nano
    assert has["rpc.system.name"] == "grpc"
    assert has["rpc.method"] == "test.Agent/Unary"
    assert has["rpc.response.status_code"] == "OK"
    assert (has["server.address"], has["server.port"]) == ("127.0.0.1", peer.port)
    assert has["gen_ai.agent.id"] == "solo"
    assert has["outrider.endpoint"] == peer.address
    assert (has["outrider.request_bytes"], has["outrider.reply_bytes"]) == (10, 105)
    total_us = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e3
    assert 0 < has["outrider.first_byte_us"] <= total_us
    assert not [name for name in has if "error" in name]


def test_a_session_is_the_conversation(calls: Calls, collector: Peer) -> None:
    call = calls.unary(b"", metadata=[("x-session-id", "talk-7")])
    assert attributes(span_of(collector, call))["gen_ai.conversation.id"] == "talk-7"


def test_a_failed_call_is_an_error_with_its_attempts(calls: Calls, peer: Peer, collector: Peer) -> None:
    call = calls.unary(b"", key=new_key(), status=14, message="out of order")
    span = span_of(collector, call)
    has = attributes(span)
    assert has["rpc.response.status_code"] == has["error.type"] == "UNAVAILABLE"
    assert (span.status.code, span.status.message) == (2, "out of order")
    tries = [event for event in span.events if event.name == "outrider.attempt"]
    assert len(tries) == 3
    for event in tries:
        assert attributes(event)["rpc.response.status_code"] == "UNAVAILABLE"
        assert attributes(event)["outrider.endpoint"] == peer.address


def test_a_retried_call_shows_what_failed_before(calls: Calls, collector: Peer) -> None:
    span = span_of(collector, calls.unary(b"", key=new_key(), fail_first=1, status=14))
    statuses = [attributes(event)["rpc.response.status_code"] for event in span.events]
    assert statuses == ["UNAVAILABLE", "OK"]
    assert attributes(span)["rpc.response.status_code"] == "OK"


def test_cache_verdicts(calls: Calls, collector: Peer) -> None:
    body = new_key().encode()
    for verdict in ("miss", "hit"):
        span = span_of(collector, calls.unary(body, method="Other"))
        assert attributes(span)["outrider.cache"] == verdict
        assert ("outrider.endpoint" in attributes(span)) == (verdict == "miss")


def test_a_call_that_ends_at_the_sidecar_leaves_a_span(calls: Calls, collector: Peer) -> None:
    call = calls.unary(metadata=[("x-agent-id", "nobody")])
    has = attributes(span_of(collector, call))
    assert has["rpc.response.status_code"] == "NOT_FOUND"
    assert "outrider.endpoint" not in has


def test_a_cancelled_call_leaves_a_span(calls: Calls, peer: Peer, collector: Peer) -> None:
    key = new_key()
    trace = f"{0xC0FFEE:032x}"
    call = calls.start("Unary", key=key, hold=True, metadata=[("traceparent", f"00-{trace}-{PARENT}-01")])
    peer.record(key)
    call.cancel()
    span = eventually(lambda: [one for one in exported(collector) if one.trace_id.hex() == trace], "it is exported")[0]
    assert attributes(span)["rpc.response.status_code"] == "CANCELLED"


def test_an_expired_call_leaves_a_span(calls: Calls, collector: Peer) -> None:
    trace = f"{0xDEAD:032x}"
    sent = [("traceparent", f"00-{trace}-{PARENT}-01")]
    calls.unary(key=new_key(), hold=True, timeout_s=0.1, metadata=sent)
    span = eventually(lambda: [one for one in exported(collector) if one.trace_id.hex() == trace], "it is exported")[0]
    assert attributes(span)["rpc.response.status_code"] in ("DEADLINE_EXCEEDED", "CANCELLED")


def test_the_resource(calls: Calls, collector: Peer) -> None:
    span_of(collector, calls.unary(b""))
    request = ExportTraceServiceRequest.FromString(collector.exported())
    for one in request.resource_spans:
        has = attributes(one.resource)
        assert has["service.name"] == "payroll"
        assert (has["deployment.environment.name"], has["team"]) == ("test", "a b")
        assert has["service.instance.id"]
        assert [scope.scope.name for scope in one.scope_spans] == ["outrider"]


def test_exports_carry_the_configured_headers_and_config_masks_them(
    sidecar: Sidecar, calls: Calls, collector: Peer
) -> None:
    span_of(collector, calls.unary(b""))
    assert all(["x-token", "s3cret"] in sent for sent in collector.control("export_headers"))
    assert "s3cret" not in json.dumps(sidecar.json("/config"))


def test_ingress_leaves_a_server_span(sidecar: Sidecar, collector: Peer) -> None:
    with channel_to(f"127.0.0.1:{sidecar.ports['ingress']}") as channel:
        span = span_of(collector, Calls(channel).unary(b"x"))
    assert span.kind == Span.SPAN_KIND_SERVER
    assert attributes(span)["gen_ai.agent.id"] == "inner"


# -- trace context ---------------------------------------------------------------------------------------------------


def test_trace_context_in_and_out(calls: Calls, peer: Peer, collector: Peer) -> None:
    key = new_key()
    sent = [("traceparent", f"00-{TRACE}-{PARENT}-01"), ("tracestate", "vendor=abc,other=1")]
    call = calls.unary(b"", key=key, metadata=sent)
    span = span_of(collector, call)
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert span.trace_state == "vendor=abc,other=1"
    onward = dict(peer.record(key)["metadata"])
    assert onward["traceparent"] == f"00-{TRACE}-{span.span_id.hex()}-01"
    assert onward["tracestate"] == "vendor=abc,other=1"


def test_a_caller_that_does_not_sample_is_heard(calls: Calls, peer: Peer, collector: Peer) -> None:
    key, trace = new_key(), f"{0x5A5A:032x}"
    calls.unary(b"", key=key, metadata=[("traceparent", f"00-{trace}-{PARENT}-00")]).result()
    assert dict(peer.record(key)["metadata"])["traceparent"].endswith("-00")
    span_of(collector, calls.unary(b""))  # what was recorded later is there
    assert [span for span in exported(collector) if span.trace_id.hex() == trace] == []


@pytest.mark.parametrize(
    "broken", ["", "00", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01", f"00-{TRACE.upper()}-{PARENT}-01"]
)
def test_a_broken_trace_context_begins_a_new_trace(calls: Calls, peer: Peer, broken: str) -> None:
    key = new_key()
    call = calls.unary(b"", key=key, metadata=[("traceparent", broken)])
    found = dict(peer.record(key)["metadata"])["traceparent"].split("-")
    assert found[1] == trailers(call)["x-outrider-trace-id"] != TRACE
    assert found[2] == trailers(call)["x-outrider-call-id"]


def test_ids_stand_in_initial_metadata_and_trailers(calls: Calls) -> None:
    for call in (calls.unary(b""), calls.unary(b"", status=13, head=[["x", "y"]])):
        early, late = dict(call.initial_metadata()), trailers(call)
        for name, digits in (("x-outrider-call-id", 16), ("x-outrider-trace-id", 32)):
            assert early[name] == late[name]
            assert len(late[name]) == digits
            int(late[name], 16)


# -- a collector that is not there -----------------------------------------------------------------------------------


def test_a_dead_collector_fails_no_call_and_drops_are_counted(mesh: Mesh, peer: Peer) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        config = {**standalone(peer), "telemetry": {"otlp": f"127.0.0.1:{closed.getsockname()[1]}"}}
        sidecar = mesh.sidecar(
            config,
            "dead",
            OTEL_BSP_SCHEDULE_DELAY="10",
            OTEL_BSP_MAX_QUEUE_SIZE="64",
            OTEL_BSP_MAX_EXPORT_BATCH_SIZE="16",
        )
        with channel_to(sidecar.target) as channel:
            calls = Calls(channel)
            running = [calls.start("Unary", b"x") for _ in range(400)]
            assert [call.result() for call in running] == [b"x"] * 400
        eventually(
            lambda: sum(value for name, has, value in sidecar.samples() if "drop" in json.dumps([name, has])) >= 300,
            "drops are counted",
        )
        sidecar.terminate()
        assert sidecar.wait_exit() == 0


def test_spans_are_flushed_at_the_end(mesh: Mesh, peer: Peer, collector: Peer) -> None:
    config = {**standalone(peer), "telemetry": {"otlp": collector.address}}
    sidecar = mesh.sidecar(config, "flushes", OTEL_BSP_SCHEDULE_DELAY="600000")
    with channel_to(sidecar.target) as channel:
        ended = [Calls(channel).unary(b"x") for _ in range(20)]
    sidecar.terminate()
    assert sidecar.wait_exit() == 0
    there = {span.span_id.hex() for span in exported(collector)}
    assert {trailers(call)["x-outrider-call-id"] for call in ended} <= there


# -- metrics and logs ------------------------------------------------------------------------------------------------


def test_metrics_count_every_call(sidecar: Sidecar, calls: Calls) -> None:
    labels = {"agent": "solo", "method": "/test.Agent/Unary", "status": "DATA_LOSS"}
    before = sidecar.metric("outrider_calls_total", **labels)
    for _ in range(7):
        calls.unary(status=15)
    sidecar.settled()
    assert sidecar.metric("outrider_calls_total", **labels) == before + 7
    count = sidecar.metric("outrider_call_duration_seconds_count", agent="solo", method="/test.Agent/Unary")
    assert count == sidecar.metric("outrider_calls_total", agent="solo", method="/test.Agent/Unary")
    buckets = [
        (float(has["le"]), value)
        for name, has, value in sidecar.samples()
        if name == "outrider_call_duration_seconds_bucket"
        and (has["agent"], has["method"]) == ("solo", "/test.Agent/Unary")
    ]
    assert buckets == sorted(buckets)
    assert buckets[-1] == (float("inf"), count)


def test_metrics_by_made_up_methods_are_bounded(sidecar: Sidecar, calls: Calls) -> None:
    """A caller that invents method names must not fill the sidecar with series."""
    running = [calls.start(f"/made.Up/Method{number}") for number in range(3_000)]
    for call in running:
        call.exception()
    methods = {has["method"] for name, has, _ in sidecar.samples() if name == "outrider_calls_total"}
    assert len(methods) < 2_000


def test_the_access_log(sidecar: Sidecar, calls: Calls, peer: Peer) -> None:
    call = calls.unary(b"x", key=new_key(), status=9, message="no\nnewline")
    wanted = trailers(call)["x-outrider-call-id"]

    def line() -> dict[str, Any] | None:
        lines = (sidecar.folder / "access.jsonl").read_text(encoding="ascii").splitlines()
        return next((one for one in map(json.loads, lines) if one["span_id"] == wanted), None)

    entry = eventually(line, "the call is logged")
    assert entry["status"] == "FAILED_PRECONDITION"
    assert entry["method"] == "/test.Agent/Unary"
    assert (entry["agent"], entry["endpoint"], entry["hop"]) == ("solo", peer.address, "egress")
    assert entry["trace_id"] == trailers(call)["x-outrider-trace-id"]


def test_probes(sidecar: Sidecar) -> None:
    for path in ("/healthz", "/readyz"):
        assert sidecar.get(path)[0] == 200
    assert sidecar.get("/nothing")[0] == 404
