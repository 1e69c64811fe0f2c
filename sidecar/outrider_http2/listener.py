"""Listening: accepts connections on one address and hands their streams to whoever serves them.

Always holds: at most `max_connections` connections (when they are used up, and `make_room` says so, one that carries no
stream makes room for the next, first of all one that never did); draining tells every peer by GOAWAY and takes no new
connection; a socket file somebody listens on is not taken away.

Deliberately not here: what streams are for, TLS files (`tls`), limits of one connection (`limits`).
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import socket
import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from outrider_http2 import frames
from outrider_http2.head import Head, Rest
from outrider_http2.server import Accept, ServerConnection
from outrider_http2.shell import Reactor, Shell, clock
from outrider_http2.stream import Stream

BACKLOG = 1_024
SSL_HANDSHAKE_S = 10.0
SSL_SHUTDOWN_S = 1.0  # how long a peer that does not answer the end of TLS is waited for


class Listener:
    """One address. `front(shell)` is asked once for each connection, when its socket (and TLS) is there, and returns
    what takes the connection's streams. `rng` spreads the connections' maximum age."""

    def __init__(
        self,
        reactor: Reactor,
        front: Callable[[Shell], Accept],
        rng: random.Random,
        max_connections: int = 4_096,
        max_bytes_paused: int = 256 * 1024,
        goodbye: str = "the server is going away",
        make_room: bool = True,
    ):
        self._reactor = reactor
        self._front = front
        self._rng = rng
        self._max_connections = max_connections
        self._max_bytes_paused = max_bytes_paused
        self._goodbye = goodbye
        self._may_make_room = make_room
        self._server: asyncio.AbstractServer | None = None
        self._shells: dict[Shell, None] = {}  # in the order they came
        self._scheme = b"http"
        self.draining = False
        self.accepted = 0
        self.refused = 0  # past the limit, with no connection that could make room
        self.evicted = 0  # without streams, closed to make room
        self.port = 0

    async def open(
        self, address: tuple[str, int] | str, tls: ssl.SSLContext | None = None, reuse_port: bool = False
    ) -> None:
        """Bind (host, port) or a unix socket's path, and listen; OSError when the address cannot be had."""
        loop = self._reactor.loop
        self._scheme = b"https" if tls is not None else b"http"
        handshake_s = SSL_HANDSHAKE_S if tls is not None else None
        goodbye_s = SSL_SHUTDOWN_S if tls is not None else None
        if isinstance(address, str):
            if not reuse_port:  # else the one that listens there is to be replaced
                remove_stale_socket(Path(address))
            self._server = await loop.create_unix_server(
                self._make,
                address,
                ssl=tls,
                backlog=BACKLOG,
                ssl_handshake_timeout=handshake_s,
                ssl_shutdown_timeout=goodbye_s,
            )
            return
        host, port = address
        self._server = await loop.create_server(
            self._make,
            host,
            port,
            ssl=tls,
            backlog=BACKLOG,
            reuse_port=reuse_port or None,
            ssl_handshake_timeout=handshake_s,
            ssl_shutdown_timeout=goodbye_s,
        )
        self.port = self._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]

    @property
    def connections(self) -> int:
        return len(self._shells)

    # -- connections -----------------------------------------------------------------------------------------------

    def _make(self) -> Shell:
        reactor = self._reactor
        limits = reactor.limits
        if limits.max_age_s:
            # Connections opened together must not all be replaced together.
            limits = replace(limits, max_age_s=limits.max_age_s * self._rng.uniform(0.9, 1.1))
        conn = ServerConnection(_too_early, limits, reactor.heads, reactor.turn, reactor.ledger, clock(), self._scheme)
        conn.on_closed = self._closed
        conn.on_quiet = self._quiet
        conn.peer = shell = Shell(reactor, conn, self._made, self._max_bytes_paused)
        return shell

    def _made(self, shell: Shell) -> None:
        if self.draining or (len(self._shells) >= self._max_connections and not self._make_room()):
            self.refused += 1
            shell.transport.abort()
            return
        self.accepted += 1
        self._shells[shell] = None
        sock = shell.transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        shell.conn.accept = self._front(shell)  # type: ignore[attr-defined]

    def _make_room(self) -> bool:
        """End a connection without streams: silent ones must not keep everybody else out. The oldest that never had
        one goes first, so that callers who are between two calls stay."""
        idle = [shell for shell in self._shells if not shell.conn.streams] if self._may_make_room else []
        if not idle:
            return False
        shell = next((shell for shell in idle if not shell.conn.last_peer_id), idle[0])
        self.evicted += 1
        del self._shells[shell]
        shell.conn.fail(frames.NO_ERROR, "idle, and another peer needs the room")
        self._reactor.loop.call_soon(shell.finish)
        return True

    def _closed(self, conn: Any) -> None:
        self._shells.pop(conn.peer, None)

    def _quiet(self, conn: ServerConnection) -> None:
        if conn.goaway_sent:
            conn.flush()
            conn.peer.finish()

    # -- draining --------------------------------------------------------------------------------------------------

    def stop_listening(self) -> None:
        """Close the listening socket; connections stay."""
        self.draining = True
        if self._server is not None:
            self._server.close()

    def drain(self) -> None:
        """Tell every peer to open no more streams; connections close as their last streams end."""
        turn = self._reactor.turn
        turn.begin()
        for shell in list(self._shells):
            shell.conn.shutdown()
        turn.end()

    def finish_drain(self) -> None:
        """Peers that did not answer the drain's PING have had time enough."""
        turn = self._reactor.turn
        turn.begin()
        for shell in list(self._shells):
            shell.conn.finish_shutdown()  # type: ignore[attr-defined]
        turn.end()

    def close(self) -> None:
        """Stop listening and say goodbye to every peer; what is written gets time to arrive."""
        self.stop_listening()
        shells = list(self._shells)
        turn = self._reactor.turn
        turn.begin()
        for shell in shells:
            shell.conn.fail(frames.NO_ERROR, self._goodbye)
        turn.end()
        for shell in shells:
            shell.finish()

    def abort(self) -> None:
        """Close every socket at once, whatever is still to be written."""
        for shell in list(self._shells):
            shell.transport.abort()


def remove_stale_socket(path: Path) -> None:
    """A socket file nobody listens on is left over from a process that was killed; a live one is not taken away."""
    if not path.is_socket():
        return
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.connect(str(path))
    except ConnectionRefusedError:
        path.unlink()
    except OSError:
        pass
    else:
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    finally:
        probe.close()


def _too_early(stream: Stream, head: Head, rest: Rest, end: bool) -> None:
    stream.reset(frames.REFUSED_STREAM)
