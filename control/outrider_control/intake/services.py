"""OTLP TraceService and MetricsService on grpc.aio: bytes in, acknowledged once they are in the store.

Always holds: an export is answered OK only after the ledger committed it; what was answered with an error changed no
figure, and sent again it is counted once. A client that gives up does not undo its batch: it is finished, and known
when it comes again. What is in flight is bounded. No input is an exception that ends anything.

Answers: INVALID_ARGUMENT for what is no OTLP or too large (do not send again), RESOURCE_EXHAUSTED with RetryInfo and
pushback under overload, UNAVAILABLE while the store cannot be written; spans that cannot be counted are a
`partial_success` and are counted as lacking.

Deliberately not here: authentication (`api.auth`), the limits of the listener (`guard`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, NoReturn

import grpc
import grpc.aio
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from outrider_control.intake.dedupe import Window
from outrider_control.intake.forward import Forward
from outrider_control.intake.gather import Gather
from outrider_control.intake.ledger import Ledger, Overloaded, Prepared
from outrider_control.intake.metrics import Metrics, MetricStreams
from outrider_control.intake.prices import Prices
from outrider_control.intake.tail import Tail
from outrider_control.intake.traces import Batch, Traces
from outrider_control.intake.wire import Malformed
from outrider_control.state.failures import DatabaseError
from outrider_control.state.kept_spans import KeptSpan

TRACE_SERVICE: Final = "opentelemetry.proto.collector.trace.v1.TraceService"
METRICS_SERVICE: Final = "opentelemetry.proto.collector.metrics.v1.MetricsService"
REQUEST_MAX_BYTES: Final = 16 * 2**20  # also to be the server's grpc.max_receive_message_length
IN_FLIGHT_MAX_BYTES: Final = 64 * 2**20
_RETRY_MS: Final = 1_000
_CARRY_MAX: Final = 2_000  # kept spans of a batch that was not committed
_REASONS_SHOWN: Final = 3


class Intake:
    """The two services and what they share. Lives on one loop."""

    def __init__(
        self,
        ledger: Ledger,
        clock_offset_ms: Callable[[str], int],
        prices: Prices,
        tail: Tail,
        forward: Forward | None,
        clock_ms: Callable[[], int],
    ):
        self._ledger = ledger
        self._prices = prices
        self._tail = tail
        self._forward = forward
        self._clock_ms = clock_ms
        self._traces = Traces(clock_offset_ms, prices, tail)
        self._metrics = Metrics(clock_ms())
        self._metrics_turn = asyncio.Lock()
        self._window = Window()
        self._settled = asyncio.Event()
        self._carry: list[KeptSpan] = []
        self._tasks: set[asyncio.Task[bytes]] = set()
        self._gather = Gather(lambda: self._arriving)
        self._arriving = 0
        self._in_flight_bytes = 0
        self._counts: Counter[str] = Counter()

    @property
    def counts(self) -> dict[str, int]:
        """By outcome since the start: the ledger's, and what never reached it. Spans, but for what says otherwise.

        received, accepted, duplicate, rejected, late, dropped, overflowed, failed, overloaded (in requests refused),
        skewed, malformed_requests, oversized_requests, metric_points, metric_points_dropped, kept_* by reason.
        """
        together = Counter(self._ledger.counts)
        together.update(self._counts)
        together["skewed"] = self._traces.sampler.skewed
        for reason, count in self._tail.counts.items():
            together[f"kept_{reason}"] = count
        return dict(together)

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers both services; requests and replies are bytes, so that forwarding passes on what came."""
        traces = grpc.unary_unary_rpc_method_handler(self._export_traces)
        metrics = grpc.unary_unary_rpc_method_handler(self._export_metrics)
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(TRACE_SERVICE, {"Export": traces}),
                grpc.method_handlers_generic_handler(METRICS_SERVICE, {"Export": metrics}),
            )
        )

    async def start(self) -> None:
        """Loads the prices, off the loop."""
        await asyncio.to_thread(self._prices.load)

    async def close(self) -> None:
        """Waits for the batches that are on their way. To be called before the ledger closes."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def has_sidecar(self, agent_id: str) -> None:
        """This agent has a sidecar: its own spans do not count calls, from the first one on."""
        self._traces.hops.saw(agent_id, self._clock_ms())

    async def mark(self, trace_id: str) -> None:
        """A call of this trace was rated: it is kept. ValueError: no trace id."""
        kept = self._tail.mark(bytes.fromhex(trace_id), self._clock_ms())
        if kept:
            await self._ledger.commit(Prepared("", -1, (), kept, ()))

    def want_attributes(self, names: Iterable[str]) -> None:
        """The attributes of spans that experiments and rollouts count from now on."""
        self._traces.unit_calls.want(names)

    # gRPC

    async def _export_traces(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return await self._answer(self.take_traces, request, context)

    async def _export_metrics(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return await self._answer(self.take_metrics, request, context)

    async def _answer(
        self, take: Callable[[bytes], Awaitable[bytes]], request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> bytes:
        if len(request) > REQUEST_MAX_BYTES:
            self._counts["oversized_requests"] += 1
            text = f"a request of {len(request):,} bytes; send at most {REQUEST_MAX_BYTES:,} at once"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
        if self._in_flight_bytes and self._in_flight_bytes + len(request) > IN_FLIGHT_MAX_BYTES:
            self._counts["overloaded_requests"] += 1
            await _abort_overloaded(context, "too much is being taken in", _RETRY_MS)
        # A task of its own: a client that gives up while the store commits must not leave it unknown what was counted.
        task = asyncio.ensure_future(self._counted(take, request))
        self._tasks.add(task)
        task.add_done_callback(self._done)
        try:
            return await asyncio.shield(task)
        except Malformed as error:
            self._counts["malformed_requests"] += 1
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"not an OTLP export request: {error}")
        except Overloaded as error:
            await _abort_overloaded(context, str(error), error.retry_ms)
        except DatabaseError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"the store cannot take spans: {error}")

    async def _counted(self, take: Callable[[bytes], Awaitable[bytes]], request: bytes) -> bytes:
        self._in_flight_bytes += len(request)
        try:
            return await take(request)
        finally:
            self._in_flight_bytes -= len(request)

    def _done(self, task: asyncio.Task[bytes]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited has it; without this, one that gave up leaves a complaint

    # Traces

    async def take_traces(self, request: bytes) -> bytes:
        """An ExportTraceServiceRequest to its ExportTraceServiceResponse, once it is in the store.

        Raises Malformed, Overloaded, DatabaseError: nothing of it was counted.
        """
        self._arriving += 1
        try:
            return await self._take_batch(request)
        finally:
            self._arriving -= 1

    async def _take_batch(self, request: bytes) -> bytes:
        batch = self._traces.batch(request)
        if batch.source and self._ledger.seen(batch.source, batch.sequence):
            self._counts["received"] += batch.spans
            self._counts["duplicate"] += batch.spans
            return b""
        for _ in batch.read(self._traces.reader):
            await asyncio.sleep(0)
        if batch.source:
            new = await self._commit_traces(batch, None)
        else:
            new = await self._commit_unnumbered(batch)
        self._counts["received"] += batch.spans
        self._counts["duplicate"] += batch.duplicates
        if new:
            if self._forward is not None:
                self._forward.traces(request)
            self._count_refused(batch)
        return _trace_answer(batch)

    async def _commit_unnumbered(self, batch: Batch) -> bool:
        window, keys = self._window, batch.keys
        while window.is_pending(keys):
            # The same spans are on their way to the store: whether they are new is known when that has ended.
            await self._settled.wait()
        window.claim(keys)
        twice_within = batch.duplicates
        taken = False
        try:
            await self._commit_traces(batch, window.__contains__)
            taken = True
        finally:
            (window.settle if taken else window.release)(keys)
            settled, self._settled = self._settled, asyncio.Event()
            settled.set()
        return batch.duplicates - twice_within < len(keys) or not keys

    async def _commit_traces(self, batch: Batch, known: Callable[[bytes], bool] | None) -> bool:
        for _ in self._traces.take(batch, known, self._clock_ms()):
            await asyncio.sleep(0)
        if not (batch.samples or batch.kept or batch.source):
            return True
        await self._gather.wait(len(batch.samples))
        kept, self._carry = self._carry + batch.kept, []
        new = False
        self._arriving -= 1  # it has arrived: others need not wait for it
        try:
            new = await self._ledger.commit(
                Prepared(batch.source, batch.sequence, batch.samples, kept, (), batch.units, batch.calls)
            )
        finally:
            self._arriving += 1
            if not new:  # some are of other batches, taken from the ring: the store has a span once at most
                self._carry = (self._carry + kept)[:_CARRY_MAX]
        return new

    def _count_refused(self, batch: Batch) -> None:
        if batch.refused:
            self._counts["rejected"] += batch.refused.total()
            for agent_id, count in batch.lacking.items():
                self._ledger.add_dropped(agent_id, count, self._clock_ms())

    # Metrics

    async def take_metrics(self, request: bytes) -> bytes:
        """The same for an ExportMetricsServiceRequest."""
        async with self._metrics_turn:  # growth is against the export before, which must be in the store
            streams = MetricStreams(self._metrics)
            for _ in streams.read(request, self._clock_ms()):
                await asyncio.sleep(0)
            points = streams.points
            if points:
                await self._ledger.commit(Prepared("", -1, (), (), points))
            streams.settle()
        self._counts["metric_points"] += len(points)
        self._counts["metric_points_dropped"] += streams.dropped
        if self._forward is not None:
            self._forward.metrics(request)
        answer = ExportMetricsServiceResponse()
        if streams.dropped:
            answer.partial_success.rejected_data_points = streams.dropped
            answer.partial_success.error_message = streams.reason
        return answer.SerializeToString()


def _trace_answer(batch: Batch) -> bytes:
    if not batch.refused:
        return b""
    answer = ExportTraceServiceResponse()
    total = batch.refused.total()
    answer.partial_success.rejected_spans = total
    reasons = "; ".join(f"{count} with {reason}" for reason, count in batch.refused.most_common(_REASONS_SHOWN))
    answer.partial_success.error_message = f"{total} of {batch.spans} spans cannot be counted: {reasons}"
    return answer.SerializeToString()


async def _abort_overloaded(context: grpc.aio.ServicerContext[Any, Any], text: str, retry_ms: int) -> NoReturn:
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromMilliseconds(retry_ms)
    details = any_pb2.Any()
    details.Pack(info)
    status = status_pb2.Status(code=grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], message=text, details=[details])
    trailers = (("grpc-status-details-bin", status.SerializeToString()), ("grpc-retry-pushback-ms", str(retry_ms)))
    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, text, trailers)
    raise AssertionError("abort raises")
