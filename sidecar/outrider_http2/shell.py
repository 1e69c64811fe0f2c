"""The asyncio shell around a connection: socket events in, bytes out, one ticker for all timeouts.

Always holds: reading stops while a connection has frames left for another turn; a failed connection's GOAWAY is
given time to arrive before the socket closes; nothing here knows what the bytes mean.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from outrider_http2.base import nowhere
from outrider_http2.connection import Connection
from outrider_http2.head import Heads
from outrider_http2.limits import Limits
from outrider_http2.stream import Ledger
from outrider_http2.turn import Turn

_LINGER_S = 1.0
_TICK_S = 0.5
clock = time.monotonic


class Reactor:
    """What all connections of one process share: loop, interned heads, the turn's writes, held bytes, the ticker."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limits: Limits | None = None,
        owned: frozenset[bytes] = frozenset(),
        held_bytes: int = 64 * 1024 * 1024,
    ):
        self.loop = loop
        self.limits = limits or Limits()
        self.heads = Heads(owned)
        self.turn = Turn(loop.call_soon)
        self.ledger = Ledger(held_bytes)
        self.shells: set[Shell] = set()
        self._ticking: asyncio.TimerHandle | None = None

    def add(self, shell: Shell) -> None:
        self.shells.add(shell)
        if self._ticking is None:
            self._ticking = self.loop.call_later(_TICK_S, self._tick)

    def _tick(self) -> None:
        now = clock()
        self.turn.begin()
        try:
            for shell in list(self.shells):
                shell.conn.tick(now)
        finally:  # what goes wrong with one connection must not stop the clock of all
            self.turn.end()
            self._ticking = self.loop.call_later(_TICK_S, self._tick) if self.shells else None
        for shell in list(self.shells):
            if shell.conn.failed is not None:
                shell.finish()

    async def close(self) -> None:
        """Close every socket and wait until the loop has let go of them."""
        if self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None
        deadline = clock() + 2.0
        while self.shells and clock() < deadline:
            for shell in list(self.shells):
                shell.close()  # again each time: a dial under way may bring one more
            await asyncio.sleep(0.002)
        for shell in list(self.shells):
            shell.transport.abort()


class Shell(asyncio.Protocol):
    """One socket and its connection. `on_made` is told once the socket is there."""

    def __init__(
        self,
        reactor: Reactor,
        conn: Connection,
        on_made: Callable[[Shell], None] | None = None,
        max_bytes_paused: int = 256 * 1024,
    ):
        self.reactor = reactor
        self.conn = conn
        self.transport: Any = None
        self.peername: str = ""
        self._on_made = on_made
        self._high_water = max_bytes_paused
        self._finishing: asyncio.TimerHandle | None = None
        self._again_due = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        conn = self.conn
        transport.set_write_buffer_limits(high=self._high_water)
        conn.write_out = transport.write
        conn.write_parts = transport.writelines
        conn.now = clock()
        self.reactor.add(self)
        if self._on_made is not None:
            self._on_made(self)
        self.reactor.turn.begin()
        conn.open()
        self.reactor.turn.end()

    def data_received(self, data: bytes) -> None:
        conn = self.conn
        turn = self.reactor.turn
        turn.begin()
        conn.now = clock()
        try:
            conn.receive(data)
        finally:
            turn.end()
        if conn.more or conn.pump_more or conn.failed is not None:
            self._go_on()

    def _go_on(self) -> None:
        conn = self.conn
        if conn.failed is not None:
            self.finish()
        elif (conn.more or conn.pump_more) and not self._again_due:
            self._again_due = True
            if conn.more:
                self.transport.pause_reading()
            self.reactor.loop.call_soon(self._again)

    def _again(self) -> None:
        self._again_due = False
        conn = self.conn
        if conn.closed or conn.failed is not None:
            return
        turn = self.reactor.turn
        turn.begin()
        conn.now = clock()
        try:
            if conn.pump_more:
                conn.pump()
            if conn.more:
                conn.receive(b"")
        finally:
            turn.end()
        if not conn.more and not self.transport.is_closing():
            self.transport.resume_reading()
        self._go_on()

    def pause_writing(self) -> None:
        self.conn.pause()

    def resume_writing(self) -> None:
        conn = self.conn
        conn.now = clock()
        self.reactor.turn.begin()
        try:
            conn.resume()
        finally:
            self.reactor.turn.end()
        self._go_on()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.reactor.shells.discard(self)
        if self._finishing is not None:
            self._finishing.cancel()
        self.conn.now = clock()
        self.reactor.turn.begin()
        try:
            self.conn.lost()
        finally:
            self.reactor.turn.end()

    def finish(self) -> None:
        """Say the last word, then close: the peer gets time to read it."""
        transport = self.transport
        if transport is None or self._finishing is not None or transport.is_closing():
            return
        self.conn.flush()
        self._linger(transport.get_write_buffer_size())
        if transport.can_write_eof():
            # Closing with unread input would turn into a TCP reset, which may overtake the GOAWAY.
            try:
                transport.write_eof()
            except OSError:  # asyncio's loop: the peer has gone and the loop has not told yet
                transport.abort()
                return
            # A peer that goes on talking provokes no more answers.
            self.conn.write_out = self.conn.write_parts = nowhere
            if not transport.is_reading():
                transport.resume_reading()
        else:
            transport.close()

    def _linger(self, unsent_bytes: int) -> None:
        self._finishing = self.reactor.loop.call_later(_LINGER_S, self._end_linger, unsent_bytes)

    def _end_linger(self, unsent_bytes: int) -> None:
        """Wait on for as long as a peer that has done no wrong takes what is written; then close, read or not."""
        left_bytes = self.transport.get_write_buffer_size()
        if 0 < left_bytes < unsent_bytes and self.conn.failed is None:
            self._linger(left_bytes)
        else:
            self.transport.abort()

    def close(self) -> None:
        """Close the socket after what is written."""
        if self.transport is not None and not self.transport.is_closing():
            self.conn.flush()
            self.transport.close()
