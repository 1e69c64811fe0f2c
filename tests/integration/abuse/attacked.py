"""A sidecar under attack: a listener, one real upstream, a witness whose calls must go through, and raw attackers.

Always holds: delay is counted in turns of the loop, of which every party gets its share, never in time; what the
sidecar holds is counted in its own ledger and tables, never in memory of the process. Leaving the block checks that the
attack has left nothing behind: no call, no stream, no held byte.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from bench.echo_backend import Counters, EchoProtocol
from outrider.policy import Agent, EndpointPolicy, Policy
from outrider_http2.server import ServerConnection
from outrider_http2.shell import Shell
from tests.conformance.http2 import wire
from tests.conformance.http2.peer import RawPeer, connected
from tests.in_process import InProcess, in_process

PATH = "/bench.Echo/Unary"
FIELDS = [(":method", "POST"), (":scheme", "http"), (":path", PATH), (":authority", "echo"), ("te", "trailers")]
GRPC = [*FIELDS, ("content-type", "application/grpc")]
TURNS = 120  # a call through the sidecar takes about ten turns of an idle loop
CALLS = 3  # of the witness after an attack


def message(text: bytes) -> bytes:
    """One gRPC message."""
    return b"\0" + len(text).to_bytes(4, "big") + text


def asking(count: int, size: int) -> bytes:
    """What makes the upstream stream so many messages of so many bytes."""
    return message(b"!stream %d %d\n" % (count, size))


class Turns:
    """Counts turns of the loop while it is open."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop = loop
        self._open = True
        self.count = 0
        self._tick()

    def _tick(self) -> None:
        if self._open:
            self.count += 1
            self._loop.call_soon(self._tick)

    def close(self) -> None:
        self._open = False


class Witness:
    """A well-behaved client on a connection of its own. `worst` is the most turns one of its calls has taken."""

    def __init__(self, peer: RawPeer, turns: Turns):
        self._peer = peer
        self._turns = turns
        self._block = b""
        self._next_id = 1
        self.calls = 0
        self.worst = 0

    async def call(self, text: bytes = b"hello") -> bytes:
        """One echo; its reply, whole and in order."""
        stream_id, self._next_id = self._next_id, self._next_id + 2
        peer, began = self._peer, self._turns.count
        peer.send(wire.head(stream_id, peer.wire.block(GRPC), False), wire.data(stream_id, message(text), True))
        seen = await peer.until(lambda seen: stream_id in seen.ended or stream_id in seen.resets)
        assert stream_id in seen.ended, f"the witness was cut off: GOAWAY {seen.goaway}, resets {seen.resets}"
        assert seen.blocks[stream_id][-1]["grpc-status"] == "0", seen.blocks[stream_id]
        reply = seen.data[stream_id]
        assert reply == message(text)
        self.calls += 1
        self.worst = max(self.worst, self._turns.count - began)
        peer.send(wire.window(0, len(reply)))
        return reply

    async def call_until(self, done: asyncio.Future[Any]) -> None:
        """Call after call until something is over, and a few after it."""
        while not done.done():
            await self.call()
        for _ in range(CALLS):
            await self.call()


class Attacked:
    """See the module."""

    def __init__(self, mesh: InProcess, counters: Counters, witness: Witness):
        self.mesh = mesh
        self.counters = counters
        self.witness = witness

    @property
    def ledger(self) -> Any:
        return self.mesh.reactor.ledger

    def servers(self) -> list[ServerConnection]:
        """The connections of callers, the witness's first."""
        found = [shell.conn for shell in self.mesh.listener._shells]
        mine = [conn for conn in found if isinstance(conn, ServerConnection)]
        return sorted(mine, key=lambda conn: conn.opened_at)

    def shells(self) -> list[Shell]:
        return [conn.peer for conn in self.servers()]

    def attacker(self, preface: bytes | None = None) -> contextlib.AbstractAsyncContextManager[RawPeer]:
        """A raw client."""
        return connected(self.mesh.listener.port, preface)

    async def flood(self, *parts: bytes) -> RawPeer:
        """Send everything at once while the witness calls; the attacker's view once it is over for it."""
        async with self.attacker() as peer:
            peer.send(*parts)
            over = asyncio.ensure_future(peer.until(lambda _: False))
            await self.witness.call_until(over)
        return peer

    async def quiet(self) -> None:
        """Until no call is left but for those somebody still waits for."""
        async with asyncio.timeout(10):
            while self.mesh.runtime.calls or self.ledger.held_bytes:
                await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def attacked() -> AsyncIterator[Attacked]:
    """A sidecar with the echo server as its only upstream, and a witness that has made a call."""
    loop = asyncio.get_running_loop()
    counters = Counters()
    upstream = await loop.create_server(lambda: EchoProtocol(counters), "127.0.0.1", 0)
    port = upstream.sockets[0].getsockname()[1]
    policy = Policy({"echo": Agent("echo", (EndpointPolicy(f"127.0.0.1:{port}"),))}, "echo")
    turns = Turns(loop)
    raised: list[dict[str, Any]] = []

    def note(_: Any, context: dict[str, Any]) -> None:
        if not isinstance(context.get("protocol"), EchoProtocol):  # the upstream may choke on nonsense, we may not
            raised.append(context)

    loop.set_exception_handler(note)
    try:
        async with in_process(policy=policy) as mesh, connected(mesh.listener.port) as peer:
            witness = Witness(peer, turns)
            await witness.call()
            witness.worst = 0
            scene = Attacked(mesh, counters, witness)
            yield scene
            for _ in range(CALLS):
                await witness.call()
            assert witness.worst <= TURNS, f"a call took {witness.worst} turns"
            await scene.quiet()
            assert not scene.ledger.stalled
        assert not raised, raised
    finally:
        loop.set_exception_handler(None)
        turns.close()
        upstream.close()
