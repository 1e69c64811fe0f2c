"""Weighted round robin: earliest deadline first over static weights or the endpoints' own load reports (gRFC A58).

    weight = rps / (utilization + eps / rps * ERROR_PENALTY)

Always holds: over a long run an endpoint gets attempts in proportion to its weight, evenly spaced. Reported weights
are used while at least two endpoints have one that is past the blackout and not expired; an endpoint without gets
their mean, and each is held within a factor of ten of it. Otherwise the weights of the policy are used.

Deliberately not here: out-of-band load streams; reports arrive with replies.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from heapq import heapify, heapreplace

from outrider.policy import Balancing
from outrider_sidecar.core.balancer import Balancer, warm_share
from outrider_sidecar.core.endpoint import Endpoint
from outrider_sidecar.core.load_report import LoadReport

BLACKOUT_S = 10.0  # a fresh endpoint's first reports come from a cold process
EXPIRY_S = 180.0
REFRESH_S = 1.0
ERROR_PENALTY = 1.0
MAX_RATIO = 10.0  # one absurd report neither starves an endpoint nor floods it

_NEVER = float("inf")


class _Reported:
    """The last usable report of one endpoint."""

    __slots__ = ("at", "rate", "since")

    def __init__(self) -> None:
        self.rate = 0.0
        self.at = -_NEVER
        self.since = _NEVER  # start of the unbroken run of reports

    def weight(self, now: float) -> float:
        """0 while there is none, in the blackout and after expiry."""
        if now - self.at >= EXPIRY_S:
            self.since = _NEVER
            return 0.0
        return self.rate if now - self.since >= BLACKOUT_S else 0.0


class _Slot:
    __slots__ = ("endpoint", "weight")

    def __init__(self, endpoint: Endpoint, weight: float):
        self.endpoint = endpoint
        self.weight = weight


class WeightedRoundRobin(Balancer):
    """See the module. Scores are virtual time until the endpoint is due; one full-weight turn of the mean is 1."""

    __slots__ = ("_draw", "_endpoints", "_heap", "_refresh_at", "_reported", "_slow_start_s", "_virtual")

    def __init__(self, policy: Balancing, rng: random.Random):
        self._draw = rng.random
        self._slow_start_s = policy.slow_start_ms / 1000.0
        self._endpoints: Sequence[Endpoint] = ()
        self._heap: list[tuple[float, int, _Slot]] = []  # (deadline, position, slot)
        self._virtual = 0.0
        self._refresh_at = _NEVER
        self._reported = False  # whether the weights in use are the endpoints' own

    def update(self, endpoints: Sequence[Endpoint], now: float) -> None:
        self._endpoints = tuple(endpoints)
        for endpoint in endpoints:
            if type(endpoint.balance) is not _Reported:
                endpoint.balance = _Reported()
        self._rebuild(now)

    def pick(self, now: float, key: bytes = b"", avoid: Collection[Endpoint] = ()) -> Endpoint | None:
        if now >= self._refresh_at:
            self._rebuild(now)
        heap = self._heap
        if not heap:
            return None
        deadline, position, slot = heap[0]
        if avoid and slot.endpoint in avoid:
            return self._pick_sparing(now, avoid)
        self._virtual = deadline
        heapreplace(heap, (deadline + self._stride(slot, now), position, slot))
        return slot.endpoint

    def _pick_sparing(self, now: float, avoid: Collection[Endpoint]) -> Endpoint:
        """The earliest endpoint not to be avoided. The avoided ones keep their deadlines: their turn is not spent."""
        heap = self._heap
        entry = min((entry for entry in heap if entry[2].endpoint not in avoid), default=heap[0])
        deadline, position, slot = entry
        heap[heap.index(entry)] = (deadline + self._stride(slot, now), position, slot)
        heapify(heap)
        return slot.endpoint

    def _stride(self, slot: _Slot, now: float) -> float:
        return 1.0 / (slot.weight * warm_share(slot.endpoint, now, self._slow_start_s))

    def _rebuild(self, now: float) -> None:
        """Take the weights anew. What part of its stride an endpoint still has to wait is kept."""
        self._refresh_at = now + REFRESH_S
        weights = self._weights(now)
        waits: dict[Endpoint, float] = {}
        for deadline, _, slot in self._heap:
            waits[slot.endpoint] = max(0.0, deadline - self._virtual) * slot.weight
        self._virtual = 0.0
        self._heap = []
        for position, (endpoint, weight) in enumerate(zip(self._endpoints, weights, strict=True)):
            slot = _Slot(endpoint, weight)
            wait = waits.get(endpoint)
            deadline = self._draw() * self._stride(slot, now) if wait is None else wait / weight
            self._heap.append((deadline, position, slot))
        heapify(self._heap)

    def _weights(self, now: float) -> list[float]:
        """One positive weight per endpoint, with a mean near 1."""
        reported = [
            endpoint.balance.weight(now) if type(endpoint.balance) is _Reported else 0.0 for endpoint in self._endpoints
        ]
        known = [weight for weight in reported if weight > 0.0]
        self._reported = len(known) >= 2
        if not self._reported:
            static = [float(max(1, endpoint.weight)) for endpoint in self._endpoints]
            mean = sum(static) / max(1, len(static))
            return [weight / mean for weight in static]
        mean = sum(known) / len(known)
        return [min(max(weight / mean, 1.0 / MAX_RATIO), MAX_RATIO) if weight else 1.0 for weight in reported]

    def first_byte(self, endpoint: Endpoint, rtt_s: float, now: float) -> None:
        """Latency is not part of this strategy."""

    def ended(self, endpoint: Endpoint, status: int, penalty_s: float, now: float) -> None:
        """Errors count as the endpoint reports them (`eps`)."""

    def report(self, endpoint: Endpoint, load: LoadReport, now: float) -> None:
        reported = endpoint.balance
        if type(reported) is not _Reported:  # another strategy took the endpoint over while this attempt was out
            return
        rps = load.rps_fractional
        utilization = load.application_utilization or load.cpu_utilization
        if rps <= 0.0 or utilization <= 0.0:
            return
        if now - reported.at >= EXPIRY_S:
            reported.since = now
        reported.rate = rps / (utilization + load.eps / rps * ERROR_PENALTY)
        reported.at = now

    def explain(self, now: float, key: bytes = b"") -> list[tuple[str, float, str]]:
        source = "reported" if self._reported else "static"
        return [
            (slot.endpoint.address, deadline - self._virtual, f"{source} weight {slot.weight:.3g} of the mean")
            for deadline, _, slot in sorted(self._heap)
        ]
