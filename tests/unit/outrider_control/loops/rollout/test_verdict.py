from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_control.loops.experiment.types import Metric
from outrider_control.loops.rollout.types import (
    ERROR,
    ERROR_LIMIT,
    FAILED_ANALYSIS,
    INCONCLUSIVE,
    RUNNING,
    SUCCESSFUL,
    Analysis,
    Base,
    Measurement,
    Run,
)
from outrider_control.loops.rollout.verdict import again, counted, worst

S, F, N, E = SUCCESSFUL, FAILED_ANALYSIS, INCONCLUSIVE, ERROR


def analysis(**fields: int) -> Analysis:
    return Analysis(Metric("error_rate"), max=0.1, **fields)


def run_of(of: Analysis, *states: str) -> Run:
    run = Run()
    for state in states:
        run = counted(run, of, Measurement(state, "why", Base()))
    return run


@pytest.mark.parametrize(
    ("fields", "states", "verdict"),
    [
        ({}, [], RUNNING),
        ({}, [S], SUCCESSFUL),
        ({}, [F], FAILED_ANALYSIS),
        ({}, [N] * 100, RUNNING),
        ({}, [E] * ERROR_LIMIT, RUNNING),
        ({}, [E] * (ERROR_LIMIT + 1), ERROR),
        ({}, [*[E] * ERROR_LIMIT, N, *[E] * ERROR_LIMIT], RUNNING),  # in a row only
        ({"count": 3}, [S, S], RUNNING),
        ({"count": 3}, [S, N, S, E, S], SUCCESSFUL),
        ({"failure_limit": 2}, [F, F], RUNNING),
        ({"failure_limit": 2}, [F, F, S], SUCCESSFUL),
        ({"failure_limit": 2}, [F, F, F], FAILED_ANALYSIS),
        ({"inconclusive_limit": 2}, [N, N], RUNNING),
        ({"inconclusive_limit": 2}, [N, N, N], INCONCLUSIVE),
        ({"inconclusive_limit": 1, "count": 2}, [S, N, N], INCONCLUSIVE),
        ({"inconclusive_limit": 1}, [S, N, N], SUCCESSFUL),  # it was shown before
        ({}, [S, F], FAILED_ANALYSIS),  # what was successful may still fail
        ({}, [S, *[E] * (ERROR_LIMIT + 1)], ERROR),
        ({"inconclusive_limit": 1, "failure_limit": 0}, [N, N, F], FAILED_ANALYSIS),
    ],
)
def test_measurements_come_to(fields: dict[str, int], states: list[str], verdict: str) -> None:
    assert run_of(analysis(**fields), *states).state == verdict


def test_the_worst_counts() -> None:
    order = [SUCCESSFUL, RUNNING, INCONCLUSIVE, ERROR, FAILED_ANALYSIS]
    for better, worse in itertools.combinations(order, 2):
        assert worst([better, worse]) == worst([worse, better]) == worse
    assert worst([]) == SUCCESSFUL


def test_what_was_measured_last_is_shown() -> None:
    of = analysis(count=9)
    run = counted(Run(), of, Measurement(S, "first", Base(1, 2), 0.5, 0.4))
    assert (run.value, run.stable_value, run.reason, run.base) == (0.5, 0.4, "first", Base(1, 2))
    run = counted(run, of, Measurement(N, "nothing came", Base(1, 2)))
    assert (run.value, run.stable_value, run.reason) == (0.5, 0.4, "nothing came")


def test_again_forgets_what_was_not_concluded_and_nothing_else() -> None:
    of = analysis(inconclusive_limit=1, failure_limit=5, count=2)
    run = run_of(of, S, F, N, N)
    assert run.state == INCONCLUSIVE
    again_run = again(run, of)
    assert again_run.state == RUNNING
    assert (again_run.successful, again_run.failed, again_run.inconclusive) == (1, 1, 0)


@given(
    st.lists(st.sampled_from([S, F, N, E]), max_size=40),
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(0, 3),
)
def test_only_successful_measurements_succeed(states: list[str], count: int, failures: int, unsure: int) -> None:
    of = analysis(count=count, failure_limit=failures, inconclusive_limit=unsure)
    run = run_of(of, *states)
    assert run.successful == states.count(S)
    assert run.failed == states.count(F)
    assert run.inconclusive == states.count(N)
    assert run.errors == states.count(E)
    if run.state == SUCCESSFUL:
        assert states.count(S) >= count
        assert states.count(F) <= failures
    if states.count(F) > failures:
        assert run.state == FAILED_ANALYSIS
    # The order of measurements matters to errors in a row alone.
    if E not in states:
        assert run_of(of, *sorted(states)).state == run.state
    assert dataclasses.replace(run, state="") == dataclasses.replace(run_of(of, *states), state="")
