"""A guard between raw peers: clients on its port, and a server on its backend's socket that the test speaks for.

Always holds: leaving the block closes every socket and checks that the guard holds nothing for anybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from outrider_control.guard.backend import Backend
from outrider_control.guard.listener import Guard, guard_reactor
from outrider_http2.shell import Reactor
from outrider_http2.tls import ServerTls
from tests.conformance.http2 import wire
from tests.conformance.http2.peer import PATIENCE_S, RawPeer, connected

GRPC = [(":method", "POST"), (":scheme", "http"), (":path", "/a.B/C"), (":authority", "mesh"), ("te", "trailers")]
IDENTITY = ("x-outrider-peer", "x-outrider-peer-loopback", "x-outrider-peer-certificate")


def opening(peer: RawPeer, stream_id: int, *more: tuple[str, str | bytes], end: bool = False) -> bytes:
    """HEADERS of a request."""
    return wire.head(stream_id, peer.wire.block([*GRPC, ("content-type", "application/grpc"), *more]), end)


class Server:
    """What listens behind the guard: connections wait in `accepted` until the test takes them."""

    def __init__(self, path: str, first: bytes):
        self.path = path
        self.first = first
        self.accepted: asyncio.Queue[RawPeer] = asyncio.Queue()
        self.peers: list[RawPeer] = []
        self._listening: asyncio.AbstractServer | None = None

    async def listen(self) -> None:
        self._listening = await asyncio.start_unix_server(self._on_connection, self.path)

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = RawPeer(reader, writer)
        self.peers.append(peer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            assert await reader.readexactly(len(wire.PREFACE)) == wire.PREFACE
            peer.send(self.first)
            self.accepted.put_nowait(peer)

    async def peer(self) -> RawPeer:
        """The next connection, once it is there."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.accepted.get()

    async def close(self) -> None:
        if self._listening is not None:
            self._listening.close()
        for peer in self.peers:
            await peer.close()


class Scene:
    """A guard that is open. `port` is where clients connect."""

    def __init__(self, reactor: Reactor, guard: Guard, backend: Backend, server: Server):
        self.reactor = reactor
        self.guard = guard
        self.backend = backend
        self.server = server
        self.behind: RawPeer | None = None  # the backend's end of the connection streams go to

    def client(self) -> contextlib.AbstractAsyncContextManager[RawPeer]:
        return connected(self.guard.port)

    async def through(self, client: RawPeer, stream_id: int, data: bytes) -> RawPeer:
        """Send what opens a stream; the backend's end once it has the head."""
        client.send(data)
        if self.behind is None:
            self.behind = await self.server.peer()
        await self.behind.until(lambda seen: stream_id in seen.blocks)
        return self.behind


@contextlib.asynccontextmanager
async def guarded(
    listening: bool = True,
    first: bytes = wire.settings() + wire.settings(flags=wire.ACK),
    held_bytes: int = 64 * 1024 * 1024,
    max_connections: int = 16,
    streams_each: int = 200,
    max_backends: int = 4,
    max_waiting: int = 100,
    tls: ServerTls | None = None,
) -> AsyncIterator[Scene]:
    """A guard on a free port of 127.0.0.1; `first` is what its backend says first."""
    loop = asyncio.get_running_loop()
    raised: list[object] = []
    loop.set_exception_handler(lambda _, context: raised.append(context))
    reactor = guard_reactor(loop, held_bytes)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "grpc.sock")
        server = Server(path, first)
        if listening:
            await server.listen()
        backend = Backend(reactor, path, streams_each, max_backends, max_waiting)
        guard = Guard(reactor, path, max_connections, random.Random(7), backend)
        await guard.open(("127.0.0.1", 0), tls)
        try:
            yield Scene(reactor, guard, backend, server)
        finally:
            await guard.close()
            await server.close()
            await reactor.close()
            loop.set_exception_handler(None)
        assert not raised, raised
        assert reactor.ledger.held_bytes == 0
        assert not reactor.ledger.stalled
        figures = guard.figures()
        assert (figures["connections"], figures["streams_open"], figures["backend_connections"]) == (0, 0, 0)
