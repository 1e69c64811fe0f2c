"""Queues by labels: sums are of all, and nobody waits behind those who are bound elsewhere."""

from __future__ import annotations

from dataclasses import replace

from outrider.policy import Queue
from outrider_sidecar.engines.lanes import LaneQueue, Waiter
from outrider_sidecar.engines.queues import Queues

POLICY = Queue(max_waiting=3)
V2 = (("version", "v2"),)


def waiter(name: str, labels: tuple[tuple[str, str], ...] = (), lane: int = 1) -> Waiter:
    one = Waiter(name, lane, b"", 0.0)
    one.labels = labels
    return one


def queues() -> Queues:
    return Queues(LaneQueue, POLICY)


def test_each_set_of_labels_has_its_own_queue() -> None:
    both = queues()
    for name in ("a", "b"):
        both.put(waiter(name), 0.0)
    both.put(waiter("c", V2, 2), 1.0)
    assert (both.waiting, both.lane_waiting(), both.longest_wait_s(2.0)) == (3, (0, 2, 1, 0), 2.0)
    assert (both.waits_for(()), both.waits_for(V2), both.waits_for((("zone", "x"),))) == (True, True, False)
    assert both.take(V2, 1.0, []).call == "c"
    assert both.take((), 1.0, []).call == "a"
    assert (both.waiting, both.groups()) == (1, [()])


def test_they_begin_with_another_one_each_time() -> None:
    both = queues()
    both.put(waiter("a"), 0.0)
    both.put(waiter("b", V2), 0.0)
    assert {tuple(both.groups()[0]) for _ in range(4)} == {(), V2}
    assert queues().groups() == []


def test_each_has_the_bounds_of_the_policy() -> None:
    both = queues()
    for at in range(3):
        assert both.put(waiter(f"a{at}"), 0.0) is None
    assert both.put(waiter("b", V2), 0.0) is None
    refused = waiter("a3")
    assert both.put(refused, 0.0) is refused
    urgent = waiter("a4", (), 3)
    victim = both.put(urgent, 0.0)
    assert victim is not None
    assert (victim.call, both.waiting) == ("a2", 4)
    both.configure(replace(POLICY, max_waiting=1))
    late = waiter("c", V2)
    assert both.put(late, 0.0) is late


def test_who_leaves_is_counted_out_once() -> None:
    both = queues()
    one, other = waiter("a"), waiter("b", V2)
    both.put(one, 0.0)
    both.put(other, 0.0)
    both.raise_lane(other, 3, 0.0)
    both.set_deadline(other, 9.0)
    assert both.lane_waiting() == (0, 1, 0, 1)
    assert [both.remove(other), both.remove(other), both.remove(one)] == [True, False, True]
    assert (both.waiting, both.lane_waiting(), both.longest_wait_s(5.0)) == (0, (0, 0, 0, 0), 0.0)


def test_who_must_be_shed_is_counted_out() -> None:
    both = queues()
    late = Waiter("late", 1, b"", 1.0)
    both.put(late, 0.0)
    shed: list[Waiter] = []
    assert both.take((), 2.0, shed) is None
    assert (shed, both.waiting) == ([late], 0)


def test_queues_in_which_nobody_waits_are_let_go_of() -> None:
    both = queues()
    for at in range(1_000):
        labels = (("version", str(at)),)
        one = waiter("a", labels)
        both.put(one, 0.0)
        both.served(labels, 0.1, 0.0)
        assert not both.hopeless(labels, 1, 0.0, 0.0, b"")
        both.remove(one)
    assert len(both._by_labels) <= 64
