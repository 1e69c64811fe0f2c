"""The queues of one agent: one for calls that any endpoint may serve, and one for each set of labels that a variant's
calls are bound to, so that those who wait for a full variant keep nobody else from a free endpoint.

Always holds: `waiting` is the sum of all; each queue has the bounds and shares of the policy for itself; a waiter is in
the queue of its `labels`. The queues take turns by the caller asking for them in `groups`, which begins elsewhere each
time.

Deliberately not here: order within a queue (`engines.lanes`, made by `make`), permits and slots (filter `admit`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from outrider.policy import Queue
from outrider_sidecar.core.treatment import Labels

_MAX_IDLE: Final = 64  # queues of labels in which nobody waits, kept for what they know of the rate


class Queues:
    """See the module. `make` gives a queue under a policy."""

    __slots__ = ("_by_labels", "_make", "_policy", "_turn", "_unbound", "waiting")

    def __init__(self, make: Callable[[Queue], Any], policy: Queue):
        self._make = make
        self._policy = policy
        self._unbound: Any = make(policy)  # any endpoint will do
        self._by_labels: dict[Labels, Any] = {}
        self._turn = 0
        self.waiting = 0

    def configure(self, policy: Queue) -> None:
        """Take a policy; who waits goes on waiting."""
        self._policy = policy
        for queue in self._all():
            queue.configure(policy)

    def _all(self) -> list[Any]:
        return [self._unbound, *self._by_labels.values()]

    def _of(self, labels: Labels) -> Any:
        if not labels:
            return self._unbound
        queue = self._by_labels.get(labels)
        if queue is None:
            if len(self._by_labels) >= _MAX_IDLE:
                self._by_labels = {name: one for name, one in self._by_labels.items() if one.waiting}
            queue = self._by_labels[labels] = self._make(self._policy)
        return queue

    # -- what is in them -------------------------------------------------------------------------------------------

    def waits_for(self, labels: Labels) -> bool:
        """Whether somebody waits for these endpoints already."""
        if not labels:
            return bool(self._unbound.waiting)
        queue = self._by_labels.get(labels)
        return queue is not None and bool(queue.waiting)

    def groups(self) -> list[Labels]:
        """Labels of the queues in which somebody waits."""
        if not self._by_labels:
            return [()] if self._unbound.waiting else []
        found: list[Labels] = [()] if self._unbound.waiting else []
        found += [labels for labels, queue in self._by_labels.items() if queue.waiting]
        self._turn += 1
        first = self._turn % max(1, len(found))
        return found[first:] + found[:first]

    def lane_waiting(self) -> tuple[int, ...]:
        """How many wait, from low to critical."""
        counts: tuple[int, ...] = self._unbound.lane_waiting()
        for queue in self._by_labels.values():
            counts = tuple([one + other for one, other in zip(counts, queue.lane_waiting(), strict=True)])
        return counts

    def longest_wait_s(self, now: float) -> float:
        """How long the first of all has waited; 0.0: nobody waits."""
        return max([queue.longest_wait_s(now) for queue in self._all()])

    # -- in and out ------------------------------------------------------------------------------------------------

    def put(self, waiter: Any, now: float) -> Any:
        """Queue a waiter; where there is no room, the one to be shed for it, out of its queue already."""
        queue = self._of(waiter.labels)
        self.waiting -= queue.waiting
        victim = queue.put(waiter, now)
        self.waiting += queue.waiting
        return victim

    def take(self, labels: Labels, now: float, shed: list[Any]) -> Any:
        """Who of these is next; who must be shed at that is appended to `shed`, out of the queue already."""
        queue = self._of(labels)
        self.waiting -= queue.waiting
        granted = queue.take(now, shed)
        self.waiting += queue.waiting
        return granted

    def remove(self, waiter: Any) -> bool:
        """Take a waiter out; False: it was out already."""
        if not waiter.queued:
            return False
        removed: bool = self._of(waiter.labels).remove(waiter)
        self.waiting -= removed
        return removed

    def raise_lane(self, waiter: Any, lane: int, now: float) -> None:
        self._of(waiter.labels).raise_lane(waiter, lane, now)

    def set_deadline(self, waiter: Any, deadline: float) -> None:
        self._of(waiter.labels).set_deadline(waiter, deadline)

    def hopeless(self, labels: Labels, lane: int, deadline: float, now: float, tenant: bytes) -> bool:
        """Whether a call with this deadline cannot be met, were it queued now."""
        hopeless: bool = self._of(labels).hopeless(lane, deadline, now, tenant)
        return hopeless

    def served(self, labels: Labels, first_chunk_s: float, now: float) -> None:
        """A granted call's first chunk has come after so long."""
        self._of(labels).served(first_chunk_s, now)
