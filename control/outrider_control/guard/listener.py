"""The control plane's public port: our own HTTP/2 in front of its gRPC server, which listens on a unix socket.

Always holds: nothing reaches the gRPC server that the HTTP/2 state machine has not checked, so a request that would
stop grpcio, or a flood, ends here; connections, streams and held bytes are bounded; each request carries the identity
of its peer, and only the guard writes it (`peer`); a TLS connection runs under the newest files.

Deliberately not here: who may call what (`api`), the gRPC server, streams that must end for a drain to be quick (their
server ends them).
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
from typing import TYPE_CHECKING

from outrider_control.guard.backend import Backend
from outrider_control.guard.peer import Identity, identify, without_peer
from outrider_control.guard.relay import Relay
from outrider_http2.head import Head, Rest
from outrider_http2.limits import Limits
from outrider_http2.listener import Listener
from outrider_http2.shell import Reactor, clock
from outrider_http2.tls import ServerTls

if TYPE_CHECKING:
    from outrider_http2.server import Accept
    from outrider_http2.shell import Shell
    from outrider_http2.stream import Stream

# Of one connection. A watch stream is silent for hours: the PING keeps it open in NAT tables and finds dead peers.
LIMITS = Limits(
    max_streams=256,
    header_list_bytes=16 * 1024,
    header_block_bytes=32 * 1024,
    max_continuations=8,
    reset_burst=512,  # all streams at once, twice
    reset_per_s=100.0,
    stall_timeout_s=30.0,
    idle_timeout_s=300.0,
    ping_interval_s=30.0,
    ping_timeout_s=20.0,
)

# For the gRPC server behind: it must take every header list the guard lets through, the peer's fields among them, and
# it must not drop calls of one client because another one's wait (by default it does from a thousand on, at random).
BACKEND_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_metadata_size", 24 * 1024),
    ("grpc.absolute_max_metadata_size", 32 * 1024),
    ("grpc.server.max_pending_requests", 20_000),
    ("grpc.server.max_pending_requests_hard_limit", 40_000),
)

_TLS_POLL_S = 1.0
_DRAIN_PING_S = 1.0  # peers that have not answered the drain's PING by then are told the last stream
_CLOSE_S = 2.0


def guard_reactor(loop: asyncio.AbstractEventLoop, held_bytes: int = 64 * 1024 * 1024) -> Reactor:
    """What a guard's connections share. `held_bytes` are kept for peers that do not read, in the whole process."""
    return Reactor(loop, LIMITS, held_bytes=held_bytes)


class Guard:
    """See the module. `open`, then `drain` or `close`; the reactor is its owner's to close, afterwards."""

    def __init__(
        self,
        reactor: Reactor,
        backend_path: str,
        max_connections: int = 4_096,
        rng: random.Random | None = None,
        backend: Backend | None = None,
    ):
        self._reactor = reactor
        self._backend = backend or Backend(reactor, backend_path)
        self._listener = Listener(
            reactor,
            self._front,
            rng or random.Random(os.urandom(16)),
            max_connections,
            max_bytes_paused=64 * 1024,
            goodbye="the control plane is going away",
        )
        self._tls: ServerTls | None = None
        self._polling: asyncio.TimerHandle | None = None
        self._fresh: list[Relay] = []  # came in this turn
        self.streams = 0  # taken since the start

    async def open(
        self, address: tuple[str, int] | str, tls: ServerTls | None = None, reuse_port: bool = False
    ) -> None:
        """Listen on (host, port), or on a unix socket's path; OSError when the address cannot be had."""
        self._tls = tls
        await self._listener.open(address, tls.context() if tls is not None else None, reuse_port)
        if tls is not None:
            self._poll_tls(tls)

    @property
    def port(self) -> int:
        """The port that was bound; 0 for a unix socket."""
        return self._listener.port

    def figures(self) -> dict[str, int]:
        """What the guard has and has refused, for metrics."""
        listener, backend, ledger = self._listener, self._backend, self._reactor.ledger
        return {
            "connections": listener.connections,
            "connections_accepted": listener.accepted,
            "connections_refused": listener.refused,
            "connections_evicted": listener.evicted,
            "streams_open": backend.streams + backend.waiting,
            "streams_taken": self.streams,
            "streams_refused": backend.refused,
            "backend_connections": backend.connections,
            "backend_dials": backend.dials,
            "held_bytes": ledger.held_bytes,
            "cut_for_held_bytes": ledger.cut,
        }

    # -- streams ---------------------------------------------------------------------------------------------------

    def _front(self, shell: Shell) -> Accept:
        transport = shell.transport
        shown = transport.get_extra_info("ssl_object")
        sock = transport.get_extra_info("socket")
        identity = identify(
            transport.get_extra_info("peername"),
            sock is not None and sock.family == socket.AF_UNIX,
            shown.getpeercert() if shown is not None else None,
        )
        return _Door(self, identity).accept

    def take(self, stream: Stream, head: Head, rest: Rest, end: bool, identity: Identity) -> None:
        """A new stream of a connection whose peer is known."""
        self.streams += 1
        extra = rest.literals + identity.fields(head)
        relay = Relay(self._backend, stream, without_peer(head), extra, end)
        stream.handler = relay
        # At the end of the turn: what is opened and reset in one go never reaches the server.
        if not self._fresh:
            self._reactor.loop.call_soon(self._begin)
        self._fresh.append(relay)

    def _begin(self) -> None:
        fresh, self._fresh = self._fresh, []
        turn = self._reactor.turn
        turn.begin()
        try:
            for relay in fresh:
                relay.begin()
        finally:
            turn.end()

    def _poll_tls(self, tls: ServerTls) -> None:
        self._polling = self._reactor.loop.call_later(_TLS_POLL_S, self._poll_tls, tls)
        tls.poll()

    # -- the end ---------------------------------------------------------------------------------------------------

    async def drain(self, grace_s: float) -> bool:
        """Take no new connection, have peers open no more streams, and wait until they are gone; False if some are not.

        Streams without end keep their connections: end them at their server first.
        """
        listener = self._listener
        listener.stop_listening()
        listener.drain()
        began = clock()
        while listener.connections and clock() - began < grace_s:
            if clock() - began > _DRAIN_PING_S:
                listener.finish_drain()
            await asyncio.sleep(0.01)
        return not listener.connections

    async def close(self) -> None:
        """Say goodbye to every peer, end what is under way and close all sockets."""
        if self._polling is not None:
            self._polling.cancel()
            self._polling = None
        listener = self._listener
        listener.close()
        await self._backend.close()
        give_up_at = clock() + _CLOSE_S
        while listener.connections and clock() < give_up_at:
            await asyncio.sleep(0.002)
        listener.abort()


class _Door:
    """One connection's streams, with what is known of its peer."""

    __slots__ = ("_guard", "_identity")

    def __init__(self, guard: Guard, identity: Identity):
        self._guard = guard
        self._identity = identity

    def accept(self, stream: Stream, head: Head, rest: Rest, end: bool) -> None:
        self._guard.take(stream, head, rest, end, self._identity)
