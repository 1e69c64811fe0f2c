"""The queue of one agent at one hop: who waits for a permit, who is next, and who need not wait any longer.

Always holds: a waiter leaves once, by `take`, `remove` or as the one `put` has no room for; counts are exact; memory
is bounded by who waits. Among lanes that wait each gets its share of the permits, and what the others leave goes to the
most urgent, so none with a share starves: of any n permits given while it waits it gets n * share, less three. Inside
a lane tenants take turns: a tenant's first call waits one round at most, however many calls another has waiting.
Inside a tenant the earliest deadline is first; who has none comes last; ties go by arrival. A waiter is found in
O(log n) comparisons, plus one move of half its tenant's references at most.

A lane sheds by CoDel as folly has it (`Codel`), but never the last it has: there is a permit for that one.

Deliberately not here: permits and limits, timers (the longest wait, a deadline that passes meanwhile), the replies.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from math import exp, inf, sqrt
from typing import Any, Final

from outrider.policy import LANES, Queue

_DUE: Final = 1.0 - 1e-9  # credit from which on a lane is owed a permit; ten shares of 0.1 must add up to it
_MIN_GRANTS: Final = 16.0  # lately, for their rate to be held against anybody
_SLOW_S: Final = 60.0  # memory of the grant rate: permits of long calls come in bunches
_FAST_S: Final = 2.0  # the same, so that a rate that rises counts at once
_CHUNK_S: Final = 10.0  # how long the fastest first chunk is remembered: once to twice that
_TRIM: Final = 32  # entries that were taken and stay in front of a tenant's list at least


class Waiter:
    """One call's place in the queue. `call`, `labels` and `timer` are the owner's, the rest the queue's once put."""

    __slots__ = ("call", "deadline", "labels", "lane", "late", "number", "queued", "queued_at", "tenant", "timer")

    def __init__(self, call: Any, lane: int, tenant: bytes, deadline: float):
        self.call = call
        self.labels: tuple[tuple[str, str], ...] = ()  # of the endpoints it is bound to
        self.lane = lane  # index of `policy.LANES`
        self.tenant = tenant
        self.deadline = deadline  # monotonic seconds; 0.0: none
        self.queued_at = 0.0
        self.queued = False
        self.late = False  # `take` has shed it because its deadline cannot be met
        self.number = 0  # by arrival
        self.timer: Any = None


class Codel:
    """Controlled delay of one lane: it is overloaded when the shortest wait of an interval was above the target.

    Then who has waited twice the target is shed (folly's Codel; RFC 8289 has the reasoning). Target 0: never.
    """

    __slots__ = ("_interval_s", "_shortest_s", "_target_s", "_until", "overloaded")

    def __init__(self) -> None:
        self._target_s = 0.0
        self._interval_s = 0.0
        self._shortest_s = 0.0  # of the interval that runs
        self._until = 0.0  # its end
        self.overloaded = False

    def configure(self, target_s: float, interval_s: float) -> None:
        """Take the figures of a policy; what was seen counts on."""
        self._target_s = target_s
        self._interval_s = interval_s
        if target_s <= 0.0:
            self.idle()

    def idle(self) -> None:
        """Nobody waits: there is no standing queue."""
        self._shortest_s = 0.0
        self.overloaded = False

    def sheds(self, wait_s: float, now: float) -> bool:
        """Count the wait of who would be next, and say whether it was too long."""
        if self._target_s <= 0.0:
            return False
        if now >= self._until:
            self.overloaded = self._shortest_s > self._target_s
            self._shortest_s = wait_s
            self._until = now + self._interval_s
        elif wait_s < self._shortest_s:
            self._shortest_s = wait_s
        return self.overloaded and wait_s > 2.0 * self._target_s


