"""Figures and kept calls over gRPC: what the ledger took in comes out exactly, and what is not known is absent."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from outrider.v1 import operator_pb2, policy_pb2
from outrider_control.api import convert, figures_api
from outrider_control.core.figures import Figures
from outrider_control.intake import span_view
from outrider_control.state.database import DatabaseError
from outrider_control.state.kept_spans import KeptSpan
from outrider_sidecar.core.span import CLIENT, SERVER, Attempt, Generation, Span
from outrider_sidecar.engines.otlp import Encoder
from tests.operator_server import LOOPBACK, NOW_MS, Plane, sample

ABSENT = ("success_rate", "error_rate", "p50_ms", "p95_ms", "p99_ms", "mean_ms", "hit_rate", "cost_usd", "satisfaction")


async def overview(plane: Plane, **fields: Any) -> operator_pb2.Overview:
    return await plane.call("GetOverview", operator_pb2.GetOverviewRequest(**fields))


async def test_an_overview_of_what_was_and_what_was_not_called(plane: Plane) -> None:
    await plane.apply(policy_pb2.AgentPolicy(agent_id="quiet"))
    priced = {"input_tokens": 100, "output_tokens": 10, "cost_nano_usd": 5_000_000, "priced": True}
    await plane.take_in(
        [sample("busy", total_us=2_000, cache="miss", tier="exact", **priced) for _ in range(6)]
        + [sample("busy", total_us=2_000, cache="hit", tier="exact", cached_tokens=110) for _ in range(2)]
        + [sample("busy", status="UNAVAILABLE", failed=True), sample("busy", status="CANCELLED", cancelled=True)]
        + [sample("zoo", unpriced=True)]
    )
    plane.ledger.add_dropped("zoo", 4, NOW_MS)
    await plane.take_in([sample("zoo")])
    reply = await overview(plane)
    assert [one.agent_id for one in reply.agents] == ["busy", "quiet", "zoo"]
    busy, quiet, zoo = (one.figures for one in reply.agents)
    assert (busy.requests, busy.errors, busy.cancelled) == (10, 1, 1)
    assert busy.success_rate == pytest.approx(8 / 9)
    assert busy.p50_ms == pytest.approx(2.0, rel=0.0055)
    assert (busy.hit_rate, dict(busy.hit_rates), dict(busy.cache)) == (0.25, {"exact": 0.25}, {"miss": 6, "hit": 2})
    assert (busy.input_tokens, busy.cached_tokens) == (600, 220)
    assert busy.cost_usd == pytest.approx(0.03)
    assert dict(busy.statuses) == {"UNAVAILABLE": 1, "CANCELLED": 1}
    assert (quiet.requests, [name for name in ABSENT if quiet.HasField(name)]) == (0, [])
    assert (zoo.unpriced, zoo.HasField("cost_usd")) == (1, False)
    assert (reply.total.requests, reply.dropped_spans) == (12, 4)
    span_s = (reply.to_unix_ms - reply.from_unix_ms) / 1_000
    assert span_s >= 3_600
    assert busy.rate == pytest.approx(10 / span_s)


async def test_old_calls_are_not_in_a_short_overview(plane: Plane) -> None:
    await plane.take_in([sample("a", NOW_MS - 1_800_000), sample("a")])
    assert (await overview(plane, since_ms=60_000)).total.requests == 1
    assert (await overview(plane)).total.requests == 2


async def test_metrics_of_an_agent(plane: Plane) -> None:
    await plane.take_in([sample("a", NOW_MS - at * 10_000, method=f"/m/{at % 2}") for at in range(12)])
    request = operator_pb2.GetMetricsRequest(agent_id="a", since_ms=300_000, by="method", window="10s")
    metrics = await plane.call("GetMetrics", request)
    assert (metrics.agent_id, metrics.window, metrics.figures.requests) == ("a", "10s", 12)
    assert len(metrics.series) == 12
    starts = [point.at_unix_ms for point in metrics.series]
    assert starts == sorted(starts)
    assert {(split.name, split.figures.requests) for split in metrics.splits} == {("/m/0", 6), ("/m/1", 6)}
    together = await plane.call("GetMetrics", operator_pb2.GetMetricsRequest(since_ms=300_000))
    assert together.figures.requests == 12


async def test_metrics_of_an_agent_that_was_not_called(plane: Plane) -> None:
    await plane.apply(policy_pb2.AgentPolicy(agent_id="quiet"))
    metrics = await plane.call("GetMetrics", operator_pb2.GetMetricsRequest(agent_id="quiet"))
    assert (metrics.figures.requests, len(metrics.series), metrics.window) == (0, 0, "1m")


def test_splits_past_the_bound_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures_api, "MAX_SPLITS", 3)

    def of(requests: int) -> Figures:
        figures = Figures()
        figures.requests = requests
        return figures

    splits = [("a", of(9)), ("(other)", of(5)), ("b", of(3)), ("c", of(2)), ("d", of(1))]
    assert [(name, one.requests) for name, one in figures_api.bounded(splits)] == [("a", 9), ("(other)", 11)]
    assert figures_api.bounded(splits[:3]) == splits[:3]


async def test_a_stream_of_overviews_ends_with_its_listener(plane: Plane) -> None:
    await plane.take_in([sample("a"), sample("b")])
    request = operator_pb2.StreamMetricsRequest(interval_ms=250, agent_id="a")
    stream = plane.stub.StreamMetrics(request, metadata=LOOPBACK)
    first, second = await stream.read(), await stream.read()
    assert [one.agent_id for one in first.agents] == ["a"]
    assert first.total.requests == second.total.requests == 1
    assert plane.service._figures._streams == 1
    stream.cancel()
    async with asyncio.timeout(10):
        while plane.service._figures._streams:
            await asyncio.sleep(0.005)


async def test_streams_share_what_is_the_same_for_all(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    overview_of = plane.reader.overview

    async def counted(since_ms: int, now_ms: int) -> dict[str, Figures]:
        asked.append(now_ms)
        return await overview_of(since_ms, now_ms)

    monkeypatch.setattr(plane.reader, "overview", counted)
    await plane.take_in([sample("a")])
    request = operator_pb2.StreamMetricsRequest(interval_ms=250)
    streams = [plane.stub.StreamMetrics(request, metadata=LOOPBACK) for _ in range(5)]
    first = [await stream.read() for stream in streams]
    assert [one.total.requests for one in first] == [1] * 5
    assert asked == [NOW_MS]
    streams.pop().cancel()
    await plane.take_in([sample("a")])
    plane.now_ms += 250
    for stream in streams:
        while (await stream.read()).total.requests != 2:
            pass
        stream.cancel()
    assert asked == [NOW_MS, NOW_MS + 250]


async def test_a_stream_ends_with_the_status_of_what_failed(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(_since_ms: int, _now_ms: int) -> dict[str, Figures]:
        raise DatabaseError("here", "the disk is full")

    monkeypatch.setattr(plane.reader, "overview", fails)
    stream = plane.stub.StreamMetrics(operator_pb2.StreamMetricsRequest(), metadata=LOOPBACK)
    assert await stream.code() is grpc.StatusCode.UNAVAILABLE
    assert await stream.details() == "here: the disk is full"


async def test_streams_are_bounded(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures_api, "MAX_STREAMS", 1)
    request = operator_pb2.StreamMetricsRequest()
    first = plane.stub.StreamMetrics(request, metadata=LOOPBACK)
    await first.read()
    second = plane.stub.StreamMetrics(request, metadata=LOOPBACK)
    assert await second.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    too_fast = plane.stub.StreamMetrics(operator_pb2.StreamMetricsRequest(interval_ms=10), metadata=LOOPBACK)
    assert await too_fast.code() is grpc.StatusCode.INVALID_ARGUMENT
    first.cancel()


def kept(reason: str = "error", at_ms: int = NOW_MS - 500, **fields: Any) -> KeptSpan:
    """A span as a sidecar writes it and the intake keeps it."""
    base: dict[str, Any] = {
        "trace_id": b"a" * 32, "span_id": b"b" * 16, "parent_id": b"", "tracestate": b"", "flags": 1, "kind": CLIENT,
        "method": "/tax.Tax/Ask", "agent_id": "a", "endpoint": "10.0.0.1:9001", "start_unix_ns": at_ms * 1_000_000,
        "total_us": 12_500, "status": 0,
    }  # fmt: skip
    made = Span(**(base | fields))
    encoder = Encoder({"service.name": "sidecar"})
    request = ExportTraceServiceRequest.FromString(encoder.request([encoder.span(made)]))
    span = request.resource_spans[0].scope_spans[0].spans[0]
    packed = span_view.pack(b"sidecar", b"i1", b"outrider", span.SerializeToString())
    ids = (made.trace_id.decode(), made.span_id.decode())
    return KeptSpan(*ids, made.agent_id, at_ms, made.total_us, made.status != 0, reason, packed)


async def test_traces_are_listed_shown_and_explained(plane: Plane) -> None:
    tries = (Attempt("10.0.0.1:9001", 0, 2_000, 14, "refused"), Attempt("10.0.0.2:9001", 30_000, 5_000, 0))
    usage = Generation(model="m1", input_tokens=1_000, output_tokens=100)
    outer = kept("variant", attempts=tries, cache="miss", cache_tier="exact", generation=usage)
    inner = kept(at_ms=NOW_MS - 490, span_id=b"c" * 16, parent_id=b"b" * 16, kind=SERVER)
    other = kept("slow", NOW_MS - 9_000, trace_id=b"d" * 32, agent_id="b", total_us=3_000_000, status=14, error="down")
    await plane.take_in(kept=[outer, inner, other])

    async def listed(**fields: Any) -> list[operator_pb2.TraceSummary]:
        return list((await plane.call("ListTraces", operator_pb2.ListTracesRequest(**fields))).traces)

    first, second = await listed()
    assert (first.trace_id, first.agent_id, first.method, first.status) == ("a" * 32, "a", "/tax.Tax/Ask", "OK")
    assert (first.spans, first.kept, first.cache, first.duration_ms) == (2, "error", "miss", 12.5)
    assert (second.trace_id, second.status, second.kept) == ("d" * 32, "UNAVAILABLE", "slow")
    assert [one.trace_id for one in await listed(errors=True)] == ["d" * 32]
    assert [one.trace_id for one in await listed(min_ms=1_000)] == ["d" * 32]
    assert [one.trace_id for one in await listed(agent_id="a", limit=1)] == ["a" * 32]
    assert await listed(since_ms=100) == []

    trace = await plane.call("GetTrace", operator_pb2.GetTraceRequest(trace_id="c" * 16))
    assert (trace.trace_id, [span.span_id for span in trace.spans]) == ("a" * 32, ["b" * 16, "c" * 16])
    span = trace.spans[0]
    assert (span.kind, span.service, span.agent_id, span.kept) == ("client", "sidecar", "a", "variant")
    assert span.attributes["outrider.cache"] == "miss"
    assert span.events[0].attributes["rpc.response.status_code"] == "UNAVAILABLE"

    told = await plane.call("ExplainTrace", operator_pb2.ExplainTraceRequest(trace_id="A" * 32))
    assert [(call.call_id, call.hop) for call in told.calls] == [("b" * 16, "egress"), ("c" * 16, "ingress")]
    steps = {step.what: step for step in told.calls[0].steps}
    assert steps["tokens"].facts["cost_usd"] == pytest.approx(0.0045)  # 1,000 at $3 and 100 at $15 a million
    assert steps["retry"].text == "tried again: attempt 1 ended with UNAVAILABLE"
    assert steps["retry"].at_ms == 30
    assert not steps["cache"].HasField("at_ms")


async def test_a_damaged_span_hides_no_other(plane: Plane) -> None:
    damaged = kept(at_ms=NOW_MS - 600, span_id=b"e" * 16)._replace(span=b"\xff\x00")
    alone = kept(trace_id=b"f" * 32)._replace(span=b"")
    await plane.take_in(kept=[damaged, kept(), alone])
    trace = await plane.call("GetTrace", operator_pb2.GetTraceRequest(trace_id="a" * 32))
    assert [span.span_id for span in trace.spans] == ["e" * 16, "b" * 16]
    assert "cannot be read" in trace.spans[0].message
    told = await plane.call("ExplainTrace", operator_pb2.ExplainTraceRequest(trace_id="a" * 32))
    assert [call.call_id for call in told.calls] == ["b" * 16]
    listed = (await plane.call("ListTraces", operator_pb2.ListTracesRequest())).traces
    assert {(one.trace_id, one.method, one.spans) for one in listed} == {
        ("f" * 32, "", 1),
        ("a" * 32, "/tax.Tax/Ask", 2),
    }


async def test_a_trace_larger_than_a_reply_keeps_its_spans(plane: Plane) -> None:
    spans = [kept(span_id=b"%016x" % (at + 1), notes=("x" * 900,) * 4) for at in range(1_000)]
    await plane.take_in(kept=spans)
    trace = await plane.call("GetTrace", operator_pb2.GetTraceRequest(trace_id="a" * 32))
    assert len(trace.spans) == 1_000
    assert trace.ByteSize() < 4 * 1024 * 1024
    assert len(trace.spans[0].attributes["outrider.notes"]) == 4
    assert not trace.spans[-1].attributes.fields


def test_plain_data_that_json_has_not() -> None:
    made: Any = convert.struct(
        {"big": 2**63, "nan": float("nan"), "odd": "\ud800", "deep": {"a": [None, True, (1,)]}, "x": b""}
    )
    assert made["big"] == str(2**63)
    assert made["nan"] == "nan"
    assert made["odd"] == "?"
    assert made["deep"]["a"][2][0] == 1
    assert made.SerializeToString()
