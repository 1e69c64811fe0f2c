"""Connections to one endpoint: dialled in the background, kept alive, given to attempts.

Always holds: an attempt that waits is given a connection, a refusal or its leave exactly once; waiting attempts are
bounded in number and time; a new connection replaces a lost or draining one with backoff and jitter; names are
resolved anew at every dial.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from outrider_http2 import frames
from outrider_http2.client import ClientConnection
from outrider_http2.dial import dial as dial_http2
from outrider_http2.hpack import literal
from outrider_http2.shell import Reactor, Shell, clock
from outrider_sidecar.core.attempt import Attempt
from outrider_sidecar.core.endpoint import Endpoint
from outrider_sidecar.engines.backoff import connect_delay_s

MAX_CONNECTIONS = 8  # per endpoint: more than one only where the peer allows few streams
MAX_WAITING = 4_096
DIAL_TIMEOUT_S = 5.0
CALL_DRIVEN_DIAL_S = 0.2  # calls cut a longer backoff short, but not below this
KEEPALIVE_S = 300.0  # of a silent peer with calls in flight: gRPC servers take more frequent PINGs for abuse (gRFC A8)


def split_address(address: str) -> tuple[str, int] | str:
    """(host, port) of `host:port`, `[v6]:port` or `dns:host:port`; the path of `unix:/path`."""
    if address.startswith("unix:"):
        return address[5:]
    host, _, port = address.removeprefix("dns:").removeprefix("///").rpartition(":")
    return host.strip("[]"), int(port)


async def dial(
    reactor: Reactor,
    address: str,
    tls: ssl.SSLContext | None,
    server_name: str,
    prepare: Callable[[ClientConnection], Any],
    max_age_s: float = 0.0,
) -> Shell:
    """Open one connection; OSError (or ssl.SSLError) says why not. `prepare` runs before the first byte."""
    limits = replace(reactor.limits, ping_interval_s=KEEPALIVE_S, idle_timeout_s=0.0, max_age_s=max_age_s)
    return await dial_http2(reactor, split_address(address), limits, prepare, tls, server_name)


class Connector:
    """All connections to one endpoint. `conn` is one that is ready, if any; attempts check `conn.has_room`."""

    def __init__(
        self,
        reactor: Reactor,
        endpoint: Endpoint,
        rng: random.Random,
        tls: Callable[[], ssl.SSLContext | None],
        server_name: str = "",
        failfast_s: float = 1.0,
        max_age_s: float = 0.0,
    ):
        self._reactor = reactor
        self._endpoint = endpoint
        self._rng = rng
        self._tls = tls
        self._server_name = server_name
        self._failfast_s = failfast_s
        self._max_age_s = max_age_s
        self.literal = literal(b"x-outrider-endpoint", endpoint.address.encode())
        self.conn: ClientConnection | None = None
        self._ready: list[ClientConnection] = []
        self._shells: set[Shell] = set()
        self._waiting: dict[Attempt, asyncio.TimerHandle] = {}
        self._dialling: asyncio.Task[None] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._failures = 0
        self._failed_at = 0.0
        self.last_error = ""
        self._changed: Callable[[], Any] = lambda: None
        self._closed = False

    def begin(self, changed: Callable[[], Any]) -> None:
        """Dial in the background; `changed` is called when `endpoint.reachable` does."""
        self._changed = changed
        self._dial()

    # -- attempts --------------------------------------------------------------------------------------------------

    def wait(self, attempt: Attempt) -> None:
        """No connection with room at hand: give the attempt one soon, or a refusal."""
        if self._give(attempt):
            return
        if self._closed:
            attempt.refused("the endpoint is leaving")
            return
        if len(self._waiting) >= MAX_WAITING:
            attempt.refused(f"{MAX_WAITING} calls already wait for a connection")
            return
        if self._retry is not None:
            if clock() - self._failed_at < CALL_DRIVEN_DIAL_S:
                attempt.refused(self.last_error)
                return
            self._retry.cancel()
            self._retry = None
        self._waiting[attempt] = self._reactor.loop.call_later(self._failfast_s, self._too_late, attempt)
        if self._ready:
            self._grow()
        elif self._dialling is None and len(self._shells) < MAX_CONNECTIONS:
            self._dial()

    def hurry(self) -> None:
        """Calls wait for this endpoint to be there, without attempts: they cut a longer backoff short as well."""
        if self._retry is not None and clock() - self._failed_at >= CALL_DRIVEN_DIAL_S:
            self._retry.cancel()
            self._dial()

    def leave(self, attempt: Attempt) -> None:
        """The attempt has been cancelled."""
        timer = self._waiting.pop(attempt, None)
        if timer is not None:
            timer.cancel()

    def _too_late(self, attempt: Attempt) -> None:
        self._waiting.pop(attempt, None)
        attempt.refused(f"no connection within {self._failfast_s * 1e3:.0f} ms")

    def _give(self, attempt: Attempt) -> bool:
        for conn in self._ready:
            if conn.has_room:
                self.conn = conn
                attempt.open(conn)
                return True
        return False

    def _serve(self, _: Any = None) -> None:
        """Room appeared: serve who waits, in order."""
        while self._waiting:
            attempt = next(iter(self._waiting))
            if not any(conn.has_room for conn in self._ready):
                return
            self._waiting.pop(attempt).cancel()
            self._give(attempt)

    # -- connections -----------------------------------------------------------------------------------------------

    def _dial(self) -> None:
        if self._dialling is None and not self._closed:
            self._retry = None
            self._dialling = self._reactor.loop.create_task(self._dial_once())

    async def _dial_once(self) -> None:
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                shell = await dial(
                    self._reactor,
                    self._endpoint.address,
                    self._tls(),
                    self._server_name,
                    self._prepare,
                    self._max_age_s * self._rng.uniform(0.9, 1.1),
                )
            self._shells.add(shell)
            if self._closed or shell.conn.closed:
                shell.close()
        except TimeoutError:
            self._dial_failed(f"no connection within {DIAL_TIMEOUT_S:.0f} s")
        except (OSError, ValueError) as error:
            self._dial_failed(error.strerror if isinstance(error, OSError) and error.strerror else str(error))
        finally:
            self._dialling = None
        self._grow()

    def _grow(self) -> None:
        """One connection more where every one there is has all the streams its peer allows, and calls still wait."""
        room = self._retry is None and len(self._shells) < MAX_CONNECTIONS
        if self._waiting and room and all([shell.conn.peer_settings for shell in self._shells]):
            self._dial()

    def _prepare(self, conn: ClientConnection) -> None:
        conn.on_ready = self._on_ready
        conn.on_gone = self._on_gone
        conn.on_room = self._serve
        conn.on_closed = self._on_closed
        conn.on_quiet = self._on_quiet

    def _dial_failed(self, reason: str) -> None:
        self.last_error = reason
        self._failures += 1
        self._failed_at = clock()
        if self._closed:
            return
        self._retry = self._reactor.loop.call_later(connect_delay_s(self._failures, self._rng), self._dial)
        if not self._ready:
            self._set_reachable(False)
            self._refuse_all(reason)

    def _refuse_all(self, reason: str) -> None:
        while self._waiting:
            attempt = next(iter(self._waiting))
            self._waiting.pop(attempt).cancel()
            attempt.refused(reason)

    def _on_ready(self, conn: ClientConnection) -> None:
        if conn in self._ready or conn.draining:
            return
        self._failures = 0  # only a peer that has spoken resets the backoff
        self.last_error = ""
        self._ready.append(conn)
        if self.conn is None:
            self.conn = conn
        self._set_reachable(True)
        self._serve()
        self._grow()

    def _on_gone(self, conn: ClientConnection) -> None:
        """The connection takes no new streams: another one replaces it."""
        if conn in self._ready:
            self._ready.remove(conn)
        if self.conn is conn:
            self.conn = self._ready[0] if self._ready else None
        if not self._closed and not self._ready and self._dialling is None and self._retry is None:
            self._dial()

    def _on_quiet(self, conn: ClientConnection) -> None:
        for shell in list(self._shells):
            if shell.conn is conn:
                shell.close()

    def _on_closed(self, conn: ClientConnection) -> None:
        self._shells = {shell for shell in self._shells if shell.conn is not conn}
        was_ready = conn.peer_settings
        if conn in self._ready:
            self._ready.remove(conn)
        if self.conn is conn:
            self.conn = self._ready[0] if self._ready else None
        if self._closed or self._ready:
            return
        if self._dialling is None and self._retry is None:
            if was_ready:
                self._dial()
            else:
                reason = conn.failed.reason if conn.failed else "the peer closed the connection before it spoke"
                self._dial_failed(reason)

    def _set_reachable(self, reachable: bool) -> None:
        if self._endpoint.reachable != reachable:
            self._endpoint.reachable = reachable
            self._changed()

    def drain(self) -> None:
        """No new attempts; connections close as their last streams end."""
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._dialling is not None:
            self._dialling.cancel()
        self._refuse_all("the endpoint is leaving")
        for shell in list(self._shells):
            conn = shell.conn
            assert isinstance(conn, ClientConnection)
            conn.on_gone = conn.on_ready = conn.on_room = _ignore
            conn.shutdown()
        self._ready.clear()
        self.conn = None

    def abort(self) -> None:
        """Close everything now, as when the process ends."""
        self.drain()
        for shell in list(self._shells):
            shell.conn.fail(frames.NO_ERROR, "the sidecar is going away")
            shell.close()

    @property
    def connections(self) -> int:
        return len(self._ready)


def _ignore(_: Any) -> None:
    pass
