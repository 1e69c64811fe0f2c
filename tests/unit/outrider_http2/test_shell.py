"""The shell on real sockets: backlogs are worked off in turns, last words arrive, one fault stops nobody's clock."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from outrider_http2 import frames
from outrider_http2.limits import Limits
from tests.conformance.http2 import wire
from tests.conformance.http2.peer import connected, dialled, serving
from tests.conformance.http2.wire import MAX_WINDOW, data, ping, settings, window

BOTH = pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])


@BOTH
async def test_a_backlog_is_worked_off_in_turns() -> None:
    """More frames than a turn takes, in one go: all are answered, in order, while others get their turns."""
    async with serving(Limits(turn_units=5)) as (_, port), connected(port) as busy, connected(port) as other:
        busy.send(b"".join(ping(b"%08d" % n) for n in range(2_000)))
        other.send(other.wire.open(1, end=True))
        seen = await other.until(lambda seen: 1 in seen.ended)
        assert seen.status(1) == "200"
        seen = await busy.until(lambda seen: len(seen.pongs) == 2_000)
        assert seen.pongs == [b"%08d" % n for n in range(2_000)]


@BOTH
async def test_the_last_word_arrives() -> None:
    """GOAWAY gets through although the peer goes on sending megabytes that nobody reads."""
    async with serving() as (_, port), connected(port) as peer:
        peer.send(window(0, 0), bytes(4_000_000))
        seen = await peer.until(lambda _: False)
        assert seen.goaway == frames.PROTOCOL_ERROR
        assert seen.closed


@BOTH
async def test_a_large_reply_passes_a_full_socket() -> None:
    """Pausing and resuming by the socket's buffer, bounded bytes a turn: every byte once."""
    async with serving(Limits(turn_out_bytes=50_000)) as (server, port), connected(port) as peer:
        peer.send(settings({4: MAX_WINDOW}), window(0, MAX_WINDOW - 65_535))
        peer.send(peer.wire.open(1, end=True, path="/size/20000000"), peer.wire.open(3, end=True))
        seen = await peer.until(lambda seen: {1, 3} <= seen.ended)
        assert len(seen.data[1]) == 20_000_000
        assert server.reactor.ledger.held_bytes == 0


async def test_a_broken_part_stops_nobodys_clock() -> None:
    async with serving() as (server, port), connected(port) as one, connected(port) as two:
        await one.probe()
        await two.probe()
        reactor = server.reactor

        class Broken:
            """Stands in for a shell and its connection."""

            @property
            def conn(self) -> Any:
                raise ZeroDivisionError

        broken: Any = Broken()
        reactor.shells.add(broken)
        with pytest.raises((ZeroDivisionError, TypeError)):  # the latter: compiled code takes shells only
            reactor._tick()
        reactor.shells.discard(broken)
        assert reactor._ticking is not None
        await two.probe()
        assert not two.seen.closed


async def test_ticks_end_with_the_last_connection() -> None:
    async with serving() as (server, port):
        async with connected(port) as peer:
            await peer.probe()
            assert server.reactor._ticking is not None
        while server.reactor.shells:
            await asyncio.sleep(0)
        server.reactor._tick()
        assert server.reactor._ticking is None


async def test_losing_the_socket_tells_every_stream() -> None:
    async with serving() as (server, port), connected(port) as peer:
        peer.send(peer.wire.open(1, path="/hold"), peer.wire.open(3, path="/hold"), data(1, b"x"))
        await peer.probe()
        peer.writer.transport.abort()
        while server.reactor.shells:
            await asyncio.sleep(0)
        assert sorted(server.log) == ["reset 1 8", "reset 3 8"]
        assert server.conns[0].closed


async def test_a_client_whose_server_leaves() -> None:
    async with dialled() as mesh:
        stream, heard = await mesh.call()
        await mesh.peer.close()
        while not mesh.conn.closed:
            await asyncio.sleep(0)
        assert heard.resets == [(frames.CONNECT_ERROR, True)]
        stream.send_data(b"late")
        assert not mesh.conn.has_room


async def test_writes_after_the_end_go_nowhere() -> None:
    """A connection that has said its last word may still be written to by those who have not heard."""
    async with serving() as (server, port), connected(port) as peer:
        await peer.probe()
        conn = server.conns[0]
        shell = next(iter(server.reactor.shells))
        shell.finish()
        conn.write(wire.ping())
        conn.flush()
        seen = await peer.until(lambda _: False)
        assert seen.goaway is None
        conn.write(wire.ping())
        conn.flush()
