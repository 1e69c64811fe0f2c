"""The listening side: accepts connections and turns streams into calls.

Always holds: at most `max_connections` connections; draining tells every peer by GOAWAY and takes no new connection.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from outrider_http2 import frames
from outrider_http2.head import Head, Rest
from outrider_http2.server import ServerConnection
from outrider_http2.shell import Reactor, Shell, clock
from outrider_http2.stream import Stream
from outrider_sidecar.core.call import Call
from outrider_sidecar.core.runtime import Runtime, Snapshot

_BACKLOG = 1_024
SSL_SHUTDOWN_S = 1.0  # how long a peer that does not answer the end of TLS is waited for


class Listener:
    """One address calls come in on. `snapshot()` gives the policy a new call runs under."""

    def __init__(
        self,
        runtime: Runtime,
        snapshot: Callable[[], Snapshot],
        max_connections: int = 4_096,
    ):
        self._runtime = runtime
        self._reactor: Reactor = runtime.reactor
        self._snapshot = snapshot
        self._max_connections = max_connections
        self._server: asyncio.AbstractServer | None = None
        self._shells: set[Shell] = set()
        self._tls = False
        self.draining = False
        self.refused = 0  # connections past the limit
        self.port = 0

    async def open(
        self,
        address: tuple[str, int] | str,
        tls: ssl.SSLContext | None = None,
        reuse_port: bool = False,
    ) -> None:
        """Bind and listen; OSError when the address cannot be had."""
        loop = self._reactor.loop
        self._tls = tls is not None
        goodbye_s = SSL_SHUTDOWN_S if tls is not None else None
        if isinstance(address, str):
            if not reuse_port:  # else the one that listens there is to be replaced
                _remove_stale_socket(Path(address))
            self._server = await loop.create_unix_server(
                self._make, address, ssl=tls, backlog=_BACKLOG, ssl_shutdown_timeout=goodbye_s
            )
            return
        host, port = address
        self._server = await loop.create_server(
            self._make,
            host,
            port,
            ssl=tls,
            backlog=_BACKLOG,
            reuse_port=reuse_port or None,
            ssl_shutdown_timeout=goodbye_s,
        )
        self.port = self._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]

    def _make(self) -> Shell:
        reactor = self._reactor
        limits = reactor.limits
        if limits.max_age_s:
            # Connections opened together must not all be replaced together.
            limits = replace(limits, max_age_s=limits.max_age_s * self._runtime.rng.uniform(0.9, 1.1))
        conn = ServerConnection(
            self._accept,
            limits,
            reactor.heads,
            reactor.turn,
            reactor.ledger,
            clock(),
            b"https" if self._tls else b"http",
        )
        shell = Shell(reactor, conn, self._made)
        conn.peer = shell
        conn.on_closed = self._closed
        conn.on_quiet = self._quiet
        return shell

    def _made(self, shell: Shell) -> None:
        if len(self._shells) >= self._max_connections or self.draining:
            self.refused += 1
            shell.transport.abort()
            return
        self._shells.add(shell)
        sock = shell.transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _closed(self, conn: Any) -> None:
        self._shells.discard(conn.peer)

    def _quiet(self, conn: ServerConnection) -> None:
        if conn.goaway_sent:
            conn.flush()
            conn.peer.finish()

    def _accept(self, stream: Stream, head: Head, rest: Rest, end: bool) -> None:
        call = Call(self._runtime, self._snapshot(), stream, head, rest, end, self._runtime.clock())
        stream.handler = call
        call.run()

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
            shell.conn.shutdown()  # type: ignore[attr-defined]
        turn.end()

    def finish_drain(self) -> None:
        """Peers that did not answer the drain's PING have had time enough."""
        turn = self._reactor.turn
        turn.begin()
        for shell in list(self._shells):
            shell.conn.finish_shutdown()  # type: ignore[attr-defined]
        turn.end()

    @property
    def connections(self) -> int:
        return len(self._shells)

    def close(self) -> None:
        """Stop listening and say goodbye to every peer; what is written gets time to arrive."""
        self.stop_listening()
        turn = self._reactor.turn
        turn.begin()
        for shell in list(self._shells):
            shell.conn.fail(frames.NO_ERROR, "the sidecar is going away")
        turn.end()
        for shell in list(self._shells):
            shell.finish()


def _remove_stale_socket(path: Path) -> None:
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
