"""Server streaming of 64-byte messages: CPU per relayed message, time to the first one, and whether any is held.

Two shapes. `burst`: all messages of a stream at once, four streams in flight; what coalesces well. `paced`: one
message every few milliseconds on many streams, as tokens come from a model; here each message is a write of its own.
`cadence` uses a grpcio client and asks how late each message of a paced stream comes against the first one.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from itertools import pairwise
from time import perf_counter

import grpc

from bench.process import BenchError
from bench.suite import sidecar
from bench.suite.report import Case, table
from bench.suite.targets import Bed, Sample, give_up, sample
from bench.suite.unary import Effort

MESSAGE_BYTES = 64
_NAMES = ("direct", "sidecar", "envoy bare", "envoy full", "grpc.aio")
HELD_MS = 5.0  # a message held for its successor would come a whole gap late
_CADENCE_GAP_MS, _CADENCE_MESSAGES = 20, 25


def _case(bed: Bed, title: str, messages: int, gap_ms: int, in_flight: int, streams: int, effort: Effort) -> Case:
    names = [name for name in _NAMES if name in bed.targets]
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    message = f"!stream {messages} {MESSAGE_BYTES}" + (f" {gap_ms}" if gap_ms else "")
    arguments = ["--message", message, f"--expect={messages * (MESSAGE_BYTES + 5)}"]
    if effort.rounds < 3:
        samples.pop("grpc.aio", None)  # takes the time of all others together
    for turn in range(effort.rounds + 1):
        for name in list(samples):
            target = bed.targets[name]
            count = streams if turn else max(in_flight, streams // 10)
            if target.slow:
                count = max(in_flight, count // 16)
            streaming = replace(target, path=sidecar.STREAM_METHOD)
            try:
                one = sample(bed, streaming, count, in_flight, *arguments, seed=turn, warm=turn > 0, per_call=messages)
            except BenchError as error:
                give_up(bed, f"{title}, {name}", error)
                del samples[name]
                continue
            target.calls += count
            if turn:
                samples[name].append(one)
    case = Case(title, samples, "message")
    print(table(case))
    firsts = ", ".join(f"{name} {case.median(name, 'first_p50_us'):.0f}" for name in samples)
    print(f"  first message after, us p50: {firsts}", flush=True)
    return case


def burst(bed: Bed, effort: Effort) -> Case:
    title = "streaming 64 B messages, burst: 500 a stream, 4 in flight (calls/s: streams/s)"
    return _case(bed, title, 500, 0, 4, max(40, int(effort.seconds * 1200)), effort)


def paced(bed: Bed, effort: Effort) -> Case:
    title = "streaming 64 B messages, paced: one per 5 ms on 64 streams (calls/s: streams/s)"
    return _case(bed, title, 100, 5, 64, max(64, int(effort.seconds * 128)), effort)


def cadence(bed: Bed, effort: Effort) -> dict[str, dict[str, float]]:
    """Per target: how late messages come against their schedule, ms, worst and p50 of the rounds' p99."""
    names = [name for name in _NAMES if name in bed.targets]
    late: dict[str, list[float]] = {name: [] for name in names}
    request = f"!stream {_CADENCE_MESSAGES} {MESSAGE_BYTES} {_CADENCE_GAP_MS}\n".encode()
    for _ in range(max(2, effort.rounds)):
        for name in names:
            with grpc.insecure_channel(f"127.0.0.1:{bed.targets[name].port}") as channel:
                late[name].append(_lateness_ms(channel.unary_stream(sidecar.STREAM_METHOD), request))
    held = {name: {"p50_ms": statistics.median(values), "worst_ms": max(values)} for name, values in late.items()}
    print(f"\nstreaming cadence: 64 B every {_CADENCE_GAP_MS} ms, how late the latest message of a stream comes, ms")
    for name, figures in held.items():
        print(f"  {name:16} median {figures['p50_ms']:6.2f}   worst {figures['worst_ms']:6.2f}", flush=True)
    return held


def _lateness_ms(method: grpc.UnaryStreamMultiCallable, request: bytes) -> float:
    """The longest gap between two messages beyond the sender's gap: a held message shows as a whole gap."""
    arrivals = [perf_counter() for _ in method(request, timeout=20)]
    gaps = [(b - a) * 1000 - _CADENCE_GAP_MS for a, b in pairwise(arrivals)]
    return max(gaps)
