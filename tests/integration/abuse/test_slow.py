"""Peers that say nothing, or say it slowly, and more of them than there is room for. Time is passed in: `tick(now)`."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from outrider_http2.limits import Limits
from outrider_http2.shell import clock
from tests.conformance.http2 import wire
from tests.conformance.http2.peer import RawPeer
from tests.conformance.http2.wire import CALM, PREFACE, PROTOCOL, SETTINGS_TIMEOUT, Wire, continuation, data, head
from tests.integration.abuse.attacked import GRPC, Attacked, attacked, message

LIMITS = Limits()


async def given_up(scene: Attacked, peer: RawPeer, after_s: float) -> int | None:
    """The GOAWAY code of the attacker's connection when so much time has passed and not a second less."""
    conn = scene.servers()[-1]
    now = clock()
    conn.tick(now + after_s - 1.0)
    assert conn.failed is None
    conn.tick(now + after_s + 1.0)
    assert conn.failed is not None
    scene.shells()[-1].finish()
    return (await peer.until(lambda _: False)).goaway


async def arrived(scene: Attacked, size: int) -> None:
    """The attacker's connection is there, and has kept so many bytes of an unfinished frame."""
    while len(scene.servers()) < 2 or len(scene.servers()[-1].rest) < size:
        await scene.witness.call()


@pytest.mark.parametrize("said", [b"", PREFACE[:10], PREFACE, PREFACE + wire.settings({3: 1})[:4]])
async def test_silence(said: bytes) -> None:
    """Neither preface nor SETTINGS within ten seconds."""
    async with attacked() as scene, scene.attacker(said) as peer:
        await arrived(scene, len(said))
        assert await given_up(scene, peer, LIMITS.preface_timeout_s) == PROTOCOL


async def test_settings_never_acknowledged() -> None:
    async with attacked() as scene, scene.attacker(PREFACE + wire.settings()) as peer:
        await peer.probe()
        assert await given_up(scene, peer, LIMITS.settings_timeout_s) == SETTINGS_TIMEOUT


SLOW = {
    "half a frame": lambda w: data(1, bytes(100))[:50],
    "half a frame head": lambda w: data(1, bytes(100))[:5],
    "half a header block": lambda w: head(3, w.block(GRPC)[:5], last=False),
}


@pytest.mark.parametrize("name", SLOW)
async def test_half_a_thing(name: str) -> None:
    """Slowloris: what was begun must be finished within its time, whatever else the peer has open."""
    async with attacked() as scene, scene.attacker() as peer:
        peer.send(head(1, peer.wire.block(GRPC), False))
        await peer.probe()
        peer.send(SLOW[name](peer.wire))
        while not scene.servers()[-1].partial_at:
            await scene.witness.call()
        assert await given_up(scene, peer, LIMITS.stall_timeout_s) == CALM
        await scene.quiet()
        assert scene.counters.open == 0


async def test_crumbs_of_a_header_block_do_not_buy_time() -> None:
    """A further CONTINUATION now and then: the block as a whole has one deadline."""
    async with attacked() as scene, scene.attacker() as peer:
        peer.send(head(1, b"", last=False))
        while not scene.servers()[-1].partial_at:
            await scene.witness.call()
        began = scene.servers()[-1].partial_at
        for n in range(20):
            peer.send(continuation(1, b"", last=False))
            while len(scene.servers()[-1].assembling[2]) < n + 2:  # type: ignore[index]
                await scene.witness.call()
        assert scene.servers()[-1].partial_at == began


async def test_a_request_a_byte_at_a_time() -> None:
    """Slow, but honest: it is served."""
    async with attacked() as scene, scene.attacker(b"") as peer:
        w = Wire()
        for byte in PREFACE + wire.settings() + head(1, w.block(GRPC), False) + data(1, message(b"slow"), True):
            peer.send(bytes((byte,)))
            await peer.writer.drain()
            await asyncio.sleep(0)
        seen = await peer.until(lambda seen: 1 in seen.ended)
        assert seen.data[1] == message(b"slow")


async def test_idle_connections_may_be_closed() -> None:
    """With an idle timeout a connection without streams ends politely; one with a stream does not."""
    async with attacked() as scene, scene.attacker() as idle, scene.attacker() as busy:
        await idle.probe()
        busy.send(head(1, busy.wire.block(GRPC), False))
        await busy.probe()
        for conn in scene.servers()[1:]:
            conn.limits = Limits(idle_timeout_s=60.0)
            conn.tick(clock() + 61.0)
        for shell in scene.shells()[1:]:
            if shell.conn.failed is not None:
                shell.finish()
        seen = await idle.until(lambda _: False)
        assert seen.goaway == 0
        await busy.probe()
        assert busy.seen.goaway is None


async def test_connections_beyond_the_limit() -> None:
    """They are closed at once and cost no stream; when one leaves there is room again."""
    async with attacked() as scene, contextlib.AsyncExitStack() as stack:
        scene.mesh.listener._max_connections = 4
        peers = [await stack.enter_async_context(scene.attacker()) for _ in range(3)]
        for peer in peers:
            await peer.probe()
        for _ in range(50):
            async with scene.attacker() as late:
                assert (await late.until(lambda _: False)).closed
        assert scene.mesh.listener.refused == 50
        assert scene.mesh.listener.connections == 4
        await peers[0].close()
        while scene.mesh.listener.connections == 4:
            await scene.witness.call()
        async with scene.attacker() as late:
            late.send(head(1, late.wire.block(GRPC), False), data(1, message(b"x"), True))
            await late.until(lambda seen: 1 in seen.ended)
            assert 1 in late.seen.ended


@pytest.mark.parametrize("loud", [True, False])
async def test_a_peer_that_talks_on_after_the_end(loud: bool) -> None:
    """A drained connection has said its last word: what still comes is neither answered nor an error."""
    async with attacked() as scene, scene.attacker() as peer:
        await peer.probe()
        conn = scene.servers()[-1]
        conn.shutdown()
        conn.finish_shutdown()
        if loud:
            peer.send(wire.ping() * 10, wire.settings(), head(1, peer.wire.block(GRPC)))
        seen = await peer.until(lambda _: False)
        assert seen.goaway == 0
        for shell in list(scene.mesh.reactor.shells):
            shell.conn.tick(clock() + 1.0)
        assert scene.mesh.reactor._ticking is not None