class _GrantRate:
    """Permits per second while somebody waits, by two decayed counts: the higher of a slow and a fast one."""

    __slots__ = ("_at", "_began", "_fast", "_slow")

    def __init__(self) -> None:
        self._began = 0.0
        self._at = 0.0
        self._slow = 0.0
        self._fast = 0.0

    def begin(self, now: float) -> None:
        """The first waits: permits given while none waited say nothing about how fast they come."""
        self._began = self._at = now
        self._slow = self._fast = 0.0

    def count(self, now: float) -> None:
        passed = max(0.0, now - self._at)
        self._slow = self._slow * exp(-passed / _SLOW_S) + 1.0
        self._fast = self._fast * exp(-passed / _FAST_S) + 1.0
        self._at = max(now, self._at)

    def most_per_s(self, now: float) -> float:
        """What the rate may well be, two deviations above what was seen; endless where too few were seen."""
        passed = max(0.0, now - self._at)
        slow = self._slow * exp(-passed / _SLOW_S)
        watched_s = max(now, self._at) - self._began
        if slow < _MIN_GRANTS or watched_s <= 0.0:
            return inf
        fast = self._fast * exp(-passed / _FAST_S)
        # A decayed count of a constant rate is rate * memory * (1 - e^(-watched / memory)).
        slow_rate = slow / (_SLOW_S * (1.0 - exp(-watched_s / _SLOW_S)))
        fast_rate = fast / (_FAST_S * (1.0 - exp(-watched_s / _FAST_S)))
        return max(slow_rate, fast_rate) * (1.0 + 2.0 / sqrt(slow))


class _Fastest:
    """The shortest time to a first chunk of the last one to two windows; 0.0 where none was seen."""

    __slots__ = ("_before", "_until", "_within")

    def __init__(self) -> None:
        self._within = inf
        self._before = inf
        self._until = 0.0

    def add(self, first_chunk_s: float, now: float) -> None:
        if not 0.0 < first_chunk_s < inf:
            return
        if now >= self._until:
            self._before = self._within if now < self._until + _CHUNK_S else inf
            self._within = first_chunk_s
            self._until = now + _CHUNK_S
        elif first_chunk_s < self._within:
            self._within = first_chunk_s

    def least_s(self, now: float) -> float:
        if now >= self._until + _CHUNK_S:
            return 0.0
        return self._within if now >= self._until else min(self._within, self._before)


class _Tenant:
    """One tenant's waiters in one lane, as (deadline, number) in order; those before `_first` are gone."""

    __slots__ = ("_entries", "_first")

    def __init__(self) -> None:
        self._entries: list[tuple[float, int]] = []
        self._first = 0

    def count(self) -> int:
        return len(self._entries) - self._first

    def add(self, entry: tuple[float, int]) -> None:
        insort(self._entries, entry, self._first)

    def pop(self) -> int:
        """Take out who is first; its number."""
        number = self._entries[self._first][1]
        self._first += 1
        self._trim()
        return number

    def remove(self, entry: tuple[float, int]) -> None:
        entries, first = self._entries, self._first
        index = bisect_left(entries, entry, first)
        if index - first < len(entries) - index:  # most leave near the front, at their deadline
            entries[first + 1 : index + 1] = entries[first:index]
            self._first += 1
            self._trim()
        else:
            del entries[index]

    def before(self, entry: tuple[float, int]) -> int:
        """How many come before such a waiter."""
        return bisect_left(self._entries, entry, self._first) - self._first

    def _trim(self) -> None:
        if self._first >= _TRIM and self._first * 2 >= len(self._entries):
            del self._entries[: self._first]
            self._first = 0


