"""Single-flight: one upstream call for all concurrent callers of the same key.

The first caller leads: its call runs on and the flight listens to its reply. Later callers are followers. Always
holds: a follower that leaves disturbs nobody; when the leader leaves (cancelled, out of time) while others wait, its
work is handed over to a call of its own, which the last follower leaving cancels; a late follower gets everything
from the first byte on; DEADLINE_EXCEEDED, CANCELLED and RESOURCE_EXHAUSTED are not shared: the first follower leads
again. What is kept is bounded by `max_bytes`; past it nobody joins, the slowest sets the pace, and callers that stall
the others for `STALL_S` are cut.

Deliberately not here: keys and storing (the cache filter, which is the `owner`).
"""

from __future__ import annotations

from typing import Any, Final, Protocol

from outrider_http2.head import Head
from outrider_http2.stream import Sink, Stream
from outrider_sidecar.core import errors
from outrider_sidecar.core.call import Call
from outrider_sidecar.core.degraded import share
from outrider_sidecar.core.stage import Tap

STALL_S: Final = 10.0
UNSHARED: Final = frozenset({errors.DEADLINE_EXCEEDED, errors.CANCELLED, errors.RESOURCE_EXHAUSTED})
MAX_ELECTIONS: Final = 3
_STALLED: Final = "stalled while others read the same reply"
_UNCOUNTED_BYTES: Final = 64 * 1024  # smaller recordings are bounded by the number of calls in flight


class Owner(Protocol):
    """Who started the flight."""

    def ended(self, flight: Flight, status: int) -> None:
        """The reply is whole and has left, or the flight is over without one."""
        ...

    def lead(self, call: Call, flight: Flight) -> Flight:
        """A new flight for the same request, led by a call that followed the old one."""
        ...


class Nobody(Sink):
    """The sending half of a call whose caller is gone or never was."""

    __slots__ = ()

    def __init__(self) -> None:
        self.queue = None

    def send_head(self, head: Head, extra: bytes = b"", end: bool = False) -> None:
        pass

    def send_data(self, data: bytes, end: bool = False) -> None:
        pass

    def send_tail(self, head: Head, extra: bytes = b"") -> None:
        pass

    def credit(self, size: int) -> None:
        pass

    def reset(self, code: int) -> None:
        pass


NOBODY: Final = Nobody()


class Follower:
    """A follower's place in a flight; to its call it looks like an attempt under way."""

    def __init__(self, flight: Flight, call: Call):
        self.flight = flight
        self.call = call
        self.stream: Any = None  # requests are whole before they follow

    def abort(self) -> None:
        self.flight.leave(self.call)

    def reply_taken(self, size: int, all_taken: bool) -> None:
        if all_taken:
            self.flight.drained()


