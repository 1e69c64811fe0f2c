"""Deadline: the only filter that ends a call by time.

Always holds: the deadline is the caller's `grpc-timeout`, else the policy's `timeout_ms`, never above
`max_timeout_ms`; what is left of it goes upstream with every attempt; expiry answers DEADLINE_EXCEEDED and cancels
upstream.
"""

from __future__ import annotations

from typing import Final

from outrider.policy import Agent
from outrider_sidecar.core import errors
from outrider_sidecar.core.call import Call, Step
from outrider_sidecar.core.runtime import AgentState, Runtime

_UNITS_S: Final = {0x48: 3600.0, 0x4D: 60.0, 0x53: 1.0, 0x6D: 1e-3, 0x75: 1e-6, 0x6E: 1e-9}  # H M S m u n
_FAR_S: Final = 10 * 366 * 86_400.0


def parse_timeout_s(raw: bytes) -> float | None:
    """Seconds of a `grpc-timeout` (1 to 8 digits and a unit); None when malformed."""
    size = len(raw)
    unit = _UNITS_S.get(raw[size - 1]) if 2 <= size <= 9 else None
    if unit is None:
        return None
    amount = 0
    for at in range(size - 1):
        digit = raw[at] - 0x30
        if not 0 <= digit <= 9:
            return None
        amount = amount * 10 + digit
    return min(amount * unit, _FAR_S)


def build(agent: Agent, state: AgentState, runtime: Runtime) -> Step:
    """The step for one agent."""
    default_s = agent.timeout_ms / 1e3
    ceiling_s = agent.max_timeout_ms / 1e3
    at = runtime.wheel.at

    def deadline(call: Call) -> bool | None:
        raw = call.rest.values.get(b"grpc-timeout")
        if raw is None:
            left_s = default_s or ceiling_s
            if not left_s:
                return None
        else:
            seconds = parse_timeout_s(raw)
            if seconds is None:
                return call.fail(errors.INTERNAL, f"malformed grpc-timeout {raw[:20]!r}")
            left_s = seconds
        if ceiling_s and left_s > ceiling_s:
            left_s = ceiling_s
        when = call.started_at + left_s
        call.deadline = when
        if left_s <= 0.0:
            call.expire()
            return True
        call.timer = at(when, call.expire)
        return None

    return deadline
