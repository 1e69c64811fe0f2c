"""Circuit breaker per endpoint: opens after failures in a row, then lets one probe at a time decide.

    closed --failures in a row--> open --time--> due --one probe--> closed, or open for twice as long

The first opening lasts `min_open_ms`, each following one twice as long, up to `max_open_ms`, with up to `jitter` of
itself added (linkerd2-proxy's consecutive-failures policy).

Always holds: `Endpoint.open_until` is 0 while closed; in the future while open or while a probe is out; in the past
when a probe is due. While open only a probe's outcome counts: attempts that began earlier say nothing new. A probe
nobody reports on gives way to another one after `max_open_ms`.

Deliberately not here: what a failure is (the caller maps statuses), and latency.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from enum import IntEnum
from typing import Final

from outrider.policy import Breaker
from outrider_sidecar.core.endpoint import Endpoint


class Grant(IntEnum):
    """The breaker's answer to an attempt; false only if denied."""

    DENIED = 0
    ADMITTED = 1
    PROBE = 2  # the attempt decides: hand this grant back with its outcome


_ADMITTED: Final = Grant.ADMITTED  # member access on an enum class is several times a global's


class _State:
    __slots__ = ("openings", "run")

    def __init__(self) -> None:
        self.run = 0  # failures in a row
        self.openings = 0  # in a row, since the breaker was last closed


class CircuitBreaker:
    """See the module. One per agent; the state of each endpoint outlives it."""

    __slots__ = ("_draw", "_policy")

    def __init__(self, policy: Breaker, rng: random.Random):
        self._policy = policy
        self._draw = rng.random

    def update(self, endpoints: Iterable[Endpoint], now: float) -> bool:
        """Call it once per policy: one without a breaker closes what an earlier one opened. True if that did."""
        if self._policy.enabled:
            return False
        opened = [endpoint for endpoint in endpoints if endpoint.open_until]
        for endpoint in opened:
            self._close(endpoint, now)
        return bool(opened)

    def allow(self, endpoint: Endpoint, now: float) -> Grant:
        """Whether an attempt may go to this endpoint. Each grant but DENIED owes one `record` or `release`."""
        open_until = endpoint.open_until
        if not open_until:
            return _ADMITTED
        if open_until > now:
            return Grant.DENIED
        endpoint.open_until = now + self._policy.max_open_ms / 1000.0
        return Grant.PROBE

    def record(self, endpoint: Endpoint, ok: bool, now: float, grant: Grant = _ADMITTED) -> bool:
        """Count an outcome. True if the breaker opened or closed: compute the usable set anew.

        A long stream may report its success with the first byte; what it reports later counts as any other attempt.
        """
        if endpoint.open_until:
            if grant is not Grant.PROBE:
                return False
            if ok:
                self._close(endpoint, now)
            else:
                self._open(endpoint, now)
            return True
        state = endpoint.breaker
        if ok:
            if state is not None:
                state.run = 0
            return False
        policy = self._policy
        if not policy.enabled:
            return False
        if state is None:
            state = endpoint.breaker = _State()
        state.run += 1
        if state.run < policy.consecutive_failures:
            return False
        self._open(endpoint, now)
        return True

    def release(self, endpoint: Endpoint, now: float, grant: Grant = _ADMITTED) -> bool:
        """The attempt ended without a verdict (its caller cancelled it). True if another probe is due at once."""
        if grant is not Grant.PROBE or not endpoint.open_until:
            return False
        endpoint.open_until = now
        return True

    def _open(self, endpoint: Endpoint, now: float) -> None:
        policy = self._policy
        state: _State = endpoint.breaker
        longest_ms = max(policy.min_open_ms, policy.max_open_ms)
        open_ms = min(policy.min_open_ms * 2.0 ** min(state.openings, 32), longest_ms)
        open_ms = min(open_ms * (1.0 + policy.jitter * self._draw()), longest_ms)
        state.openings += 1
        state.run = 0
        endpoint.open_until = now + open_ms / 1000.0

    def _close(self, endpoint: Endpoint, now: float) -> None:
        endpoint.open_until = 0.0
        endpoint.added_at = now  # a slow-start ramp: one good probe does not prove full strength
        endpoint.breaker = None
