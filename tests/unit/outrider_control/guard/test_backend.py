"""Connections behind the guard: as many as streams need, one dial at a time, and a prompt no where there are none."""

from __future__ import annotations

import asyncio

import pytest

from outrider_control.guard import backend as backend_module
from outrider_control.guard.backend import backend_limits
from outrider_control.guard.listener import LIMITS
from outrider_http2.client import ClientConnection
from outrider_http2.stream import Stream
from tests.conformance.http2 import wire
from tests.conformance.http2.peer import Heard
from tests.unit.outrider_control.guard.scene import Scene, guarded, opening

BOTH_LOOPS = pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])


class Waiting:
    """Stands in for a relay: notes what it is given and opens a stream."""

    def __init__(self) -> None:
        self.conns: list[ClientConnection] = []
        self.reasons: list[str] = []
        self.stream: Stream | None = None
        self.over = asyncio.Event()

    def open(self, conn: ClientConnection) -> None:
        self.conns.append(conn)
        self.stream = conn.open_stream(Heard())
        self.over.set()

    def refused(self, reason: str) -> None:
        self.reasons.append(reason)
        self.over.set()


async def joined(scene: Scene, count: int) -> list[Waiting]:
    """So many relays that came at once, each with its connection or its refusal."""
    waiting = [Waiting() for _ in range(count)]
    for one in waiting:
        scene.backend.join(one)
    async with asyncio.timeout(10):
        await asyncio.gather(*[one.over.wait() for one in waiting])
    return waiting


@BOTH_LOOPS
async def test_streams_share_connections_up_to_a_number() -> None:
    async with guarded(streams_each=3, max_backends=3) as scene:
        waiting = await joined(scene, 8)
        conns = [one.conns[0] for one in waiting]
        assert [conns.index(conn) for conn in conns] == [0, 0, 0, 3, 3, 3, 6, 6]
        assert scene.backend.dials == 3
        (ninth,) = await joined(scene, 1)
        assert ninth.conns == [conns[6]]
        (tenth,) = await joined(scene, 1)
        assert tenth.reasons == ["the control plane serves as many streams as it can; try again later"]
        assert waiting[0].stream is not None
        waiting[0].stream.reset(wire.CANCEL)
        (next_one,) = await joined(scene, 1)
        assert next_one.conns == [conns[0]]


async def test_a_server_with_fewer_streams_than_ours() -> None:
    """Its SETTINGS count, and who does not fit goes to the next connection."""
    first = wire.settings({wire.MAX_CONCURRENT_STREAMS: 2}) + wire.settings(flags=wire.ACK)
    async with guarded(first=first) as scene:
        waiting = await joined(scene, 5)
        conns = [one.conns[0] for one in waiting]
        assert [conns.index(conn) for conn in conns] == [0, 0, 2, 2, 4]


async def test_who_comes_past_all_bounds_is_refused_while_the_others_wait() -> None:
    async with guarded(max_waiting=2, first=b"") as scene:
        waiting = [Waiting() for _ in range(3)]
        for one in waiting:
            scene.backend.join(one)
        assert [bool(one.reasons) for one in waiting] == [False, False, True]
        scene.backend.leave(waiting[0])
        (await scene.server.peer()).send(wire.settings())
        await waiting[1].over.wait()
        assert (waiting[0].conns, len(waiting[1].conns)) == ([], 1)


async def test_a_server_that_is_not_there_is_unavailable_at_once_and_found_when_it_comes() -> None:
    async with guarded(listening=False) as scene, scene.client() as client:
        client.send(opening(client, 1, end=True), opening(client, 3, end=True))
        seen = await client.until(lambda seen: {1, 3} <= seen.ended)
        for stream_id in (1, 3):
            assert seen.blocks[stream_id][0]["grpc-status"] == "14"
            assert "cannot be reached: No such file" in seen.blocks[stream_id][0]["grpc-message"]
        assert scene.backend.dials == 1
        client.send(opening(client, 5, end=True))  # the answer stands for a moment: no dial for every call
        await client.until(lambda seen: 5 in seen.ended)
        assert scene.backend.dials == 1
        await scene.server.listen()
        scene.backend._now = lambda: backend_module.clock() + backend_module.REDIAL_S
        client.send(opening(client, 7, end=True))
        server = await scene.server.peer()
        await server.until(lambda seen: 1 in seen.ended)
        server.send(server.wire.response(1, ("grpc-status", "0"), end=True))
        assert (await client.until(lambda seen: 7 in seen.ended)).blocks[7][0]["grpc-status"] == "0"


@BOTH_LOOPS
@pytest.mark.parametrize("speaks", [b"", wire.settings() + wire.goaway()])
async def test_a_server_that_closes_or_drains_before_it_serves(speaks: bytes) -> None:
    async with guarded(first=speaks) as scene:
        waiting = Waiting()
        scene.backend.join(waiting)
        server = await scene.server.peer()
        if not speaks:
            await server.close()
        await waiting.over.wait()
        assert "closed the connection before it served" in waiting.reasons[0]


async def test_a_server_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_module, "DIAL_TIMEOUT_S", 0.01)
    async with guarded(first=b"") as scene:
        (waiting,) = await joined(scene, 1)
        assert "no answer within" in waiting.reasons[0]
        assert all(shell.transport.is_closing() for shell in scene.backend._shells)


async def test_who_waits_when_it_closes_is_refused() -> None:
    async with guarded(first=b"") as scene:
        waiting = Waiting()
        scene.backend.join(waiting)
        await scene.server.peer()
        await scene.backend.close()
        assert waiting.reasons == ["the control plane is shutting down"]
        scene.backend.join(late := Waiting())
        assert late.reasons == ["the control plane is shutting down"]


def test_a_trusted_server_is_neither_pinged_nor_called_a_flood() -> None:
    """grpcio ends a connection with too_many_pings when a silent one is pinged more than once in five minutes."""
    limits = backend_limits(LIMITS)
    assert limits.ping_interval_s == 0
    assert limits.control_burst > 1 << 32
    assert limits.reset_burst > 1 << 32
    assert limits.header_list_bytes > LIMITS.header_list_bytes
