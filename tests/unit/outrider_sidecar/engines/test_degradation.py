"""The ladder: one step per dwell, both ways, in order, with nothing in between, and all undone in the end."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.policy import DEGRADATIONS, Degradation
from outrider_sidecar.engines.degradation import Ladder

NOW = 1_000.0
POLICY = Degradation(
    enabled=True, steps=("serve_stale", "cap_output", "shed_low"), enter=0.5, leave=0.1, enter_ms=500, leave_ms=2_000
)
ENTER_S, LEAVE_S = 0.5, 2.0


def climbed(level: int) -> tuple[Ladder, float]:
    """A ladder at a level, and the moment it got there."""
    ladder = Ladder(POLICY)
    ladder.observe(1.0, NOW)
    for step in range(level):
        assert ladder.observe(1.0, NOW + ENTER_S * (step + 1))
    assert ladder.level == level
    return ladder, NOW + ENTER_S * level


def test_each_step_needs_its_time_anew() -> None:
    ladder = Ladder(POLICY)
    seen = [(ladder.observe(0.5, NOW + step * 0.25), ladder.level) for step in range(8)]
    assert seen == [(False, 0), (False, 0), (True, 1), (False, 1), (True, 2), (False, 2), (True, 3), (False, 3)]
    assert ladder.steps == POLICY.steps


def test_steps_are_taken_in_order_and_back_in_the_opposite() -> None:
    ladder, now = climbed(3)
    seen = [(step, ladder.steps) for step in range(1, 10) if ladder.observe(0.0, now + step)]
    assert seen == [(3, ("serve_stale", "cap_output")), (5, ("serve_stale",)), (7, ())]


def test_a_long_gap_is_one_step() -> None:
    ladder = Ladder(POLICY)
    ladder.observe(1.0, NOW)
    assert ladder.observe(1.0, NOW + 100)
    assert not ladder.observe(1.0, NOW + 100)
    assert ladder.level == 1


def test_between_leave_and_enter_nothing_changes() -> None:
    ladder, now = climbed(2)
    assert not any(ladder.observe(pressure, now + step) for step, pressure in enumerate((0.1, 0.3, 0.499) * 20))
    assert ladder.level == 2


def test_what_interrupts_a_dwell_begins_it_anew() -> None:
    ladder, now = climbed(1)
    ladder.observe(1.0, now + 0.4)
    ladder.observe(0.3, now + 0.45)
    assert not ladder.observe(1.0, now + 0.6)
    assert not ladder.observe(1.0, now + 1.0)
    assert ladder.observe(1.0, now + 1.1)


def test_takes_names_what_is_taken() -> None:
    ladder, _ = climbed(2)
    assert [name for name in DEGRADATIONS if ladder.takes(name)] == ["serve_stale", "cap_output"]
    assert not ladder.takes("no such step")


def test_off_is_off_at_once_and_stays_so() -> None:
    ladder, now = climbed(3)
    ladder.configure(replace(POLICY, enabled=False))
    assert (ladder.level, ladder.steps, ladder.takes("serve_stale")) == (0, (), False)
    assert not any(ladder.observe(1.0, now + step) for step in range(100))
    assert ladder.pressure == 1.0
    ladder.configure(POLICY)
    assert not ladder.observe(1.0, now + 100)  # what it was while off does not count
    assert ladder.observe(1.0, now + 100.5)


def test_a_policy_with_fewer_steps_takes_fewer() -> None:
    ladder, _ = climbed(3)
    ladder.configure(replace(POLICY, steps=("hedge_off",)))
    assert ladder.steps == ("hedge_off",)
    assert not ladder.takes("serve_stale")
    ladder.configure(replace(POLICY, steps=()))
    assert ladder.level == 0
    assert not ladder.observe(1.0, NOW + 99)


def test_a_policy_keeps_the_level() -> None:
    ladder, now = climbed(2)
    ladder.configure(replace(POLICY, enter=0.9))
    assert ladder.level == 2
    assert not ladder.observe(0.8, now + 99)


def test_no_dwell_is_a_step_per_look() -> None:
    ladder = Ladder(replace(POLICY, enter_ms=0, leave_ms=0))
    assert [ladder.observe(1.0, NOW) for _ in range(4)] == [True, True, True, False]
    assert [ladder.observe(0.0, NOW) for _ in range(4)] == [True, True, True, False]


def test_a_leave_above_enter_counts_as_enter() -> None:
    ladder = Ladder(replace(POLICY, leave=0.9))
    ladder.observe(0.5, NOW)
    assert ladder.observe(0.5, NOW + 1)
    ladder.observe(0.49, NOW + 2)
    assert ladder.observe(0.49, NOW + 4)


@pytest.mark.parametrize("pressure", [float("nan"), -1.0, float("-inf")])
def test_wrong_pressure_takes_no_step(pressure: float) -> None:
    ladder = Ladder(POLICY)
    assert not any(ladder.observe(pressure, NOW + step) for step in range(10))


def test_nan_says_nothing() -> None:
    ladder, now = climbed(1)
    ladder.observe(1.0, now + 0.3)
    ladder.observe(float("nan"), now + 0.4)
    assert ladder.pressure == 1.0
    assert ladder.observe(1.0, now + 0.5)


PRESSURES = st.one_of(st.floats(0, 1), st.sampled_from((0.0, 0.1, 0.5, 1.0)))


@given(st.lists(st.tuples(PRESSURES, st.floats(0, 3)), max_size=200))
def test_never_faster_than_the_dwell_and_undone_in_the_end(seen: list[tuple[float, float]]) -> None:
    ladder = Ladder(POLICY)
    now = NOW
    side, since = 0, now  # above enter (1), below leave (-1) or between; for how long, or since the last step
    for pressure, passed_s in seen:
        now += passed_s
        is_on = 1 if pressure >= POLICY.enter else -1 if pressure < POLICY.leave else 0
        if is_on != side:
            side, since = is_on, now
        before = ladder.level
        changed = ladder.observe(pressure, now)
        assert ladder.level - before == side * changed
        assert ladder.steps == POLICY.steps[: ladder.level]
        if changed:
            assert now - since >= (ENTER_S if side > 0 else LEAVE_S)
            since = now
    for _ in range(2 * (len(POLICY.steps) + 1)):
        now += LEAVE_S
        ladder.observe(0.0, now)
    assert (ladder.level, ladder.steps) == (0, ())
