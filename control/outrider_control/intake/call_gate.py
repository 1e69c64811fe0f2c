"""Which calls are remembered for feedback: every call of ours, at the hop beside its caller and at others, and foreign
calls that count, up to a rate.

Always holds: calls with a unit are let through before others: these have a rate of their own. What is refused is
counted; nothing else depends on it.

Deliberately not here: the index (`state.call_index`), the clock.
"""

from __future__ import annotations

from typing import Final

from outrider_control.core.call_record import CALLER, OTHER_HOP, CallRecord
from outrider_control.core.sample import Sample
from outrider_control.intake.hop import CLIENT, SERVER
from outrider_control.intake.otlp import DETACHED, UNIT, SpanFields

_BURST_S: Final = 10
_UNIT_SHARE: Final = 5  # calls with a unit may come so many times as often


class CallGate:
    """`per_s`: calls without a unit that are remembered, in the long run. `refused`: calls that were not."""

    __slots__ = ("_at_ms", "_burst", "_left", "_left_units", "_per_ms", "refused")

    def __init__(self, per_s: float = 2_000.0):
        self._per_ms = per_s / 1e3
        self._burst = per_s * _BURST_S
        self._left = self._burst
        self._left_units = self._burst * _UNIT_SHARE
        self._at_ms = 0
        self.refused = 0

    def begin(self, now_ms: int) -> None:
        """A batch is taken in now."""
        passed_ms = max(0, now_ms - self._at_ms)
        self._at_ms = now_ms
        self._left = min(self._burst, self._left + passed_ms * self._per_ms)
        self._left_units = min(self._burst, self._left_units / _UNIT_SHARE + passed_ms * self._per_ms) * _UNIT_SHARE

    def take(self, ours: bool, read: SpanFields, sample: Sample, calls: list[CallRecord]) -> None:
        """Puts the call of a span to `calls`, if it is one and there is room."""
        kind = read.kind
        if ours:
            if kind == CLIENT:
                if read.values[DETACHED]:
                    return
            elif kind != SERVER:
                return
        elif not sample.call:
            return
        key = sample.key
        if not key.agent_id:
            return
        units = read.values[UNIT]
        if type(units) is str and units:
            if self._left_units < 1.0:
                self.refused += 1
                return
            self._left_units -= 1.0
        else:
            if self._left < 1.0:
                self.refused += 1
                return
            self._left -= 1.0
            units = ""
        rank = CALLER if ours and kind == CLIENT else OTHER_HOP
        at_ms = sample.end_ms - sample.total_us // 1_000
        calls.append(CallRecord(read.span_id, read.trace_id, at_ms, rank, key.agent_id, key.variant, key.tenant, units))
