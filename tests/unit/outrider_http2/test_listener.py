"""Accepting connections: who takes their streams, how many there may be, how old, and whose socket file it is."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from outrider_http2.head import Head, Rest
from outrider_http2.limits import Limits
from outrider_http2.listener import Listener, remove_stale_socket
from outrider_http2.server import Accept
from outrider_http2.shell import Reactor, Shell
from outrider_http2.stream import Stream
from tests.conformance.http2.peer import Answering, RawPeer, connected
from tests.conformance.http2.wire import NO_ERROR, PREFACE, settings

BOTH_LOOPS = pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])


class Served:
    """A listener whose connections each get a number, told in the order their streams come."""

    def __init__(self, limits: Limits, max_connections: int):
        self.reactor = Reactor(asyncio.get_running_loop(), limits)
        self.listener = Listener(self.reactor, self.front, random.Random(7), max_connections)
        self.fronts: list[Shell] = []
        self.streams: list[int] = []

    def front(self, shell: Shell) -> Accept:
        number = len(self.fronts)
        self.fronts.append(shell)

        def accept(stream: Stream, head: Head, rest: Rest, end: bool) -> None:
            self.streams.append(number)
            handler = Answering([], head, False)
            stream.handler = handler
            handler.begin(stream, end)

        return accept

    def limits_of(self, number: int) -> Limits:
        return self.fronts[number].conn.limits


@contextlib.asynccontextmanager
async def served(
    limits: Limits | None = None, max_connections: int = 8, address: Any = ("127.0.0.1", 0)
) -> AsyncIterator[Served]:
    made = Served(limits or Limits(), max_connections)
    await made.listener.open(address)
    try:
        yield made
    finally:
        made.listener.close()
        await made.reactor.close()
        assert made.listener.connections == 0


@BOTH_LOOPS
async def test_each_connection_has_a_front_of_its_own() -> None:
    async with served() as scene, connected(scene.listener.port) as one, connected(scene.listener.port) as two:
        for peer, stream_id in ((one, 1), (two, 1), (one, 3)):
            peer.send(peer.wire.open(stream_id, end=True))
            await peer.until(lambda seen: stream_id in seen.ended)  # noqa: B023
        assert scene.streams in ([0, 1, 0], [1, 0, 1])
        assert (scene.listener.connections, scene.listener.accepted) == (2, 2)
        sock = scene.fronts[0].transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_ages_are_spread() -> None:
    async with served(Limits(max_age_s=100.0)) as scene, contextlib.AsyncExitStack() as stack:
        for _ in range(8):
            peer = await stack.enter_async_context(connected(scene.listener.port))
            await peer.probe()
        ages = [scene.limits_of(number).max_age_s for number in range(8)]
        assert len(set(ages)) == 8
        assert all(90.0 <= age <= 110.0 for age in ages)


async def test_past_the_limit_a_connection_with_a_stream_is_not_given_up() -> None:
    async with served(max_connections=1) as scene, connected(scene.listener.port) as busy:
        busy.send(busy.wire.open(1, end=True, path="/hold"))
        await busy.probe()
        async with connected(scene.listener.port) as other:
            assert (await other.until(lambda _: False)).goaway is None
        assert (scene.listener.refused, scene.listener.evicted) == (1, 0)
        assert (await busy.probe()).goaway is None


async def test_past_the_limit_a_silent_connection_is() -> None:
    async with served(max_connections=1) as scene, connected(scene.listener.port, b"") as silent:
        async with asyncio.timeout(10):
            while not scene.listener.accepted:
                await asyncio.sleep(0)
        async with connected(scene.listener.port) as other:
            other.send(other.wire.open(1, end=True))
            assert 1 in (await other.until(lambda seen: 1 in seen.ended)).ended
            assert (await silent.until(lambda _: False)).goaway == NO_ERROR
        assert (scene.listener.refused, scene.listener.evicted) == (0, 1)


async def test_callers_between_two_calls_stay_while_there_are_silent_ones() -> None:
    async with served(max_connections=2) as scene, connected(scene.listener.port) as caller:
        caller.send(caller.wire.open(1, end=True))
        await caller.until(lambda seen: 1 in seen.ended)
        for _ in range(3):
            async with connected(scene.listener.port) as silent:
                await silent.probe()
                async with connected(scene.listener.port) as other:
                    await other.probe()
                    assert (await silent.until(lambda _: False)).goaway == NO_ERROR
        caller.send(caller.wire.open(3, end=True))
        assert 3 in (await caller.until(lambda seen: 3 in seen.ended)).ended
        assert scene.listener.evicted >= 3


@BOTH_LOOPS
async def test_close_says_goodbye_and_listens_no_more() -> None:
    async with served() as scene, connected(scene.listener.port) as peer:
        await peer.probe()
        scene.listener.close()
        seen = await peer.until(lambda _: False)
        assert seen.goaway == NO_ERROR
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", scene.listener.port)


@BOTH_LOOPS
async def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "listener.sock"
    left_over = socket.socket(socket.AF_UNIX)
    left_over.bind(str(path))
    left_over.close()
    async with served(address=str(path)) as scene:
        peer = RawPeer(*await asyncio.open_unix_connection(str(path)))
        peer.send(PREFACE, settings(), peer.wire.open(1, end=True))
        assert 1 in (await peer.until(lambda seen: 1 in seen.ended)).ended
        await peer.close()
        assert scene.listener.port == 0
        with pytest.raises(OSError, match="in use"):
            remove_stale_socket(path)
        assert path.is_socket()


def test_only_a_socket_is_removed(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    remove_stale_socket(file)
    remove_stale_socket(tmp_path / "missing")
    assert file.read_text() == "kept"
