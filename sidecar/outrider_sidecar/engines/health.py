"""Active health checks (grpc.health.v1) as a state machine: when to check next, and what a result means.

    unchecked: serving --unhealthy_after failures in a row--> not serving --healthy_after passes in a row--> serving

Always holds: one check per endpoint at a time; the checks of many endpoints and sidecars are spread by jitter. A
return to service starts the slow-start ramp.

Deliberately not here: sending the check (`edge`).
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from outrider.policy import HealthCheck
from outrider_sidecar.core.endpoint import Endpoint

JITTER = 0.1  # of the interval, either way; the first check falls within it
_OK, _UNIMPLEMENTED, _SERVING = 0, 12, 1


def passed(status: int, serving_status: int) -> bool:
    """Whether a check's gRPC status and `HealthCheckResponse.status` mean well.

    An endpoint that does not implement the health service answered, and counts as well (gRFC A17).
    """
    return (status == _OK and serving_status == _SERVING) or status == _UNIMPLEMENTED


class _Checks:
    __slots__ = ("next_at", "out", "run")

    def __init__(self, next_at: float):
        self.next_at = next_at
        self.out = False  # a check is under way
        self.run = 0  # results in a row that speak against `Endpoint.serving`


class HealthChecker:
    """See the module. One per agent; the state of each endpoint outlives it."""

    __slots__ = ("_interval_s", "_policy", "_rng")

    def __init__(self, policy: HealthCheck, rng: random.Random):
        self._policy = policy
        self._interval_s = policy.interval_ms / 1000.0
        self._rng = rng

    def due(self, endpoints: Iterable[Endpoint], now: float) -> tuple[list[Endpoint], float]:
        """(endpoints to check now, when to ask again). Each one handed out owes a `result`."""
        ready: list[Endpoint] = []
        ask_at = now + self._interval_s
        if not self._policy.enabled:
            return ready, ask_at
        for endpoint in endpoints:
            checks = endpoint.health
            if checks is None:
                checks = endpoint.health = _Checks(now + self._rng.uniform(0.0, JITTER) * self._interval_s)
            if checks.out:
                continue
            if checks.next_at <= now:
                checks.out = True
                ready.append(endpoint)
            else:
                ask_at = min(ask_at, checks.next_at)
        return ready, ask_at

    def result(self, endpoint: Endpoint, ok: bool, now: float) -> bool:
        """Take a check's result (a timeout is a failure). True if `Endpoint.serving` changed."""
        checks = endpoint.health
        if checks is None:
            return False
        checks.out = False
        checks.next_at = now + self._interval_s * self._rng.uniform(1.0 - JITTER, 1.0 + JITTER)
        if ok == endpoint.serving:
            checks.run = 0
            return False
        checks.run += 1
        if checks.run < (self._policy.healthy_after if ok else self._policy.unhealthy_after):
            return False
        checks.run = 0
        endpoint.serving = ok
        if ok:
            endpoint.added_at = now
        return True

    def forget(self, endpoint: Endpoint) -> bool:
        """Checks are off for this endpoint: it counts as serving. True if that changed it."""
        endpoint.health = None
        changed = not endpoint.serving
        endpoint.serving = True
        return changed
