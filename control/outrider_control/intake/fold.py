"""When to fold: every two seconds by the leader, as long as it leads.

Always holds: a fold that fails is tried again, and changes nothing; folds take at most about a fifth of the writer's
time while the store keeps up.

Deliberately not here: what a fold does (`state.rollups.fold`), who leads.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from outrider_control.core.cardinality import Bounds, Cardinality
from outrider_control.state import rollups
from outrider_control.state.database import DatabaseError

if TYPE_CHECKING:
    from outrider_control.state.database import Database

log = logging.getLogger(__name__)

INTERVAL_S = 2.0
_SHARE = 5  # one part folding, so many parts between folds


class Fold:
    """Folds what was taken in into the rollups."""

    def __init__(
        self,
        database: Database,
        clock_ms: Callable[[], int],
        bounds: Bounds | None = None,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._interval_s = interval_s
        self._database = database
        self._clock_ms = clock_ms
        self._bounds = bounds
        self._cardinality: Cardinality | None = None
        self.rows = 0  # written since the start
        self.unreadable = 0  # deltas and rows that were lost since the start
        self.warning = ""  # why the last fold failed; "" if it did not

    def forget(self) -> None:
        """Another one led: which series there are is to be read again."""
        self._cardinality = None

    async def once(self) -> int:
        """Folds all there is; how many deltas. DatabaseError: the rest stays for the next time."""
        now_ms = self._clock_ms()
        if self._cardinality is None:
            cardinality = Cardinality(self._bounds)
            cardinality.load(await self._database.read(rollups.active_series, now_ms))
            self._cardinality = cardinality
        folded = 0
        more = True
        while more:
            done = await self._database.write(rollups.fold, self._clock_ms(), self._cardinality)
            folded += done.deltas
            self.rows += done.rows
            if done.unreadable:
                self.unreadable += done.unreadable
                log.error("%d stored figures could not be read and are lost", done.unreadable)
            more = done.more
        return folded

    async def run(self, leads: Callable[[], bool]) -> None:
        """Folds as long as this process leads, until cancelled."""
        while True:
            begin = time.monotonic()
            if leads():
                try:
                    await self.once()
                    self.warning = ""
                except DatabaseError as error:
                    if not self.warning:
                        log.warning("figures cannot be folded: %s", error)
                    self.warning = str(error)
            else:
                self.forget()
            took_s = time.monotonic() - begin
            await asyncio.sleep(max(self._interval_s - took_s, took_s * (_SHARE - 1)))
