"""The shell around the queue: real tasks and timers, collectors that are functions."""

import asyncio
import logging
import random

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from outrider_sidecar.core import errors
from outrider_sidecar.core.span import CLIENT, Span
from outrider_sidecar.edge import export
from outrider_sidecar.edge.export import Answer, Collector, Export
from outrider_sidecar.engines.export_queue import ExportPolicy
from outrider_sidecar.engines.otlp import Encoder

QUICK = ExportPolicy(schedule_delay_ms=10, first_backoff_ms=5, max_backoff_ms=20)


def call(number: int = 0, flags: int = 1) -> Span:
    return Span(b"1" * 32, b"%016x" % (number + 1), b"", b"", flags, CLIENT, "/a.B/C", "tax", "", 1, 1, 0)


class Sink:
    """A collector that remembers requests and answers from a script, then OK."""

    def __init__(self, *script: Answer | Exception):
        self.script = list(script)
        self.requests: list[ExportTraceServiceRequest] = []
        self.seen = asyncio.Event()

    async def __call__(self, message: bytes) -> Answer:
        self.requests.append(ExportTraceServiceRequest.FromString(message))
        self.seen.set()
        answer = self.script.pop(0) if self.script else Answer(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def span_numbers(self) -> list[int]:
        scopes = [scope for request in self.requests for scope in request.resource_spans[0].scope_spans]
        return [int.from_bytes(span.span_id) - 1 for scope in scopes for span in scope.spans]

    def sequences(self) -> list[int]:
        scopes = [request.resource_spans[0].scope_spans[0].scope for request in self.requests]
        return [scope.attributes[0].value.int_value for scope in scopes if scope.attributes]


def build(
    *sinks: export.Send, policy: ExportPolicy = QUICK, every_span: bool = False
) -> tuple[Export, list[Collector]]:
    encoder = Encoder({"service.name": "test"})
    collectors = [
        Collector(f"c{number}", sink, encoder, policy, random.Random(1), every_span)
        for number, sink in enumerate(sinks)
    ]
    return Export(encoder, collectors), collectors


async def test_spans_arrive_in_order_and_in_batches():
    sink = Sink()
    exporter, (collector,) = build(sink)
    exporter.start()
    for number in range(1_300):
        exporter.add(call(number))
    await exporter.close()
    assert sink.span_numbers() == list(range(1_300))
    assert max(len(request.resource_spans[0].scope_spans[0].spans) for request in sink.requests) <= 512
    assert sink.sequences() == []
    assert (collector.queue.exported, collector.queue.waiting) == (1_300, 0)


async def test_what_was_added_before_the_start_is_sent_without_a_flush():
    sink = Sink()
    exporter, _ = build(sink)
    exporter.add(call(3))
    exporter.start()
    await asyncio.wait_for(sink.seen.wait(), 10)
    assert sink.span_numbers() == [3]
    await exporter.close()


async def test_a_foreign_collector_gets_sampled_spans_the_control_plane_all_of_them_numbered():
    foreign, control = Sink(), Sink()
    encoder = Encoder({})
    collectors = [
        Collector("foreign", foreign, encoder, QUICK, random.Random(1)),
        Collector("control", control, encoder, QUICK, random.Random(1), every_span=True),
    ]
    exporter = Export(encoder, collectors)
    exporter.start()
    for number in range(600):
        exporter.add(call(number, flags=number % 2))
    await exporter.close()
    assert foreign.span_numbers() == list(range(1, 600, 2))
    assert control.span_numbers() == list(range(600))
    assert control.sequences() == list(range(len(control.requests)))


@pytest.mark.parametrize(
    "failure",
    [Answer(errors.UNAVAILABLE), ConnectionRefusedError("no"), TimeoutError(), RuntimeError("a defect in the client")],
)
async def test_a_batch_is_sent_again_after_a_failure_that_may_pass(failure: Answer | Exception):
    sink = Sink(failure)
    exporter, (collector,) = build(sink, every_span=True)
    exporter.start()
    exporter.add(call(5))
    await exporter.close()
    assert sink.span_numbers() == [5, 5]
    assert sink.sequences() == [0, 0]
    assert (collector.queue.exported, collector.queue.retries) == (1, 1)


async def test_pushback_and_refusals_end_a_batch():
    sink = Sink(Answer(errors.UNAVAILABLE, pushback_ms=-1), Answer(errors.INVALID_ARGUMENT))
    exporter, (collector,) = build(sink, policy=ExportPolicy(max_batch=1, schedule_delay_ms=1))
    exporter.start()
    for number in range(3):
        exporter.add(call(number))
    await exporter.close()
    assert sink.span_numbers() == [0, 1, 2]
    assert (collector.queue.dropped_refused, collector.queue.exported) == (2, 1)


async def test_the_collectors_delay_replaces_the_backoff():
    retry_info = b"\x1a\x32\x0a\x28type.googleapis.com/google.rpc.RetryInfo\x12\x06\x0a\x04\x10\xc0\x84\x3d"  # 1 ms
    slow = ExportPolicy(schedule_delay_ms=1, first_backoff_ms=600_000, max_backoff_ms=600_000)
    sink = Sink(Answer(errors.RESOURCE_EXHAUSTED, details=retry_info), Answer(errors.UNAVAILABLE, pushback_ms=1))
    exporter, (collector,) = build(sink, policy=slow)
    exporter.start()
    exporter.add(call())
    await exporter.close(30.0)
    assert len(sink.requests) == 3
    assert collector.queue.exported == 1


async def test_partial_success_is_counted_and_said_once(caplog: pytest.LogCaptureFixture):
    partial = ExportTracePartialSuccess(rejected_spans=2, error_message="too\nold")
    reply = Answer(0, ExportTraceServiceResponse(partial_success=partial).SerializeToString())
    exporter, (collector,) = build(Sink(reply, reply), policy=ExportPolicy(max_batch=5, schedule_delay_ms=1))
    exporter.start()
    with caplog.at_level(logging.INFO):
        for number in range(15):
            exporter.add(call(number))
        await exporter.close()
    assert (collector.queue.exported, collector.queue.rejected) == (11, 4)
    said = [record.getMessage() for record in caplog.records]
    assert said == ["export to c0: 2 spans rejected: 'too\\nold'", "export to c0: works again"]


async def test_a_failure_is_said_once_with_what_the_collector_says(caplog: pytest.LogCaptureFixture):
    down = Answer(errors.UNAVAILABLE, text="no\nroute")
    exporter, _ = build(Sink(down, down, down))
    exporter.start()
    exporter.add(call())
    await exporter.close()
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "export to c0: failed with UNAVAILABLE: 'no\\nroute'"
    ]