class _Lane:
    """One lane: its waiters by number, the newest last, and its tenants, the next one first."""

    __slots__ = ("codel", "credit", "share", "tenants", "waiters")

    def __init__(self) -> None:
        self.waiters: OrderedDict[int, Waiter] = OrderedDict()
        self.tenants: OrderedDict[bytes, _Tenant] = OrderedDict()
        self.codel = Codel()
        self.share = 0.0
        self.credit = 0.0  # permits it is owed

    def add(self, waiter: Waiter) -> None:
        tenant = self.tenants.get(waiter.tenant)
        if tenant is None:
            tenant = self.tenants[waiter.tenant] = _Tenant()
        tenant.add((waiter.deadline or inf, waiter.number))
        self.waiters[waiter.number] = waiter

    def remove(self, waiter: Waiter) -> None:
        tenant = self.tenants[waiter.tenant]
        tenant.remove((waiter.deadline or inf, waiter.number))
        if not tenant.count():
            del self.tenants[waiter.tenant]
        del self.waiters[waiter.number]
        if not self.waiters:
            self.idle()

    def take(self, now: float, soonest_s: float, shed: list[Waiter]) -> Waiter | None:
        """Take out who is next; those before it that must be shed are appended. A turn is used by a permit alone."""
        while self.tenants:
            name = next(iter(self.tenants))
            tenant = self.tenants[name]
            waiter = self.waiters.pop(tenant.pop())
            left = tenant.count()
            if not left:
                del self.tenants[name]
            if waiter.deadline and waiter.deadline - now <= soonest_s:
                waiter.late = True
            elif not (self.codel.sheds(max(0.0, now - waiter.queued_at), now) and self.waiters):
                if left:
                    self.tenants.move_to_end(name)
                return waiter
            shed.append(waiter)
        return None

    def idle(self) -> None:
        """Nobody waits in it any more: nothing is owed."""
        self.credit = 0.0
        self.codel.idle()


