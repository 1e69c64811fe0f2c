"""Live state of one endpoint: what balancers read, and what health, ejection and breaker engines write.

Always holds: it outlives policy changes for as long as its address stays configured; `pending` counts attempts in
flight and returns to zero when they are over. Plain data: the rules that change it are in `engines`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Endpoint:
    """One address of one agent. Times are seconds of the loop's monotonic clock; durations say their unit."""

    __slots__ = (
        "added_at",
        "address",
        "balance",
        "breaker",
        "calls",
        "capacity",
        "connector",
        "draining",
        "ejected_until",
        "failures",
        "health",
        "labels",
        "open_until",
        "outlier",
        "pending",
        "reachable",
        "serving",
        "weight",
    )

    def __init__(self, address: str, weight: int = 1, labels: Mapping[str, str] | None = None, now: float = 0.0):
        self.address = address
        self.weight = weight
        self.capacity = 0  # calls at once that it says it serves; 0: it has not said
        self.labels: Mapping[str, str] = labels or {}
        self.added_at = now  # start of the slow-start ramp
        self.pending = 0  # attempts in flight
        self.calls = 0  # attempts ever, for the operator
        self.failures = 0  # failed attempts ever, for the operator
        self.serving = True  # verdict of active health checks; True while unchecked
        self.reachable = True  # False while the last connection attempt failed and none is up
        self.draining = False  # leaves: no new attempts
        self.ejected_until = 0.0  # passive outlier ejection; 0: not ejected
        self.open_until = 0.0  # circuit breaker; 0: closed
        self.balance: Any = None  # the balancer's own state
        self.outlier: Any = None  # the outlier detector's own state
        self.breaker: Any = None  # the breaker's own state
        self.health: Any = None  # the health checker's own state
        self.connector: Any = None  # the edge's connections

    def __repr__(self) -> str:
        return f"Endpoint({self.address!r}, pending={self.pending})"
