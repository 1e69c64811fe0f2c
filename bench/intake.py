"""What the control plane's intake costs: OTLP batches of 512 of our sidecar's spans, to committed figures.

`python -m bench.intake [--json] [--spans N]`. The receiver is one process pinned to one core: read alone (beside
walking the generated protobuf classes), read to samples with tail rules and prices, to the store without gRPC, the same
where every span is of a session that an experiment counts, and the whole from a gRPC client in a process of its own on
another core, through the guard. Prints spans per second of the receiver's CPU time and of wall time, and how far
resident memory grew over the second half of the spans sent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import grpc.aio
import uvloop
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from bench import machine
from outrider import heap
from outrider.split import Split, Variant
from outrider_control.guard.listener import BACKEND_OPTIONS, Guard, guard_reactor
from outrider_control.intake.fold import Fold
from outrider_control.intake.forward import PATHS
from outrider_control.intake.ledger import Ledger
from outrider_control.intake.prices import Prices
from outrider_control.intake.services import REQUEST_MAX_BYTES, Intake
from outrider_control.intake.tail import Tail
from outrider_control.intake.traces import Batch, Traces
from outrider_control.state import splits
from outrider_control.state.database import Database
from outrider_sidecar.core.span import CLIENT, Admission, Generation, Span
from outrider_sidecar.engines.otlp import Encoder

BATCH = 512
BATCHES = 64  # distinct ones; they are sent again and again under new numbers
SENDERS = 4
SESSIONS = 10_000
TRIED = "tried"  # the experiment that counts sessions, where there is one
PRICES = {"model": {"input_usd_per_mtok": 3.0, "output_usd_per_mtok": 15.0, "cache_read_usd_per_mtok": 0.3}}


def spans(count: int, seed: int, counted: bool = False) -> list[bytes]:
    """Encoded spans of 51 agents, three methods each, two endpoints each; lognormal durations, 1 % failed. `counted`:
    every session is a unit of one experiment."""
    draw = random.Random(seed)
    encoder = Encoder({"service.name": "outrider-sidecar"})
    now_ns = time.time_ns()
    found = []
    for _ in range(count):
        agent, method, endpoint = draw.randrange(51), draw.randrange(3), draw.randrange(2)
        total_us = int(draw.lognormvariate(12, 0.8))
        failed = draw.random() < 0.01
        session = draw.randrange(SESSIONS)
        variant, unit = (f"{TRIED}={'ab'[session % 2]}", f"{TRIED}={session:032x}") if counted else ("", "")
        span = Span(
            b"%032x" % draw.getrandbits(128), b"%016x" % draw.getrandbits(64), b"%016x" % draw.getrandbits(64), b"", 1,
            CLIENT, f"/agents.v1.Agent/Method{method}", f"agent-{agent:03}", f"10.0.{agent}.{endpoint}:9001",
            now_ns - total_us * 1_000, total_us, 14 if failed else 0, "",
            Admission(draw.randrange(3_000)), 0, total_us // 3, draw.randrange(10_000), draw.randrange(10_000),
            draw.choice(("miss", "hit", "bypass")), "", variant, f"session-{session}", unit, (),
            Generation("invoke_agent", "model", "", "", draw.randrange(1, 4_000), draw.randrange(1, 900)),
        )  # fmt: skip
        found.append(encoder.span(span))
    return found


def encoders() -> list[Encoder]:
    return [
        Encoder({"service.name": "outrider-sidecar", "service.instance.id": f"{os.getpid()}-{number}"})
        for number in range(SENDERS)
    ]


def walk_protobuf(request: bytes) -> int:
    """What the generated classes cost at the least: parse, and each attribute's text or number once."""
    seen = 0
    for resource in ExportTraceServiceRequest.FromString(request).resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                values: dict[str, Any] = {}
                for pair in span.attributes:
                    value = pair.value
                    kind = value.WhichOneof("value")
                    values[pair.key] = value.string_value if kind == "string_value" else value.int_value
                seen += len(values) + len(span.trace_id) + len(span.span_id) + span.kind
                seen += span.end_time_unix_nano > span.start_time_unix_nano
    return seen


def best_us(run: Callable[[], object], rounds: int = 15) -> float:
    """Microseconds of CPU per span, the median of rounds over one batch."""
    taken = []
    for _ in range(rounds):
        before = time.process_time_ns()
        run()
        taken.append((time.process_time_ns() - before) / BATCH / 1e3)
    return statistics.median(taken)


