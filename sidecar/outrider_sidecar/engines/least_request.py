"""Least request: of two random endpoints, the one with fewer attempts in flight for its weight (Envoy's formula).

    load = (pending + 1) / weight / warm share

Always holds: a pick costs two draws, whatever the number of endpoints; equal loads are decided by the draw.
Deliberately not here: latency. An endpoint that fails fast looks idle to this strategy; outlier ejection sees it.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

from outrider.policy import Balancing
from outrider_sidecar.core.balancer import Balancer, spared, warm_share
from outrider_sidecar.core.endpoint import Endpoint
from outrider_sidecar.core.load_report import LoadReport


class LeastRequest(Balancer):
    """See the module. Loads are attempts per unit of weight."""

    __slots__ = ("_compared", "_draw", "_endpoints", "_slow_start_s")

    def __init__(self, policy: Balancing, rng: random.Random):
        self._draw = rng.random
        self._slow_start_s = policy.slow_start_ms / 1000.0
        self._endpoints: Sequence[Endpoint] = ()
        self._compared: tuple[tuple[Endpoint, float], ...] = ()

    def update(self, endpoints: Sequence[Endpoint], now: float) -> None:
        self._endpoints = tuple(endpoints)
        self._compared = ()

    def pick(self, now: float, key: bytes = b"", avoid: Collection[Endpoint] = ()) -> Endpoint | None:
        endpoints = self._endpoints
        if avoid:
            endpoints = spared(endpoints, avoid)
            self._compared = ()
        count = len(endpoints)
        if count < 2:
            return endpoints[0] if endpoints else None
        draw = self._draw
        index = int(draw() * count)
        other = int(draw() * (count - 1))
        if other >= index:
            other += 1
        first = endpoints[index]
        second = endpoints[other]
        load = self._load(first, now)
        other_load = self._load(second, now)
        self._compared = ((first, load), (second, other_load))
        return first if load <= other_load else second

    def compared(self) -> tuple[tuple[Endpoint, float], ...]:
        return self._compared

    def _load(self, endpoint: Endpoint, now: float) -> float:
        weight = endpoint.weight
        load = (endpoint.pending + 1) / weight if weight > 1 else endpoint.pending + 1.0
        if now - endpoint.added_at < self._slow_start_s:
            load /= warm_share(endpoint, now, self._slow_start_s)
        return load

    def first_byte(self, endpoint: Endpoint, rtt_s: float, now: float) -> None:
        """Latency is not part of this strategy."""

    def ended(self, endpoint: Endpoint, status: int, penalty_s: float, now: float) -> None:
        """Outcomes are not part of this strategy."""

    def report(self, endpoint: Endpoint, load: LoadReport, now: float) -> None:
        """Reports are not part of this strategy."""

    def explain(self, now: float, key: bytes = b"") -> list[tuple[str, float, str]]:
        rows: list[tuple[str, float, str]] = []
        for endpoint in self._endpoints:
            share = warm_share(endpoint, now, self._slow_start_s)
            reason = f"pending {endpoint.pending}, weight {max(1, endpoint.weight)}, warm {share:.0%}"
            rows.append((endpoint.address, self._load(endpoint, now), reason))
        return sorted(rows, key=lambda row: row[1])
