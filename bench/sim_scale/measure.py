"""One run's figures: what came of the calls, how soon capacity was there, what was too much and too little.

Always holds: what is needed is told by the calls alone, as the instances that would carry at the target what runs in a
fleet where nobody waits; it is the same for every scaler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import Any

from bench.sim_scale.fleet import Call, Fleet, Outcome, Settings
from bench.sim_scale.hpa import Hpa
from bench.sim_scale.kpa import Kpa
from bench.sim_scale.scaler import Ours, Scaler
from bench.sim_scale.workload import TARGET, Workload
from outrider.policy import Scaling

MAX_INSTANCES = 10_000  # no scaler is held back by it
REACHED = 0.9  # of what is needed: within the tolerance that all three have


@dataclass(frozen=True, slots=True)
class Figures:
    calls: int
    late: int  # started after their patience, or shed
    shed: int  # of these: never started
    to_capacity_s: float | None  # after a step; None: there was none, or it was not reached
    over_s: float  # instance-seconds that were paid and not needed
    under_s: float  # that were needed and did not serve
    instance_s: float
    max_instances: int


def ours(capacity: int, delay_s: int, **settings: Any) -> Ours:
    """The policy's defaults, but for the bound and the delay of a scale-down."""
    policy = Scaling(max_instances=MAX_INSTANCES, cooldown_s=delay_s, capacity=capacity, **settings)
    return Ours(policy)


def kpa(capacity: int, delay_s: int, target: float = TARGET, **settings: Any) -> Kpa:
    return Kpa(target * capacity, high=MAX_INSTANCES, scale_down_delay_s=delay_s, **settings)


def hpa(capacity: int, delay_s: int, target: float = TARGET) -> Hpa:
    return Hpa(target * capacity, high=MAX_INSTANCES, stabilization_s=delay_s)


SCALERS: dict[str, Callable[[int, int], Scaler]] = {
    "outrider": partial(ours),
    "Knative KPA": partial(kpa),
    "HPA v2": partial(hpa),
}


def run(workload: Workload, scaler: Scaler, capacity: int, start_s: float, queue: str) -> tuple[Figures, Outcome]:
    settings = Settings(capacity, start_s, workload.instances, queue)
    outcome = Fleet(workload.calls, scaler, settings, workload.until_s).play()
    needed = [count / (TARGET * capacity) for count in offered(workload.calls, workload.until_s)]
    paid, ready = by_second(outcome.paid, len(needed)), by_second(outcome.ready, len(needed))
    return Figures(
        outcome.calls,
        outcome.late,
        outcome.shed,
        to_capacity_s(outcome.ready, workload),
        sum([max(0.0, one - other) for one, other in zip(paid, needed, strict=True)]),
        sum([max(0.0, other - one) for one, other in zip(ready, needed, strict=True)]),
        outcome.instance_s,
        outcome.max_instances,
    ), outcome


def offered(calls: Sequence[Call], until_s: float) -> list[int]:
    """How many calls would run at each second if none had to wait."""
    changes = [0] * (int(until_s) + 2)
    for call in calls:
        for at_s, change in ((call.at_s, 1), (call.at_s + call.service_s, -1)):
            changes[min(int(at_s) + 1, len(changes) - 1)] += change
    counts, count = [], 0
    for change in changes[: int(until_s) + 1]:
        count += change
        counts.append(count)
    return counts


def by_second(changes: Sequence[tuple[float, int]], seconds: int) -> list[int]:
    """What there was at each second."""
    counts: list[int] = []
    left = iter(changes)
    count, following = 0, next(left, None)
    for second in range(seconds):
        while following is not None and following[0] <= second:
            count, following = following[1], next(left, None)
        counts.append(count)
    return counts


def to_capacity_s(ready: Sequence[tuple[float, int]], workload: Workload) -> float | None:
    """From the step until what serves carries the new load at the target, but for the tolerance."""
    if not workload.step_s:
        return None
    before = [count for at_s, count in ready if at_s <= workload.step_s]
    if before and before[-1] >= REACHED * workload.needed:
        return 0.0
    reached = [at_s for at_s, count in ready if at_s > workload.step_s and count >= REACHED * workload.needed]
    return reached[0] - workload.step_s if reached else None


def average(figures: Sequence[Figures]) -> dict[str, float | None]:
    """Means of several runs; a capacity that one of them did not reach is not known for all."""
    times = [one.to_capacity_s for one in figures]
    known = [time for time in times if time is not None]
    names = ("calls", "late", "shed", "over_s", "under_s", "instance_s", "max_instances")
    means: dict[str, float | None] = {name: mean([getattr(one, name) for one in figures]) for name in names}
    return means | {"to_capacity_s": mean(known) if len(known) == len(times) else None}