class Flight(Tap):
    """What the leader's reply has brought so far, and who follows it."""

    def __init__(self, key: bytes, max_bytes: int, owner: Owner, leader: Call, facts: Any, adapter: Any):
        self.key = key
        self.max_bytes = max_bytes
        self.owner = owner
        self.facts = facts  # of the request, for the owner
        self.adapter = adapter
        self.leader = leader
        self.followers: list[Call] = []
        self.head: Head | None = None
        self.head_extra = b""
        self.chunks: list[bytes] | None = []  # None: no longer kept, nobody may join
        self.gaps_ms: list[int] = []
        self.size = 0
        self.held_bytes = 0
        self.last_at = 0.0
        self.tail: Head | None = None
        self.over = False
        self.status = -1
        self.stall: Any = None
        self.behind: dict[Call, int] = {}  # who held the others up when the stall began, and what they had taken
        self.elections = 0
        leader.tap = self

    # -- followers -------------------------------------------------------------------------------------------------

    @property
    def open(self) -> bool:
        """Whether one more caller may follow."""
        return self.chunks is not None and not self.over

    def join(self, call: Call) -> None:
        """A caller follows and is given what has come so far."""
        self.followers.append(call)
        call.attempt = Follower(self, call)
        if self.head is not None:
            share(self.leader, call)
            call.reply_head(self.head, self.head_extra)
            for chunk in self.chunks or ():
                call.reply_data(chunk)
        leader = self.leader
        if leader.down is NOBODY and leader.deadline and (not call.deadline or call.deadline > leader.deadline):
            leader.set_deadline(call.deadline)
        if leader.waiter is not None:  # it waits for all of them: in the most urgent lane, for the latest deadline
            leader.lane = max(leader.lane, call.read_lane())
            leader.route.state.admission.requeue(leader)
        self.drained()  # the leader's own caller need not be waited for any more

    def leave(self, call: Call) -> None:
        """A follower is gone; without a leader's caller, the last one cancels the work."""
        if call not in self.followers:
            return
        self.followers.remove(call)
        if not self.followers and self.leader.down is NOBODY and not self.over and not self.leader.over:
            self.leader.on_reset(None, 8, True)
        else:
            self.drained()

    def leader_leaves(self, call: Call) -> None:
        """The leader's caller is gone: if others wait, its work goes on without it."""
        call.tap = None
        if self.followers and not self.over:
            heir = call.hand_over(NOBODY)
            self.leader = heir
            heir.tap = self
            ends = [follower.deadline for follower in self.followers]
            heir.set_deadline(0.0 if 0.0 in ends else max(ends))
            heir.runtime.own_span(heir, call)
            heir.go_on()
            self.drained()  # perhaps only the caller that has gone held the others up
        else:
            self._end(errors.CANCELLED)

    def drained(self) -> None:
        """Somebody has caught up or gone: the leader's endpoint may go on when all who set the pace have."""
        leader = self.leader
        if self.waits:
            return
        if self.stall is not None:
            self.stall.cancel()
            self.stall = None
        if leader.attempt is not None:
            leader.attempt.reply_taken(0, True)

    def taken(self, size: int, caught_up: bool) -> None:
        if caught_up:
            self.drained()
        elif self.leader.attempt is not None and not self.holds_back:
            self.leader.attempt.reply_taken(size, False)

    def takes_more(self, caught_up: bool) -> bool:
        """As `Tap` says; whoever holds up the others from here on is given `STALL_S`."""
        if (caught_up or self.runs_ahead) and not self.holds_back:
            return True
        if self.followers and self.stall is None:
            self._watch()
        return False

    def _watch(self) -> None:
        """Note how far everybody is who holds the others up; who is no further in `STALL_S` is cut."""
        self.behind = {call: _delivered(call) for call in [*self.followers, self.leader] if call.down.queue is not None}
        runtime = self.leader.runtime
        self.stall = runtime.wheel.at(runtime.clock() + STALL_S, self._cut_stalled)

    @property
    def holds_back(self) -> bool:
        """Whether a follower sets the pace now: past the recording, the slowest does."""
        if self.chunks is not None or not self.followers:
            return False
        return any([follower.down.queue is not None for follower in self.followers])

    @property
    def waits(self) -> bool:
        """Whether the endpoint has to wait for somebody who has not caught up."""
        return self.holds_back or (self.leader.down.queue is not None and not self.runs_ahead)

    @property
    def runs_ahead(self) -> bool:
        """Whether the leader's own caller may lag: others wait, and what it misses is kept anyway."""
        return self.chunks is not None and len(self.followers) > 0

    def _cut_stalled(self) -> None:
        """Callers that hold up the others and took nothing meanwhile are cut, the leader's own included."""
        self.stall = None
        stalled = [
            call for call, taken in self.behind.items() if call.down.queue is not None and _delivered(call) == taken
        ]
        self.behind = {}
        for call in stalled:
            if call is not self.leader:
                call.fail(errors.RESOURCE_EXHAUSTED, _STALLED)
            elif self.followers:
                self.leader_leaves(call)
                call.fail(errors.RESOURCE_EXHAUSTED, _STALLED)
        self.drained()
        if self.stall is None and self.followers and not self.over and self.waits:
            self._watch()  # slow, but not stalled

    # -- the leader's reply ----------------------------------------------------------------------------------------

    def on_head(self, head: Head, extra: bytes) -> None:
        self.head = head
        self.head_extra = extra
        self.last_at = self.leader.runtime.clock()
        for follower in self.followers:
            share(self.leader, follower)
            follower.reply_head(head, extra)

    def on_data(self, data: bytes) -> None:
        chunks = self.chunks
        if chunks is not None:
            size = len(data)
            self.size += size
            if self.size > self.max_bytes:
                self.forget()
            elif size:
                # Of the first chunk the leader has just noted the time.
                now = self.leader.runtime.clock() if chunks else self.leader.first_byte_at
                self.gaps_ms.append(int((now - self.last_at) * 1e3))
                self.last_at = now
                chunks.append(data)
                if self.size > _UNCOUNTED_BYTES:
                    self._hold(size)
        if self.followers:
            for follower in list(self.followers):
                if not follower.over:
                    follower.reply_data(data)

    def _hold(self, size: int) -> None:
        ledger = self.leader.runtime.ledger
        if not self.held_bytes:
            ledger.stalled[self] = None
        self.held_bytes += size
        ledger.hold(size)

    def forget(self) -> None:
        """Stop keeping what passes; nobody may join any more."""
        self.chunks = None
        if self.held_bytes:
            ledger = self.leader.runtime.ledger
            ledger.stalled.pop(self, None)
            ledger.release(self.held_bytes)
            self.held_bytes = 0

    def cut(self) -> None:
        """The process holds too much: this flight gives up its copy, not its callers."""
        self.forget()

    def on_tail(self, head: Head, extra: bytes, status: int) -> None:
        """The leader's reply is over."""
        self.tail = head
        followers, self.followers = self.followers, []
        leader = self.leader
        self._end(status)
        if not followers:
            return
        if status in UNSHARED and self.head is None and self.elections < MAX_ELECTIONS:
            self._elect(followers)
            return
        for follower in followers:
            if not follower.over:
                follower.attempt = None
                follower.message = leader.message
                share(leader, follower)
                follower.reply_tail(head, extra, status)

    def _elect(self, followers: list[Call]) -> None:
        """The failure was the leader's own: those still there start again."""
        alive = [follower for follower in followers if not follower.over]
        if not alive:
            return
        leader = alive[0]
        for follower in alive:
            follower.attempt = None
            if follower.read_lane() > leader.lane:
                leader = follower
        flight = self.owner.lead(leader, self)
        flight.elections = self.elections + 1
        for follower in alive:
            if follower is not leader:
                flight.join(follower)
        leader.run()

    def _end(self, status: int) -> None:
        if self.over:
            return
        self.over = True
        if self.stall is not None:
            self.stall.cancel()
            self.stall = None
        self.status = status
        self.leader.runtime.reactor.turn.after(self._tell, None)  # nobody waits for it

    def _tell(self, _: None) -> None:
        self.owner.ended(self, self.status)
        if self.held_bytes:
            self.forget()


def _delivered(call: Call) -> int:
    """Reply bytes the caller's socket has taken."""
    return call.reply_bytes - (call.down.queued if isinstance(call.down, Stream) else 0)
