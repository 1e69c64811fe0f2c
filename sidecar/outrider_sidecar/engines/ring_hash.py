"""Ring hash with bounded load: a key keeps its endpoint while that endpoint has room.

Each endpoint owns points on a ring of 64-bit hashes, in proportion to its weight; a key belongs to the next point
clockwise. An endpoint holds at most `ceil(load_factor * (attempts in flight + 1) * its part of the weight)` attempts;
a key that finds it full goes on to the next endpoint on the ring (Mirrokni, Thorup, Zadimoghaddam 2016).

Always holds: the owner of a key is a function of the addresses and weights alone, the same in every sidecar. Up to
MAX_POINTS / POINTS endpoints of equal weight, a change of membership moves only the keys of the endpoint that came
or went. A ramping endpoint takes its keys over one by one, each once: which ones are early depends on the key. A call
without a key goes to a random place on the ring.

Deliberately not here: what the key is (the dispatcher hashes the metadata the policy names).
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from math import ceil

import xxhash

from outrider.policy import Balancing
from outrider_sidecar.core.balancer import Balancer, ramp_end, warm_share
from outrider_sidecar.core.endpoint import Endpoint
from outrider_sidecar.core.load_report import LoadReport

POINTS = 512  # of a full-weight endpoint: two of them make the smallest ring, 1024
MAX_POINTS = 4096  # of the ring; above it the points are shared out
_LOW_BITS = 0xFFFFF  # of a key's hash: they have no part in its place on the ring
_FREE, _RAMPING, _FULL = "", "ramping", "full"  # in the order in which a call takes them


def ring_points(weights: Sequence[int]) -> list[int]:
    """How many points each endpoint owns: in proportion to its weight, at least one, about MAX_POINTS in all."""
    heaviest = max(weights)
    per_heaviest = min(float(POINTS), MAX_POINTS * heaviest / sum(weights))
    return [max(1, int(per_heaviest * weight / heaviest)) for weight in weights]


class RingHash(Balancer):
    """See the module. Scores are places in the order in which the key would try the endpoints."""

    __slots__ = (
        "_endpoints",
        "_load_factor",
        "_members",
        "_owners",
        "_points",
        "_ramp_end",
        "_rng",
        "_slow_start_s",
        "_total_weight",
    )

    def __init__(self, policy: Balancing, rng: random.Random):
        self._rng = rng
        self._load_factor = policy.load_factor  # below 1 the bound could not hold all attempts: no bound
        self._slow_start_s = policy.slow_start_ms / 1000.0
        self._endpoints: Sequence[Endpoint] = ()
        self._members: list[tuple[str, int, Endpoint]] = []  # what the ring was built from
        self._points: list[int] = []
        self._owners: list[Endpoint] = []
        self._total_weight = 1
        self._ramp_end = 0.0

    def update(self, endpoints: Sequence[Endpoint], now: float) -> None:
        self._endpoints = tuple(endpoints)
        self._ramp_end = ramp_end(endpoints, self._slow_start_s)
        # sorted: the order the endpoints arrive in must not decide who wins a point that two of them hash to
        members = sorted(
            ((endpoint.address, max(1, endpoint.weight), endpoint) for endpoint in endpoints),
            key=lambda member: member[:2],
        )
        if members != self._members:
            self._members = members
            self._build()

    def _build(self) -> None:
        weights = [weight for _, weight, _ in self._members]
        self._total_weight = sum(weights)
        owner_of: dict[int, Endpoint] = {}
        if weights:
            hash64 = xxhash.xxh3_64_intdigest
            for (address, _, endpoint), points in zip(self._members, ring_points(weights), strict=True):
                name = address.encode()
                for seed in range(points):  # fewer points are a prefix of more points
                    owner_of.setdefault(hash64(name, seed), endpoint)
        self._points = sorted(owner_of)
        self._owners = [owner_of[point] for point in self._points]

    def pick(self, now: float, key: bytes = b"", avoid: Collection[Endpoint] = ()) -> Endpoint | None:
        owners = self._owners
        if not owners:
            return None
        place = xxhash.xxh3_64_intdigest(key) if key else self._rng.getrandbits(64)
        index = bisect_left(self._points, place)
        owner = owners[index if index < len(owners) else 0]
        if not avoid and now >= self._ramp_end and (owner.pending == 0 or self._has_room(owner, self._in_flight())):
            return owner
        ramping = full = None
        for endpoint, reason in self._tries(place, now):
            if endpoint in avoid:
                continue
            if not reason:
                return endpoint
            if reason is _RAMPING:
                ramping = ramping or endpoint
            else:
                full = full or endpoint
        return ramping or full or owner

    def _in_flight(self) -> int:
        return sum([endpoint.pending for endpoint in self._endpoints])

    def _has_room(self, endpoint: Endpoint, in_flight: int) -> bool:
        return self._load_factor < 1.0 or endpoint.pending < self._bound(endpoint, in_flight)

    def _bound(self, endpoint: Endpoint, in_flight: int) -> int:
        return ceil(self._load_factor * (in_flight + 1) * max(1, endpoint.weight) / self._total_weight)

    def _tries(self, place: int, now: float) -> Iterator[tuple[Endpoint, str]]:
        """Every endpoint once, clockwise from the place, with why it is passed by, if it is."""
        owners, count = self._owners, len(self._owners)
        in_flight = self._in_flight()
        warmest = 0.0
        if now < self._ramp_end:
            warmest = max(warm_share(endpoint, now, self._slow_start_s) for endpoint in self._endpoints)
        start = bisect_left(self._points, place)
        seen: set[Endpoint] = set()
        for step in range(count):
            endpoint = owners[(start + step) % count]
            if endpoint in seen:
                continue
            seen.add(endpoint)
            if not self._has_room(endpoint, in_flight):
                yield endpoint, _FULL
            elif warmest and (place & _LOW_BITS) / (_LOW_BITS + 1) >= (
                warm_share(endpoint, now, self._slow_start_s) / warmest
            ):
                yield endpoint, _RAMPING
            else:
                yield endpoint, _FREE
            if len(seen) == len(self._endpoints):
                return

    def first_byte(self, endpoint: Endpoint, rtt_s: float, now: float) -> None:
        """Latency is not part of this strategy."""

    def ended(self, endpoint: Endpoint, status: int, penalty_s: float, now: float) -> None:
        """Outcomes are not part of this strategy."""

    def report(self, endpoint: Endpoint, load: LoadReport, now: float) -> None:
        """Reports are not part of this strategy."""

    def explain(self, now: float, key: bytes = b"") -> list[tuple[str, float, str]]:
        """Without a key every endpoint scores 0: the place on the ring is drawn per call."""
        in_flight = self._in_flight()
        if not key:
            return [(e.address, 0.0, f"no key: random; {self._room(e, in_flight)}") for e in self._endpoints]
        count = len(self._endpoints)
        rows: list[tuple[str, float, str]] = []
        for order, (endpoint, reason) in enumerate(self._tries(xxhash.xxh3_64_intdigest(key), now)):
            score = float(order + count * (_FREE, _RAMPING, _FULL).index(reason))
            text = f"choice {order + 1} of the key; {self._room(endpoint, in_flight)}" + (reason and f"; {reason}")
            rows.append((endpoint.address, score, text))
        return sorted(rows, key=lambda row: row[1])

    def _room(self, endpoint: Endpoint, in_flight: int) -> str:
        if self._load_factor < 1.0:
            return f"pending {endpoint.pending}"
        return f"pending {endpoint.pending} of {self._bound(endpoint, in_flight)}"
