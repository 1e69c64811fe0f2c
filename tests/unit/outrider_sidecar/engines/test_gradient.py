"""Gradient2: what it settles at beside a simulated agent, that it neither creeps up nor collapses, and recovers."""

from __future__ import annotations

import heapq
import statistics
from collections import deque
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_sidecar.engines.gradient import BUSY_CALLS, MAX_ROUTES, Gradient2

ROUTE = b"/a.B/C"
Service = Callable[[Random, float, bytes], float]  # (rng, now, route) -> seconds an agent works on a call


def steady(rng: Random, now: float, route: bytes) -> float:
    return 0.2 * rng.uniform(0.8, 1.2)


def memoryless(rng: Random, now: float, route: bytes) -> float:
    return rng.expovariate(5.0)


class Agent:
    """An agent that works on `concurrency` calls at once and queues the rest; whoever may be in flight is."""

    def __init__(self, limiter: Gradient2, concurrency: int, service: Service, routes: tuple[bytes, ...] = (ROUTE,)):
        self.limiter = limiter
        self.concurrency = concurrency
        self.service = service
        self.routes = routes
        self.rng = Random(7)
        self.now = 0.0
        self.in_flight = 0
        self.working: list[tuple[float, float, bytes]] = []  # (ends at, began at, route)
        self.waiting: deque[tuple[float, bytes]] = deque()

    def run(self, seconds: float, demand: int = 10**9) -> tuple[int, list[int]]:
        """How many calls ended, and the limit after each."""
        limits: list[int] = []
        until = self.now + seconds
        self._fill(demand)
        while self.working and self.working[0][0] < until:
            self.now, began_at, route = heapq.heappop(self.working)
            if self.waiting:
                self._work(*self.waiting.popleft())
            self.limiter.sample(route, self.now - began_at, self.in_flight)
            self.in_flight -= 1
            limits.append(self.limiter.limit)
            self._fill(demand)
        self.now = until
        return len(limits), limits

    def _fill(self, demand: int) -> None:
        while self.in_flight < min(self.limiter.limit, demand):
            self.in_flight += 1
            route = self.rng.choice(self.routes)
            if len(self.working) < self.concurrency:
                self._work(self.now, route)
            else:
                self.waiting.append((self.now, route))

    def _work(self, began_at: float, route: bytes) -> None:
        heapq.heappush(self.working, (self.now + self.service(self.rng, self.now, route), began_at, route))


@pytest.mark.parametrize("service", [steady, memoryless])
@pytest.mark.parametrize("concurrency", [8, 100])
def test_it_settles_near_what_the_agent_serves_at_once(concurrency: int, service: Service) -> None:
    agent = Agent(Gradient2(1, 4_096), concurrency, service)
    agent.run(200.0)
    ended, limits = agent.run(200.0)
    most = 200.0 * concurrency * 5
    assert ended >= 0.93 * most
    assert concurrency <= statistics.median(limits) <= 2.5 * concurrency + 4
    assert max(limits) <= 4 * concurrency + 8


def test_it_does_not_creep_up_under_a_load_that_never_ends() -> None:
    agent = Agent(Gradient2(1, 4_096), 40, steady)
    medians = []
    for _ in range(8):
        _, limits = agent.run(100.0)
        medians.append(statistics.median(limits))
    assert max(medians) <= 100


def test_an_agent_that_becomes_slower_does_not_bring_it_down_for_good() -> None:
    def slower(rng: Random, now: float, route: bytes) -> float:
        return (0.2 if now < 100.0 else 0.6) * rng.uniform(0.8, 1.2)

    agent = Agent(Gradient2(1, 4_096), 40, slower)
    agent.run(150.0)
    ended, limits = agent.run(100.0)
    assert ended >= 0.93 * 100.0 * 40 / 0.6
    assert 40 <= statistics.median(limits) <= 100


def test_it_recovers_when_the_agent_does() -> None:
    def stuck(rng: Random, now: float, route: bytes) -> float:
        return (2.0 if 100.0 <= now < 160.0 else 0.2) * rng.uniform(0.8, 1.2)

    agent = Agent(Gradient2(1, 4_096), 40, stuck)
    before, _ = agent.run(100.0)
    agent.run(60.0)
    agent.run(40.0)
    after, limits = agent.run(100.0)
    assert after >= 0.9 * before
    assert 40 <= statistics.median(limits) <= 100


