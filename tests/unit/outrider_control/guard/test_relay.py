"""One stream through the guard, seen from both ends byte by byte."""

from __future__ import annotations

import pytest
from hyperframe import frame as hf

from outrider_http2.limits import Limits
from tests.conformance.http2 import wire
from tests.conformance.http2.peer import RawPeer
from tests.conformance.http2.wire import CANCEL, INTERNAL, NO_ERROR, REFUSED, data, rst, window
from tests.unit.outrider_control.guard.scene import GRPC, IDENTITY, guarded, opening

BOTH_LOOPS = pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])
WINDOW = Limits().stream_window_bytes


@BOTH_LOOPS
async def test_both_ways_as_it_came() -> None:
    """Fields in their order, bytes in theirs, the timeout as it was; only the peer is added."""
    async with guarded() as scene, scene.client() as client:
        more = (("grpc-timeout", "7S"), ("x-a", "1"), ("x-a", "2"), ("x-bin", "AAH/"), ("traceparent", "00-1"))
        server = await scene.through(client, 1, opening(client, 1, *more) + data(1, b"one") + data(1, b"two", True))
        await server.until(lambda seen: 1 in seen.ended)
        asked = server.seen.blocks[1][0]
        assert server.seen.data[1] == b"onetwo"
        assert {name: asked[name] for name, _ in GRPC} == dict(GRPC)
        assert (asked["grpc-timeout"], asked["x-a"], asked["x-bin"]) == ("7S", "2", "AAH/")
        assert asked["traceparent"] == "00-1"
        assert set(asked) - {name for name, _ in (*GRPC, *more)} == {"content-type", *IDENTITY[:2]}
        assert asked["x-outrider-peer-loopback"] == "1"
        server.send(
            server.wire.response(1, ("x-head", "h")),
            data(1, b"three"),
            server.wire.tail(1, ("grpc-message", "fine"), ("x-tail", "t")),
        )
        seen = await client.until(lambda seen: 1 in seen.ended)
        head, tail = seen.blocks[1]
        assert head == {":status": "200", "content-type": "application/grpc", "x-head": "h"}
        assert tail == {"grpc-status": "0", "grpc-message": "fine", "x-tail": "t"}
        assert seen.data[1] == b"three"
        assert not seen.resets
        assert not (await server.probe()).resets


async def test_the_head_does_not_wait_for_data_nor_the_end_for_trailers() -> None:
    """A stream that stays open: each part passes as it comes, the half-close and trailers-only too."""
    async with guarded() as scene, scene.client() as client:
        server = await scene.through(client, 1, opening(client, 1))
        server.send(server.wire.response(1))
        await client.until(lambda seen: 1 in seen.blocks)
        client.send(data(1, b"", True))
        await server.until(lambda seen: 1 in seen.ended)
        server.send(server.wire.tail(1))
        await client.until(lambda seen: 1 in seen.ended)
        server = await scene.through(client, 3, opening(client, 3, end=True))
        assert 3 in server.seen.ended
        server.send(server.wire.response(3, ("grpc-status", "5"), end=True))
        seen = await client.until(lambda seen: 3 in seen.ended)
        assert [block["grpc-status"] for block in seen.blocks[3]] == ["5"]


async def test_a_peer_cannot_name_itself() -> None:
    """Fields of the guard's are taken out, whatever follows their prefix, also from trailers of a request."""
    async with guarded() as scene, scene.client() as client:
        spoofed = [(name, "root") for name in (*IDENTITY, "x-outrider-peers", "x-outrider-peer-bin")]
        server = await scene.through(client, 1, opening(client, 1, *spoofed, ("x-kept", "1")))
        port = client.writer.get_extra_info("sockname")[1]
        asked = server.seen.blocks[1][0]
        assert {name: value for name, value in asked.items() if name.startswith("x-outrider")} == {
            "x-outrider-peer": f"127.0.0.1:{port}",
            "x-outrider-peer-loopback": "1",
        }
        assert asked["x-kept"] == "1"
        client.send(wire.head(1, client.wire.block([("x-outrider-peer-certificate", "root")]), True))
        await server.until(lambda seen: 1 in seen.ended)
        assert len(server.seen.blocks[1]) == 1


async def test_what_a_proxy_brings_is_not_loopback() -> None:
    async with guarded() as scene, scene.client() as client:
        server = await scene.through(client, 1, opening(client, 1, ("x-forwarded-for", "192.0.2.7")))
        assert server.seen.blocks[1][0]["x-outrider-peer-loopback"] == "0"
        server = await scene.through(client, 3, opening(client, 3))
        assert server.seen.blocks[3][0]["x-outrider-peer-loopback"] == "1"


