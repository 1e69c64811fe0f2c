"""Peers that do not take what they asked for: zero and one-byte windows, sockets nobody reads, calls by the hundred.

What is held for them is counted and capped, the upstream is stopped by back-pressure, and a client that shares the
upstream connection with all of them does not notice.
"""

from __future__ import annotations

import asyncio
import socket

from outrider.policy import Agent, EndpointPolicy, Policy
from tests.conformance.http2 import wire
from tests.conformance.http2.peer import RawPeer
from tests.conformance.http2.wire import CALM, MAX_WINDOW, data, head, settings, window
from tests.integration.abuse.attacked import GRPC, Attacked, asking, attacked, message

STALLED = 100
HELD_BYTES = 300 * 1024  # of one stalled stream: its window upstream, and the frame that overshoots it
STEADY_TURNS = 200


def ask(peer: RawPeer, stream_id: int, body: bytes) -> None:
    peer.send(head(stream_id, peer.wire.block(GRPC), False), data(stream_id, body, True))


async def steady(scene: Attacked) -> int:
    """The held bytes, once they have not risen for many turns."""
    held, unchanged = -1, 0
    while unchanged < STEADY_TURNS:
        await asyncio.sleep(0)
        unchanged = unchanged + 1 if scene.ledger.held_bytes == held else 0
        held = scene.ledger.held_bytes
    return held


async def stall(scene: Attacked, peer: RawPeer, streams: int = STALLED, size: int = 100_000) -> int:
    """So many replies of 10 MB each that nobody takes; the bytes held for them in the end."""
    peer.send(settings({4: 0}))
    for n in range(streams):
        ask(peer, 2 * n + 1, asking(100, size))
    await peer.until(lambda seen: len(seen.blocks) == streams)
    return await steady(scene)


async def test_stalled_replies_are_bounded_and_stop_the_sender() -> None:
    """A hundred replies of 10 MB: each holds a stream's window and no more; the upstream waits with the rest."""
    async with attacked() as scene, scene.attacker() as peer:
        held = await stall(scene, peer)
        assert 0 < held <= STALLED * HELD_BYTES
        assert scene.counters.open == STALLED
        assert len(scene.mesh.runtime.calls) == STALLED
        for _ in range(20):
            await scene.witness.call(bytes(15_000))
        assert scene.ledger.held_bytes == held


async def test_stalled_replies_do_not_block_others_on_the_same_upstream_connection() -> None:
    """One upstream connection for all: 5 MB for the witness pass by a hundred stalled replies."""
    async with attacked() as scene, scene.attacker() as peer:
        await stall(scene, peer)
        pool = scene.mesh.runtime.agents["echo"].pool
        assert [endpoint.connector.connections for endpoint in pool.endpoints.values()] == [1]
        async with scene.attacker() as other:
            other.send(settings({4: MAX_WINDOW}), window(0, MAX_WINDOW - 65_535))
            ask(other, 1, asking(50, 100_000))
            seen = await other.until(lambda seen: 1 in seen.ended)
            assert len(seen.data[1]) == 50 * 100_005


async def test_a_stalled_reply_goes_on_where_it_stopped() -> None:
    """Nothing is lost or doubled when the reader comes back; closing its windows again stops it again."""
    async with attacked() as scene, scene.attacker() as peer:
        await stall(scene, peer, streams=3, size=20_000)
        peer.send(window(0, 10_000_000), window(3, 1_000_000))
        await peer.until(lambda seen: len(seen.data.get(3, b"")) == 1_000_000)
        assert 1 not in peer.seen.data
        peer.send(*[window(n, 2_000_500) for n in (1, 3, 5)])
        seen = await peer.until(lambda seen: {1, 3, 5} <= seen.ended)
        one = message(bytes(97 + i % 26 for i in range(20_000)))
        assert all(seen.data[n] == one * 100 for n in (1, 3, 5))


async def test_the_cap_cuts_the_longest_stalled() -> None:
    """Past `held_bytes` the oldest stalls are reset; the sidecar stays below the cap and goes on."""
    async with attacked() as scene, scene.attacker() as peer:
        scene.ledger.cap_bytes = 4 * 1024 * 1024
        peer.send(settings({4: 0}))
        for n in range(STALLED):
            ask(peer, 2 * n + 1, asking(100, 100_000))
        while not scene.ledger.cut:
            await scene.witness.call()
        await steady(scene)
        assert scene.ledger.held_bytes <= scene.ledger.cap_bytes
        seen = await peer.probe()
        assert len(seen.resets) == scene.ledger.cut
        assert set(seen.resets.values()) == {CALM}
        left = STALLED - scene.ledger.cut
        assert left > 0
        assert len(scene.mesh.runtime.calls) == left