def decoding() -> dict[str, float]:
    request = encoders()[0].request(spans(BATCH, 1), 1)
    traces = Traces(lambda _: 0, Prices(PRICES), Tail())

    def read() -> Batch:
        batch = traces.batch(request)
        for _ in batch.read(traces.reader):
            pass
        return batch

    def take() -> None:
        batch = read()
        for _ in traces.take(batch, None, time.time_ns() // 1_000_000):
            pass

    return {
        "bytes_per_span": len(request) / BATCH,
        "protobuf_us": best_us(lambda: walk_protobuf(request)),
        "read_us": best_us(read),
        "read_and_sample_us": best_us(take),
    }


class Receiver:
    """The intake with its store, as the control plane has them."""

    def __init__(self, folder: Path):
        self.database = Database.open(f"sqlite:///{folder}/bench.db")
        self.ledger = Ledger(self.database, clock_ms)
        self.intake = Intake(self.ledger, lambda _: 0, Prices(PRICES), Tail(), None, clock_ms)
        self._fold = Fold(self.database, clock_ms)
        self._folding: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.ledger.start()
        await self.intake.start()
        self._folding = asyncio.create_task(self._fold.run(lambda: True))
        heap.settle()  # as the program does
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.intake.close()
        await self.ledger.close()
        if self._folding is not None:
            self._folding.cancel()
            await asyncio.gather(self._folding, return_exceptions=True)
        await self.database.close()


def clock_ms() -> int:
    return time.time_ns() // 1_000_000


class Meter:
    """Spans per second and memory, from a first part (warm-up) to the end."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self._cpu_s, self._wall_s = time.process_time(), time.perf_counter()
        self._rss_bytes = machine.rss_bytes(os.getpid())

    def figures(self, name: str, count: int) -> dict[str, float]:
        cpu_s, wall_s = time.process_time() - self._cpu_s, time.perf_counter() - self._wall_s
        grown_bytes = machine.rss_bytes(os.getpid()) - self._rss_bytes
        return {
            f"{name}_spans": count,
            f"{name}_cpu_us_per_span": cpu_s / count * 1e6,
            f"{name}_spans_per_cpu_s": count / cpu_s,
            f"{name}_spans_per_s": count / wall_s,
            f"{name}_rss_growth_mb": grown_bytes / 2**20,
            f"{name}_rss_mb": machine.rss_bytes(os.getpid()) / 2**20,
        }


async def storing(count: int, name: str = "stored", counted: bool = False) -> dict[str, float]:
    """Bytes to the store, without gRPC: senders wait for their acknowledgement, as sidecars do."""
    encoded = spans(BATCH * BATCHES, 2, counted)
    batches = [encoded[at : at + BATCH] for at in range(0, len(encoded), BATCH)]
    with tempfile.TemporaryDirectory() as folder:
        async with Receiver(Path(folder)) as receiver:
            if counted:
                tried = Split(TRIED, "agent-000", (Variant("a", 0.5), Variant("b", 0.5)))
                await receiver.database.write(splits.put, tried)
            meter = Meter()

            async def send(encoder: Encoder, share: int, after: int) -> None:
                for number in range(share):
                    batch = batches[(number + after) % BATCHES]
                    await receiver.intake.take_traces(encoder.request(batch, number + after))

            senders = encoders()
            rounds = max(1, count // BATCH // SENDERS // 2)
            await asyncio.gather(*(send(encoder, rounds, 0) for encoder in senders))
            meter.start()
            await asyncio.gather(*(send(encoder, rounds, rounds) for encoder in senders))
            figures = meter.figures(name, rounds * SENDERS * BATCH)
            accepted = receiver.intake.counts["accepted"]
            figures[f"{name}_missing"] = 2 * rounds * SENDERS * BATCH - accepted
            return figures


async def receiving(count: int) -> dict[str, float]:
    """The whole, from a client in another process, through the guard as in production."""
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory() as folder:
        async with Receiver(Path(folder)) as receiver:
            path = f"{folder}/grpc.sock"
            options = [("grpc.max_receive_message_length", REQUEST_MAX_BYTES), *BACKEND_OPTIONS]
            server = grpc.aio.server(options=options)
            receiver.intake.add_to(server)
            server.add_insecure_port(f"unix:{path}")
            await server.start()
            reactor = guard_reactor(loop)
            guard = Guard(reactor, path)
            await guard.open(("127.0.0.1", 0))
            figures = await _sent(guard.port, count)
            figures["received_missing"] = 2 * figures["received_spans"] - receiver.intake.counts["accepted"]
            await guard.close()
            await reactor.close()
            await server.stop(1)
            return figures


async def _sent(port: int, count: int) -> dict[str, float]:
    """Two halves by a client each; the figures of the second."""
    meter, figures = Meter(), {}
    for half in range(2):
        command = (sys.executable, "-m", "bench.intake", "--client", str(port), "--spans", str(count // 2))
        child = await asyncio.create_subprocess_exec(*command, "--seed", str(half), stdout=subprocess.PIPE)
        assert child.stdout is not None
        await child.stdout.readline()  # its spans are made; now it sends
        meter.start()
        sent = int(await child.stdout.readline())
        figures = meter.figures("received", sent)
        await child.wait()
    return figures


async def client(port: int, count: int, seed: int) -> None:
    encoded = spans(BATCH * BATCHES, seed + 10)
    batches = [encoded[at : at + BATCH] for at in range(0, len(encoded), BATCH)]
    print("ready", flush=True)
    rounds = max(1, count // BATCH // SENDERS)

    async def send(encoder: Encoder) -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            export = channel.unary_unary(PATHS["traces"])
            for number in range(rounds):
                await export(encoder.request(batches[number % BATCHES], number))

    await asyncio.gather(*(send(encoder) for encoder in encoders()))
    print(rounds * SENDERS * BATCH, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--spans", type=int, default=1_000_000, help="sent in each of the two long parts")
    parser.add_argument("--client", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    receiver_core, client_core = machine.cores()
    if chosen.client:
        os.sched_setaffinity(0, {client_core})
        uvloop.run(client(chosen.client, chosen.spans, chosen.seed))
        return 0
    os.sched_setaffinity(0, {receiver_core})
    figures = decoding()
    figures |= uvloop.run(storing(chosen.spans))
    figures |= uvloop.run(storing(chosen.spans // 4, "counted", counted=True))
    figures |= uvloop.run(receiving(chosen.spans))
    if chosen.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:28} {value:14,.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
