"""Calls to simulate: steps, spikes and ramps made up by a seed, and the arrivals of real traces.

Always holds: calls come in the order of their arrival; the same arguments give the same calls. A call takes the time of
its tokens (`service_s`). Three in ten are urgent, as the lanes critical and high are; patience is how long a call may
wait before it is late, one for urgent calls and one for the others.

Deliberately not here: what becomes of them (`fleet`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, exp, log
from pathlib import Path
from random import Random

from bench.mesh import trace
from bench.sim_scale.fleet import Call

URGENT_SHARE = 0.3
PATIENCE_S = (1.0, 5.0)  # of urgent calls, of the others: what somebody who watches the first token come bears
FIRST_S = 0.1  # of a call, before its first token
PREFILL_PER_S = 8_000.0  # tokens read
DECODE_PER_S = 50.0  # tokens written
INPUT_TOKENS, INPUT_SIGMA, OUTPUT_SIGMA = 1_000, 0.8, 0.6  # of made-up calls: median, log-normal
TARGET = 0.7
TRACES = ("azure-llm-2023-code", "azure-llm-2023-conv", "mooncake-conversation", "mooncake-synthetic")
SUFFIXES = (".csv.gz", ".jsonl.gz", ".csv", ".jsonl")

Patience = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Workload:
    name: str
    calls: tuple[Call, ...]
    until_s: float
    instances: int  # at the start
    step_s: float = 0.0  # when the load rises at once; 0: it does not
    needed: int = 0  # instances that carry the load after that at the target


def service_s(input_tokens: int, output_tokens: int) -> float:
    return FIRST_S + input_tokens / PREFILL_PER_S + output_tokens / DECODE_PER_S


def patience_s(rng: Random, patience: Patience) -> float:
    return patience[0] if rng.random() < URGENT_SHARE else patience[1]


def mean_service_s(tokens: int) -> float:
    """Of made-up calls whose replies have that median."""
    read, written = INPUT_TOKENS * exp(INPUT_SIGMA**2 / 2), tokens * exp(OUTPUT_SIGMA**2 / 2)
    return FIRST_S + read / PREFILL_PER_S + written / DECODE_PER_S


def poisson(
    rate: Callable[[float], float], most: float, until_s: float, rng: Random, tokens: int, patience: Patience
) -> tuple[Call, ...]:
    """Arrivals of a rate that changes, by thinning; `most` is its maximum, `tokens` the replies' median."""
    calls: list[Call] = []
    at_s = rng.expovariate(most)
    while at_s < until_s:
        if rng.random() * most < rate(at_s):
            read = round(rng.lognormvariate(log(INPUT_TOKENS), INPUT_SIGMA))
            written = round(rng.lognormvariate(log(tokens), OUTPUT_SIGMA))
            calls.append(Call(at_s, service_s(read, written), patience_s(rng, patience)))
        at_s += rng.expovariate(most)
    return tuple(calls)


def made_up(
    kind: str, instances: int, seed: int, capacity: int, patience: Patience = PATIENCE_S, tokens: int = 180
) -> Workload:
    """A load that `instances` carry at the target, and ten times as much of it.

    "step": at once, for 5 minutes; "spike": for 30 s; "ramp": within 2 minutes, then back within 2. It begins at a
    moment of the seed, so that it falls anywhere between two ticks of a scaler.
    """
    rng = Random(f"{kind} {instances} {tokens} {seed}")
    base = instances * TARGET * capacity / mean_service_s(tokens)
    begin_s = 480.0 + rng.uniform(0.0, 30.0)
    lasts_s = {"step": 300.0, "spike": 30.0, "ramp": 240.0}[kind]

    def rate(at_s: float) -> float:
        part = (at_s - begin_s) / lasts_s
        if not 0.0 <= part < 1.0:
            return base
        return base * (1.0 + 9.0 * (1.0 - abs(2.0 * part - 1.0)) if kind == "ramp" else 10.0)

    until_s = begin_s + lasts_s + (0.0 if kind == "step" else 300.0)
    calls = poisson(rate, 10.0 * base, until_s, rng, tokens, patience)
    step_s = 0.0 if kind == "ramp" else begin_s
    return Workload(f"{kind} x10 from {instances}", calls, until_s, instances, step_s, 10 * instances)


def find(folder: Path, name: str) -> Path | None:
    return next((path for suffix in SUFFIXES if (path := folder / f"{name}{suffix}").is_file()), None)


def traced(path: Path, turn: int, turns: int, capacity: int, patience: Patience = PATIENCE_S) -> Workload:
    """A trace, begun at the `turn`-th of `turns` moments and wrapped around: one trace is one draw of luck else."""
    arrivals = list(trace.read(path, 1.0, float("inf"), 0))
    span_s = arrivals[-1].at_s + 1e-3
    name = path.name.partition(".")[0]
    rng = Random(f"{name} {turn}")
    begun_s = span_s * turn / turns
    timed = sorted(((one.at_s - begun_s) % span_s, service_s(one.input_tokens, one.output_tokens)) for one in arrivals)
    calls = tuple(Call(at_s, long_s, patience_s(rng, patience)) for at_s, long_s in timed)
    mean = sum([long_s for _, long_s in timed]) / span_s
    return Workload(name, calls, span_s, max(1, ceil(mean / (TARGET * capacity))))