async def test_stalled_requests_are_bounded() -> None:
    """Uploads to an endpoint that takes nothing: the caller is stopped by its stream's window."""
    taken: list[int] = []

    class Deaf(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transport.write(settings({4: 0}))  # type: ignore[attr-defined]

        def data_received(self, received: bytes) -> None:
            taken.append(len(received))

    async with attacked() as scene:
        pool = scene.mesh.runtime.agents["echo"].pool
        deaf = await scene.mesh.reactor.loop.create_server(Deaf, "127.0.0.1", 0)
        async with scene.attacker() as peer:
            echo = pool.endpoints.copy()
            _dial(scene, deaf.sockets[0].getsockname()[1])
            for n in range(10):
                peer.send(head(2 * n + 1, peer.wire.block(GRPC), False), *[data(2 * n + 1, bytes(16_000))] * 16)
            await peer.probe()
            held = await steady(scene)
            assert 10 * 200_000 < held <= 10 * 2 * HELD_BYTES
            assert sum(taken) < 10_000
            _dial(scene, int(next(iter(echo)).rpartition(":")[2]))
        deaf.close()


def _dial(scene: Attacked, port: int) -> None:
    """Give the agent one other endpoint."""
    scene.mesh.apply(Policy({"echo": Agent("echo", (EndpointPolicy(f"127.0.0.1:{port}"),))}, "echo"))


async def test_one_byte_windows() -> None:
    """A thousand replies let out a byte at a time: each update moves one byte and costs no look at the others."""
    async with attacked() as scene, scene.attacker() as peer:
        peer.send(settings({4: 1}), window(0, 1_000_000))
        for n in range(999):
            ask(peer, 2 * n + 1, message(bytes(60)))
        await peer.until(lambda seen: len(seen.data) == 999)
        crumbs = asyncio.ensure_future(peer.until(lambda seen: len(seen.ended) == 999))
        for _ in range(64):
            peer.send(b"".join(window(2 * n + 1, 1) for n in range(999)))
        await scene.witness.call_until(crumbs)
        assert set(peer.seen.data.values()) == {message(bytes(60))}


async def test_a_connection_window_in_crumbs() -> None:
    """The streams' windows are wide open, the connection's is not: a byte goes to whoever's turn it is."""
    async with attacked() as scene, scene.attacker() as peer:
        peer.send(settings({4: MAX_WINDOW}))
        for n in range(200):
            ask(peer, 2 * n + 1, message(bytes(1_000)))
        await peer.until(lambda seen: sum(map(len, seen.data.values())) == 65_535)
        rest = 200 * 1_005 - 65_535
        crumbs = asyncio.ensure_future(peer.until(lambda seen: len(seen.ended) == 200))
        peer.send(window(0, 1) * 20_000, window(0, rest - 20_000))
        await scene.witness.call_until(crumbs)
        assert set(peer.seen.data.values()) == {message(bytes(1_000))}


async def test_updates_that_set_nothing_going() -> None:
    """Every stream is stalled by its own window: credit for the connection must not look at each of them."""
    async with attacked() as scene, scene.attacker() as peer:
        await stall(scene, peer, streams=200, size=1_000)
        conn = scene.servers()[-1]
        assert not conn.blocked
        over = asyncio.ensure_future(peer.until(lambda _: False))
        peer.send(window(0, 1) * 500_000)
        await scene.witness.call_until(over)
        assert peer.seen.goaway == CALM


async def test_a_socket_nobody_reads() -> None:
    """With the socket full every further answer is counted: a client that goes on asking is cut off and let go."""
    async with attacked() as scene:
        loop = asyncio.get_running_loop()
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        deaf.setblocking(False)
        await loop.sock_connect(deaf, ("127.0.0.1", scene.mesh.listener.port))
        w = wire.Wire()
        opening = wire.PREFACE + settings({4: MAX_WINDOW}) + settings(flags=1) + window(0, MAX_WINDOW - 65_535)
        opening += head(1, w.block(GRPC), False) + data(1, asking(1_000, 16_000), True)
        await loop.sock_sendall(deaf, opening)
        while len(scene.servers()) < 2 or not scene.servers()[-1].paused:
            await scene.witness.call()
        conn, shell = scene.servers()[-1], scene.shells()[-1]
        fail = head(1, w.block(GRPC), False)[9:]  # its block alone
        for n in range(3, 8_003, 2):
            await loop.sock_sendall(deaf, head(n, fail, False) + data(n, message(b"!fail 7\n"), True))
            if conn.failed is not None:
                break
            await asyncio.sleep(0)
        assert conn.failed is not None
        assert conn.failed.code == CALM
        assert shell.transport.get_write_buffer_size() < 2 * 1024 * 1024
        while conn in scene.servers():  # the farewell is not waited for without end
            await scene.witness.call()
        deaf.close()


async def test_a_slow_reader_gets_its_last_bytes() -> None:
    """A connection that drains ends when its peer has read what it is owed, however slowly."""
    async with attacked() as scene, scene.attacker() as peer:
        peer.send(settings({4: MAX_WINDOW}), window(0, MAX_WINDOW - 65_535))
        ask(peer, 1, asking(30, 100_000))
        await peer.until(lambda seen: 1 in seen.blocks)
        shell = scene.shells()[-1]
        while scene.mesh.runtime.calls or shell.conn.streams:
            await peer.frame()
        scene.servers()[-1].shutdown()
        scene.servers()[-1].finish_shutdown()
        seen = await peer.until(lambda _: False)
        assert len(seen.data[1]) == 30 * 100_005
        assert 1 in seen.ended
        assert seen.goaway == 0
