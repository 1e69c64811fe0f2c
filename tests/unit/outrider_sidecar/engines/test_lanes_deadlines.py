"""Deadlines of calls that would wait: who is told at once that there is no hope, and that nobody is told so wrongly."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.policy import Queue
from outrider_sidecar.engines.lanes import LaneQueue, Waiter

NOW = 1_000.0
NORMAL, HIGH = 1, 2
PLAIN = replace(Queue(), codel_target_ms=0, max_waiting=100_000)


def busy(waiting: int, grants_per_s: float, grants: int, tenant: bytes = b"") -> tuple[LaneQueue, float]:
    """A queue that has given so many permits at a steady rate, with so many waiting; and the moment it is."""
    queue = LaneQueue(PLAIN)
    for _ in range(waiting + grants):
        queue.put(Waiter(None, NORMAL, tenant, 0.0), NOW)
    for step in range(grants):
        assert queue.take(NOW + (step + 1) / grants_per_s, []) is not None
    return queue, NOW + grants / grants_per_s


def test_without_a_deadline_there_is_hope() -> None:
    queue, now = busy(10_000, 10.0, 100)
    assert not queue.hopeless(NORMAL, 0.0, now)


def test_a_deadline_that_is_over_is_hopeless() -> None:
    assert LaneQueue(PLAIN).hopeless(NORMAL, NOW, NOW)
    assert not LaneQueue(PLAIN).hopeless(NORMAL, NOW + 0.001, NOW)


def test_the_lane_cannot_be_served_in_time() -> None:
    queue, now = busy(1_000, 10.0, 100)  # 100 s of work
    assert queue.hopeless(NORMAL, now + 50, now)
    assert not queue.hopeless(NORMAL, now + 90, now)  # the rate may well be a little higher than it was seen to be


def test_only_its_own_lane_counts() -> None:
    queue, now = busy(1_000, 10.0, 100)
    assert not queue.hopeless(HIGH, now + 0.1, now)


def test_before_grants_are_seen_the_rate_is_held_against_nobody() -> None:
    queue, now = busy(10_000, 10.0, 15)
    assert not queue.hopeless(NORMAL, now + 0.1, now)
    queue, now = busy(10_000, 10.0, 20)
    assert queue.hopeless(NORMAL, now + 0.1, now)


def test_what_was_seen_before_the_queue_was_empty_does_not_count() -> None:
    queue, now = busy(0, 10.0, 100)
    for _ in range(1_000):
        queue.put(Waiter(None, NORMAL, b"", 0.0), now + 600)
    assert not queue.hopeless(NORMAL, now + 601, now + 600)


def test_a_rate_that_rises_counts_at_once() -> None:
    queue, now = busy(5_000, 10.0, 600)
    assert queue.hopeless(NORMAL, now + 20, now)
    for step in range(1_500):
        queue.take(now + step / 500, [])
    assert not queue.hopeless(NORMAL, now + 23, now + 3)


@given(
    st.floats(0.5, 500),  # permits per second
    st.integers(16, 300),  # seen
    st.integers(0, 500),  # waiting
    st.floats(0.01, 100),  # left
    st.floats(0, 1),  # of the time to the next permit has passed
)
def test_at_a_steady_rate_nobody_is_refused_who_would_be_served(
    rate: float, grants: int, waiting: int, left_s: float, passed: float
) -> None:
    queue, now = busy(waiting, rate, grants)
    now += passed * 0.99 / rate
    if queue.hopeless(NORMAL, now + left_s, now):
        assert NOW + (grants + waiting + 1) / rate > now + left_s


@pytest.mark.parametrize("every_s", [1.0, 10.0, 60.0, 300.0])
@pytest.mark.parametrize("permits", [10, 16])
def test_permits_of_long_calls_that_come_in_bunches(every_s: float, permits: int) -> None:
    # All calls began together: no permit for long, then all at once. The next bunch serves the call.
    queue = LaneQueue(PLAIN)
    for _ in range(permits * 21):
        queue.put(Waiter(None, NORMAL, b"", 0.0), NOW)
    now = NOW
    for _ in range(20):
        for _ in range(permits):
            queue.take(now, [])
        now += every_s
        while queue.waiting > permits // 2:
            queue.remove(next(iter(queue._arrivals.values())))
        assert not queue.hopeless(NORMAL, now + every_s * 2, now - 0.01)
        for _ in range(permits):
            queue.put(Waiter(None, NORMAL, b"", 0.0), now)


def test_another_tenants_crowd_is_no_reason() -> None:
    queue, now = busy(10_000, 10.0, 100, tenant=b"crowd")
    assert queue.hopeless(NORMAL, now + 5, now, b"crowd") is False  # its deadline comes before those that have none
    assert queue.hopeless(NORMAL, now + 5, now, b"single") is False
    assert queue.hopeless(NORMAL, now + 5, now) is True


def test_a_tenants_own_earlier_deadlines_are() -> None:
    queue, now = busy(0, 10.0, 100)
    for tenant, count in ((b"a", 400), (b"b", 400), (b"c", 1), (b"d", 1)):
        for _ in range(count):
            queue.put(Waiter(None, NORMAL, tenant, now + 30), now)
    for step in range(20):
        queue.take(now + step / 10, [])
    now += 2
    assert queue.hopeless(NORMAL, now + 25, now, b"e") is False
    assert queue.hopeless(NORMAL, now + 25, now, b"a") is False  # before its own
    assert queue.hopeless(NORMAL, now + 29, now, b"a") is True  # behind some 390 of its own, and as many of another
    assert queue.hopeless(NORMAL, now + 29, now, b"c") is False


def test_others_get_a_turn_in_each_round() -> None:
    queue = LaneQueue(PLAIN)
    for tenant in (b"own",) * 100 + tuple(b"%d" % number for number in range(220)):
        queue.put(Waiter(None, NORMAL, tenant, NOW + 10), NOW)
    for step in range(20):
        queue.take(NOW + (step + 1) / 10, [])
    # 99 of its own and one each of 201 others come first: 300, at 10/s as seen and 14.5/s at most.
    assert queue.hopeless(NORMAL, NOW + 2 + 15, NOW + 2, b"own") is True
    assert queue.hopeless(NORMAL, NOW + 2 + 22, NOW + 2, b"own") is False


# -- the fastest first chunk -------------------------------------------------------------------------------------------


def test_less_than_the_fastest_first_chunk_is_left() -> None:
    queue = LaneQueue(PLAIN)
    queue.served(2.0, NOW)
    queue.served(0.5, NOW)
    queue.served(3.0, NOW)
    assert queue.hopeless(NORMAL, NOW + 0.4, NOW)
    assert not queue.hopeless(NORMAL, NOW + 0.6, NOW)


def test_the_fastest_is_forgotten_after_one_or_two_windows() -> None:
    queue = LaneQueue(PLAIN)
    queue.served(0.5, NOW)
    for step in range(1, 31):
        queue.served(4.0, NOW + step)
        refused = queue.hopeless(NORMAL, NOW + step + 3, NOW + step)
        assert refused is (step >= 20)
    assert not queue.hopeless(NORMAL, NOW + 53, NOW + 50)  # nothing was heard lately: nothing is known


def test_what_was_heard_long_ago_is_forgotten() -> None:
    queue = LaneQueue(PLAIN)
    queue.served(0.5, NOW)
    queue.served(4.0, NOW + 12)
    assert not queue.hopeless(NORMAL, NOW + 24, NOW + 21)
    assert queue.hopeless(NORMAL, NOW + 26, NOW + 23)
    queue.served(0.5, NOW + 23)
    queue.served(4.0, NOW + 100)
    assert queue.hopeless(NORMAL, NOW + 103, NOW + 100)


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_that_is_none_is_not_learnt(wrong: float) -> None:
    queue = LaneQueue(PLAIN)
    queue.served(wrong, NOW)
    assert not queue.hopeless(NORMAL, NOW + 0.001, NOW)


def test_who_became_hopeless_is_shed_when_its_turn_comes() -> None:
    queue = LaneQueue(PLAIN)
    late, fine = Waiter(None, NORMAL, b"", NOW + 2.0), Waiter(None, NORMAL, b"", NOW + 9.0)
    for one in (late, fine):
        queue.put(one, NOW)
    queue.served(1.5, NOW + 1)
    shed: list[Waiter] = []
    assert queue.take(NOW + 1, shed) is fine
    assert shed == [late]
    assert late.late
    assert not fine.late