async def test_a_dead_collector_delays_nobody_and_the_exit_is_bounded():
    async def hang(message: bytes) -> Answer:
        await asyncio.Event().wait()
        raise AssertionError

    sink = Sink()
    exporter, (dead, alive) = build(hang, sink, policy=ExportPolicy(max_queue=64, max_batch=16, schedule_delay_ms=1))
    exporter.start()
    for number in range(40):
        for each in range(16):
            exporter.add(call(number * 16 + each))
        while exporter._records:
            await asyncio.sleep(0.001)
    await asyncio.wait_for(exporter.close(0.2), 30)
    assert sink.span_numbers() == list(range(640))
    assert alive.queue.exported == 640
    queue = dead.queue
    assert (queue.exported, queue.waiting) == (0, 0)
    assert queue.dropped_full + queue.dropped_refused == 640
    assert queue.dropped_full == 640 - 64 - 16


async def test_a_request_has_a_time_limit():
    async def hang(message: bytes) -> Answer:
        await asyncio.Event().wait()
        raise AssertionError

    policy = ExportPolicy(schedule_delay_ms=1, timeout_ms=5, first_backoff_ms=1, max_backoff_ms=1)
    exporter, (collector,) = build(hang, policy=policy)
    exporter.start()
    exporter.add(call())
    while collector.queue.retries < 2:
        await asyncio.sleep(0.001)
    await exporter.close(0.0)


@pytest.mark.skipif(not hasattr(Export._encode, "__code__"), reason="compiled code calls its inner methods directly")
async def test_records_are_bounded_and_encoded_in_slices():
    sink = Sink()
    encoder = Encoder({})
    turns: list[int] = []

    class Counted(Export):
        def _encode(self, count: int) -> None:
            before = len(self._records)
            super()._encode(count)
            turns.append(before - len(self._records))

    exporter = Counted(encoder, [Collector("c", sink, encoder, QUICK, random.Random(1))], max_records=100)
    exporter.start()
    for number in range(130):
        exporter.add(call(number))
    await asyncio.wait_for(sink.seen.wait(), 10)
    await exporter.close()
    assert exporter.dropped_full == 30
    assert sink.span_numbers() == list(range(30, 130))
    assert turns == [22, 20, 19, 18, 17, 4], "16 and a sixteenth of what waits"


async def test_a_record_that_cannot_be_encoded_is_counted_and_the_rest_goes_on():
    sink = Sink()
    exporter, _ = build(sink)
    exporter.start()
    exporter.add(call(1)._replace(trace_id=b"not hex"))
    exporter.add(call(2)._replace(status=99))
    exporter.add(call(3))
    await exporter.close()
    assert exporter.broken == 2
    assert sink.span_numbers() == [3]


async def test_nothing_is_kept_without_collectors_or_after_the_close():
    exporter, _ = build()
    exporter.start()
    exporter.add(call())
    assert not exporter._records
    sink = Sink()
    exporter, _ = build(sink)
    exporter.start()
    await exporter.close()
    exporter.add(call())
    assert not exporter._records
    assert not sink.requests


async def test_families_show_every_counter():
    exporter, (collector,) = build(Sink(Answer(errors.INVALID_ARGUMENT)))
    exporter.start()
    exporter.add(call())
    await exporter.close()
    shown = {family.name: dict(family.samples) for family in exporter.families()}
    assert shown["outrider_export_spans"] == {
        ("c0", "exported"): 0,
        ("c0", "rejected"): 0,
        ("c0", "dropped_full"): 0,
        ("c0", "dropped_refused"): 1,
    }
    assert shown["outrider_export_waiting"] == {("c0",): collector.queue.waiting}
    assert shown["outrider_export_unencoded_spans"] == {("full",): 0, ("broken",): 0}
