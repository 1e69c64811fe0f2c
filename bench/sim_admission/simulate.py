"""One run: asks at their times against permits that come and go. Pure; events in the order of their times.

Always holds: every ask ends once: in time, late, or shed; the same asks give the same outcome.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from bench.mesh.report import percentile
from bench.sim_admission.disciplines import Ask, Discipline, Ours
from outrider.policy import LANES

SHARES = (0.3, 0.5, 0.15, 0.05)  # of the calls, from low to critical
DEADLINES_S = (30.0, 30.0, 10.0, 10.0)
_PERMITS, _END, _ARRIVE, _DEADLINE = range(4)  # of what happens at once, the first comes first


@dataclass(frozen=True, slots=True)
class Step:
    """From `at_s` on, `value` calls per second arrive, or `value` permits are there."""

    at_s: float
    value: float


@dataclass(frozen=True, slots=True)
class Scenario:
    """What arrives, and how many calls may run at once."""

    name: str
    asks: Sequence[Ask]
    permits: Sequence[Step]


def arrivals(
    rates: Sequence[Step], ends_s: float, mean_s: float, seed: int, tenants: Sequence[float] = (1.0,)
) -> Iterator[Ask]:
    """Poisson arrivals; lognormal service times of mean `mean_s`; tenants by weight."""
    rng = random.Random(seed)
    names = [b"tenant-%d" % at for at in range(len(tenants))]
    for at, step in enumerate(rates):
        until_s = rates[at + 1].at_s if at + 1 < len(rates) else ends_s
        now = step.at_s
        while True:
            now += rng.expovariate(step.value)
            if now >= until_s:
                break
            lane = rng.choices(range(len(LANES)), SHARES)[0]
            service_s = mean_s * rng.lognormvariate(-0.125, 0.5)
            yield Ask(now, lane, rng.choices(names, tenants)[0], service_s, now + DEADLINES_S[lane])


def run(scenario: Scenario, discipline: Discipline) -> list[tuple[float, int]]:
    """Play a scenario; (time, how many wait) each quarter of a second. The asks are filled in."""
    numbers = count()
    events: list[tuple[float, int, int, Ask | None, int]] = []
    for step in scenario.permits:
        heapq.heappush(events, (step.at_s, _PERMITS, next(numbers), None, int(step.value)))
    for ask in scenario.asks:
        heapq.heappush(events, (ask.at_s, _ARRIVE, next(numbers), ask, 0))
    permits = running = 0
    course: list[tuple[float, int]] = []
    while events:
        now, kind, _, ask, value = heapq.heappop(events)
        if not course or now - course[-1][0] >= 0.25:
            course.append((now, discipline.waiting))
        if kind == _PERMITS:
            permits = value
        elif kind == _END and ask is not None:
            ask.ended_s = now
            running -= 1
        elif kind == _DEADLINE and ask is not None:
            if isinstance(discipline, Ours) and discipline.leave(ask):
                ask.shed_s = now
        elif ask is not None:
            if running < permits and not discipline.waiting:
                running += 1
                _grant(ask, now, events, numbers, discipline)
            else:
                for one in discipline.put(ask, now):
                    one.shed_s = now
                if isinstance(discipline, Ours) and ask.shed_s < 0:
                    heapq.heappush(events, (ask.deadline_s, _DEADLINE, next(numbers), ask, 0))
        while running < permits and discipline.waiting:
            granted, shed = discipline.take(now)
            for one in shed:
                one.shed_s = now
            if granted is not None:
                running += 1
                _grant(granted, now, events, numbers, discipline)
    return course


def _grant(ask: Ask, now: float, events: list, numbers: Iterator[int], discipline: Discipline) -> None:
    """A granted call runs to its end or its deadline, whichever comes first."""
    ask.granted_s = now
    ends_s = now + ask.service_s
    if isinstance(discipline, Ours):
        discipline.served(ask.service_s, now)
        ends_s = min(ends_s, max(now, ask.deadline_s))  # the sidecar cancels it
    heapq.heappush(events, (ends_s, _END, next(numbers), ask, 0))


def by_lane(asks: Sequence[Ask]) -> dict[str, dict[str, float | int | None]]:
    """What became of the calls of each lane, the most urgent first."""
    rows: dict[str, dict[str, float | int | None]] = {}
    for lane in reversed(range(len(LANES))):
        mine = [ask for ask in asks if ask.lane == lane]
        good = [ask for ask in mine if 0 <= ask.ended_s < ask.deadline_s]
        shed = sum(ask.shed_s >= 0 for ask in mine)
        rows[LANES[lane]] = {
            "calls": len(mine),
            "in_time": len(good),
            "late": len(mine) - len(good) - shed,
            "shed": shed,
            "wait_p95_s": percentile([ask.granted_s - ask.at_s for ask in good], 0.95),
        }
    return rows