@pytest.mark.parametrize("answered", [False, True])
async def test_a_cancelled_call_is_cancelled_behind_at_once(answered: bool) -> None:
    async with guarded() as scene, scene.client() as client:
        server = await scene.through(client, 1, opening(client, 1))
        if answered:
            server.send(server.wire.response(1), data(1, b"part"))
            await client.until(lambda seen: 1 in seen.data)
        client.send(rst(1))
        seen = await server.until(lambda seen: seen.resets)
        assert seen.resets == {1: CANCEL}


async def test_what_is_opened_and_reset_in_one_go_never_reaches_the_server() -> None:
    async with guarded() as scene, scene.client() as client:
        storm = [opening(client, n, end=True) + rst(n) for n in range(1, 201, 2)]
        client.send(*storm, opening(client, 201, end=True))
        server = await scene.server.peer()
        await server.until(lambda seen: seen.blocks)
        server.send(server.wire.response(1, ("grpc-status", "0"), end=True))
        seen = await client.until(lambda seen: 201 in seen.ended)
        assert seen.goaway is None
        assert list((await server.probe()).blocks) == [1]
        assert scene.guard.figures()["streams_taken"] == 101


async def test_a_client_that_vanishes_is_a_cancellation() -> None:
    async with guarded() as scene:
        async with scene.client() as client:
            server = await scene.through(client, 1, opening(client, 1))
        assert (await server.until(lambda seen: seen.resets)).resets == {1: CANCEL}


@pytest.mark.parametrize(
    ("code", "wanted"), [(CANCEL, CANCEL), (wire.CALM, wire.CALM), (REFUSED, REFUSED), (NO_ERROR, INTERNAL)]
)
async def test_a_reset_from_behind_reaches_the_client(code: int, wanted: int) -> None:
    async with guarded() as scene, scene.client() as client:
        server = await scene.through(client, 1, opening(client, 1))
        server.send(rst(1, code))
        seen = await client.until(lambda seen: seen.resets)
        assert seen.resets == {1: wanted}


async def test_a_reply_before_the_request_has_ended() -> None:
    """The client is told that the remainder is not needed, and the server's stream ends too."""
    async with guarded() as scene, scene.client() as client:
        server = await scene.through(client, 1, opening(client, 1) + data(1, b"part"))
        server.send(server.wire.response(1), server.wire.tail(1))
        seen = await client.until(lambda seen: seen.resets)
        assert 1 in seen.ended
        assert seen.resets == {1: NO_ERROR}
        assert (await server.until(lambda seen: seen.resets)).resets == {1: CANCEL}
        client.send(data(1, b"late", True))
        assert (await client.probe()).goaway is None


@pytest.mark.parametrize("answered", [False, True])
async def test_a_server_that_goes_away_is_unavailable(answered: bool) -> None:
    async with guarded() as scene, scene.client() as client:
        server = await scene.through(client, 1, opening(client, 1, end=True))
        if answered:
            server.send(server.wire.response(1), data(1, b"part"))
            await client.until(lambda seen: 1 in seen.data)
        await server.close()
        seen = await client.until(lambda seen: 1 in seen.ended)
        assert seen.blocks[1][-1]["grpc-status"] == "14"
        assert "was lost" in seen.blocks[1][-1]["grpc-message"]
        # The next call gets a connection of its own.
        client.send(opening(client, 3, end=True))
        server = await scene.server.peer()
        await server.until(lambda seen: 1 in seen.blocks)
        server.send(server.wire.response(1, ("grpc-status", "0"), end=True))
        assert (await client.until(lambda seen: 3 in seen.ended)).blocks[3][0]["grpc-status"] == "0"


async def test_a_server_that_goes_away_in_mid_message_resets() -> None:
    """Reply bytes wait for a client that does not read: no trailers can follow half a message."""
    async with guarded() as scene, scene.client() as client:
        client.send(wire.settings({wire.INITIAL_WINDOW_SIZE: 10}))
        server = await scene.through(client, 1, opening(client, 1, end=True))
        server.send(server.wire.response(1), data(1, bytes(1_000)))
        await server.probe()
        await server.close()
        seen = await client.until(lambda seen: seen.resets)
        assert seen.resets == {1: INTERNAL}
        assert len(seen.data[1]) == 10


