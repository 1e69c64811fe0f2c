"""Unary echo: CPU per call, calls/s and latency by message size and calls in flight.

Two generators. `raw` numbers its messages, so that a caching proxy computes a key, looks it up, misses and stores:
what the required ratios are taken from. `h2load` repeats one body, so the sidecar is measured there on a method that
is not cacheable and on hits.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from bench import machine
from bench.process import BenchError
from bench.suite import h2load
from bench.suite.report import Case, table
from bench.suite.targets import SETTLE_S, Bed, Sample, Target, backend_calls, give_up, sample, verify

SIZES = (200, 1024, 16_384)
IN_FLIGHT = (32, 1)
ORDER = ("direct", "sidecar", "sidecar plain", "sidecar hit", "envoy bare", "envoy full", "grpc.aio")


@dataclass(frozen=True, slots=True)
class Effort:
    """How long a run measures."""

    rounds: int
    seconds: float  # aimed at per sample of the fast targets


def calls_for(target: Target, size: int, in_flight: int, seconds: float) -> int:
    """About `seconds` of work for a proxy of Envoy's speed, less for a slow one."""
    per_s = (25_000 if in_flight > 1 else 4_000) / (1 + size / 16_384)
    return max(100, int(seconds * per_s / (8 if target.slow and in_flight > 1 else 1)))


def case_raw(bed: Bed, size: int, in_flight: int, effort: Effort, varied: bool = False) -> Case:
    """One load by the raw generator on every target, in turns."""
    names = [name for name in ORDER if name in bed.targets]
    arguments = [f"--size={size}"]
    title = f"unary {size} B, {in_flight} in flight"
    if varied:
        names = [name for name in names if name in ("direct", "sidecar", "envoy bare", "envoy full")]
        arguments.append("--varied")
        title += ", traceparent and grpc-timeout unique per call"
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    for turn in range(effort.rounds + 1):  # the first turn warms up
        for name in list(samples):
            target = bed.targets[name]
            calls = calls_for(target, size, in_flight, effort.seconds if turn else 0.1)
            seed = turn * 1000 + size + in_flight
            try:
                one = _checked_sample(bed, target, calls, in_flight, arguments, seed, warm=turn > 0)
            except BenchError as error:
                give_up(bed, f"{title}, {name}", error)
                del samples[name]
                continue
            if turn:
                samples[name].append(one)
    case = Case(title, samples)
    print(table(case), flush=True)
    return case


def _checked_sample(
    bed: Bed, target: Target, calls: int, in_flight: int, arguments: list[str], seed: int, warm: bool
) -> Sample:
    """A sample whose calls reached the backend if they are misses, and did not if they are hits."""
    before = backend_calls(bed)
    one = sample(bed, target, calls, in_flight, *arguments, seed=1 if target.distinct else seed, warm=warm)
    _check_reached(bed, target, before, calls, 0 if warm else calls)
    return one


def _check_reached(bed: Bed, target: Target, before: int, calls: int, first_misses: int) -> None:
    """BenchError unless calls that must miss reached the backend, and those that must hit did not."""
    reached = backend_calls(bed) - before - 1  # asking is a call too
    if target.distinct and reached > first_misses:
        raise BenchError(f"{reached} of {calls} calls reached the backend, none should")
    if not target.distinct and reached < calls:
        raise BenchError(f"only {reached} of {calls} calls reached the backend")


def case_h2load(bed: Bed, size: int, in_flight: int, effort: Effort) -> Case:
    """The same by h2load, without the sidecar's cache misses."""
    body = bed.children.directory / "h2load-body"
    message = bytes(97 + i % 26 for i in range(size))
    body.write_bytes(h2load.grpc_frame(message))
    names = [name for name in ORDER if name in bed.targets and name != "sidecar"]
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    for turn in range(effort.rounds + 1):
        for name in list(samples):
            target = bed.targets[name]
            calls = calls_for(target, size, in_flight, effort.seconds if turn else 0.1)
            try:
                one = _h2load_sample(bed, target, body, calls, in_flight, size + 5)
            except BenchError as error:
                give_up(bed, f"h2load, {name}", error)
                del samples[name]
                continue
            if turn:
                samples[name].append(one)
    case = Case(f"unary {size} B, {in_flight} in flight, by h2load", samples)
    print(table(case), flush=True)
    return case


def _h2load_sample(bed: Bed, target: Target, body: Path, calls: int, in_flight: int, reply_bytes: int) -> Sample:
    reached = backend_calls(bed)
    before = machine.cpu_s(target.pid) if target.pid else 0.0
    load = h2load.run(target.port, body, calls, in_flight, core=bed.load_core, path=target.path)
    if target.sink_port is not None:
        time.sleep(SETTLE_S)
    spent = machine.cpu_s(target.pid) - before if target.pid else 0.0
    h2load.check(load, reply_bytes, target.name)
    _check_reached(bed, target, reached, calls, in_flight)
    target.calls += calls
    return Sample(spent / calls * 1e6, load.calls_per_s, load.quantile_us(0.5), load.quantile_us(0.99))


def verify_all(bed: Bed) -> None:
    """grpcio must get its messages back through every target."""
    for target in bed.targets.values():
        verify(target)


def shapes(quick: bool) -> list[tuple[int, int]]:
    """(message size, calls in flight) to measure; the one the requirements name comes first."""
    if quick:
        return [(1024, 32)]
    first = [(1024, 32)]
    return first + [(size, flying) for flying in IN_FLIGHT for size in SIZES if (size, flying) not in first]
