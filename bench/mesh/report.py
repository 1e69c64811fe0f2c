"""Outcomes to figures and figures to a table. Pure.

Always holds: percentiles are nearest-rank over the calls that ended OK; hit rate = (hit + stale + coalesced) /
(those + miss), so calls that bypass the cache are not in it; "-" stands for what no call told.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bench.mesh.load import Outcome
from bench.mesh.plan import TIERS

_SERVED = ("hit", "stale", "coalesced")


def percentile(values: Sequence[float], share: float) -> float | None:
    """Nearest rank; None of nothing. `values` need not be sorted."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def hit_rate(outcomes: Iterable[Outcome]) -> float | None:
    """Share of eligible calls the cache served; None where no call was eligible."""
    verdicts = Counter(outcome.cache for outcome in outcomes)
    served = sum(verdicts[verdict] for verdict in _SERVED)
    eligible = served + verdicts["miss"]
    return served / eligible if eligible else None


def row(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The figures of one group of calls."""
    good = [outcome for outcome in outcomes if outcome.ok]
    totals = [outcome.total_ms for outcome in good]
    firsts = [outcome.first_ms for outcome in good if outcome.streamed]
    return {
        "calls": len(outcomes),
        "ok": len(good),
        "p50_ms": percentile(totals, 0.50),
        "p95_ms": percentile(totals, 0.95),
        "p99_ms": percentile(totals, 0.99),
        "first_chunk_p50_ms": percentile(firsts, 0.50),
        "first_chunk_p95_ms": percentile(firsts, 0.95),
        "hit_rate": hit_rate(outcomes),
        "input_tokens": sum(outcome.input_tokens for outcome in good),
        "output_tokens": sum(outcome.output_tokens for outcome in good),
    }


def summary(outcomes: Sequence[Outcome], instances: Mapping[str, str], elapsed_s: float) -> dict[str, Any]:
    """Everything the table shows, ready for JSON. `instances` gives an endpoint's address its name."""
    endpoints = Counter(outcome.endpoint for outcome in outcomes if outcome.endpoint)
    for address in instances:
        endpoints.setdefault(address, 0)
    return {
        "elapsed_s": elapsed_s,
        "all": row(outcomes),
        "agents": _grouped(outcomes, lambda outcome: outcome.agent_id),
        "kinds": _grouped(outcomes, lambda outcome: "streaming" if outcome.streamed else "unary"),
        "hit_rates": {tier: hit_rate(o for o in outcomes if o.tier == tier) for tier in TIERS},
        "cache": dict(Counter(outcome.cache or "unknown" for outcome in outcomes)),
        "endpoints": {instances.get(address, address): count for address, count in sorted(endpoints.items())},
        "failures": dict(Counter(outcome.reason for outcome in outcomes if not outcome.ok).most_common(10)),
    }


def _grouped(outcomes: Sequence[Outcome], key: Callable[[Outcome], str]) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(key(outcome), []).append(outcome)
    return {name: row(groups[name]) for name in sorted(groups)}


def table(figures: Mapping[str, Any]) -> str:
    """The summary as text."""
    lines = [
        (
            f"{'':12} {'calls':>7} {'ok %':>7} {'P50 ms':>8} {'P95 ms':>8} {'P99 ms':>8}"
            f" {'1st chunk P50/P95':>18} {'hit %':>6} {'tokens in':>10} {'out':>8}"
        )
    ]
    lines += [_line(name, figures["agents"][name]) for name in figures["agents"]]
    lines += [_line(name, figures["kinds"][name]) for name in figures["kinds"]]
    lines.append(_line("all", figures["all"]))
    rates = ", ".join(f"{tier} {_share(rate)}" for tier, rate in figures["hit_rates"].items())
    verdicts = ", ".join(f"{verdict} {count}" for verdict, count in sorted(figures["cache"].items()))
    lines.append(f"\nhit rate per tier: {rates}   ({verdicts})")
    endpoints = ", ".join(f"{name} {count}" for name, count in sorted(figures["endpoints"].items()))
    lines.append(f"calls per endpoint: {endpoints or '-'}")
    rate = figures["all"]["calls"] / figures["elapsed_s"] if figures["elapsed_s"] else 0.0
    lines.append(f"{rate:.0f} calls/s over {figures['elapsed_s']:.1f} s")
    lines += [f"FAILED {count} x {reason}" for reason, count in figures["failures"].items()]
    return "\n".join(lines)


def _line(name: str, figures: Mapping[str, Any]) -> str:
    good = 100 * figures["ok"] / figures["calls"] if figures["calls"] else 0.0
    first = f"{_ms(figures['first_chunk_p50_ms'])} /{_ms(figures['first_chunk_p95_ms'])}"
    return (
        f"{name:12} {figures['calls']:7} {good:7.2f} {_ms(figures['p50_ms']):>8} {_ms(figures['p95_ms']):>8}"
        f" {_ms(figures['p99_ms']):>8} {first:>18} {_share(figures['hit_rate']):>6} {figures['input_tokens']:10}"
        f" {figures['output_tokens']:8}"
    )


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f}"