async def test_goaway_from_behind() -> None:
    """Streams the server vouches not to have seen are given back to the client; others go on; new ones go elsewhere."""
    async with guarded() as scene, scene.client() as client:
        server = await scene.through(client, 1, opening(client, 1))
        client.send(opening(client, 3))
        await server.until(lambda seen: 3 in seen.blocks)
        server.send(wire.goaway(1))
        seen = await client.until(lambda seen: seen.resets)
        assert seen.resets == {3: REFUSED}
        client.send(opening(client, 5))
        other = await scene.server.peer()
        await other.until(lambda seen: 1 in seen.blocks)
        server.send(server.wire.response(1), server.wire.tail(1))
        assert (await client.until(lambda seen: 1 in seen.ended)).blocks[1][-1]["grpc-status"] == "0"


@pytest.mark.parametrize("piece_bytes", [1_000, 16_384])
async def test_a_server_that_does_not_read_stops_the_client(piece_bytes: int) -> None:
    """No more than one window of the client's is held, and it opens as the server takes bytes."""
    async with guarded() as scene, scene.client() as client:
        server = await scene.through(client, 1, opening(client, 1))
        sent = WINDOW // piece_bytes * piece_bytes
        client.send(*[data(1, bytes(piece_bytes)) for _ in range(sent // piece_bytes)])
        await client.probe()
        taken = 65_535  # the window this server opened with
        await server.until(lambda seen: len(seen.data.get(1, b"")) == taken)
        assert scene.reactor.ledger.held_bytes == sent - taken
        assert not _credit(client, 1)
        server.send(window(0, 1 << 20), window(1, 1 << 20))
        await server.until(lambda seen: len(seen.data[1]) == sent)
        await client.probe()
        assert scene.reactor.ledger.held_bytes == 0
        assert sent // 2 < _credit(client, 1) <= sent


async def test_a_client_that_does_not_read_stops_the_server() -> None:
    async with guarded() as scene, scene.client() as client:
        server = await scene.through(client, 1, opening(client, 1, end=True))
        pieces = WINDOW // 16_384
        server.send(server.wire.response(1), *[data(1, bytes(16_384)) for _ in range(pieces)])
        await server.probe()
        await client.until(lambda seen: len(seen.data.get(1, b"")) == 65_535)
        assert scene.reactor.ledger.held_bytes == WINDOW - 65_535
        assert not _credit(server, 1)
        server.send(server.wire.tail(1))
        client.send(window(0, 1 << 20), window(1, 1 << 20))
        seen = await client.until(lambda seen: 1 in seen.ended)
        assert len(seen.data[1]) == WINDOW
        assert seen.blocks[1][-1]["grpc-status"] == "0"


async def test_past_the_window_is_an_error_of_the_stream() -> None:
    async with guarded() as scene, scene.client() as client:
        server = await scene.through(client, 1, opening(client, 1))
        client.send(*[data(1, bytes(16_384)) for _ in range(WINDOW // 16_384 + 1)])
        seen = await client.until(lambda seen: seen.resets)
        assert seen.resets == {1: wire.FLOW_CONTROL}
        assert (await server.until(lambda seen: seen.resets)).resets == {1: CANCEL}


async def test_the_process_holds_a_bounded_number_of_bytes() -> None:
    """Past the cap the stream that has waited longest is cut, whether it has a connection or waits for one."""
    async with guarded(held_bytes=300_000) as scene, scene.client() as client:
        server = await scene.through(client, 1, opening(client, 1))
        client.send(opening(client, 3))
        await server.until(lambda seen: 3 in seen.blocks)
        for stream_id in (1, 3):
            client.send(*[data(stream_id, bytes(16_384)) for _ in range(WINDOW // 16_384)])
        seen = await client.until(lambda seen: seen.resets)
        assert seen.resets == {1: wire.CALM}
        await client.probe()
        assert 0 < scene.reactor.ledger.held_bytes <= 300_000
        assert scene.guard.figures()["cut_for_held_bytes"] == 1
    async with guarded(held_bytes=300_000, first=b"") as scene, scene.client() as client:
        client.send(opening(client, 1), opening(client, 3))
        for stream_id in (1, 3):
            client.send(*[data(stream_id, bytes(16_384)) for _ in range(WINDOW // 16_384)])
        seen = await client.until(lambda seen: seen.resets)
        assert seen.resets == {1: NO_ERROR}  # behind a whole reply
        assert seen.blocks[1][0]["grpc-status"] == "8"
        server = await scene.server.peer()
        server.send(wire.settings())
        await server.until(lambda seen: len(seen.data.get(1, b"")) == 65_535)


def _credit(peer: RawPeer, stream_id: int) -> int:
    """Bytes of window the other side has given to a stream."""
    updates = [frame for frame in peer.seen.frames if isinstance(frame, hf.WindowUpdateFrame)]
    return sum(frame.window_increment for frame in updates if frame.stream_id == stream_id)
