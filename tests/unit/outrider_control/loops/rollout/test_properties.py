"""Whatever happens to a rollout: it does not succeed without what it asks for, and what was aborted stays so."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from outrider_control.loops.rollout import by_hand, record
from outrider_control.loops.rollout.advance import advance
from outrider_control.loops.rollout.by_hand import Refused
from outrider_control.loops.rollout.types import (
    FAILED,
    PHASES,
    PROMOTING,
    STEPPING,
    SUCCEEDED,
    SUCCESSFUL,
    Rollout,
    Seen,
    Spec,
    Transition,
)
from tests.rollouts import errors, spec, variant

MANUAL = ("promote", "full", "pause", "resume", "abort")

# What came since the last look: (units, how many of them failed), or nothing is known, or endpoints are gone.
LOOKS = st.one_of(
    st.tuples(st.just("units"), st.integers(0, 120), st.integers(0, 120), st.floats(0, 100_000)),
    st.sampled_from([("unknown", 0, 0, 5.0), ("missing", 0, 0, 5.0), ("back", 0, 0, -3_600.0), ("broken", 0, 0, 5.0)]),
)
SPECS = st.builds(
    lambda steps, count, failures, unsure, deadline_s: spec(
        *steps,
        analyses=[errors(0.2, count=count, failure_limit=failures, inconclusive_limit=unsure, interval_s=1)],
        progress_deadline_s=deadline_s,
    ),
    st.sampled_from([("0.1", "1"), ("0.2:3", "0.5:confirm", "1"), ("0:confirm", "1"), ("0.5",), ("0.1", "0.2", "0.3")]),
    st.integers(1, 3),
    st.integers(0, 2),
    st.integers(0, 2),
    st.sampled_from([0, 5, 60]),
)


class World:
    """What is seen, as looks say it."""

    def __init__(self) -> None:
        self.now_ms = 1_800_000_000_000
        self.units = self.failed = 0

    def see(self, look: tuple[str, int, int, float]) -> Seen:
        kind, units, failed, seconds = look
        self.now_ms += round(seconds * 1_000)
        if kind == "unknown":
            return Seen(counted=False)
        self.units += units
        self.failed += min(units, failed)
        candidate = variant("candidate", self.units, self.failed)
        if kind == "broken":
            candidate.moments["error_rate"].sums[0] = float("inf")
        return Seen(candidate, variant("stable", 500), missing="none there" if kind == "missing" else "")


def hand(rollout: Rollout, of: Spec, seen: Seen, now_ms: int, change: str) -> tuple[Rollout, Transition | None]:
    try:
        match change:
            case "promote" | "full":
                return by_hand.promote(rollout, of, seen, now_ms, "me", "because", change == "full")
            case "pause":
                return by_hand.pause(rollout, "me", "because")
            case "resume":
                return by_hand.resume(rollout, of, "me", "because")
        return by_hand.abort(rollout, now_ms, "me", "because")
    except Refused:
        return rollout, None


def check(before: Rollout, after: Rollout, told: Transition | None, of: Spec) -> None:
    assert after.phase in PHASES
    assert 0.0 <= after.weight <= 1.0
    assert after.ended == bool(after.ended_ms)
    assert record.from_json(record.to_json(after)) == after
    if told is None:
        assert (after.phase, after.weight, after.step, after.aborted) == (
            before.phase, before.weight, before.step, before.aborted,
        )  # fmt: skip
    if before.aborted:
        assert after == before
    if after.aborted:
        assert (after.phase, after.weight) == (FAILED, 0.0)
    if after.phase == FAILED:
        assert after.aborted
    # By itself it goes from one step to the next one only.
    if told is not None and not told.author:
        assert after.step - before.step in (0, 1)
        forward = told.action in ("step", "promote")
        if forward and of.analyses_of(before.step):
            assert before.runs
            assert before.phase in STEPPING


@settings(max_examples=200, deadline=None)
@given(SPECS, st.lists(st.one_of(LOOKS, st.sampled_from(MANUAL)), max_size=60))
def test_no_way_around(of: Spec, events: Sequence[tuple[str, int, int, float] | str]) -> None:
    world, rollout = World(), Rollout()
    good: set[int] = set()  # steps whose analyses were successful
    promoted: set[int] = set()  # or that a person has taken on
    seen = world.see(("units", 0, 0, 0.0))
    for event in events:
        before = rollout
        if isinstance(event, str):
            rollout, told = hand(rollout, of, seen, world.now_ms, event)
            if told is not None and event in ("promote", "full"):
                promoted |= set(range(before.step, len(of.steps) if event == "full" else before.step + 1))
        else:
            seen = world.see(event)
            rollout, told = advance(rollout, of, seen, world.now_ms)
            if told is not None and told.action in ("step", "promote"):
                analysed = [one["state"] for one in told.inputs["analyses"]]
                assert all([state == SUCCESSFUL for state in analysed])
                assert len(analysed) == len(of.analyses_of(before.step))
                good.add(before.step)
        check(before, rollout, told, of)
        if rollout.phase in (PROMOTING, SUCCEEDED):
            assert good | promoted == set(range(len(of.steps)))
            assert rollout.weight == 1.0


@settings(max_examples=100, deadline=None)
@given(SPECS, st.lists(LOOKS, max_size=40), st.integers(0, 40))
def test_it_goes_on_from_what_was_stored(of: Spec, looks: Sequence[tuple[str, int, int, float]], at: int) -> None:
    def course(stored_at: set[int]) -> list[Rollout]:
        world, rollout, found = World(), Rollout(), []
        for number, look in enumerate(looks):
            if number in stored_at:
                rollout = record.from_json(record.to_json(rollout))
            rollout, _ = advance(rollout, of, world.see(look), world.now_ms)
            found.append(rollout)
        return found

    assert course({at}) == course(set(range(len(looks)))) == course(set())


@given(st.integers(1, 60))
def test_no_unit_no_success(looks: int) -> None:
    of = spec("0.1", "1", analyses=[errors()])
    rollout, now_ms = Rollout(), 1_800_000_000_000
    for _ in range(looks):
        now_ms += 10_000
        rollout, _ = advance(rollout, of, Seen(), now_ms)
    assert (rollout.step, rollout.weight) == (0, 0.1)
    assert dataclasses.replace(rollout, runs=()).phase in STEPPING
