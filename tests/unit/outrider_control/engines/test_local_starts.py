"""The pace of starts after failures, in virtual time."""

from __future__ import annotations

import itertools
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from outrider_control.engines.local_starts import MOST_S, STEADY_S, Starts


def test_without_failures_all_start_together() -> None:
    starts = Starts(Random(1))
    assert starts.room(7, 3, 0.0) == 7
    assert starts.room(0, 0, 0.0) == starts.room(-2, 0, 0.0) == 0
    assert starts.told(0.0) == ""


def test_dying_again_and_again_is_tried_less_and_less_often() -> None:
    starts, now_s, waits = Starts(Random(1)), 100.0, []
    for _ in range(9):
        assert starts.room(5, 0, now_s) >= 1
        began_s = now_s
        now_s += 0.2  # it lives so long
        starts.failed(began_s, "tax-1 ended with code 3", now_s)
        waits.append(starts.wait_s(now_s))
        assert starts.room(5, 0, now_s) == 0
        now_s += waits[-1]
    assert waits == sorted(waits)
    assert 1.0 <= waits[0] <= 1.25
    assert waits[-1] == MOST_S
    for earlier, later in itertools.pairwise(waits[:5]):
        assert 1.1 < later / earlier < 3.4  # doubled, with jitter
    assert sum(waits) > 150


def test_from_the_second_failure_on_one_is_tried_at_a_time() -> None:
    starts = Starts(Random(1))
    starts.failed(0.0, "why", 1.0)
    assert starts.room(5, 3, 10.0) == 5
    starts.failed(10.0, "why", 11.0)
    assert starts.room(5, 0, 30.0) == 1
    assert starts.room(5, 1, 30.0) == 0
    assert starts.is_vain(10.5)
    assert not starts.is_vain(30.0)


def test_those_that_started_together_fail_once() -> None:
    starts = Starts(Random(1))
    for number in range(10):
        starts.failed(0.1 * number, "why", 5.0 + number)
    assert starts.failures == 1
    starts.failed(20.0, "why", 21.0)
    assert starts.failures == 2


def test_who_served_long_enough_ends_it() -> None:
    starts = Starts(Random(1))
    starts.failed(0.0, "first", 1.0)
    starts.failed(2.0, "second", 3.0)
    assert starts.told(3.0).startswith("2 starts in a row have failed, the last one: second; the next try is in ")
    assert starts.told(100.0).endswith("one is being tried")
    starts.served(0.5, 0.6, 1_000.0)  # it is older than the failures: that says nothing of new ones
    assert starts.told(100.0)
    starts.served(4.0, 5.0, 5.0 + STEADY_S / 2)
    assert starts.failures == 2
    assert starts.told(100.0) == ""  # one is ready: it may well be over
    starts.failed(4.0, "third", 11.0)
    assert starts.told(100.0)
    starts.served(12.0, 13.0, 13.0)
    starts.served(12.0, 13.0, 13.0 + STEADY_S)
    assert starts.failures == 0
    assert starts.told(100.0) == ""


@given(st.integers(), st.lists(st.floats(0.0, 100.0), max_size=60))
def test_the_wait_has_its_bounds(seed: int, lives: list[float]) -> None:
    starts, now_s = Starts(Random(seed)), 0.0
    for life_s in lives:
        began_s, now_s = now_s, now_s + life_s
        starts.failed(began_s, "why", now_s)
        wait_s = starts.wait_s(now_s)
        assert 1.0 - 1e-9 <= wait_s <= MOST_S + 1e-9
        assert starts.room(1, 0, now_s) == 0
        now_s += wait_s + 1e-6
        assert starts.room(1, 0, now_s) == 1
