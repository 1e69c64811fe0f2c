"""Lets batches that arrive together be committed together.

A transaction costs the same for one batch as for ten, and batches of many sidecars hold the same few hundred series:
figures of 2,000 spans take little more room and time than those of 500.

Always holds: nothing waits longer than `LONGEST_MS`; a batch that is alone waits `SHORTEST_MS`.
Deliberately not here: the transaction (`ledger`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

SHORTEST_MS: Final = 10
LONGEST_MS: Final = 50
ENOUGH: Final = 4_096  # samples


class Gather:
    """`arriving`: how many batches are being taken in now, those that wait here included."""

    def __init__(self, arriving: Callable[[], int]):
        self._arriving = arriving
        self._ready: asyncio.Future[None] | None = None
        self._waiting = 0
        self._samples = 0
        self._since_s = 0.0

    async def wait(self, samples: int) -> None:
        """Returns when this batch and those that wait with it are to be committed."""
        loop = asyncio.get_running_loop()
        ready = self._ready
        if ready is None:
            ready = self._ready = loop.create_future()
            self._since_s = loop.time()
            loop.call_later(SHORTEST_MS / 1e3, self._look, ready)
        self._waiting += 1
        self._samples += samples
        if self._samples >= ENOUGH:
            self._go(ready)
        await asyncio.shield(ready)

    def _look(self, ready: asyncio.Future[None]) -> None:
        if ready.done():
            return
        loop = asyncio.get_running_loop()
        if self._arriving() > self._waiting and loop.time() - self._since_s < LONGEST_MS / 1e3:
            loop.call_later(SHORTEST_MS / 2e3, self._look, ready)
        else:
            self._go(ready)

    def _go(self, ready: asyncio.Future[None]) -> None:
        self._ready = None
        self._waiting = self._samples = 0
        ready.set_result(None)
