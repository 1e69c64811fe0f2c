"""The load an ingress tells callers' balancers of: an ORCA report in the trailers of every call (gRFC A51).

Always holds: an agent's own report goes before this one (`core.attempt`); the figures are renewed at most every
`RENEW_S`, so that a report costs a call one look. Utilization is of the permits, those who wait included: above 1.0
calls queue.

Deliberately not here: what a report does to a pick (the balancers), its bytes (`engines.orca`).
"""

from __future__ import annotations

from base64 import b64encode
from typing import Final

from outrider_http2.hpack import literal
from outrider_sidecar.core.attempt import LOAD_REPORT
from outrider_sidecar.core.runtime import AgentState
from outrider_sidecar.engines.orca import encode_load_report

RENEW_S: Final = 0.1
_RATE_S: Final = 1.0  # over which calls per second are counted


class LoadReporter:
    """`literal_at` gives the field as a literal of any header block."""

    __slots__ = ("_calls", "_counted_at", "_eps", "_failed", "_literal", "_renew_at", "_rps", "_state")

    def __init__(self, state: AgentState, now: float):
        self._state = state
        self._renew_at = now
        self._literal = b""
        self._counted_at = now
        self._calls = state.calls
        self._failed = state.failed
        self._rps = 0.0
        self._eps = 0.0

    def literal_at(self, now: float) -> bytes:
        """`endpoint-load-metrics-bin`, at most `RENEW_S` old."""
        if now >= self._renew_at:
            self._renew_at = now + RENEW_S
            self._renew(now)
        return self._literal

    def _renew(self, now: float) -> None:
        state = self._state
        passed_s = now - self._counted_at
        if passed_s >= _RATE_S:
            self._rps = (state.calls - self._calls) / passed_s
            self._eps = (state.failed - self._failed) / passed_s
            self._counted_at, self._calls, self._failed = now, state.calls, state.failed
        waiting: int = state.admission.queue.waiting
        utilization = (state.in_flight + waiting) / max(1, state.capacity)
        report = encode_load_report(utilization, self._rps, self._eps)
        self._literal = literal(LOAD_REPORT, b64encode(report).rstrip(b"="))
