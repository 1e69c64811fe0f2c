"""Random: any endpoint, with a probability in proportion to its weight and warm share.

Always holds: picks are independent of each other, of load and of history.
Deliberately not here: everything else; the baseline other strategies are measured against.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Collection, Sequence
from itertools import accumulate

from outrider.policy import Balancing
from outrider_sidecar.core.balancer import Balancer, ramp_end, spared, warm_share
from outrider_sidecar.core.endpoint import Endpoint
from outrider_sidecar.core.load_report import LoadReport


class RandomPick(Balancer):
    """See the module. A score is the inverse of the endpoint's probability."""

    __slots__ = ("_bounds", "_draw", "_endpoints", "_ramp_end", "_slow_start_s")

    def __init__(self, policy: Balancing, rng: random.Random):
        self._draw = rng.random
        self._slow_start_s = policy.slow_start_ms / 1000.0
        self._endpoints: Sequence[Endpoint] = ()
        self._bounds: list[float] = []  # running totals of the full weights
        self._ramp_end = 0.0

    def update(self, endpoints: Sequence[Endpoint], now: float) -> None:
        self._endpoints = tuple(endpoints)
        self._bounds = list(accumulate(float(max(1, endpoint.weight)) for endpoint in endpoints))
        self._ramp_end = ramp_end(endpoints, self._slow_start_s)

    def pick(self, now: float, key: bytes = b"", avoid: Collection[Endpoint] = ()) -> Endpoint | None:
        endpoints, bounds = self._endpoints, self._bounds
        if not endpoints:
            return None
        if avoid or now < self._ramp_end:
            endpoints = spared(endpoints, avoid)
            bounds = list(accumulate(self._weight(endpoint, now) for endpoint in endpoints))
        # `hi` keeps a product that rounds up to the total inside the set
        return endpoints[bisect_right(bounds, self._draw() * bounds[-1], hi=len(endpoints) - 1)]

    def _weight(self, endpoint: Endpoint, now: float) -> float:
        return max(1, endpoint.weight) * warm_share(endpoint, now, self._slow_start_s)

    def first_byte(self, endpoint: Endpoint, rtt_s: float, now: float) -> None:
        """Latency is not part of this strategy."""

    def ended(self, endpoint: Endpoint, status: int, penalty_s: float, now: float) -> None:
        """Outcomes are not part of this strategy."""

    def report(self, endpoint: Endpoint, load: LoadReport, now: float) -> None:
        """Reports are not part of this strategy."""

    def explain(self, now: float, key: bytes = b"") -> list[tuple[str, float, str]]:
        total = sum(self._weight(endpoint, now) for endpoint in self._endpoints)
        rows: list[tuple[str, float, str]] = []
        for endpoint in self._endpoints:
            chance = self._weight(endpoint, now) / total
            rows.append((endpoint.address, 1.0 / chance, f"probability {chance:.1%}"))
        return sorted(rows, key=lambda row: row[1])
