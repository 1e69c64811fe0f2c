"""Capacity: who says it goes before what is learnt, and what is learnt comes close without ever being too high."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from outrider.policy import Scaling
from outrider_control.loops.scale import capacity
from outrider_control.loops.scale.types import Seen, State

SEEN = Seen("a", 0, 10.0, 0.0, 2, capacity=8.0, capacity_source="endpoints")


def test_the_policy_goes_before_endpoints_and_these_before_what_is_learnt() -> None:
    learnt = State(learnt_capacity=5.0)
    assert capacity.known(SEEN, learnt, Scaling(capacity=3)) == (3.0, "policy")
    assert capacity.known(SEEN, learnt, Scaling()) == (8.0, "endpoints")
    assert capacity.known(replace(SEEN, capacity_source="learnt"), learnt, Scaling()) == (8.0, "learnt")
    assert capacity.known(replace(SEEN, capacity=None), learnt, Scaling()) == (5.0, "learnt")
    assert capacity.known(replace(SEEN, capacity=None), State(), Scaling()) == (None, "")


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -3.0, 0.0])
def test_a_capacity_that_cannot_be_is_none(wrong: float) -> None:
    assert capacity.known(replace(SEEN, capacity=wrong), State(), Scaling()) == (None, "")


def agent(
    loads: list[float], ready: int = 2, places: float = 10.0, call_s: float = 0.5, seed: int = 1, limit: float = 1e9
) -> State:
    """Looks at instances that do `places` calls at once in `call_s`, more of them slower; past `limit` they wait."""
    rng = Random(seed)
    state = State()
    for load in loads:
        running = min(load, limit * ready)
        rate = min(running, places * ready) / call_s * rng.uniform(0.93, 1.07)
        seen = Seen("a", 0, running, load - running, ready, finished_per_s=rate)
        learnt, learning = capacity.learn(seen, state)
        state = replace(state, learnt_capacity=learnt, learning=learning)
    return state


def ramp(low: float, high: float, looks: int) -> list[float]:
    return [low + (high - low) * at / looks for at in range(looks)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("places", [2.0, 10.0, 50.0])
def test_the_knee_is_found(places: float, seed: int) -> None:
    state = agent([*ramp(places, 6 * places, 200), *[6 * places] * 100], places=places, seed=seed)
    assert state.learnt_capacity is not None
    assert 0.75 * places <= state.learnt_capacity <= 1.15 * places


def test_nothing_is_learnt_below_the_knee() -> None:
    assert agent(ramp(1.0, 18.0, 400)).learnt_capacity is None


def test_nothing_is_learnt_where_it_was_never_below_the_knee() -> None:
    assert agent([80.0] * 300).learnt_capacity is None


def test_longer_calls_alone_do_not_lower_it() -> None:
    before = agent([*ramp(5, 60, 200), *[15.0] * 100])
    state = before
    for _ in range(200):  # the same calls at once, each three times as long
        learnt, learning = capacity.learn(Seen("a", 0, 15.0, 0.0, 2, finished_per_s=15.0 / 1.5), state)
        state = replace(state, learnt_capacity=learnt, learning=learning)
    assert state.learnt_capacity == before.learnt_capacity


def test_calls_that_wait_all_the_time_say_what_is_let_through() -> None:
    state = agent([*[10.0] * 30, *[200.0] * 60], places=1e9, limit=25.0)
    assert state.learnt_capacity == pytest.approx(25.0, rel=0.25)


def test_a_fixed_limit_does_not_drive_it_down_as_instances_are_added() -> None:
    state = agent([*[10.0] * 30, *[200.0] * 60], places=1e9, limit=25.0)
    first = state.learnt_capacity
    assert first is not None
    for ready in range(3, 40):
        seen = Seen("a", 0, 50.0, 150.0, ready, finished_per_s=100.0)
        learnt, learning = capacity.learn(seen, state)
        state = replace(state, learnt_capacity=learnt, learning=learning)
    assert state.learnt_capacity is not None
    assert state.learnt_capacity >= first


@pytest.mark.parametrize("rate", [None, float("nan"), float("inf"), -1.0])
def test_a_rate_that_is_none_teaches_nothing(rate: float | None) -> None:
    state = agent([*ramp(5, 60, 200)])
    seen = Seen("a", 0, 60.0, 0.0, 2, finished_per_s=rate)
    assert capacity.learn(seen, state) == (state.learnt_capacity, state.learning)


def test_instances_that_start_teach_nothing() -> None:
    state = agent([*ramp(5, 60, 200)])
    seen = Seen("a", 0, 60.0, 0.0, 2, starting=3, finished_per_s=100.0)
    assert capacity.learn(seen, state) == (state.learnt_capacity, state.learning)
