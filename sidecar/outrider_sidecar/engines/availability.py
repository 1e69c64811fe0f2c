"""Which endpoints may be picked at all: subset, drain, health, ejection and breaker, in one place.

Always holds: an endpoint that drains, lacks a label of the subset or has an open breaker is never usable. While fewer
than `panic_threshold` of the others are well, health, ejection and failed connections are ignored (panic): the few
that look well would only be crushed by everybody's traffic. A breaker that is due for a probe makes its endpoint
usable; the breaker lets one attempt through.

Deliberately not here: changing anything. Health, ejection and breaker engines write what this reads.
"""

from __future__ import annotations

from collections.abc import Iterable

from outrider.policy import Balancing
from outrider_sidecar.core.endpoint import Endpoint


def usable(endpoints: Iterable[Endpoint], policy: Balancing, now: float) -> tuple[list[Endpoint], bool]:
    """(endpoints that may be picked, whether health and ejection are being ignored)."""
    subset = policy.subset.items()
    members = [
        endpoint
        for endpoint in endpoints
        if not endpoint.draining and (not subset or subset <= endpoint.labels.items())
    ]
    closed = [endpoint for endpoint in members if endpoint.open_until <= now]
    well = [
        endpoint for endpoint in closed if endpoint.serving and endpoint.reachable and endpoint.ejected_until <= now
    ]
    if len(well) >= len(members) * policy.panic_threshold:
        return well, False
    return closed, True


def next_change_at(endpoints: Iterable[Endpoint], now: float) -> float:
    """When time alone next changes what is usable (an ejection or an open breaker runs out); inf: never."""
    ends = [end for endpoint in endpoints for end in (endpoint.ejected_until, endpoint.open_until) if end > now]
    return min(ends, default=float("inf"))
