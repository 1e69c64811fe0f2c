"""Connections to the gRPC server behind the guard, on its unix socket.

Always holds: a relay that waits is given a connection, a refusal or its leave exactly once, and none waits longer than
one dial takes; streams and connections are bounded; a connection that is lost or has said GOAWAY takes no new stream,
and the next relay that finds no room dials another.

Deliberately not here: keepalive PINGs. The other end is a process of this machine, whose end the kernel tells, and
grpcio ends connections whose peer pings it more than once in five minutes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from outrider_http2 import frames
from outrider_http2.client import ClientConnection
from outrider_http2.dial import dial
from outrider_http2.limits import Limits
from outrider_http2.shell import Reactor, Shell, clock
from outrider_http2.stream import Ledger

STREAMS_EACH = 200  # streams that share one connection's window
MAX_CONNECTIONS = 64
MAX_WAITING = 8_192  # relays that wait for one dial
DIAL_TIMEOUT_S = 5.0
REDIAL_S = 0.1  # after a failed dial relays are refused at once for so long
IDLE_S = 60.0  # a connection without streams is kept for so long
CLOSE_S = 2.0  # for what is written to be read
_UNLIMITED = 1 << 40


class Waiter(Protocol):
    """A relay, seen from here."""

    def open(self, conn: ClientConnection) -> None: ...

    def refused(self, reason: str) -> None: ...


def backend_limits(limits: Limits) -> Limits:
    """The bounds of a connection to a server that is trusted: none against floods, wide ones for its headers."""
    return replace(
        limits,
        header_list_bytes=256 * 1024,
        header_block_bytes=1024 * 1024,
        max_continuations=256,
        control_burst=_UNLIMITED,
        reset_burst=_UNLIMITED,
        stalled_control_frames=_UNLIMITED,
        idle_timeout_s=IDLE_S,
        ping_interval_s=0.0,
        max_age_s=0.0,
    )


class Backend:
    """All connections to one server. `path` is its unix socket's."""

    def __init__(
        self,
        reactor: Reactor,
        path: str,
        streams_each: int = STREAMS_EACH,
        max_connections: int = MAX_CONNECTIONS,
        max_waiting: int = MAX_WAITING,
        now: Callable[[], float] = clock,
    ):
        self.ledger: Ledger = reactor.ledger
        self._reactor = reactor
        self._path = path
        self._limits = backend_limits(reactor.limits)
        self._streams_each = streams_each
        self._max_connections = max_connections
        self._max_waiting = max_waiting
        self._now = now
        self._ready: dict[ClientConnection, Shell] = {}
        self._shells: set[Shell] = set()
        self._waiting: dict[Waiter, None] = {}
        self._dialling: asyncio.Task[None] | None = None
        self._failed_at = -REDIAL_S
        self._closed = False
        self.last_error = ""
        self.dials = 0
        self.refused = 0

    # -- relays ----------------------------------------------------------------------------------------------------

    def join(self, relay: Waiter) -> None:
        """Give a relay a connection with room, now or once one is dialled, or refuse it."""
        conn = self._with_room() if not self._waiting else None  # those who wait come first
        if conn is not None:
            relay.open(conn)
        elif self._closed:
            self._refuse(relay, "the control plane is shutting down")
        elif self._dialling is None and self._now() - self._failed_at < REDIAL_S:
            self._refuse(relay, self.last_error)
        elif len(self._waiting) >= self._max_waiting or len(self._shells) >= self._max_connections:
            self._refuse(relay, "the control plane serves as many streams as it can; try again later")
        else:
            self._waiting[relay] = None
            self._dial()

    def leave(self, relay: Waiter) -> None:
        """The relay's client is gone."""
        self._waiting.pop(relay, None)

    def _with_room(self) -> ClientConnection | None:
        for conn in self._ready:
            if len(conn.streams) < self._streams_each and conn.has_room:
                return conn
        return None

    def _refuse(self, relay: Waiter, reason: str) -> None:
        self.refused += 1
        relay.refused(reason)

    def _refuse_all(self, reason: str) -> None:
        waiting, self._waiting = self._waiting, {}
        for relay in waiting:
            self._refuse(relay, reason)

    def _serve(self) -> None:
        """Connections have come: serve who waits, in order, and dial on while somebody does."""
        while self._waiting:
            conn = self._with_room()
            if conn is None:
                break
            relay = next(iter(self._waiting))
            del self._waiting[relay]
            relay.open(conn)
        if self._waiting:
            if len(self._shells) < self._max_connections:
                self._dial()
            else:
                self._refuse_all("the control plane serves as many streams as it can; try again later")

    # -- connections -----------------------------------------------------------------------------------------------

    def _dial(self) -> None:
        if self._dialling is None and not self._closed:
            self._dialling = self._reactor.loop.create_task(self._dial_once())

    async def _dial_once(self) -> None:
        error = ""
        self.dials += 1
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                await self._connect()
        except TimeoutError:
            error = f"no answer within {DIAL_TIMEOUT_S:.0f} s"
        except OSError as failure:
            error = failure.strerror or str(failure)
        finally:
            self._dialling = None
        if error:
            self.last_error = f"the control plane's server cannot be reached: {error}"
            self._failed_at = self._now()
            self._refuse_all(self.last_error)
        else:
            self.last_error = ""
            self._serve()

    async def _connect(self) -> None:
        """One connection whose other end has spoken; OSError says why there is none."""
        spoken: asyncio.Future[bool] = self._reactor.loop.create_future()

        def answer(value: bool) -> None:
            if not spoken.done():
                spoken.set_result(value)

        def on_closed(conn: ClientConnection) -> None:
            self._lost(conn)
            answer(False)

        def prepare(conn: ClientConnection) -> None:
            conn.on_ready = lambda _: answer(True)
            conn.on_closed = on_closed
            conn.on_gone = self._gone
            conn.on_quiet = self._quiet

        shell = await dial(self._reactor, self._path, self._limits, prepare)
        conn = shell.conn
        assert isinstance(conn, ClientConnection)
        conn.peer = shell
        if conn.closed:
            raise ConnectionError("it closed the connection before it spoke")
        self._shells.add(shell)
        try:
            if not await spoken or conn.draining:
                raise ConnectionError("it closed the connection before it served a stream")
        except BaseException:
            shell.close()
            raise
        self._ready[conn] = shell

    def _gone(self, conn: ClientConnection) -> None:
        """It takes no new streams; those it has go on."""
        self._ready.pop(conn, None)

    def _quiet(self, conn: ClientConnection) -> None:
        shell = conn.peer
        if shell is not None:
            shell.close()

    def _lost(self, conn: ClientConnection) -> None:
        self._ready.pop(conn, None)
        self._shells = {shell for shell in self._shells if shell.conn is not conn}

    @property
    def connections(self) -> int:
        return len(self._ready)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def streams(self) -> int:
        return sum([len(shell.conn.streams) for shell in self._shells])

    async def close(self) -> None:
        """End every connection; streams on them are told."""
        self._closed = True
        dialling = self._dialling
        if dialling is not None:
            dialling.cancel()
            with suppress(asyncio.CancelledError):
                await dialling
        self._refuse_all("the control plane is shutting down")
        for shell in list(self._shells):
            shell.conn.fail(frames.NO_ERROR, "the guard is closing")
            shell.close()
        give_up_at = clock() + CLOSE_S
        while self._shells and clock() < give_up_at:
            await asyncio.sleep(0.002)
        for shell in list(self._shells):
            shell.transport.abort()
