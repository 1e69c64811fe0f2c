"""Forecasts: a straight line is continued, doubled arrivals are a surge, chance and batches are none."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_control.loops.scale.forecast import MAX_GROWTH, Arrivals, Flow, flow, linear, surge
from outrider_control.loops.scale.types import Seen

EPOCH_MS = 1_800_000_000_000


def line(values: list[float], every_ms: int = 1_000) -> list[tuple[int, float]]:
    return [(EPOCH_MS + at * every_ms, value) for at, value in enumerate(values)]


def test_a_straight_line_is_continued() -> None:
    assert linear(line([10, 12, 14, 16]), 5_000) == pytest.approx(26.0)
    assert linear(line([16, 14, 12, 10]), 2_000) == pytest.approx(6.0)
    assert linear(line([7, 7, 7]), 60_000) == pytest.approx(7.0)


def test_no_forecast_of_too_little() -> None:
    assert linear(line([1, 5]), 1_000) is None
    assert linear([(EPOCH_MS, 1.0)] * 5, 1_000) is None


@given(st.lists(st.floats(0, 1e6), min_size=3, max_size=80), st.integers(1_000, 3_600_000))
def test_a_forecast_is_bounded(values: list[float], horizon_ms: int) -> None:
    found = linear(line(values), horizon_ms)
    assert found is not None
    assert 0.0 <= found <= MAX_GROWTH * values[-1]


def play(arrived: list[int], call_s: float = 4.0) -> tuple[Flow, Arrivals]:
    """Looks once a second at a fleet in which every call takes `call_s` and none waits."""
    now, kept, running, ended = Flow(), (), 0.0, 0.0
    for at, calls in enumerate(arrived):
        ended = running / call_s
        running += calls - ended
        seen = Seen("a", 0, running, 0.0, 3, finished_per_s=ended)
        now, kept = flow(seen, now, kept, EPOCH_MS + at * 1_000, 6_000, 60_000)
    return now, kept


def poisson(rng: Random, mean: float) -> int:
    count, at = 0, rng.expovariate(mean)
    while at < 1.0:
        count, at = count + 1, at + rng.expovariate(mean)
    return count


def test_a_step_is_a_surge_before_the_demand_shows_it() -> None:
    now, arrivals = play([10] * 200 + [100] * 3)
    assert now.demand < 300  # 400 is what it comes to
    assert surge(now, arrivals) == pytest.approx(400, rel=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_chance_is_no_surge(seed: int) -> None:
    rng = Random(seed)
    arrived = [poisson(rng, 5.0) for _ in range(400)]
    assert not any(surge(*play(arrived[:end])) for end in range(100, 400, 7))


def test_batches_are_no_surge_where_calls_come_in_batches() -> None:
    rng = Random(1)
    arrived = [poisson(rng, 10.0) if at % 3 == 0 else 0 for at in range(400)]
    assert not any(surge(*play(arrived[:end])) for end in range(200, 400))
    assert surge(*play([*arrived, 100, 100, 100])) is not None
    assert (surge(*play([*arrived, 100, 100, 100])) or 0) > 200


def test_nothing_is_known_without_a_rate_or_at_first() -> None:
    now, arrivals = Flow(), ()
    for at in range(50):
        now, arrivals = flow(Seen("a", 0, 5.0, 0.0, 1), now, arrivals, EPOCH_MS + at * 1_000, 6_000, 60_000)
    assert surge(now, arrivals) is None
    assert surge(*play([5] * 8)) is None


def test_arrivals_are_kept_for_the_panic_window_alone() -> None:
    _, arrivals = play([5] * 100)
    assert len(arrivals) == 6


def test_a_gap_counts_no_arrivals() -> None:
    now, arrivals = play([5] * 100)
    seen = Seen("a", 0, 5_000.0, 0.0, 3, finished_per_s=5.0)
    later, kept = flow(seen, now, arrivals, int(now.at_ms) + 60_000, 6_000, 60_000)
    assert kept == ()
    assert later.demand == 5_000.0
