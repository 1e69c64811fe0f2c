"""Retry budget: retries may add no more than a share of the calls to the load (Finagle, linkerd2-proxy).

    retries in the window <= ratio * calls in the window + min_per_s * window

Always holds: the line above, at every retry granted, over the WINDOW_S one-second slots that end with it. The minimum
lets rare calls be retried, all of it at once if need be. Memory is fixed.

Deliberately not here: which failures are retried and when (`backoff`, the retry filter).
"""

from __future__ import annotations

from typing import Final

from outrider.policy import Retry

WINDOW_S: Final = 10


class RetryBudget:
    """See the module. One per agent; hedges withdraw from it too."""

    __slots__ = ("_calls", "_calls_by_slot", "_ratio", "_reserve", "_retries", "_retries_by_slot", "_second")

    def __init__(self, policy: Retry):
        self._calls_by_slot = [0] * WINDOW_S
        self._retries_by_slot = [0] * WINDOW_S
        self._calls = 0
        self._retries = 0
        self._second = 0
        self.configure(policy)

    def configure(self, policy: Retry) -> None:
        """Take the figures of a new policy; what was spent stays spent."""
        self._ratio = policy.budget_ratio
        self._reserve = policy.budget_min_per_s * WINDOW_S

    def deposit(self, now: float) -> None:
        """A call began (not a retry of one)."""
        second = int(now)
        if second != self._second:
            self._advance(second)
        self._calls += 1
        self._calls_by_slot[self._second % WINDOW_S] += 1

    def withdraw(self, now: float) -> bool:
        """Whether one retry is in the budget; if so it is spent."""
        second = int(now)
        if second != self._second:
            self._advance(second)
        if self._retries + 1 > self.allowance:
            return False
        self._retries += 1
        self._retries_by_slot[self._second % WINDOW_S] += 1
        return True

    @property
    def allowance(self) -> float:
        """Retries the window as last seen allows in all, spent ones included."""
        return self._ratio * self._calls + self._reserve

    def _advance(self, second: int) -> None:
        """Forget the slots that left the window. A clock that steps back stays in the newest slot."""
        for passed in range(self._second + 1, min(second, self._second + WINDOW_S) + 1):
            slot = passed % WINDOW_S
            self._calls -= self._calls_by_slot[slot]
            self._retries -= self._retries_by_slot[slot]
            self._calls_by_slot[slot] = self._retries_by_slot[slot] = 0
        self._second = max(second, self._second)
