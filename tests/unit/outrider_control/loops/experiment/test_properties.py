"""What always holds of decisions, whatever is seen: by hypothesis, over random courses of experiments."""

from __future__ import annotations

import json
from dataclasses import replace
from math import isfinite
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from outrider_control.loops.experiment.compare import intersected
from outrider_control.loops.experiment.decide import decide
from outrider_control.loops.experiment.types import (
    METHODS,
    RESHARE,
    STOP,
    WIN,
    Decision,
    Guardrail,
    Running,
    Seen,
    Spec,
    State,
)
from tests.unit.outrider_control.loops.experiment.made import ERRORS, SPEC, seen, variant

NAMES = ("A", "B", "C")
ends = st.one_of(st.none(), st.floats(-10, 10))
steps = st.lists(
    st.tuples(*[st.tuples(st.integers(0, 2_000), st.floats(0, 1), st.floats(0, 1)) for _ in NAMES]),
    min_size=1,
    max_size=8,
)
specs = st.builds(
    lambda count, method, size, win, minimum, least, up: replace(
        SPEC,
        variants=NAMES[:count],
        shares=(1.0 / count,) * count,
        method=method,
        sample_size=size,
        stop_for_win=win,
        minimum_effect=minimum,
        min_units=least,
        metric=replace(SPEC.metric, direction=up),
        guardrails=(Guardrail(ERRORS, margin=0.05), Guardrail(ERRORS, relative_margin=0.5)),
    ),
    st.sampled_from([2, 3]),
    st.sampled_from(METHODS),
    st.sampled_from([0, 3_000]),
    st.booleans(),
    st.sampled_from([0.0, 0.05]),
    st.sampled_from([2, 100]),
    st.sampled_from(["up", "down"]),
)


def course(spec: Spec, rows: list, clock: list[int]) -> list[tuple[Seen, Decision, State]]:
    """Looks at units that come, until it stops."""
    totals = [[0, 0, 0] for _ in spec.variants]
    state, found = State(), []
    for row, now_ms in zip(rows, clock, strict=False):
        for total, (units, successes, failed) in zip(totals, row, strict=False):
            total[0] += units
            total[1] += round(units * successes)
            total[2] += round(units * failed)
        shown = seen(
            *[variant(name, total[0], total[1], total[2]) for name, total in zip(spec.variants, totals, strict=True)]
        )
        decision, state = decide(shown, state, spec, now_ms, Random(1))
        found.append((shown, decision, state))
        if decision.action == STOP:
            break
    return found


def numbers(value: Any) -> list[float]:
    if isinstance(value, float):
        return [value]
    if isinstance(value, dict):
        return numbers(list(value.values()))
    if isinstance(value, list | tuple):
        return [one for item in value for one in numbers(item)]
    if hasattr(value, "__dataclass_fields__"):
        return [one for name in value.__dataclass_fields__ for one in numbers(getattr(value, name))]
    return []


@settings(max_examples=200, deadline=None)
@given(specs, steps, st.lists(st.integers(-(10**6), 10**13), min_size=8, max_size=8))
def test_what_always_holds(spec: Spec, rows: list, clock: list[int]) -> None:
    last = State()
    for shown, decision, state in course(spec, rows, clock):
        assert bool(decision.verdict) == (decision.action == STOP)
        assert bool(decision.winner) == (decision.verdict == WIN)
        assert spec.variants[0] not in (decision.winner, *decision.harmful)
        assert decision.winner not in decision.harmful
        assert not set(decision.harmful) & set(last.out)
        counted = {one.name: one.units for one in shown.variants}
        concluded = [decision.winner] if decision.winner else []
        for name in [*concluded, *decision.harmful]:
            assert min(counted[name], counted[spec.variants[0]]) >= spec.min_units
        if decision.winner:
            assert not decision.srm.mismatch
        assert all([isfinite(value) for value in numbers(decision)])
        assert state.srm_log_evidence >= last.srm_log_evidence
        assert state.elapsed_ms >= last.elapsed_ms
        assert set(last.out) <= set(state.out)
        if decision.action == RESHARE:
            assert abs(sum(decision.shares) - 1.0) < 1e-9
            assert all(
                [share == 0.0 for name, share in zip(spec.variants, decision.shares, strict=True) if name in state.out]
            )
        assert decision.conclusion.endswith(".")
        assert "\n" not in decision.conclusion
        for one in decision.comparisons:
            if one.low is not None and one.high is not None:
                assert one.low <= one.high
        assert State.of(json.loads(json.dumps(state.plain(), allow_nan=False))) == state
        last = state


@settings(max_examples=50, deadline=None)
@given(specs, steps)
def test_the_same_is_decided_of_the_same(spec: Spec, rows: list) -> None:
    clock = list(range(1_000, 9_000, 1_000))
    assert [row[1:] for row in course(spec, rows, clock)] == [row[1:] for row in course(spec, rows, clock)]


@given(st.lists(st.tuples(ends, ends), max_size=20))
def test_intersections_only_ever_narrow(intervals: list) -> None:
    running = Running()
    for one, other in intervals:
        low, high = (one, other) if one is None or other is None or one <= other else (other, one)
        after = intersected(running, low, high)
        if after.drifted:
            assert (
                running.drifted
                or (low or running.low) > running.high
                or (high or running.high) < running.low
                or (max(running.low, -1e9 if low is None else low) > min(running.high, 1e9 if high is None else high))
            )
        else:
            assert running.low <= after.low <= after.high <= running.high
            assert low is None or low <= after.low
            assert high is None or after.high <= high
        running = after


@settings(max_examples=50, deadline=None)
@given(steps)
def test_intervals_of_an_experiment_narrow_until_the_effect_has_changed(rows: list) -> None:
    spec = replace(SPEC, sample_size=0, stop_for_win=False)
    last = None
    for _, decision, state in course(spec, rows, list(range(1_000, 9_000, 1_000))):
        one = decision.comparisons[0]
        running = state.running["B"]
        if running.drifted:
            return
        if last is not None and last.low is not None and last.high is not None:
            assert one.low is not None
            assert one.high is not None
            assert last.low <= one.low
            assert one.high <= last.high
        last = one
