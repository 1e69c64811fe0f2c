"""How soon an agent's next instance may start, after those before it have died.

Always holds: each failure in a row doubles the wait, from `first_s` to `most_s`. After the second one instance is tried
at a time; until then all that are missing start together. Who started together fails together: that is one failure. No
clock, no I/O.

Deliberately not here: how many are to be (`local`).
"""

from __future__ import annotations

from random import Random
from typing import Final

FIRST_S: Final = 1.0
MOST_S: Final = 60.0
STEADY_S: Final = 10.0  # who has served so long has not died at its start
MANY: Final = 2  # failures in a row from which on it is no accident


class Starts:
    """Of one agent. Seconds are of any one clock that does not go back."""

    __slots__ = ("_failed_s", "_first_s", "_mends", "_most_s", "_next_s", "_rng", "failures", "reason")

    def __init__(self, rng: Random, first_s: float = FIRST_S, most_s: float = MOST_S):
        self.failures = 0  # in a row
        self.reason = ""  # of the last one
        self._rng = rng
        self._first_s = first_s
        self._most_s = most_s
        self._mends = False  # one that started since the last failure was ready
        self._failed_s = float("-inf")
        self._next_s = float("-inf")

    def room(self, missing: int, starting: int, now_s: float) -> int:
        """How many may start now."""
        if missing <= 0 or (self.failures and now_s < self._next_s):
            return 0
        if self.failures < MANY:
            return missing
        return 0 if starting else 1

    def is_vain(self, asked_s: float) -> bool:
        """Whether one that waits for its turn since then should not start: others have failed since."""
        return self.failures >= MANY and asked_s < self._failed_s

    def wait_s(self, now_s: float) -> float:
        """Until the next may start; 0: it may."""
        return max(0.0, self._next_s - now_s) if self.failures else 0.0

    def failed(self, began_s: float, reason: str, now_s: float) -> None:
        """One that started at `began_s` has died, or was never ready."""
        self.reason = reason
        self._mends = False
        if self.failures and began_s < self._failed_s:
            return
        self.failures += 1
        self._failed_s = now_s
        wait_s = self._first_s * 2.0 ** min(self.failures - 1, 32) * self._rng.uniform(0.75, 1.25)
        self._next_s = now_s + min(max(wait_s, self._first_s), self._most_s)

    def served(self, began_s: float, ready_s: float, now_s: float) -> None:
        """One that started at `began_s` is ready since `ready_s`."""
        if not self.failures or began_s < self._failed_s:
            return
        self._mends = True
        if now_s - ready_s >= STEADY_S:
            self.failures = 0
            self.reason = ""

    def told(self, now_s: float) -> str:
        """What who asks for more instances should know; empty: nothing is wrong."""
        if self.failures < MANY or self._mends:
            return ""
        wait_s = self.wait_s(now_s)
        when = f"the next try is in {wait_s:.1f} s" if wait_s else "one is being tried"
        return f"{self.failures} starts in a row have failed, the last one: {self.reason}; {when}"
