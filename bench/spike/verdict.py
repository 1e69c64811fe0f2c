"""What a spike came to: figures per lane and phase, and whether it reached what it must. Pure.

Always holds: percentiles are nearest-rank over the calls that succeeded; "-" stands for what no call told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.mesh.report import percentile
from bench.spike.load import LANES, Outcome

LEAST_CALLS = 10_000
LEAST_SUCCESS = 0.9987
P95_FACTOR = 1.5
URGENT = ("critical", "high")


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the mesh while it runs."""

    at_s: float
    ready: int
    starting: int
    draining: int
    desired: int
    waiting: int
    in_flight: int


def capacity_s(looks: Sequence[Look], spike_at_s: float, spike_ends_s: float) -> float | None:
    """When capacity was there: the first look of the spike after which nothing waited any more before its end, in
    seconds since the load began; None: it never was."""
    inside = [look for look in looks if spike_at_s < look.at_s <= spike_ends_s]
    waited = [at for at, look in enumerate(inside) if look.waiting > look.in_flight * 0.1]
    if not inside or (waited and waited[-1] == len(inside) - 1):
        return None
    if not waited:
        return spike_at_s
    return inside[waited[-1] + 1].at_s


def row(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The figures of one group of calls."""
    good = [outcome.total_ms for outcome in outcomes if not outcome.reason]
    return {
        "calls": len(outcomes),
        "ok": len(good),
        "p50_ms": percentile(good, 0.5),
        "p95_ms": percentile(good, 0.95),
        "p99_ms": percentile(good, 0.99),
    }


def summary(outcomes: Sequence[Outcome], looks: Sequence[Look], spike_at_s: float, ends_s: float) -> dict[str, Any]:
    """Everything the table shows, ready for JSON."""
    there_s = capacity_s(looks, spike_at_s, ends_s)
    groups: dict[str, dict[str, Any]] = {}
    for lane in LANES:
        mine = [outcome for outcome in outcomes if outcome.lane == lane]
        groups[lane] = {
            "before": row([one for one in mine if one.phase == "before"]),
            "spike": row([one for one in mine if one.phase == "spike"]),
            "with capacity": row([one for one in mine if there_s is not None and there_s <= one.started_s < ends_s]),
            "after": row([one for one in mine if one.phase == "after"]),
            "all": row(mine),
        }
    return {
        "all": row(outcomes),
        "lanes": groups,
        "to_capacity_s": None if there_s is None else there_s - spike_at_s,
        "most_ready": max((look.ready for look in looks), default=0),
        "most_waiting": max((look.waiting for look in looks), default=0),
        "failures": dict(Counter(one.reason for one in outcomes if one.reason).most_common(10)),
    }


def verdicts(figures: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """(what, how it came out, whether it is reached)."""
    everything = figures["all"]
    share = everything["ok"] / everything["calls"] if everything["calls"] else 0.0
    urgent = {lane: figures["lanes"][lane]["all"] for lane in URGENT}
    failed = {lane: one["calls"] - one["ok"] for lane, one in urgent.items()}
    critical = figures["lanes"]["critical"]
    before, then = critical["before"]["p95_ms"], critical["with capacity"]["p95_ms"]
    factor = then / before if before and then else None
    shown = "not measured: capacity was not there before the spike ended"
    if factor is not None:
        shown = f"{then:.0f} ms against {before:.0f} ms before: {factor:.2f} x"
    return [
        (f"at least {LEAST_CALLS} calls", str(everything["calls"]), everything["calls"] >= LEAST_CALLS),
        *[(f"no failed call in lane {lane}", f"{count} failed", not count) for lane, count in failed.items()],
        (f"at least {LEAST_SUCCESS:.2%} succeed", f"{share:.3%}", share >= LEAST_SUCCESS),
        (f"P95 of critical within {P95_FACTOR:g} x", shown, factor is not None and factor <= P95_FACTOR),
    ]


def table(figures: dict[str, Any]) -> str:
    """The summary as text."""
    lines = [f"{'lane':9} {'phase':14} {'calls':>7} {'ok %':>8} {'P50 ms':>8} {'P95 ms':>8} {'P99 ms':>8}"]
    for lane, phases in figures["lanes"].items():
        for phase, one in phases.items():
            good = f"{100 * one['ok'] / one['calls']:.2f}" if one["calls"] else "-"
            times = " ".join(f"{_ms(one[name]):>8}" for name in ("p50_ms", "p95_ms", "p99_ms"))
            lines.append(f"{lane:9} {phase:14} {one['calls']:7} {good:>8} {times}")
    there = figures["to_capacity_s"]
    lines.append(f"\ncapacity was there after {'-' if there is None else f'{there:.1f} s'}")
    lines.append(f"most instances ready {figures['most_ready']}, most calls waiting {figures['most_waiting']}")
    lines += [f"FAILED {count} x {reason}" for reason, count in figures["failures"].items()]
    return "\n".join(lines)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
