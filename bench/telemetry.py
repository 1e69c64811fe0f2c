"""What telemetry costs a call: our record, sums and OTLP bytes beside the OpenTelemetry SDK's span and protobuf.

`python -m bench.telemetry [--json] [--rounds N] [--calls N]`. CPU microseconds per call, medians over rounds in which
both take turns (A B A B). Both write the same 14 attributes of one call. The SDK's span is started, filled and ended
with a processor that keeps it; its bytes are built with the generated classes of opentelemetry-proto. The last part
scrapes `/metrics` of a full table and says what prometheus_client adds to the memory of a process.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.trace import SpanKind

from outrider_sidecar.core.span import CLIENT, Attempt, Generation, Span
from outrider_sidecar.edge import access_log, exposition
from outrider_sidecar.engines import trace_context
from outrider_sidecar.engines.otlp import Encoder
from outrider_sidecar.engines.series import Series

BATCH = 512
START_NS = 1_763_800_000_000_000_000
TRACEPARENT = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
ATTRIBUTES = {
    "rpc.system.name": "grpc",
    "rpc.method": "pkg.Svc/Method",
    "rpc.response.status_code": "OK",
    "server.address": "127.0.0.1",
    "server.port": 9001,
    "gen_ai.agent.id": "tax-eu-001",
    "gen_ai.conversation.id": "session-1",
    "gen_ai.request.model": "model",
    "gen_ai.usage.input_tokens": 512,
    "gen_ai.usage.output_tokens": 128,
    "outrider.cache": "miss",
    "outrider.first_byte_us": 900,
    "outrider.request_bytes": 1_000,
    "outrider.reply_bytes": 2_000,
}
Round = Callable[[int], None]

# What a round reads is made once; what it makes is thrown away at once.
getrandbits = random.Random(1).getrandbits
encoder = Encoder({"service.name": "bench"})
series = Series()


def new_span(number: int = 0) -> Span:
    return Span(
        b"4bf92f3577b34da6a3ce929d0e0e4736", b"00f067aa0ba902b7", b"b7ad6b7169203331", b"", 1, CLIENT,
        "/pkg.Svc/Method", "tax-eu-001", "127.0.0.1:9001", START_NS, 1_000 + number * 37 % 100_000, 0, "",
        None, 0, 900, 1_000, 2_000, "miss", "", "", "session-1", "", (), GENERATION,
    )  # fmt: skip


GENERATION = Generation("", "model", "", "", 512, 128)
SPANS = [new_span(number) for number in range(BATCH)]
RETRIED = [
    span._replace(
        attempts=(Attempt("127.0.0.1:9000", 10, 300, 14, "first"), Attempt("127.0.0.1:9001", 400, 500, 0, "retry"))
    )
    for span in SPANS
]
ENCODED = [encoder.span(span) for span in SPANS]


def record(calls: int) -> None:
    make = Span
    fields: tuple[Any, ...] = tuple(SPANS[0])
    for _ in range(calls):
        make(*fields)


def count(calls: int) -> None:
    for number in range(calls):
        series.record(SPANS[number % BATCH])


def encode(calls: int) -> None:
    for number in range(calls):
        encoder.span(SPANS[number % BATCH])


def encode_retried(calls: int) -> None:
    for number in range(calls):
        encoder.span(RETRIED[number % BATCH])


def batch(calls: int) -> None:
    for _ in range(calls // BATCH):
        encoder.request(ENCODED, 1)


def context(calls: int) -> None:
    for _ in range(calls):
        parsed = trace_context.parse(TRACEPARENT)
        assert parsed is not None
        trace_context.build(parsed[0], trace_context.new_span_id(getrandbits), parsed[2])


def log_line(calls: int) -> None:
    for number in range(calls):
        access_log.line(SPANS[number % BATCH])


class Keeper(SpanProcessor):
    """Keeps the last span that ended."""

    last: ReadableSpan | None = None

    def on_end(self, span: ReadableSpan) -> None:
        self.last = span


keeper = Keeper()
provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(keeper)
tracer = provider.get_tracer("bench")


def sdk_span(calls: int) -> None:
    for _ in range(calls):
        tracer.start_span("pkg.Svc/Method", kind=SpanKind.CLIENT, attributes=ATTRIBUTES).end()


def sdk_encode(calls: int) -> None:
    """As the SDK's exporter does: one message a span, serialized as part of its request."""
    span = keeper.last
    assert span is not None
    assert span.context is not None
    for start in range(0, calls, BATCH):
        request = ExportTraceServiceRequest()
        spans = request.resource_spans.add().scope_spans.add().spans
        for _ in range(min(BATCH, calls - start)):
            message = spans.add(
                trace_id=span.context.trace_id.to_bytes(16, "big"),
                span_id=span.context.span_id.to_bytes(8, "big"),
                name=span.name,
                kind=3,  # type: ignore[arg-type]  # SPAN_KIND_CLIENT
                start_time_unix_nano=span.start_time or 0,
                end_time_unix_nano=span.end_time or 0,
            )
            for key, value in (span.attributes or {}).items():
                entry = message.attributes.add(key=key)
                if isinstance(value, str):
                    entry.value.string_value = value
                elif isinstance(value, int):
                    entry.value.int_value = value
        request.SerializeToString()


