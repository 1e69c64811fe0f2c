"""What moves in `tests.wire`: an event loop's timers by the test's clock, and bytes between two connections.

Always holds: nothing runs by itself; timers run in the order of their times, one at a time.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from outrider_http2.base import Base
from outrider_http2.shell import Reactor

START_S = 1_000.0


class Loop:
    """The three methods of an event loop that the data path uses, by the test's clock."""

    def __init__(self) -> None:
        self.now = START_S
        self._soon: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._later: list[tuple[float, int, Callable[..., Any], tuple[Any, ...]]] = []
        self._count = itertools.count()

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[..., Any], *args: Any) -> None:
        self._soon.append((callback, args))

    def call_later(self, delay_s: float, callback: Callable[..., Any], *args: Any) -> None:
        heapq.heappush(self._later, (self.now + delay_s, next(self._count), callback, args))

    def run_soon(self) -> bool:
        """Run what is due now; False when nothing was."""
        found = bool(self._soon)
        while self._soon:
            callback, args = self._soon.popleft()
            callback(*args)
        return found

    def run_until(self, when: float) -> bool:
        """Move to the next timer up to `when` and run it; False, at `when`, if there is none."""
        if not self._later or self._later[0][0] > when:
            self.now = when
            return False
        self.now, _, callback, args = heapq.heappop(self._later)
        callback(*args)
        return True


class Pipe:
    """Bytes on their way to one connection."""

    def __init__(self, reactor: Reactor, to: Base, loop: Loop):
        self._reactor = reactor
        self._to: Any = to
        self._loop = loop
        self._data: list[bytes] = []

    def write(self, data: bytes) -> None:
        self._data.append(bytes(data))

    def deliver(self) -> bool:
        """Hand over what has been written; False when nothing was."""
        conn = self._to
        if not self._data and not conn.pump_more:
            return False
        data = b"".join(self._data)
        self._data.clear()
        conn.now = self._loop.now
        with turn_of(self._reactor):
            conn.receive(data)
            while conn.more:
                conn.receive(b"")
            while conn.pump_more:
                conn.pump()
        return True


@contextlib.contextmanager
def turn_of(reactor: Reactor) -> Iterator[None]:
    """What a shell does around a burst of input."""
    reactor.turn.begin()
    try:
        yield
    finally:
        reactor.turn.end()
