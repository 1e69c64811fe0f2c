"""Dialling: a socket, TLS where it is asked for, and a client connection on it.

Always holds: a TLS peer that did not choose HTTP/2 by ALPN is an error, and an error leaves no socket open.

Deliberately not here: when to dial and how often, what a written address means, waiting for the peer's SETTINGS
(`ClientConnection.on_ready`).
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import Any

from outrider_http2.client import ClientConnection
from outrider_http2.limits import Limits
from outrider_http2.shell import Reactor, Shell, clock

USER_TIMEOUT_MS = 20_000  # how long sent bytes may stay without an answer of the peer's kernel
SSL_SHUTDOWN_S = 1.0  # how long a peer that does not answer the end of TLS is waited for


async def dial(
    reactor: Reactor,
    address: tuple[str, int] | str,
    limits: Limits,
    prepare: Callable[[ClientConnection], Any],
    tls: ssl.SSLContext | None = None,
    server_name: str = "",
) -> Shell:
    """Open one connection to (host, port) or to a unix socket's path; OSError (or ssl.SSLError) says why not.

    `prepare` runs before the first byte. `server_name` is what the peer's certificate must be for; by default the host.
    """
    scheme = b"https" if tls else b"http"
    conn = ClientConnection(limits, reactor.heads, reactor.turn, reactor.ledger, clock(), scheme)
    prepare(conn)
    shell = Shell(reactor, conn)
    goodbye_s = SSL_SHUTDOWN_S if tls else None
    if isinstance(address, str):
        name = (server_name or "localhost") if tls else None
        await reactor.loop.create_unix_connection(
            lambda: shell, address, ssl=tls, server_hostname=name, ssl_shutdown_timeout=goodbye_s
        )
    else:
        host, port = address
        name = (server_name or host) if tls else None
        await reactor.loop.create_connection(
            lambda: shell, host, port, ssl=tls, server_hostname=name, ssl_shutdown_timeout=goodbye_s
        )
    if tls is not None and shell.transport.get_extra_info("ssl_object").selected_alpn_protocol() != "h2":
        shell.close()
        raise OSError("the peer does not speak HTTP/2 (ALPN h2)")
    sock = shell.transport.get_extra_info("socket")
    if sock is not None and sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(
            socket, "TCP_USER_TIMEOUT"
        ):  # a peer that is gone without a word is found out by what it does not take
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
    return shell