class LaneQueue:
    """See the module. `waiting` counts all lanes."""

    __slots__ = ("_arrivals", "_fastest", "_lanes", "_max_waiting", "_number", "_rate", "waiting")

    def __init__(self, policy: Queue):
        self._lanes = [_Lane() for _ in LANES]
        self._arrivals: OrderedDict[int, Waiter] = OrderedDict()
        self._rate = _GrantRate()
        self._fastest = _Fastest()
        self._max_waiting = 0
        self._number = 0
        self.waiting = 0
        self.configure(policy)

    def configure(self, policy: Queue) -> None:
        """Take a policy. Who waits goes on waiting, also above a bound that is now lower."""
        self._max_waiting = policy.max_waiting
        shares = (policy.share_low, policy.share_normal, policy.share_high, policy.share_critical)
        whole = max(1.0, sum(shares))
        for lane, share in zip(self._lanes, shares, strict=True):
            lane.share = share / whole
            lane.codel.configure(policy.codel_target_ms / 1e3, policy.codel_interval_ms / 1e3)

    def lane_waiting(self) -> tuple[int, int, int, int]:
        """How many wait, from low to critical."""
        low, normal, high, critical = self._lanes
        return len(low.waiters), len(normal.waiters), len(high.waiters), len(critical.waiters)

    def longest_wait_s(self, now: float) -> float:
        """How long the first of all has waited; 0.0: nobody waits."""
        if not self.waiting:
            return 0.0
        return max(0.0, now - self._arrivals[next(iter(self._arrivals))].queued_at)

    # -- in and out ------------------------------------------------------------------------------------------------

    def put(self, waiter: Waiter, now: float) -> Waiter | None:
        """Queue a waiter. Where there is no room, the one that must be shed for it: out of the queue already.

        It is the newest of the least urgent lane, and never of a more urgent lane than `waiter`, which it may be
        itself.
        """
        victim = None
        if self.waiting >= self._max_waiting:
            victim = self._newest_below(waiter.lane) if self._max_waiting else None
            if victim is None:
                return waiter
            self.remove(victim)
        if not self.waiting:
            self._rate.begin(now)
        self._number += 1
        waiter.number = self._number
        waiter.queued_at = now
        waiter.queued = True
        waiter.late = False
        self._lanes[waiter.lane].add(waiter)
        self._arrivals[waiter.number] = waiter
        self.waiting += 1
        return victim

    def take(self, now: float, shed: list[Waiter]) -> Waiter | None:
        """Who gets the permit that is free; None: nobody waits any more.

        Who must be shed at that is appended to `shed`, out of the queue already: by CoDel, or (`late`) because less
        than the fastest first chunk is left of its deadline.
        """
        if not self.waiting:
            return None
        for lane in self._lanes:
            if lane.waiters:
                lane.credit += lane.share
        soonest_s = self._fastest.least_s(now)
        known = len(shed)
        granted: Waiter | None = None
        while granted is None and self.waiting > len(shed) - known:
            lane = self._next_lane()
            granted = lane.take(now, soonest_s, shed)
            if granted is not None and lane.credit >= _DUE:
                lane.credit -= 1.0
            if not lane.waiters:
                lane.idle()
        for index in range(known, len(shed)):
            self._gone(shed[index])
        if granted is not None:
            self._gone(granted)
            self._rate.count(now)
        return granted

    def remove(self, waiter: Waiter) -> bool:
        """Take a waiter out whose caller is gone or whose time is over; False: it was out already."""
        if not waiter.queued:
            return False
        self._lanes[waiter.lane].remove(waiter)
        self._gone(waiter)
        return True

    def raise_lane(self, waiter: Waiter, lane: int, now: float) -> None:
        """A more urgent caller waits for the same reply: on to its lane, with what it has waited so far.

        Of that lane it is the last to be shed for want of room, as several callers wait for it.
        """
        if not waiter.queued or lane <= waiter.lane:
            return
        self._lanes[waiter.lane].remove(waiter)
        waiter.lane = lane
        to = self._lanes[lane]
        to.add(waiter)
        to.waiters.move_to_end(waiter.number, last=False)

    def set_deadline(self, waiter: Waiter, deadline: float) -> None:
        """Other callers wait for the same reply, with more or less time; it keeps what it has waited."""
        if waiter.queued:
            tenant = self._lanes[waiter.lane].tenants[waiter.tenant]
            tenant.remove((waiter.deadline or inf, waiter.number))
            tenant.add((deadline or inf, waiter.number))
        waiter.deadline = deadline

    # -- deadlines -------------------------------------------------------------------------------------------------

    def hopeless(self, lane: int, deadline: float, now: float, tenant: bytes | None = None) -> bool:
        """Whether a call with this deadline cannot be met, were it queued now. O(log n).

        It errs on the call's side: only those of its own lane count, as if they got every permit, at a rate that is
        two deviations above the one seen lately, and while too few permits were given the rate is held against nobody.
        Then the fastest first chunk seen lately must still fit in. With a `tenant` only those count that come before
        it for sure: its own with earlier deadlines and, where there are such, what the others get in as many rounds
        at least. Without, all of the lane do.
        """
        if not deadline:
            return False
        left_s = deadline - now - self._fastest.least_s(now)
        if left_s <= 0.0:
            return True
        ahead = self._ahead(self._lanes[lane], deadline, tenant)
        return ahead > 0 and ahead > left_s * self._rate.most_per_s(now)

    def served(self, first_chunk_s: float, now: float) -> None:
        """A granted call's first chunk has come after so long."""
        self._fastest.add(first_chunk_s, now)

    # -- within ----------------------------------------------------------------------------------------------------

    def _ahead(self, lane: _Lane, deadline: float, tenant: bytes | None) -> int:
        if tenant is None:
            return len(lane.waiters)
        own = lane.tenants.get(tenant)
        if own is None:
            return 0
        rounds = own.before((deadline, self._number + 1))
        others = len(lane.tenants) - 1
        if not rounds or not others:
            return rounds
        # In so many rounds others get least where one of them has all but one call each of the rest.
        return rounds + others - 1 + min(rounds, len(lane.waiters) - own.count() - others + 1)

    def _newest_below(self, lane: int) -> Waiter | None:
        """The newest of the least urgent lane that waits, if that is less urgent than `lane`."""
        for index in range(lane):
            waiters = self._lanes[index].waiters
            if waiters:
                return waiters[next(reversed(waiters))]
        return None

    def _next_lane(self) -> _Lane:
        """The lane that is owed most, where one is owed a permit; else the most urgent that waits."""
        chosen: _Lane | None = None
        most = _DUE
        for index in range(len(self._lanes) - 1, -1, -1):
            lane = self._lanes[index]
            if lane.waiters and (chosen is None or lane.credit > most):
                chosen = lane
                most = max(most, lane.credit)
        assert chosen is not None  # `take` asks while somebody waits
        return chosen

    def _gone(self, waiter: Waiter) -> None:
        waiter.queued = False
        del self._arrivals[waiter.number]
        self.waiting -= 1
