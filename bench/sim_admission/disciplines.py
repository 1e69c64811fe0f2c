"""The queues that are compared: ours, first come first served, strict priority, and none.

Always holds: each gives who is next and who is shed, at virtual times; ours is the engine of the data path itself.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from outrider.policy import Queue
from outrider_sidecar.engines.lanes import LaneQueue, Waiter


@dataclass(slots=True)
class Ask:
    """One call that asks for a permit. Times are seconds since the beginning."""

    at_s: float
    lane: int  # index of `policy.LANES`
    tenant: bytes
    service_s: float
    deadline_s: float
    granted_s: float = -1.0
    ended_s: float = -1.0
    shed_s: float = -1.0
    waiter: Waiter | None = None


class Discipline(Protocol):
    """Who waits, and who is next."""

    def put(self, ask: Ask, now: float) -> list[Ask]:
        """Queue a call; those that are shed for it."""
        ...

    def take(self, now: float) -> tuple[Ask | None, list[Ask]]:
        """Who is next, and who is shed at that."""
        ...

    @property
    def waiting(self) -> int: ...


class Ours:
    """`engines.lanes` under a policy; who waits past its deadline leaves, as the sidecar's timer has it."""

    def __init__(self, policy: Queue):
        self._queue = LaneQueue(policy)
        self._policy = policy

    @property
    def waiting(self) -> int:
        return self._queue.waiting

    def put(self, ask: Ask, now: float) -> list[Ask]:
        if self._queue.hopeless(ask.lane, ask.deadline_s, now, ask.tenant):
            return [ask]
        ask.waiter = Waiter(ask, ask.lane, ask.tenant, ask.deadline_s)
        victim = self._queue.put(ask.waiter, now)
        return [victim.call] if victim is not None else []

    def take(self, now: float) -> tuple[Ask | None, list[Ask]]:
        shed: list[Waiter] = []
        waiter = self._queue.take(now, shed)
        return (waiter.call if waiter is not None else None), [one.call for one in shed]

    def leave(self, ask: Ask) -> bool:
        """Its deadline has passed; False: it was granted or shed before."""
        return ask.waiter is not None and self._queue.remove(ask.waiter)

    def served(self, first_chunk_s: float, now: float) -> None:
        self._queue.served(first_chunk_s, now)


class Fifo:
    """First come, first served, up to a bound; nobody looks at deadlines."""

    def __init__(self, bound: int):
        self._bound = bound
        self._asks: deque[Ask] = deque()

    @property
    def waiting(self) -> int:
        return len(self._asks)

    def put(self, ask: Ask, now: float) -> list[Ask]:
        if len(self._asks) >= self._bound:
            return [ask]
        self._asks.append(ask)
        return []

    def take(self, now: float) -> tuple[Ask | None, list[Ask]]:
        return (self._asks.popleft() if self._asks else None), []


class Strict:
    """The most urgent lane first, always; first come first served inside a lane."""

    def __init__(self, bound: int):
        self._bound = bound
        self._asks: list[tuple[int, int, Ask]] = []
        self._numbers = count()

    @property
    def waiting(self) -> int:
        return len(self._asks)

    def put(self, ask: Ask, now: float) -> list[Ask]:
        if len(self._asks) >= self._bound:
            return [ask]
        heapq.heappush(self._asks, (-ask.lane, next(self._numbers), ask))
        return []

    def take(self, now: float) -> tuple[Ask | None, list[Ask]]:
        return (heapq.heappop(self._asks)[2] if self._asks else None), []


def disciplines(policy: Queue) -> dict[str, Callable[[], Discipline]]:
    """By name, each with the same bound."""
    bound = policy.max_waiting
    return {
        "ours": lambda: Ours(policy),
        "first come first served": lambda: Fifo(bound),
        "strict priority": lambda: Strict(bound),
        "no queue": lambda: Fifo(0),
    }
