"""CoDel of a lane: when it is overloaded, whom it sheds then, and that it never sheds the last."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from outrider.policy import Queue
from outrider_sidecar.engines.lanes import Codel, LaneQueue, Waiter

NOW = 1_000.0
TARGET_S = 0.1
INTERVAL_S = 1.0
POLICY = replace(Queue(), codel_target_ms=100, codel_interval_ms=1_000)


def codel(target_s: float = TARGET_S) -> Codel:
    made = Codel()
    made.configure(target_s, INTERVAL_S)
    return made


def overloaded() -> Codel:
    """One that has seen a whole interval of waits above the target; the next one has begun at NOW + 1."""
    made = codel()
    assert not made.sheds(0.15, NOW)
    assert not made.sheds(0.15, NOW + INTERVAL_S)
    return made


def test_waits_above_the_target_for_an_interval_are_an_overload() -> None:
    assert overloaded().overloaded


def test_then_who_waited_twice_the_target_is_shed() -> None:
    made = overloaded()
    assert made.sheds(0.201, NOW + 1.1)
    assert not made.sheds(0.199, NOW + 1.1)


def test_one_short_wait_in_an_interval_is_no_overload() -> None:
    made = codel()
    for step in range(10):
        assert not made.sheds(0.05 if step == 5 else 9.0, NOW + step / 10)
    assert not made.sheds(9.0, NOW + INTERVAL_S)


def test_an_overload_is_over_with_an_interval_that_had_a_short_wait() -> None:
    made = overloaded()
    assert not made.sheds(0.05, NOW + 1.5)
    assert made.sheds(9.0, NOW + 1.9)  # the interval is not over
    assert not made.sheds(9.0, NOW + 2.0)


def test_an_empty_lane_has_no_standing_queue() -> None:
    made = overloaded()
    made.idle()
    assert not made.sheds(9.0, NOW + 1.1)
    made.idle()
    assert not made.sheds(9.0, NOW + 5.0)  # what was seen before says nothing either


def test_target_zero_is_off() -> None:
    made = codel(0.0)
    assert not any(made.sheds(1e6, NOW + step) for step in range(100))
    made = overloaded()
    made.configure(0.0, INTERVAL_S)
    assert not made.sheds(9.0, NOW + 1.1)


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 0.5)), max_size=200))
def test_what_is_shed_waited_twice_the_target_after_an_interval_of_long_waits(seen: list[tuple[float, float]]) -> None:
    made = codel()
    now = NOW
    waits: list[tuple[float, float]] = []
    for wait_s, passed_s in seen:
        now += passed_s
        if made.sheds(wait_s, now):
            assert wait_s > 2 * TARGET_S
            # Some interval's worth of takes before this one had no short wait among them.
            assert any(
                all(other > TARGET_S for when, other in waits if start <= when < start + INTERVAL_S)
                for start, _ in waits
            )
        waits.append((now, wait_s))


def queued(count: int, lane: int = 1) -> LaneQueue:
    queue = LaneQueue(POLICY)
    for _ in range(count):
        queue.put(Waiter(None, lane, b"", 0.0), NOW)
    return queue


def test_the_queue_sheds_who_waits_too_long_but_never_the_last() -> None:
    queue = queued(10)
    shed: list[Waiter] = []
    assert queue.take(NOW + 0.5, shed) is not None
    assert not shed
    granted = queue.take(NOW + 1.5, shed)
    assert granted is not None
    assert len(shed) == 8
    assert not any(one.late for one in shed)
    assert queue.waiting == 0


def test_a_lane_that_was_empty_begins_anew() -> None:
    queue = queued(10)
    shed: list[Waiter] = []
    queue.take(NOW + 0.5, shed)
    queue.take(NOW + 1.5, shed)
    assert queue.waiting == 0
    shed.clear()
    for _ in range(3):
        queue.put(Waiter(None, 1, b"", 0.0), NOW + 1.6)
    assert queue.take(NOW + 2.0, shed) is not None
    assert not shed


def test_who_came_lately_is_not_shed() -> None:
    queue = queued(5)
    shed: list[Waiter] = []
    queue.take(NOW + 0.5, shed)
    young = Waiter(None, 1, b"", 0.0)
    queue.put(young, NOW + 1.4)
    assert queue.take(NOW + 1.5, shed) is young
    assert len(shed) == 4


def test_lanes_are_judged_apart() -> None:
    queue = queued(10, lane=0)
    shed: list[Waiter] = []
    for step in range(40):
        now = NOW + step * 0.1
        queue.put(Waiter(None, 3, b"", 0.0), now)
        while queue.lane_waiting()[3]:
            queue.take(now, shed)
    assert shed
    assert {one.lane for one in shed} == {0}


def test_a_policy_turns_it_off_for_who_waits() -> None:
    queue = queued(10)
    shed: list[Waiter] = []
    queue.take(NOW + 0.5, shed)
    queue.configure(replace(POLICY, codel_target_ms=0))
    while queue.waiting:
        assert queue.take(NOW + 60, shed) is not None
    assert not shed
