"""Which spans are kept to be looked at: tail rules over whole traces.

A trace is kept when one of its spans failed, was slow, had a variant or was rated, and else when its id falls into the
share. A kept trace keeps the spans that came up to `before_ms` earlier (from a bounded ring) and those that come within
`after_ms`. Slow: longer than `slow_ms` and than `slow_factor` times the running 95th percentile of its agent's calls.

Always holds: figures never depend on anything here; memory is bounded (ring bytes, traces, agents); each reason has a
budget of spans per second of its own, so an error storm fills neither the disk nor the others' share, and what a
budget refuses is counted. The share is by trace id: all control planes and all restarts choose the same traces.

Deliberately not here: how long kept spans stay (`state.retention`), the clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from outrider_control.core.sample import OTHER
from outrider_control.intake.otlp import Origin
from outrider_control.intake.span_view import pack
from outrider_control.state.kept_spans import KeptSpan

ERROR, SLOW, VARIANT, RATED, SAMPLED = "error", "slow", "variant", "rated", "sampled"
_RANK: Final = {SAMPLED: 0, VARIANT: 1, SLOW: 2, ERROR: 3, RATED: 4}
_AGENTS_MAX: Final = 1_000
_ENTRY_BYTES: Final = 400  # what a span in the ring takes beside its own bytes
_COUNTS_MAX: Final = 4_096
_REFRESH: Final = 256
_LEAST_CALLS: Final = 100  # before that a percentile says little


@dataclass(frozen=True, slots=True)
class TailPolicy:
    """What is kept. Each reason has an equal part of the budget."""

    share: float = 0.01  # of the traces nothing else speaks for
    slow_ms: int = 2_000
    slow_factor: float = 3.0
    before_ms: int = 10_000
    after_ms: int = 60_000
    ring_bytes: int = 16 * 2**20
    traces: int = 50_000  # kept ones that are remembered
    max_per_s: float = 200.0  # spans, in the long run
    burst_s: float = 50.0  # of the budget, at once


class TailSpan(NamedTuple):
    """One span as the rules see it."""

    trace_id: bytes
    span_id: bytes
    agent_id: str
    start_ms: int
    duration_us: int
    failed: bool
    counted: bool  # a call, by the rule of hops: the percentile is taken of these
    ours: bool
    variant: str
    origin: Origin
    span: bytes  # OTLP


class _Durations:
    """A running 95th percentile: counts by quarter octave, halved as they grow."""

    __slots__ = ("_counts", "_due", "_total", "p95_us")

    def __init__(self) -> None:
        self._counts = [0] * 260
        self._total = 0
        self._due = _LEAST_CALLS
        self.p95_us = 0  # 0: not known

    def add(self, duration_us: int) -> None:
        bits = duration_us.bit_length()
        self._counts[min(259, bits * 4 + (duration_us << 3 >> bits & 3))] += 1
        self._total += 1
        self._due -= 1
        if self._due <= 0:
            self._refresh()

    def _refresh(self) -> None:
        self._due = _REFRESH
        left = self._total // 20
        for place in range(259, -1, -1):
            left -= self._counts[place]
            if left < 0:
                bits, quarter = divmod(place, 4)
                self.p95_us = (5 + quarter) << bits >> 3  # the upper edge
                break
        if self._total >= _COUNTS_MAX:
            self._counts = [count // 2 for count in self._counts]
            self._total = sum(self._counts)


class _Budget:
    __slots__ = ("_at_ms", "_burst", "_left", "_per_ms")

    def __init__(self, per_s: float, burst: int):
        self._per_ms = per_s / 1e3
        self._burst = burst
        self._left = float(burst)
        self._at_ms = 0

    def take(self, now_ms: int) -> bool:
        self._left = min(self._burst, self._left + max(0, now_ms - self._at_ms) * self._per_ms)
        self._at_ms = now_ms
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Tail:
    """The rules and what they remember. `counts`: spans kept and refused, by reason."""

    def __init__(self, policy: TailPolicy | None = None):
        self.policy = policy = policy or TailPolicy()
        self.counts: dict[str, int] = dict.fromkeys(_RANK, 0) | {"over_budget": 0, "unreadable": 0}
        per_s = policy.max_per_s / len(_RANK)
        self._budgets = {reason: _Budget(per_s, max(1, round(per_s * policy.burst_s))) for reason in _RANK}
        # The lower 56 bits of a trace id are random by W3C trace context level 2.
        self._below = round(policy.share * 2**56).to_bytes(8, "big")[1:] if policy.share < 1 else b"\xff" * 8
        self._slow_us = policy.slow_ms * 1_000
        self._durations: dict[str, _Durations] = {}
        self._ring: dict[bytes, list[TailSpan]] = {}
        self._ring_before: dict[bytes, list[TailSpan]] = {}
        self._ring_bytes = 0
        self._ring_since_ms = 0
        self._kept: dict[bytes, str] = {}
        self._kept_before: dict[bytes, str] = {}
        self._kept_since_ms = 0

    def observe(self, span: TailSpan, now_ms: int, kept: list[KeptSpan]) -> None:
        """Takes note of a span; what is kept on account of it, earlier ones of its trace too, is put to `kept`."""
        trace_id = span.trace_id
        known = self._kept.get(trace_id) or self._kept_before.get(trace_id)
        reason = self._reason(span)
        if reason and (not known or _RANK[reason] > _RANK[known]):
            if not known and not self._start(trace_id, reason, now_ms, kept):
                return
            self._kept[trace_id] = known = reason
        if known:
            self._keep(span, known, now_ms, kept)
        else:
            self._remember(span, now_ms)

    def mark(self, trace_id: bytes, now_ms: int) -> list[KeptSpan]:
        """Somebody rated this trace: what of it is still in the ring is kept, and what comes."""
        kept: list[KeptSpan] = []
        known = self._kept.get(trace_id) or self._kept_before.get(trace_id)
        if known or self._start(trace_id, RATED, now_ms, kept):
            self._kept[trace_id] = RATED
        return kept

    def _reason(self, span: TailSpan) -> str:
        if span.counted:
            durations = self._durations.get(span.agent_id) or self._durations_of(span.agent_id)
            durations.add(span.duration_us)
        if span.failed:
            return ERROR
        if span.duration_us >= self._slow_us and (span.counted or span.ours):
            durations = self._durations.get(span.agent_id) or self._durations_of(span.agent_id)
            if span.duration_us >= durations.p95_us * self.policy.slow_factor:
                return SLOW
        if span.variant:
            return VARIANT
        return SAMPLED if span.trace_id[9:] < self._below else ""

    def _durations_of(self, agent_id: str) -> _Durations:
        if len(self._durations) >= _AGENTS_MAX:
            agent_id = OTHER
        return self._durations.setdefault(agent_id, _Durations())

    def _start(self, trace_id: bytes, reason: str, now_ms: int, kept: list[KeptSpan]) -> bool:
        """Begins to keep a trace, with what the ring has of it. False: the budget of the reason is spent."""
        if not self._budgets[reason].take(now_ms):
            self.counts["over_budget"] += 1
            return False
        if now_ms - self._kept_since_ms >= self.policy.after_ms or len(self._kept) >= self.policy.traces // 2:
            self._kept_before, self._kept = self._kept, {}
            self._kept_since_ms = now_ms
        self._kept[trace_id] = reason
        for ring in (self._ring_before, self._ring):
            for earlier in ring.pop(trace_id, ()):
                self._keep(earlier, reason, now_ms, kept)
        return True

    def _keep(self, span: TailSpan, reason: str, now_ms: int, kept: list[KeptSpan]) -> None:
        if not self._budgets[reason].take(now_ms):
            self.counts["over_budget"] += 1
            return
        origin = span.origin
        try:
            packed = pack(origin.service.encode(), origin.instance.encode(), origin.scope.encode(), span.span)
        except DecodeError:  # within what figures do not need: its events, say, or a text that is not UTF-8
            self.counts["unreadable"] += 1
            return
        self.counts[reason] += 1
        kept.append(
            KeptSpan(
                span.trace_id.hex(), span.span_id.hex(), span.agent_id, span.start_ms, span.duration_us, span.failed,
                reason, packed,
            )
        )  # fmt: skip

    def _remember(self, span: TailSpan, now_ms: int) -> None:
        policy = self.policy
        if now_ms - self._ring_since_ms >= policy.before_ms or self._ring_bytes * 2 >= policy.ring_bytes:
            self._ring_before, self._ring = self._ring, {}
            self._ring_bytes = 0
            self._ring_since_ms = now_ms
        earlier = self._ring.get(span.trace_id)
        if earlier is None:
            self._ring[span.trace_id] = [span]
        else:
            earlier.append(span)
        self._ring_bytes += len(span.span) + _ENTRY_BYTES
