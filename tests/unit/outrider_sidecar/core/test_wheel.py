"""The wheel fires what is due, once, never early, and forgets what is cancelled."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_sidecar.core.wheel import TICK_S, Timer, Wheel

START_S = 1_000.0


class Woken:
    """What a wheel asks of its loop."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    def __call__(self, delay_s: float) -> None:
        self.asked.append(delay_s)


def test_it_asks_to_be_woken_only_while_something_is_set() -> None:
    woken = Woken()
    wheel = Wheel(woken, START_S)
    first = wheel.at(START_S + 1, lambda: None)
    wheel.at(START_S + 2, lambda: None).cancel()
    assert woken.asked == [TICK_S]
    wheel.advance(START_S + TICK_S)
    assert woken.asked == [TICK_S, TICK_S]
    first.cancel()
    wheel.advance(START_S + 2 * TICK_S)
    assert woken.asked == [TICK_S, TICK_S]
    wheel.at(START_S + 1, lambda: None)
    assert len(woken.asked) == 3


def test_what_is_due_already_fires_with_the_next_tick() -> None:
    fired: list[str] = []
    wheel = Wheel(Woken(), START_S)
    wheel.at(START_S - 50, lambda: fired.append("late"))
    assert fired == []
    wheel.advance(START_S + TICK_S)
    assert fired == ["late"]
    assert len(wheel) == 0


def test_a_timer_may_be_cancelled_again_and_after_it_has_fired() -> None:
    fired: list[int] = []
    wheel = Wheel(Woken(), START_S)
    timer = wheel.at(START_S + TICK_S, lambda: fired.append(1))
    wheel.advance(START_S + 1)
    timer.cancel()
    timer.cancel()
    other = wheel.at(START_S + 2, lambda: fired.append(2))
    other.cancel()
    other.cancel()
    wheel.advance(START_S + 3)
    assert fired == [1]


def test_a_timer_may_cancel_one_of_the_same_tick_and_set_another() -> None:
    fired: list[str] = []
    wheel = Wheel(Woken(), START_S)
    timers: dict[str, Timer] = {}

    def fire(name: str, other: str) -> None:
        fired.append(name)
        timers[other].cancel()
        wheel.at(START_S, lambda: fired.append("next"))

    timers["a"] = wheel.at(START_S + 1, lambda: fire("a", "b"))
    timers["b"] = wheel.at(START_S + 1, lambda: fire("b", "a"))
    wheel.advance(START_S + 2)
    assert fired in (["a"], ["b"])
    wheel.advance(START_S + 2 + TICK_S)
    assert fired[1:] == ["next"]
    assert len(wheel) == 0


def test_a_timer_that_raises_stops_no_other() -> None:
    fired: list[int] = []
    woken = Woken()
    wheel = Wheel(woken, START_S)

    def break_down() -> None:
        raise ZeroDivisionError

    wheel.at(START_S + 0.1, break_down)
    wheel.at(START_S + 0.1, lambda: fired.append(1))
    wheel.at(START_S + 0.2, lambda: fired.append(2))
    wheel.at(START_S + 9.0, lambda: fired.append(3))
    asked = len(woken.asked)
    with pytest.raises(ZeroDivisionError):
        wheel.advance(START_S + 1)
    assert fired == [1, 2]
    assert len(woken.asked) == asked + 1
    wheel.advance(START_S + 10)
    assert fired == [1, 2, 3]


def test_a_clock_that_steps_back_fires_nothing_early() -> None:
    fired: list[int] = []
    wheel = Wheel(Woken(), START_S)
    wheel.at(START_S + 1, lambda: fired.append(1))
    wheel.advance(START_S + 0.5)
    wheel.advance(START_S - 100)
    assert fired == []
    wheel.advance(START_S + 2)
    assert fired == [1]


@given(
    st.lists(st.tuples(st.floats(-1, 30), st.booleans()), max_size=40),
    st.lists(st.floats(0.001, 8), min_size=1, max_size=30),
)
def test_each_timer_fires_once_in_order_and_in_its_tick(timers: list[tuple[float, bool]], steps: list[float]) -> None:
    now = START_S
    fired: list[tuple[float, float]] = []
    wheel = Wheel(Woken(), now)
    kept = []
    for delay_s, cancelled in timers:
        when = START_S + delay_s
        timer = wheel.at(when, lambda when=when: fired.append((when, now)))
        if cancelled:
            timer.cancel()
        else:
            kept.append(when)
    assert len(wheel) == len(kept)
    for step in steps:
        before, now = now, now + step
        seen = len(fired)
        wheel.advance(now)
        for when, at in fired[seen:]:
            assert when <= at
        late = [when for when in kept if max(when, START_S) + 2 * TICK_S < before]
        assert set(late) <= {when for when, _ in fired[:seen]}
    ticks = [int(max(when, START_S) / TICK_S) for when, _ in fired]
    assert ticks == sorted(ticks)
    assert len(fired) + len(wheel) == len(kept)