def test_routes_of_different_times_do_not_bring_it_down() -> None:
    factors = {b"/a.B/Fast": 0.1, b"/a.B/Middle": 1.0, b"/a.B/Slow": 5.0}

    def mixed(rng: Random, now: float, route: bytes) -> float:
        return 0.2 * factors[route] * rng.uniform(0.8, 1.2)

    agent = Agent(Gradient2(1, 4_096), 40, mixed, tuple(factors))
    agent.run(200.0)
    ended, limits = agent.run(200.0)
    assert ended >= 0.85 * 200.0 * 40 / (0.2 * statistics.fmean(factors.values()))
    assert 30 <= statistics.median(limits) <= 120


def test_routes_are_kept_apart() -> None:
    # The same times as one route's would halve the limit: 1 s after many of 10 ms.
    limiter = Gradient2(1, 1_000)
    for _ in range(100):
        limiter.sample(b"/a.B/Fast", 0.01, limiter.limit)
    before = limiter.limit
    for _ in range(100):
        limiter.sample(b"/a.B/Slow", 1.0, limiter.limit)
    assert limiter.limit >= before


def test_slower_calls_of_a_route_lower_it() -> None:
    limiter = Gradient2(1, 1_000)
    for _ in range(200):
        limiter.sample(ROUTE, 0.1, limiter.limit)
    before = limiter.limit
    assert before > 20
    for _ in range(50):
        limiter.sample(ROUTE, 1.0, limiter.limit)
    assert limiter.limit < before


def test_a_usual_time_of_more_than_twice_what_is_seen_falls_fast() -> None:
    limiter = Gradient2(1, 20)
    for first_chunk_s in (1.0,) * 200 + (0.1,) * 200 + (0.5,) * 50:
        limiter.sample(ROUTE, first_chunk_s, limiter.limit)
    assert limiter.limit < 20


def test_it_says_when_the_limit_is_another() -> None:
    limiter = Gradient2(1, 1_000)
    for _ in range(3 * BUSY_CALLS):
        before = limiter.limit
        assert limiter.sample(ROUTE, 0.1, limiter.limit) is (limiter.limit != before)


def test_nothing_is_said_about_a_limit_that_is_not_used() -> None:
    limiter = Gradient2(1, 1_000)
    for _ in range(500):
        assert not limiter.sample(ROUTE, 0.1, 5)
    for _ in range(500):
        assert not limiter.sample(ROUTE, 1.0, 5)
    assert limiter.limit == 20


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf"), float("-inf")])
def test_a_time_that_is_none_changes_nothing(wrong: float) -> None:
    one, other = Gradient2(1, 1_000), Gradient2(1, 1_000)
    for _ in range(300):
        one.sample(ROUTE, 0.1, one.limit)
        other.sample(ROUTE, 0.1, other.limit)
        assert not other.sample(ROUTE, wrong, other.limit)
        assert one.limit == other.limit


def test_the_rare_routes_share_one() -> None:
    limiter = Gradient2(1, 1_000)
    for number in range(10_000):
        limiter.sample(b"/a.B/%d" % number, 0.1, limiter.limit)
    assert len(limiter._routes) < MAX_ROUTES


def test_new_bounds_hold_at_once_and_what_was_learnt_stays() -> None:
    limiter = Gradient2(1, 1_000)
    for _ in range(300):
        limiter.sample(ROUTE, 0.1, limiter.limit)
    learnt = limiter.limit
    limiter.configure(1, 2_000)
    assert limiter.limit == learnt
    limiter.configure(1, 8)
    assert limiter.limit == 8
    limiter.configure(50, 60)
    assert limiter.limit == 50
    limiter.configure(70, 60)
    assert limiter.limit == 60


@given(
    st.integers(0, 50),
    st.integers(0, 200),
    st.lists(st.tuples(st.floats(allow_nan=True), st.integers(-5, 500), st.integers(0, 2)), max_size=50),
    st.integers(1, 30),
)
def test_the_bounds_hold_whatever_comes(
    floor: int, ceiling: int, seen: list[tuple[float, int, int]], times: int
) -> None:
    limiter = Gradient2(floor, ceiling)
    for first_chunk_s, in_flight, route in seen * times:
        limiter.sample(b"%d" % route, first_chunk_s, in_flight)
        assert max(1, min(floor, ceiling)) <= limiter.limit <= max(1, ceiling)
