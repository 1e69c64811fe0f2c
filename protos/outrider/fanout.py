"""Many calls under one budget: which may start now, and when all must stop. Pure: no clock, no calls.

Always holds: at most `max_in_flight` calls are out at once; once the budget is used up nothing starts any more; every
call is either started once or reported as not started.

Deliberately not here: the deadline (every call gets what is left of it), making and cancelling calls (`client`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Budget:
    """What a fan-out may use altogether."""

    max_in_flight: int = 16  # calls at once
    max_failures: int | None = None  # one more failed call, and the others are cancelled; None: no bound
    max_tokens: int | None = None  # input and output tokens of replies not from a cache; from there on none is started

    def __post_init__(self) -> None:
        if self.max_in_flight < 1:
            raise ValueError(f"max_in_flight: {self.max_in_flight} is less than 1")
        for name in ("max_failures", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name}: {value} is less than 0")


class FanOut:
    """The state of one fan-out over calls 0 to `count` - 1, started in this order."""

    __slots__ = ("_budget", "_count", "_failures", "_in_flight", "_next", "_tokens", "must_cancel", "stopped")

    def __init__(self, count: int, budget: Budget):
        self._count = count
        self._budget = budget
        self._next = 0
        self._in_flight = 0
        self._failures = 0
        self._tokens = 0
        self.stopped = ""  # why nothing starts any more; empty: it goes on
        self.must_cancel = False  # calls that are out are to be cancelled too
        self._judge()

    def next_call(self) -> int | None:
        """The call to start now; None: none now (look again after the next `ended`), or none any more."""
        if self.stopped or self._next == self._count or self._in_flight == self._budget.max_in_flight:
            return None
        call = self._next
        self._next += 1
        self._in_flight += 1
        return call

    def ended(self, failed: bool, tokens: int = 0) -> None:
        """A started call is over; `tokens` is what it used."""
        self._in_flight -= 1
        self._failures += failed
        self._tokens += tokens
        self._judge()

    def stop(self, reason: str) -> None:
        """Start nothing any more and have what is out cancelled."""
        self.stopped = self.stopped or reason
        self.must_cancel = True

    def not_started(self) -> range:
        """The calls that never start; empty while it goes on. To be asked once: they count as handed out."""
        rest = range(self._next, self._count) if self.stopped else range(0)
        if rest:
            self._next = self._count
        return rest

    def _judge(self) -> None:
        budget = self._budget
        if budget.max_failures is not None and self._failures > budget.max_failures:
            self.stop(f"{self._failures} calls failed; at most {budget.max_failures} may")
        elif budget.max_tokens is not None and self._tokens >= budget.max_tokens and not self.stopped:
            self.stopped = f"{self._tokens} tokens are used; {budget.max_tokens} are allowed"
