"""Round robin: every endpoint in turn, whatever its weight.

Always holds: over any whole number of rounds with a steady set the counts differ by at most one. A ramping endpoint
skips turns so that its share of them is its warm share relative to the warmest. The rotation starts at a random
endpoint, so that many sidecars starting together do not meet at the first one, and goes on where it was when the set
changes.

Deliberately not here: weights (`weighted_round_robin`).
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from math import ceil

from outrider.policy import Balancing
from outrider_sidecar.core.balancer import Balancer, ramp_end, spared, warm_share
from outrider_sidecar.core.endpoint import Endpoint
from outrider_sidecar.core.load_report import LoadReport

_FULL = 1.0 - 1e-9  # credit for a turn, allowing for rounding of summed shares


class RoundRobin(Balancer):
    """See the module. Scores are turns until the endpoint is due."""

    __slots__ = ("_at", "_credits", "_draw", "_endpoints", "_ramp_end", "_slow_start_s")

    def __init__(self, policy: Balancing, rng: random.Random):
        self._draw = rng.random
        self._slow_start_s = policy.slow_start_ms / 1000.0
        self._endpoints: tuple[Endpoint, ...] = ()
        self._at = 0  # index of the next turn, always inside the set
        self._credits: dict[Endpoint, float] = {}  # parts of a turn that ramping endpoints saved up
        self._ramp_end = 0.0

    def update(self, endpoints: Sequence[Endpoint], now: float) -> None:
        before, at = self._endpoints, self._at
        self._endpoints = tuple(endpoints)
        self._credits = {endpoint: self._credits.get(endpoint, 0.0) for endpoint in endpoints}
        self._ramp_end = ramp_end(endpoints, self._slow_start_s)
        if not before:
            self._at = int(self._draw() * len(endpoints))
            return
        order = before[at:] + before[:at]
        due = next((endpoint for endpoint in order if endpoint in self._credits), None)
        self._at = self._endpoints.index(due) if due is not None else 0

    def pick(self, now: float, key: bytes = b"", avoid: Collection[Endpoint] = ()) -> Endpoint | None:
        endpoints = self._endpoints
        if avoid or now < self._ramp_end:
            return self._pick_in_turn(now, avoid)
        if not endpoints:
            return None
        at = self._at
        self._at = at + 1 if at + 1 < len(endpoints) else 0
        return endpoints[at]

    def _pick_in_turn(self, now: float, avoid: Collection[Endpoint]) -> Endpoint | None:
        """The first endpoint from the cursor on that has a whole turn; those passed by save up their part of one."""
        endpoints = self._endpoints
        candidates = spared(endpoints, avoid)
        if not candidates:
            return None
        shares = self._relative_shares(candidates, now)
        at, count = self._at, len(endpoints)
        for step in range(count):  # ends: the warmest candidate has a whole turn in every round
            endpoint = endpoints[(at + step) % count]
            share = shares.get(endpoint)
            if share is None:
                continue
            credit = self._credits[endpoint] + share
            if credit >= _FULL:
                self._credits[endpoint] = max(0.0, credit - 1.0)
                self._at = (at + step + 1) % count
                return endpoint
            self._credits[endpoint] = credit
        raise AssertionError("no candidate had a whole turn")

    def _relative_shares(self, candidates: Sequence[Endpoint], now: float) -> dict[Endpoint, float]:
        shares = {endpoint: warm_share(endpoint, now, self._slow_start_s) for endpoint in candidates}
        warmest = max(shares.values())
        return {endpoint: share / warmest for endpoint, share in shares.items()}

    def first_byte(self, endpoint: Endpoint, rtt_s: float, now: float) -> None:
        """Latency is not part of this strategy."""

    def ended(self, endpoint: Endpoint, status: int, penalty_s: float, now: float) -> None:
        """Outcomes are not part of this strategy."""

    def report(self, endpoint: Endpoint, load: LoadReport, now: float) -> None:
        """Reports are not part of this strategy."""

    def explain(self, now: float, key: bytes = b"") -> list[tuple[str, float, str]]:
        endpoints = self._endpoints
        if not endpoints:
            return []
        shares = self._relative_shares(endpoints, now)
        count = len(endpoints)
        rows: list[tuple[str, float, str]] = []
        for step in range(count):
            endpoint = endpoints[(self._at + step) % count]
            share, credit = shares[endpoint], self._credits[endpoint]
            skipped = max(0, ceil((_FULL - credit) / share) - 1)
            reason = f"turns to wait: {step}" + (f", ramping at {share:.0%}: skips {skipped}" if share < 1.0 else "")
            rows.append((endpoint.address, float(step + skipped * count), reason))
        return sorted(rows, key=lambda row: row[1])
