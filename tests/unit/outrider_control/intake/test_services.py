"""The services over gRPC: the SDK's own exporters and our sidecar's encoder as clients, the real ledger behind."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind

from outrider_control.intake.forward import PATHS
from outrider_control.intake.ledger import Ledger, Overloaded, Prepared
from outrider_control.intake.prices import Prices
from outrider_control.intake.services import REQUEST_MAX_BYTES, Intake
from outrider_control.intake.span_view import view
from outrider_control.intake.tail import Tail, TailPolicy
from outrider_control.state.database import Database
from outrider_control.state.failures import FULL, DatabaseError
from outrider_sidecar.core.span import CLIENT, Span
from outrider_sidecar.engines.otlp import Encoder
from outrider_sidecar.engines.otlp_reply import retry_delay_s

TAIL = TailPolicy(share=1, max_per_s=1e9)


class Taker:
    """A ledger that notes what it is given, and fails when it is told to."""

    def __init__(self) -> None:
        self.taken: list[Prepared] = []
        self.dropped: dict[str, int] = {}
        self.counts = {"accepted": 0, "duplicate": 0}
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    def seen(self, source: str, sequence: int) -> bool:
        return any((one.source, one.sequence) == (source, sequence) for one in self.taken if source)

    async def commit(self, prepared: Prepared) -> bool:
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        if self.seen(prepared.source, prepared.sequence):
            return False
        self.taken.append(prepared)
        self.counts["accepted"] += len(prepared.samples)
        return True

    def add_dropped(self, agent_id: str, count: int, now_ms: int) -> None:
        self.dropped[agent_id] = self.dropped.get(agent_id, 0) + count


def clock_ms() -> int:
    return time.time_ns() // 1_000_000


class Scene:
    """A server with the intake, and a channel to it."""

    def __init__(self, ledger: Any, offset_ms: Callable[[str], int] = lambda _: 0):
        self.ledger = ledger
        self.tail = Tail(TAIL)
        self.intake = Intake(ledger, offset_ms, Prices({}), self.tail, None, clock_ms)
        self.server = grpc.aio.server(options=[("grpc.max_receive_message_length", 2 * REQUEST_MAX_BYTES)])
        self.intake.add_to(self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Scene]:
        await self.server.start()
        options = [("grpc.max_send_message_length", -1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options) as self.channel:
            yield self
        await self.server.stop(0)
        await self.intake.close()

    async def export(self, request: bytes, signal: str = "traces", **options: Any) -> bytes:
        return await self.channel.unary_unary(PATHS[signal])(request, **options)

    async def refused(self, request: bytes, signal: str = "traces") -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.export(request, signal)
        return caught.value


def encoded(encoder: Encoder, count: int, seed: int = 1) -> list[bytes]:
    draw = random.Random(seed)
    return [
        encoder.span(
            Span(b"%032x" % draw.getrandbits(128), b"%016x" % draw.getrandbits(64), b"", b"", 1, CLIENT, "/p.S/M", "a",
                 "h:1", time.time_ns() - 10**9, 5_000, 0, "", None, 0, 100)
        )
        for _ in range(count)
    ]  # fmt: skip


def sidecar(instance: str = "i") -> Encoder:
    return Encoder({"service.name": "outrider-sidecar", "service.instance.id": instance})


async def test_a_sidecar_s_batches_count_exactly_once(database: Database):
    ledger = Ledger(database, clock_ms)
    await ledger.start()
    async with Scene(ledger).open() as scene:
        encoder = sidecar()
        spans = encoded(encoder, 100)
        requests = [encoder.request(spans[at : at + 10], at // 10) for at in range(0, 100, 10)]
        for request in requests:
            assert await scene.export(request) == b""
            assert await scene.export(request) == b""
        assert scene.intake.counts["accepted"] == 100
        assert scene.intake.counts["duplicate"] == 100
        assert scene.intake.counts["received"] == 200
        assert scene.intake.counts["kept_sampled"] == 100
    await ledger.close()
    # Another control plane on the same store does not know the numbers by itself.
    other = Ledger(database, clock_ms)
    await other.start()
    async with Scene(other).open() as scene:
        for request in requests:
            await scene.export(request)
        assert scene.intake.counts["accepted"] == 0
    await other.close()


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
async def test_the_sdk_s_own_exporter(compression: grpc.Compression):
    async with Scene(Taker()).open() as scene:
        resource = Resource.create({"service.name": "billing", "gen_ai.agent.id": "agent-7"})
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        endpoint = f"127.0.0.1:{scene.port}"
        provider.add_span_processor(
            BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, insecure=True, compression=compression))
        )
        tracer = provider.get_tracer("library")
        for number in range(30):
            with tracer.start_as_current_span("serve", kind=SpanKind.SERVER) as span:
                span.set_attribute("rpc.method", "pkg.Svc/Do")
                span.set_attribute("rpc.response.status_code", "OK" if number else "UNAVAILABLE")
                with tracer.start_as_current_span("chat") as inner:
                    inner.set_attribute("gen_ai.usage.input_tokens", 11)
        await asyncio.to_thread(provider.shutdown)
        samples = [sample for one in scene.ledger.taken for sample in one.samples]
        calls = [sample for sample in samples if sample.call]
        assert {sample.key[:2] for sample in calls} == {("agent-7", "/pkg.Svc/Do")}
        assert (len(calls), sum(sample.failed for sample in calls)) == (30, 1)
        assert sum(sample.input_tokens for sample in samples) == 330
        kept = [view(one.span) for taken in scene.ledger.taken for one in taken.kept]
        assert {(one.service, one.scope, one.ours) for one in kept} == {("billing", "library", False)}
        assert len(kept) == 60


async def test_the_sdk_s_metrics():
    async with Scene(Taker()).open() as scene:
        exporter = OTLPMetricExporter(endpoint=f"127.0.0.1:{scene.port}", insecure=True)
        reader = PeriodicExportingMetricReader(exporter, export_interval_millis=3_600_000)
        resource = Resource.create({"service.name": "billing"})
        provider = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
        meter = provider.get_meter("library")
        counter, recorder = meter.create_counter("calls"), meter.create_histogram("wait", "s")
        for _ in range(2):
            counter.add(5)
            recorder.record(0.5)
            await asyncio.to_thread(provider.force_flush)
        await asyncio.to_thread(provider.shutdown)
        points = [point for one in scene.ledger.taken for point in one.metrics]
        assert sum(point.value for point in points if point.name == "calls") == 10
        assert sum(point.count for point in points if point.name == "wait") == 2


async def test_foreign_spans_that_are_sent_again_are_duplicates():
    async with Scene(Taker()).open() as scene:
        encoder = sidecar()
        spans = encoded(encoder, 20)
        await scene.export(encoder.request(spans[:10]))
        await asyncio.gather(*(scene.export(encoder.request(spans)) for _ in range(3)))
        await scene.export(encoder.request(spans[:5] * 2))
        assert scene.intake.counts["accepted"] == 20
        assert scene.intake.counts["duplicate"] == 10 + 20 + 20 + 10


async def test_what_the_store_refused_counts_when_it_comes_again():
    async with Scene(Taker()).open() as scene:
        encoder = sidecar()
        request = encoder.request(encoded(encoder, 10))
        scene.ledger.error = DatabaseError("x.db", "the disk is full", FULL)
        error = await scene.refused(request)
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "the disk is full" in str(error.details())
        scene.ledger.error = None
        assert await scene.export(request) == b""
        assert scene.intake.counts["accepted"] == 10
        assert len({(one.trace_id, one.span_id) for one in scene.ledger.taken[0].kept}) == 10


async def test_overload_says_when_to_come_again():
    async with Scene(Taker()).open() as scene:
        scene.ledger.error = Overloaded(2_500)
        encoder = sidecar()
        error = await scene.refused(encoder.request(encoded(encoder, 1), 1))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        trailers = dict(error.trailing_metadata() or ())
        assert trailers["grpc-retry-pushback-ms"] == "2500"
        details = trailers["grpc-status-details-bin"]
        assert isinstance(details, bytes)
        info = error_details_pb2.RetryInfo()
        assert status_pb2.Status.FromString(details).details[0].Unpack(info)
        assert info.retry_delay.ToMilliseconds() == 2_500
        assert retry_delay_s(details) == 2.5  # as our sidecar reads it


async def test_a_client_that_gives_up_does_not_make_its_batch_count_twice():
    async with Scene(Taker()).open() as scene:
        scene.ledger.gate.clear()
        encoder = sidecar()
        request = encoder.request(encoded(encoder, 10))
        call = scene.channel.unary_unary(PATHS["traces"])(request)
        while not scene.intake._tasks:
            await asyncio.sleep(0.001)
        call.cancel()
        again = asyncio.create_task(scene.export(request))
        while len(scene.intake._tasks) < 2:
            await asyncio.sleep(0.001)
        scene.ledger.gate.set()
        await again
        assert scene.intake.counts["accepted"] == 10
        assert scene.intake.counts["duplicate"] == 10
        with pytest.raises(asyncio.CancelledError):
            await call


async def test_a_wrong_clock_that_the_fleet_knows_of_is_corrected():
    async with Scene(Taker(), lambda instance: -3_600_000 if instance == "i" else 0).open() as scene:
        encoder = sidecar()
        start_ns = time.time_ns() - 3_601_000 * 10**6
        span = Span(b"1" * 32, b"2" * 16, b"", b"", 1, CLIENT, "/p.S/M", "a", "h:1", start_ns, 1_000, 0)
        await scene.export(encoder.request([encoder.span(span)], 1))
        (sample,) = scene.ledger.taken[0].samples
        assert abs(sample.end_ms - clock_ms()) < 60_000


def broken(**change: Any) -> bytes:
    request = ExportTraceServiceRequest.FromString(sidecar().request(encoded(sidecar(), 3), 1))
    span = request.resource_spans[0].scope_spans[0].spans[1]
    for name, value in change.items():
        setattr(span, name, value)
    return request.SerializeToString()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"trace_id": b"short"}, "1 with a trace id that is not 16 bytes"),
        ({"span_id": b""}, "1 with a span id that is not 8 bytes"),
        ({"start_time_unix_nano": 2**63}, "1 with an end before the start"),
        ({"end_time_unix_nano": 0}, "1 with no start or no end"),
    ],
)
async def test_spans_that_cannot_be_counted_are_said_and_counted(change: dict[str, Any], reason: str):
    async with Scene(Taker()).open() as scene:
        answer = ExportTraceServiceResponse.FromString(await scene.export(broken(**change)))
        assert answer.partial_success.rejected_spans == 1
        assert "1 of 3 spans cannot be counted" in answer.partial_success.error_message
        assert reason in answer.partial_success.error_message
        assert len(scene.ledger.taken[0].samples) == 2
        assert scene.ledger.dropped == {"a": 1}
        assert scene.intake.counts["rejected"] == 1


async def test_malformed_requests_are_refused_and_the_server_goes_on():
    async with Scene(Taker()).open() as scene:
        encoder = sidecar()
        good = encoder.request(encoded(encoder, 2), 1)
        for signal in PATHS:
            for request in (b"\xff", b"\x0a\xff\xff\xff\x7f", b"\x0a\x05hello", good[:-3], b"\x0a\x04\x12\x02\x12\x09"):
                error = await scene.refused(request, signal)
                assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
                assert "not an OTLP export request" in str(error.details())
        many = encoder.request([b"\x12\x00"] * 70_000)
        assert "at most 65,536" in str((await scene.refused(many)).details())
        assert "at most" in str((await scene.refused(b"\x12" + bytes(REQUEST_MAX_BYTES))).details())
        assert await scene.export(b"") == b""
        assert await scene.export(good) == b""
        assert scene.intake.counts["accepted"] == 2
        assert scene.intake.counts["malformed_requests"] == 11
        assert scene.intake.counts["oversized_requests"] == 1


async def test_a_span_of_very_many_attributes_is_refused_without_a_stall():
    async with Scene(Taker()).open() as scene:
        request = ExportTraceServiceRequest.FromString(broken())
        span = request.resource_spans[0].scope_spans[0].spans[1]
        for number in range(10_000):
            span.attributes.add(key=f"key {number}")
        answer = ExportTraceServiceResponse.FromString(await scene.export(request.SerializeToString()))
        assert answer.partial_success.rejected_spans == 1
        assert len(scene.ledger.taken[0].samples) == 2


async def test_huge_attributes_count_and_are_cut_where_kept():
    async with Scene(Taker()).open() as scene:
        request = ExportTraceServiceRequest.FromString(broken())
        span = request.resource_spans[0].scope_spans[0].spans[1]
        span.attributes.add(key="gen_ai.prompt").value.string_value = "x" * 2**20
        next(pair for pair in span.attributes if pair.key == "gen_ai.agent.id").value.string_value = "y" * 10_000
        assert await scene.export(request.SerializeToString()) == b""
        (taken,) = scene.ledger.taken
        assert max(len(sample.key.agent_id) for sample in taken.samples) == 256
        assert sum(len(one.span) for one in taken.kept) < 20_000


async def test_metrics_that_cannot_be_counted_are_said():
    async with Scene(Taker()).open() as scene:
        summary = b"\x0a\x03old\x5a\x02\x0a\x00"  # Metric: name, summary with one data point
        scope = b"\x12" + bytes((len(summary),)) + summary
        resource = b"\x12" + bytes((len(scope),)) + scope
        answer = await scene.export(b"\x0a" + bytes((len(resource),)) + resource, "metrics")
        partial = ExportMetricsServiceResponse.FromString(answer).partial_success
        assert partial.rejected_data_points == 1
        assert "summary" in partial.error_message


async def test_a_rated_trace_is_kept():
    taker = Taker()
    scene = Scene(taker)
    scene.intake._tail.policy = TailPolicy(share=0)
    scene.tail._below = bytes(7)
    async with scene.open():
        encoder = sidecar()
        span = Span(b"ab" * 16, b"2" * 16, b"", b"", 1, CLIENT, "/p.S/M", "a", "h:1", time.time_ns() - 10**7, 1_000, 0)
        await scene.export(encoder.request([encoder.span(span)], 1))
        assert taker.taken[-1].kept == []
        await scene.intake.mark("ab" * 16)
        assert [(one.trace_id, one.kept) for one in taker.taken[-1].kept] == [("ab" * 16, "rated")]
        with pytest.raises(ValueError):
            await scene.intake.mark("no hex")


async def test_an_agent_with_a_sidecar_is_known_before_its_first_span():
    async with Scene(Taker()).open() as scene:
        scene.intake.has_sidecar("billing")
        request = ExportTraceServiceRequest.FromString(broken(kind=2))
        request.resource_spans[0].resource.Clear()
        request.resource_spans[0].resource.attributes.add(key="service.name").value.string_value = "billing"
        scope = request.resource_spans[0].scope_spans[0]
        scope.scope.name = "library"
        del scope.spans[0], scope.spans[1]
        del scope.spans[0].attributes[:]
        assert await scene.export(request.SerializeToString()) == b""
        assert scene.intake.counts["accepted"] == 0
