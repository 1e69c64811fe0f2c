"""Limits over time: the generic cell rate algorithm (ATM Forum TM 4.0, 4.4.2), one number of state a cell.

A cell lets `rate` units pass in a second and `burst_s` seconds' worth of them at once. It remembers `tat`, the time at
which it will be full again; what may still pass at once, its room, is `(burst_s - (tat - now)) * rate`.

Always holds: over any window of t seconds what was taken is at most `rate * (burst_s + t)`, or `cost + rate * t` where
one call costs more than a burst: that one passes a full cell alone and is paid off before the next. Another rate or
burst leaves the room as it is, or cuts it to the new burst: a higher rate gives nothing at once, so that rate may
be moved from one cell to another without letting more pass in sum. Time that steps back changes nothing. A table is
bounded: a cell that is full again says nothing and goes first; past the bound the one that was used longest ago goes,
and its key starts anew.

Deliberately not here: which limits a call is under (filters `limit`), shares of a fleet's limit (`shares`).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final

MAX_CELLS: Final = 10_000  # of one limit at one sidecar
_SLACK_S: Final = 1e-9  # what adding up times may be off by


class Cell:
    """One limit for one key. `held` is the filter's: the share that the rate was made of."""

    __slots__ = ("burst_s", "held", "interval_s", "tat")

    def __init__(self, rate_per_s: float, burst_s: float, now: float):
        self.interval_s = 1.0 / rate_per_s
        self.burst_s = burst_s
        self.tat = now
        self.held: Any = None

    def wait_s(self, cost: float, now: float) -> float:
        """How long until `cost` units may pass; 0.0: now. Takes nothing."""
        backlog_s = self.tat - now
        if backlog_s <= 0.0:
            return 0.0
        over_s = backlog_s + min(cost * self.interval_s, self.burst_s) - self.burst_s
        return over_s if over_s > _SLACK_S else 0.0

    def take(self, cost: float, now: float) -> None:
        """Units pass, conforming or not: what did not conform is paid off before anything else passes."""
        self.tat = max(now, self.tat) + cost * self.interval_s

    def settle(self, reserved: float, used: float, now: float) -> None:
        """Of what was taken so much was used: the difference is given back, or taken as well."""
        tat = max(now, self.tat) + (used - reserved) * self.interval_s
        self.tat = max(now, tat)

    def room(self, now: float) -> float:
        """Units that may pass at once; negative: to be paid off first."""
        backlog_s = self.tat - now
        return (self.burst_s - max(0.0, backlog_s)) / self.interval_s

    def is_full(self, now: float) -> bool:
        """Whether nothing of it is used: a new cell would be the same."""
        return self.tat <= now

    def configure(self, rate_per_s: float, burst_s: float, now: float) -> None:
        """Another rate or burst, with the room that there is."""
        room = self.room(now)
        self.interval_s = 1.0 / rate_per_s
        self.burst_s = burst_s
        backlog_s = burst_s - room * self.interval_s
        self.tat = now + backlog_s if backlog_s > 0.0 else now


class Table:
    """The cells of one limit by key, in the order of their last use."""

    __slots__ = ("_cells", "_max_cells", "evicted")

    def __init__(self, max_cells: int = MAX_CELLS):
        self._cells: OrderedDict[bytes, Cell] = OrderedDict()
        self._max_cells = max_cells
        self.evicted = 0  # cells that had to go while they were not full

    def get(self, key: bytes) -> Cell | None:
        """The key's cell, which is now the last used one."""
        cell = self._cells.get(key)
        if cell is not None:
            self._cells.move_to_end(key)
        return cell

    def add(self, key: bytes, cell: Cell, now: float) -> None:
        """A key that has none gets a cell; what is full again makes room first, two for one."""
        cells = self._cells
        for _ in range(2):
            if not cells:
                break
            oldest = next(iter(cells))
            if not cells[oldest].is_full(now):
                break
            del cells[oldest]
        if len(cells) >= self._max_cells:
            cells.popitem(False)
            self.evicted += 1
        cells[key] = cell

    def items(self) -> list[tuple[bytes, Cell]]:
        """All of them with their keys."""
        return list(self._cells.items())

    def __len__(self) -> int:
        return len(self._cells)
