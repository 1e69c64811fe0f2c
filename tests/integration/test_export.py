"""Span export by our own HTTP/2 client to a real gRPC collector (grpcio, opentelemetry-proto)."""

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from outrider_http2.shell import Reactor
from outrider_sidecar.core.span import CLIENT, Attempt, Generation, Span
from outrider_sidecar.edge.export import PATH, Answer, Collector, Export
from outrider_sidecar.edge.rpc import Rpc
from outrider_sidecar.engines.export_queue import ExportPolicy
from outrider_sidecar.engines.otlp import Encoder
from outrider_sidecar.engines.otlp import field as proto_field

QUICK = ExportPolicy(schedule_delay_ms=10, first_backoff_ms=20, max_backoff_ms=50)
LONG_BACKOFF = ExportPolicy(schedule_delay_ms=10, first_backoff_ms=600_000, max_backoff_ms=600_000)
Request = trace_service_pb2.ExportTraceServiceRequest
Response = trace_service_pb2.ExportTraceServiceResponse
Script = Callable[[int, grpc.ServicerContext], Response | None]


@dataclass
class Sink(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what it takes; `script(number of the request, context)` may abort it or give another answer."""

    script: Script = lambda number, context: None
    requests: list[Request] = field(default_factory=list)
    tries: int = 0

    def Export(self, request: Request, context: grpc.ServicerContext) -> Response:  # noqa: N802
        self.tries += 1
        answer = self.script(self.tries, context)
        self.requests.append(request)
        return answer or Response()

    def span_numbers(self) -> list[int]:
        scopes = [scope for request in self.requests for scope in request.resource_spans[0].scope_spans]
        return [int.from_bytes(span.span_id) for scope in scopes for span in scope.spans]


@contextmanager
def collector(sink: Sink, port: int = 0) -> Iterator[int]:
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(sink, server)
        bound = server.add_insecure_port(f"127.0.0.1:{port}")
        assert bound
        server.start()
        try:
            yield bound
        finally:
            server.stop(None).wait()


@asynccontextmanager
async def exporting(
    port: int, policy: ExportPolicy = QUICK, close_s: float = 20.0
) -> AsyncIterator[tuple[Export, Collector]]:
    reactor = Reactor(asyncio.get_running_loop())
    rpc = Rpc(reactor, f"127.0.0.1:{port}")

    async def send(request: bytes) -> Answer:
        reply = await rpc.unary(PATH, request, policy.timeout_ms / 1e3)
        return Answer(reply.status, reply.message, reply.details, reply.pushback_ms)

    encoder = Encoder({"service.name": "export-test"})
    destination = Collector("real", send, encoder, policy, random.Random(1), every_span=True)
    export = Export(encoder, [destination])
    export.start()
    try:
        yield export, destination
    finally:
        await export.close(close_s)
        await rpc.close()
        await reactor.close()


def call(number: int) -> Span:
    return Span(
        b"4bf92f3577b34da6a3ce929d0e0e4736", b"%016x" % number, b"00f067aa0ba902b7", b"v=1", 1, CLIENT,
        "/pkg.Svc/Method", "tax", "127.0.0.1:9001", 1_763_800_000_000_000_000, 1_500, 0, "", None, 0, 900, 100, 2_000,
        "miss", "exact", "b", "s", "u",
        (Attempt("127.0.0.1:9001", 5, 1_400, 0),), Generation("invoke_agent", "m", "m", "stop", 5, 6),
    )  # fmt: skip


async def test_thousands_of_spans_arrive_once_and_in_order():
    sink = Sink()
    with collector(sink) as port:
        async with exporting(port) as (export, destination):
            for burst in range(20):
                for number in range(100):
                    export.add(call(burst * 100 + number + 1))
                await asyncio.sleep(0.005)
        assert sink.span_numbers() == list(range(1, 2_001))
        assert destination.queue.exported == 2_000
        first = sink.requests[0].resource_spans[0]
        assert first.resource.attributes[0].value.string_value == "export-test"
        span = first.scope_spans[0].spans[0]
        assert span.name == "pkg.Svc/Method"
        assert {entry.key: entry.value for entry in span.attributes}["gen_ai.usage.output_tokens"].int_value == 6
        assert [event.name for event in span.events] == ["outrider.attempt"]


async def test_a_collector_that_comes_up_late_gets_everything():
    with collector(Sink()) as port:
        pass  # a port that was free a moment ago
    sink = Sink()
    async with exporting(port) as (export, destination):
        for number in range(1, 51):
            export.add(call(number))
        while destination.queue.retries < 2:
            await asyncio.sleep(0.005)
        with collector(sink, port):
            while destination.queue.exported < 50:
                await asyncio.sleep(0.005)
    assert sink.span_numbers() == list(range(1, 51))


async def test_retry_info_of_a_real_status_is_honoured():
    retry_info = proto_field(1, b"\x10\xc0\x84\x3d")  # 1 ms
    details = b"\x08\x08" + proto_field(
        3, proto_field(1, b"type.googleapis.com/google.rpc.RetryInfo") + proto_field(2, retry_info)
    )

    def script(number: int, context: grpc.ServicerContext) -> None:
        if number <= 2:
            context.set_trailing_metadata((("grpc-status-details-bin", details),))
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "later")

    sink = Sink(script)
    with collector(sink) as port:
        async with exporting(port, LONG_BACKOFF) as (export, destination):
            export.add(call(7))
        assert (sink.tries, sink.span_numbers()) == (3, [7])
        assert destination.queue.exported == 1


async def test_a_refusal_for_good_is_not_repeated():
    def script(number: int, context: grpc.ServicerContext) -> None:
        if number == 1:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no")

    sink = Sink(script)
    with collector(sink) as port:
        async with exporting(port) as (export, destination):
            export.add(call(1))
            while destination.queue.dropped_refused < 1:
                await asyncio.sleep(0.005)
            export.add(call(2))
        assert sink.span_numbers() == [2]


async def test_partial_success_is_counted():
    partial = trace_service_pb2.ExportTracePartialSuccess(rejected_spans=3, error_message="too old")
    sink = Sink(lambda number, context: Response(partial_success=partial))
    with collector(sink) as port:
        async with exporting(port) as (export, destination):
            for number in range(1, 6):
                export.add(call(number))
        assert (destination.queue.exported, destination.queue.rejected) == (2, 3)


async def test_a_collector_that_hangs_bounds_the_queue_and_the_exit():
    released = threading.Event()

    def script(number: int, context: grpc.ServicerContext) -> None:
        released.wait(30)

    sink = Sink(script)
    with collector(sink) as port:
        policy = ExportPolicy(max_queue=100, max_batch=50, schedule_delay_ms=1)
        try:
            async with exporting(port, policy, close_s=0.1) as (export, destination):
                for number in range(1_000):
                    export.add(call(number + 1))
                while export._records:
                    await asyncio.sleep(0.001)
                assert destination.queue.waiting <= 150
        finally:
            released.set()
        queue = destination.queue
        assert queue.exported == 0
        assert queue.dropped_full + queue.dropped_refused == 1_000
