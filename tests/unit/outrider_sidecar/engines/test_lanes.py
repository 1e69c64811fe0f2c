"""The queue: leaves, counts, lanes, tenants, deadlines and bounds, under any interleaving, in virtual time."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import inf
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.policy import Queue
from outrider_sidecar.engines.lanes import LaneQueue, Waiter

NOW = 1_000.0
LOW, NORMAL, HIGH, CRITICAL = range(4)
SHARES = (0.1, 0.2, 0.3, 0.4)
PLAIN = Queue(codel_target_ms=0)
TENANTS = (b"", b"a", b"b", b"c")


def waiter(lane: int = NORMAL, tenant: bytes = b"", deadline: float = 0.0, call: object = None) -> Waiter:
    return Waiter(call, lane, tenant, deadline)


def filled(*waiters: Waiter, policy: Queue = PLAIN) -> LaneQueue:
    queue = LaneQueue(policy)
    for one in waiters:
        assert queue.put(one, NOW) is None
    return queue


def taken(queue: LaneQueue, count: int, now: float = NOW) -> list[Waiter]:
    """So many grants, none of them with a shed."""
    shed: list[Waiter] = []
    granted = [queue.take(now, shed) for _ in range(count)]
    assert not shed
    return [one for one in granted if one is not None]


# -- any interleaving --------------------------------------------------------------------------------------------------

DEADLINES = st.sampled_from((0.0, 0.5, 1.0, 1.0, 2.0, 30.0))  # after the put; 0.0: none
STEPS = st.one_of(
    st.tuples(st.just("put"), st.integers(0, 3), st.sampled_from(TENANTS), DEADLINES),
    st.tuples(st.just("put"), st.integers(0, 3), st.sampled_from(TENANTS), DEADLINES),
    st.tuples(st.just("take")),
    st.tuples(st.just("remove"), st.integers(0, 10**6)),
    st.tuples(st.just("raise"), st.integers(0, 10**6), st.integers(0, 3)),
    st.tuples(st.just("redate"), st.integers(0, 10**6), DEADLINES),
    st.tuples(st.just("configure"), st.sampled_from((0, 1, 3, 50)), st.sampled_from((0, 100, 400))),
    st.tuples(st.just("pass"), st.sampled_from((0.0, 0.01, 0.3, 2.0))),
    st.tuples(st.just("served"), st.sampled_from((0.01, 0.4))),
)


class Model:
    """The queue beside a plain set of who waits; every step is checked."""

    def __init__(self) -> None:
        self.policy = replace(PLAIN, max_waiting=8)
        self.queue = LaneQueue(self.policy)
        self.now = NOW
        self.waiting: list[Waiter] = []
        self.left: Counter[int] = Counter()
        self.made: list[Waiter] = []

    def leave(self, one: Waiter) -> None:
        assert not one.queued
        self.waiting.remove(one)
        self.left[id(one)] += 1

    def put(self, lane: int, tenant: bytes, left_s: float) -> None:
        one = waiter(lane, tenant, left_s and self.now + left_s)
        self.made.append(one)
        bound = self.policy.max_waiting
        below = min((other.lane for other in self.waiting), default=inf)
        was_full = len(self.waiting) >= bound
        self.waiting.append(one)
        victim = self.queue.put(one, self.now)
        assert (victim is not None) == was_full
        if victim is not None:
            assert victim is one or (victim.lane < lane and victim.lane == below)
            assert victim is not one or not bound or lane <= below
            self.leave(victim)

    def take(self) -> None:
        shed: list[Waiter] = []
        granted = self.queue.take(self.now, shed)
        assert (granted is not None or bool(shed)) == bool(self.waiting)
        for one in shed:
            assert one.late or self.now - one.queued_at > 2 * self.policy.codel_target_ms / 1e3 > 0
            self.leave(one)
        if granted is None:
            assert not self.waiting
            return
        assert not granted.late
        assert not granted.deadline or granted.deadline > self.now
        mine = [one for one in self.waiting if (one.lane, one.tenant) == (granted.lane, granted.tenant)]
        assert granted is min(mine, key=lambda one: (one.deadline or inf, one.number))
        self.leave(granted)

    def remove(self, index: int) -> None:
        if self.made:
            one = self.made[index % len(self.made)]
            was_queued = one in self.waiting
            assert self.queue.remove(one) is was_queued
            if was_queued:
                self.leave(one)

    def raise_(self, index: int, lane: int) -> None:
        if self.made:
            one = self.made[index % len(self.made)]
            expected = max(lane, one.lane) if one in self.waiting else one.lane
            self.queue.raise_lane(one, lane, self.now)
            assert one.lane == expected

    def redate(self, index: int, left_s: float) -> None:
        if self.made:
            one = self.made[index % len(self.made)]
            self.queue.set_deadline(one, left_s and self.now + left_s)

    def configure(self, max_waiting: int, target_ms: int) -> None:
        self.policy = replace(self.policy, max_waiting=max_waiting, codel_target_ms=target_ms)
        self.queue.configure(self.policy)

    def check(self) -> None:
        queue = self.queue
        by_lane = Counter(one.lane for one in self.waiting)
        assert queue.waiting == len(self.waiting)
        assert queue.lane_waiting() == tuple(by_lane[lane] for lane in range(4))
        longest = max((self.now - one.queued_at for one in self.waiting), default=0.0)
        assert queue.longest_wait_s(self.now) == pytest.approx(longest)
        assert all(one.queued for one in self.waiting)
        assert held(queue) <= 2 * len(self.waiting) + 32 * len({(one.lane, one.tenant) for one in self.waiting})


def held(queue: LaneQueue) -> int:
    """Entries in memory, those of waiters that are gone included."""
    return sum(len(tenant._entries) for lane in queue._lanes for tenant in lane.tenants.values())


@given(st.lists(STEPS, max_size=120))
def test_every_waiter_leaves_once_and_counts_are_exact(steps: list[tuple]) -> None:
    model = Model()
    for name, *arguments in steps:
        if name == "pass":
            model.now += arguments[0]
        elif name == "served":
            model.queue.served(arguments[0], model.now)
        else:
            getattr(model, "raise_" if name == "raise" else name)(*arguments)
        model.check()
    while model.queue.waiting:
        model.take()
    model.check()
    assert all(model.left[id(one)] == 1 for one in model.made)


ARRIVALS = st.lists(st.tuples(st.integers(0, 3), st.sampled_from((1, 1, 2, 30))), max_size=2)  # (lane, how many)

# -- lanes -------------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(ARRIVALS, st.integers(0, 7)), min_size=1, max_size=200),
    st.sampled_from((SHARES, (0.25, 0.25, 0.25, 0.25), (0.01, 0.01, 0.01, 0.97), (0.0, 0.5, 0.0, 0.5))),
)
def test_a_lane_gets_its_share_of_any_run_of_grants_while_it_waits(
    turns: list[tuple[list[tuple[int, int]], int]], shares: tuple[float, ...]
) -> None:
    low, normal, high, critical = shares
    queue = LaneQueue(replace(PLAIN, share_low=low, share_normal=normal, share_high=high, share_critical=critical))
    behind = [0.0] * 4  # what the lane lacks of its share, since the moment of its run when it lacked least
    least = [0.0] * 4
    for arrivals, leaver in turns:
        for lane, count in arrivals:
            for _ in range(count):
                queue.put(waiter(lane), NOW)
        if leaver < 4 and queue._lanes[leaver].waiters:
            queue.remove(next(iter(queue._lanes[leaver].waiters.values())))
        before = queue.lane_waiting()
        (granted,) = taken(queue, 1) or (None,)
        for lane in range(4):
            if not queue.lane_waiting()[lane] or not before[lane]:
                behind[lane] = least[lane] = 0.0
            elif granted is not None:
                behind[lane] += shares[lane] - (granted.lane == lane)
                least[lane] = min(least[lane], behind[lane])
                assert behind[lane] - least[lane] <= 3.0


def test_shares_are_exact_in_the_long_run() -> None:
    queue = filled(*[waiter(lane) for lane in range(4) for _ in range(1_000)])
    counted = Counter(one.lane for one in taken(queue, 1_000))
    assert [abs(counted[lane] - 1_000 * SHARES[lane]) <= 4 for lane in range(4)] == [True] * 4


def test_what_a_lane_leaves_goes_to_the_most_urgent() -> None:
    queue = filled(*[waiter(lane) for lane in (LOW, NORMAL, HIGH) for _ in range(1_000)])
    counted = Counter(one.lane for one in taken(queue, 1_000))
    assert counted[LOW] == pytest.approx(100, abs=4)
    assert counted[NORMAL] == pytest.approx(200, abs=4)
    assert counted[HIGH] == pytest.approx(700, abs=4)


def test_what_a_lane_got_beyond_its_share_is_not_held_against_it() -> None:
    queue = filled(*[waiter(HIGH) for _ in range(1_000)])
    taken(queue, 500)
    for lane in (LOW, NORMAL, CRITICAL):
        for _ in range(100):
            queue.put(waiter(lane), NOW)
    assert sum(one.lane == HIGH for one in taken(queue, 100)) >= 27


def test_no_share_is_served_when_nobody_else_waits() -> None:
    policy = replace(PLAIN, share_low=0.0, share_critical=0.5)
    queue = filled(*[waiter(LOW)] + [waiter(CRITICAL) for _ in range(50)], policy=policy)
    assert [one.lane for one in taken(queue, 51)] == [CRITICAL] * 50 + [LOW]


def test_a_lane_that_waited_long_ago_is_owed_nothing() -> None:
    low = waiter(LOW)
    queue = filled(low, *[waiter(CRITICAL) for _ in range(100)])
    assert low not in taken(queue, 9)  # the tenth would be its
    queue.remove(low)
    queue.put(waiter(LOW), NOW)
    assert [one.lane for one in taken(queue, 9)] == [CRITICAL] * 9


# -- tenants -----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 300), st.integers(1, 12), st.integers(0, 2**32))
def test_a_crowd_delays_another_tenants_call_by_one_round_at_most(crowd: int, tenants: int, seed: int) -> None:
    rng = Random(seed)
    queue = filled(
        *[waiter(tenant=b"%d" % rng.randrange(tenants), deadline=NOW + rng.random() + 1) for _ in range(crowd)]
    )
    taken(queue, rng.randrange(crowd))
    others = len(queue._lanes[NORMAL].tenants)
    single = waiter(tenant=b"single")
    queue.put(single, NOW)
    for _ in range(others):
        queue.put(waiter(tenant=b"late %d" % rng.randrange(50), deadline=NOW + 1), NOW)
    assert single in taken(queue, others + 1)


def test_ten_thousand_of_one_tenant_do_not_delay_another() -> None:
    queue = filled(*[waiter(tenant=b"crowd") for _ in range(10_000)], policy=replace(PLAIN, max_waiting=20_000))
    single = waiter(tenant=b"single")
    queue.put(single, NOW)
    assert single in taken(queue, 2)


def test_a_shed_call_does_not_use_its_tenants_turn() -> None:
    dead, alive, other = waiter(tenant=b"a", deadline=NOW + 1), waiter(tenant=b"a"), waiter(tenant=b"b")
    queue = filled(dead, alive, other)
    shed: list[Waiter] = []
    assert queue.take(NOW + 2, shed) is alive
    assert shed == [dead]
    assert dead.late


def test_tenants_that_are_gone_are_forgotten() -> None:
    queue = LaneQueue(PLAIN)
    for number in range(1_000):
        one = waiter(tenant=b"%d" % number)
        queue.put(one, NOW)
        queue.remove(one)
    assert all(not lane.tenants and not lane.waiters for lane in queue._lanes)
    assert not queue._arrivals


# -- order and memory of one tenant ------------------------------------------------------------------------------------


def test_earliest_deadline_first_then_arrival_then_who_has_none() -> None:
    none, late, early, tie = waiter(), waiter(deadline=NOW + 9), waiter(deadline=NOW + 5), waiter(deadline=NOW + 5)
    queue = filled(none, late, early, tie)
    assert taken(queue, 4) == [early, tie, late, none]


@given(st.lists(st.tuples(st.integers(1, 50), st.booleans()), max_size=300), st.integers(0, 2**32))
def test_order_holds_when_any_leave_from_any_place(made: list[tuple[int, bool]], seed: int) -> None:
    rng = Random(seed)
    waiters = [waiter(deadline=NOW + left_s) for left_s, _ in made]
    queue = filled(*waiters)
    leaving = [one for one, (_, leaves) in zip(waiters, made, strict=True) if leaves]
    rng.shuffle(leaving)
    for one in leaving:
        assert queue.remove(one)
    staying = [one for one, (_, leaves) in zip(waiters, made, strict=True) if not leaves]
    assert taken(queue, len(staying)) == sorted(staying, key=lambda one: (one.deadline, one.number))


def test_memory_follows_who_waits() -> None:
    queue = LaneQueue(PLAIN)
    for _ in range(20):
        for _ in range(1_000):
            queue.put(waiter(), NOW)
        while queue.waiting > 10:
            taken(queue, 1)
        assert held(queue) <= 64


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_the_newest_of_the_least_urgent_lane_makes_room() -> None:
    old, new, normal = waiter(LOW, deadline=NOW + 99), waiter(LOW, deadline=NOW + 1), waiter(NORMAL)
    queue = filled(old, new, normal, policy=replace(PLAIN, max_waiting=3))
    assert queue.put(waiter(HIGH), NOW) is new
    assert queue.put(waiter(HIGH), NOW) is old
    assert queue.put(waiter(CRITICAL), NOW) is normal
    assert queue.lane_waiting() == (0, 0, 2, 1)


def test_nobody_makes_room_for_the_equally_or_less_urgent() -> None:
    queue = filled(waiter(HIGH), waiter(HIGH), policy=replace(PLAIN, max_waiting=2))
    for lane in (LOW, NORMAL, HIGH):
        one = waiter(lane)
        assert queue.put(one, NOW) is one
        assert not one.queued


def test_without_room_at_all_nobody_waits() -> None:
    queue = LaneQueue(replace(PLAIN, max_waiting=0))
    one = waiter(CRITICAL)
    assert queue.put(one, NOW) is one


def test_a_lower_bound_keeps_who_waits() -> None:
    queue = filled(*[waiter(LOW) for _ in range(5)])
    queue.configure(replace(PLAIN, max_waiting=2))
    assert queue.waiting == 5
    one = waiter(LOW)
    assert queue.put(one, NOW) is one
    assert len(taken(queue, 5)) == 5


# -- raised ------------------------------------------------------------------------------------------------------------


def test_a_raised_waiter_keeps_what_it_waited_and_is_shed_last_of_its_lane() -> None:
    raised, other = waiter(LOW), waiter(NORMAL)
    queue = filled(other, policy=replace(PLAIN, max_waiting=2))
    queue.put(raised, NOW + 1)
    queue.raise_lane(raised, NORMAL, NOW + 2)
    assert raised.queued_at == NOW + 1
    assert queue.lane_waiting() == (0, 2, 0, 0)
    assert queue.put(waiter(HIGH), NOW + 2) is other


def test_nobody_is_lowered() -> None:
    high = waiter(HIGH)
    queue = filled(high)
    queue.raise_lane(high, LOW, NOW)
    assert high.lane == HIGH
    assert queue.lane_waiting() == (0, 0, 1, 0)


def test_a_new_deadline_is_another_place() -> None:
    first, second = waiter(deadline=NOW + 1), waiter(deadline=NOW + 2)
    queue = filled(first, second)
    queue.set_deadline(first, 0.0)
    assert taken(queue, 2) == [second, first]