ROUNDS: tuple[tuple[str, Round], ...] = (
    ("our span record", record),
    ("our series.record", count),
    ("our OTLP span", encode),
    ("our OTLP span, two attempts", encode_retried),
    ("our OTLP request, per span", batch),
    ("our traceparent in and out", context),
    ("our access log line", log_line),
    ("SDK span start and end", sdk_span),
    ("SDK span to OTLP bytes", sdk_encode),
)
OURS = ("our span record", "our series.record", "our OTLP span", "our OTLP request, per span")
SDK = ("SDK span start and end", "SDK span to OTLP bytes")


def costs_us(rounds: int, calls: int) -> dict[str, float]:
    """Medians; every case runs once a round, so that a disturbance hits all alike."""
    taken: dict[str, list[float]] = {name: [] for name, _ in ROUNDS}
    gc.collect()
    for _ in range(rounds):
        for name, run in ROUNDS:
            before = time.process_time_ns()
            run(calls)
            taken[name].append((time.process_time_ns() - before) / calls / 1e3)
    return {name: statistics.median(values) for name, values in taken.items()}


def scrape(rows: int) -> dict[str, float]:
    """One scrape of a table of `rows` rows: milliseconds in all and of the longest slice, lines."""
    table = Series()
    for number in range(rows * 50):
        method, agent = number % 20, number // 20 % max(1, rows // 20)
        table.record(new_span(number)._replace(method=f"/pkg.Svc/M{method}", agent_id=f"agent-{agent}"))
    before = time.perf_counter()
    families = table.families()
    copied = time.perf_counter()
    longest, lines, last = copied - before, 0, copied
    for part in exposition.expose(families)[1]:
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
        lines += part.count(b"\n")
    return {"rows": rows, "lines": lines, "ms": (last - before) * 1e3, "longest_slice_ms": longest * 1e3}


RSS_PROGRAM = """
import asyncio, json, logging, re, ssl, uvloop
from pathlib import Path
from typing import Any
from outrider_sidecar.core.span import CLIENT, Span
from outrider_sidecar.edge import access_log, admin, export, exposition
from outrider_sidecar.engines.series import Series
def rss_mb(): return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
series = Series()
for n in range(2000):
    series.record(Span(b"1" * 32, b"2" * 16, b"", b"", 1, CLIENT, f"/a.B/{n % 20}", "a", "h:1", 1, n * 7, 0))
before = rss_mb()
for _ in range(5):
    b"".join(exposition.expose(series.families())[1])
print(json.dumps({"before_mb": before, "after_scrapes_mb": rss_mb()}))
"""


def scrape_rss() -> dict[str, float]:
    if not Path("/proc/self/status").exists():
        return {}
    done = subprocess.run([sys.executable, "-c", RSS_PROGRAM], check=True, capture_output=True, text=True)
    return json.loads(re.findall(r"\{.*\}", done.stdout)[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=5 * BATCH)
    arguments = parser.parse_args()
    sdk_span(1)
    costs = costs_us(arguments.rounds, arguments.calls)
    scrape(20)  # imports
    scrapes = [scrape(rows) for rows in (20, 200, 1_000)]
    ours, sdk = (sum(costs[name] for name in names) for names in (OURS, SDK))
    if arguments.json:
        print(json.dumps({"us": costs, "ours_us": ours, "sdk_us": sdk, "scrapes": scrapes, "rss": scrape_rss()}))
        return
    for name, cost in costs.items():
        print(f"{name:32} {cost:8.2f} us")
    print(f"\nper call: ours {ours:.1f} us, SDK {sdk:.1f} us, ratio {ours / sdk:.3f}\n")
    for entry in scrapes:
        print(
            f"scrape of {entry['rows']:5.0f} rows: {entry['lines']:6.0f} lines in {entry['ms']:6.1f} ms,"
            f" longest slice {entry['longest_slice_ms']:.1f} ms"
        )
    rss = scrape_rss()
    if rss:
        print(f"memory: {rss['before_mb']:.1f} MB before, {rss['after_scrapes_mb']:.1f} MB after scrapes")


if __name__ == "__main__":
    main()
