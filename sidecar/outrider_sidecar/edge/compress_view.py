"""What the admin port shows of compression: what it saves, by whom, what it costs, where it stepped aside or is off.

Always holds: reading changes nothing; no text of anybody's is shown. Tokens are the sidecar's own count (an estimate
unless a vocabulary is loaded), money is in the prices of the agent's policy, or relative to an input token where it
has none.

Deliberately not here: the page itself (`edge.view`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from outrider_sidecar.core.metric import Family, Labels
from outrider_sidecar.core.runtime import Runtime
from outrider_sidecar.edge.compress_worker import CompressWorker
from outrider_sidecar.filters.compress import CompressFilter


def compression_shown(runtime: Runtime) -> list[dict[str, Any]]:
    """By agent."""
    return [{"agent_id": agent_id, **_shown(one)} for agent_id, one in _all(runtime)]


def compression_families(runtime: Runtime, worker: CompressWorker) -> Iterable[Family]:
    """The same as metrics."""
    calls: list[tuple[Labels, float]] = []
    tokens: list[tuple[Labels, float]] = []
    seconds: list[tuple[Labels, float]] = []
    longest: list[tuple[Labels, float]] = []
    blocks: list[tuple[Labels, float]] = []
    saved: list[tuple[Labels, float]] = []
    money: list[tuple[Labels, float]] = []
    is_off: list[tuple[Labels, float]] = []
    kept: list[tuple[Labels, float]] = []
    for agent_id, one in _all(runtime):
        calls += [((agent_id, "smaller"), one.changed), ((agent_id, "as_it_was"), one.calls - one.changed)]
        calls += [((agent_id, reason), count) for reason, count in one.outcomes.items()]
        tokens += [((agent_id, "before"), one.tokens_before), ((agent_id, "after"), one.tokens_after)]
        seconds.append(((agent_id,), one.us / 1e6))
        longest.append(((agent_id,), one.longest_us / 1e6))
        blocks += [((agent_id, name), counts[0]) for name, counts in one.compressors.items()]
        saved += [((agent_id, name), counts[1]) for name, counts in one.compressors.items()]
        money += [((agent_id, "saved"), one.controller.saved), ((agent_id, "growth"), one.controller.growth)]
        is_off.append(((agent_id,), float(bool(one.controller.off_since))))
        kept.append(((agent_id,), one.originals.size_bytes))
    by_name = ("agent", "compressor")
    yield Family("outrider_compression_calls", "counter", "Requests looked at.", ("agent", "outcome"), calls)
    yield Family("outrider_compression_tokens", "counter", "Of requests, by our count.", ("agent", "when"), tokens)
    yield Family("outrider_compression_seconds", "counter", "Processor time on the loop.", ("agent",), seconds)
    yield Family(
        "outrider_compression_longest_seconds",
        "gauge",
        "The longest at a time.",
        ("agent",),
        longest,
    )
    yield Family("outrider_compression_blocks", "counter", "Blocks, once each.", by_name, blocks)
    yield Family("outrider_compression_block_tokens_saved", "counter", "Of blocks, once each.", by_name, saved)
    yield Family("outrider_compression_money", "gauge", "In the policy's prices.", ("agent", "kind"), money)
    yield Family("outrider_compression_off", "gauge", "1: it does not pay.", ("agent",), is_off)
    yield Family("outrider_compression_originals_bytes", "gauge", "Kept originals.", ("agent",), kept)
    yield from worker.families()


def _all(runtime: Runtime) -> Iterable[tuple[str, CompressFilter]]:
    for agent_id, state in runtime.agents.items():
        if state.compression is not None:
            yield agent_id, state.compression


def _shown(one: CompressFilter) -> dict[str, Any]:
    controller = one.controller
    return {
        "on": one.is_on and not controller.off_since,
        "mode": one.agent.compression.mode,
        "provider": controller.rules.provider,
        "exact_tokens": one.is_exact,
        "calls": one.calls,
        "smaller": one.changed,
        "tokens_before": one.tokens_before,
        "tokens_after": one.tokens_after,
        "tokens_reported_over_counted": round(controller.scale, 4),
        "net_per_call": controller.net,
        "reason": controller.reason or None,
        "aside": dict(one.outcomes),
        "compressors": {name: {"blocks": row[0], "tokens_saved": row[1]} for name, row in one.compressors.items()},
        "decisions": len(one.ledger),
        "originals": {"kept": len(one.originals), "bytes": one.originals.size_bytes, "fetched": one.fetched},
        "summaries": len(one.summaries),
    }
