"""Our client connection against a scripted server: the same rules, seen from the other end (RFC 9113)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from outrider_http2.limits import Limits
from tests.conformance.http2.peer import Dialled, Greedy, Heard, dialled
from tests.conformance.http2.wire import (
    CALM,
    CANCEL,
    CLOSED,
    COMPRESSION,
    FLOW_CONTROL,
    FRAME_SIZE,
    MAX_WINDOW,
    PROTOCOL,
    REFUSED,
    Wire,
    continuation,
    data,
    goaway,
    head,
    ping,
    raw,
    rst,
    settings,
    window,
)

Send = Callable[[Wire], bytes]


@dataclass(frozen=True)
class Case:
    """What the server sends once stream 1 is open, and the error it deserves; no code: none."""

    section: str
    what: str
    send: Send
    goaway: tuple[int, ...] = ()
    reset: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.section}-{self.what}".replace(" ", "_")


def length(declared: str, body: bytes) -> Send:
    return lambda w: w.response(1, ("content-length", declared)) + data(1, body) + w.tail(1)


CASES = [
    Case("4.2", "DATA larger than allowed", lambda w: w.response(1) + data(1, bytes(16_385)), (FRAME_SIZE,)),
    Case("4.3", "a block that is no HPACK", lambda w: head(1, b"\xff\xff", False), (COMPRESSION,)),
    Case("4.3", "PING within a block", lambda w: head(1, b"\x88", False, last=False) + ping(), (PROTOCOL,)),
    Case("5.1", "DATA on an idle stream", lambda w: data(3, b"x"), (PROTOCOL,)),
    Case("5.1", "HEADERS on an idle stream", lambda w: w.response(3), (PROTOCOL,)),
    Case("5.1", "RST_STREAM on an idle stream", lambda w: rst(3), (PROTOCOL,)),
    Case("5.1", "WINDOW_UPDATE on an idle stream", lambda w: window(3, 1), (PROTOCOL,)),
    Case("5.1.1", "HEADERS on a pushed stream", lambda w: w.response(2), (PROTOCOL,)),
    Case("5.1", "DATA behind the end", lambda w: w.response(1) + w.tail(1) + data(1, b"x"), (), (CLOSED,)),
    Case("6.1", "DATA on stream 0", lambda w: data(0, b"x"), (PROTOCOL,)),
    Case("6.1", "DATA before the head", lambda w: data(1, b"x"), (), (PROTOCOL,)),
    Case("6.1", "padding as long as the frame", lambda w: w.response(1) + raw(0, 8, 1, b"\x05abcd"), (PROTOCOL,)),
    Case("6.4", "RST_STREAM of 3 bytes", lambda w: raw(3, 0, 1, bytes(3)), (FRAME_SIZE,)),
    Case("6.5", "SETTINGS of 3 bytes", lambda w: raw(4, 0, 0, bytes(3)), (FRAME_SIZE,)),
    Case("6.5", "SETTINGS on a stream", lambda w: settings(stream_id=1), (PROTOCOL,)),
    Case("6.5.2", "ENABLE_PUSH of 1 from a server", lambda w: settings({2: 1}), (PROTOCOL,)),
    Case("6.5.2", "INITIAL_WINDOW_SIZE of 2^31", lambda w: settings({4: 2**31}), (FLOW_CONTROL,)),
    Case("6.6", "PUSH_PROMISE though we disabled it", lambda w: raw(5, 4, 1, b"\0\0\0\2\x88"), (PROTOCOL,)),
    Case("6.7", "PING on a stream", lambda w: raw(6, 0, 1, bytes(8)), (PROTOCOL,)),
    Case("6.8", "GOAWAY of 4 bytes", lambda w: raw(7, 0, 0, bytes(4)), (FRAME_SIZE,)),
    Case("6.9", "WINDOW_UPDATE by 0", lambda w: window(0, 0), (PROTOCOL,)),
    Case("6.9", "WINDOW_UPDATE by 0 on a stream", lambda w: window(1, 0), (), (PROTOCOL,)),
    Case("6.9.1", "a window above 2^31-1", lambda w: window(0, MAX_WINDOW) * 2, (FLOW_CONTROL,)),
    Case("6.10", "CONTINUATION first", lambda w: continuation(1, b"\x88"), (PROTOCOL,)),
    Case("8.1", "an interim response that ends", lambda w: w.response(1, status="100", end=True), (), (PROTOCOL,)),
    Case("8.1", "HEADERS again", lambda w: w.response(1) + w.tail(1, end=False), (), (PROTOCOL,)),
    Case("8.1", "a pseudo-header in trailers", lambda w: w.response(1) + w.tail(1, (":path", "/")), (), (PROTOCOL,)),
    Case("8.1.1", "content-length larger than the body", length("4", b"abc"), (), (PROTOCOL,)),
    Case("8.1.1", "content-length smaller than the body", length("2", b"abc"), (), (PROTOCOL,)),
    Case("8.2", "an upper-case name", lambda w: w.response(1, ("X-Upper", "1")), (), (PROTOCOL,)),
    Case("8.2.1", "LF in a value", lambda w: w.response(1, ("x-odd", "a\nb")), (), (PROTOCOL,)),
    Case("8.2.2", "connection", lambda w: w.response(1, ("connection", "close")), (), (PROTOCOL,)),
    Case("8.3.2", "no :status", lambda w: head(1, w.block([("x-a", "b")]), False), (), (PROTOCOL,)),
    Case("8.3.2", "a :status that is no number", lambda w: w.response(1, status="2xx"), (), (PROTOCOL,)),
    Case("8.3.2", "two :status", lambda w: w.response(1, (":status", "200")), (), (PROTOCOL,)),
    Case("8.3.2", "a request's pseudo-header", lambda w: w.response(1, (":path", "/")), (), (PROTOCOL,)),
    Case("8.6", "switching protocols", lambda w: w.response(1, status="101"), (), (PROTOCOL,)),
    Case("10.5", "CONTINUATION flood", lambda w: head(1, b"", last=False) + continuation(1, b"", False) * 99, (CALM,)),
]  # fmt: skip


async def played(mesh: Dialled, sent: bytes) -> None:
    """Send, and wait until it has been worked on or the client has given up the connection."""
    mesh.peer.send(sent)
    await mesh.peer.probe()


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_client(case: Case) -> None:
    async with dialled() as mesh:
        _, heard = await mesh.call()
        await played(mesh, case.send(mesh.peer.wire))
        seen = mesh.peer.seen
        if case.goaway:
            assert seen.goaway in case.goaway, f"GOAWAY {seen.goaway}; frames {seen.frames}"
            assert seen.closed
            assert heard.resets == [(case.goaway[0], True)]
        else:
            assert seen.goaway is None
            assert seen.resets.get(1) in case.reset
            assert not heard.ended or not heard.resets, "an end is told once"
            _, again = await mesh.call()
            await played(mesh, mesh.peer.wire.response(3) + data(3, b"fine") + mesh.peer.wire.tail(3))
            assert (again.data, again.ended, again.resets) == (b"fine", True, [])
        assert not mesh.conn.streams


async def settled(mesh: Dialled, sent: bytes, end: bool = True) -> Heard:
    _, heard = await mesh.call(end)
    await played(mesh, sent)
    return heard


async def test_a_whole_reply() -> None:
    """8.1: interim heads are skipped, padding is not data, trailers end the reply."""
    async with dialled() as mesh:
        w = mesh.peer.wire
        sent = w.response(1, status="103") + w.response(1) + data(1, b"ab", pad=9) + data(1, b"c") + w.tail(1)
        heard = await settled(mesh, sent)
        assert [head.status for head, _ in heard.heads] == [200]
        assert (heard.data, heard.resets) == (b"abc", [])
        assert heard.tails[0].fields == ((b"grpc-status", b"0"),)


async def test_trailers_only() -> None:
    """gRPC: END_STREAM on the only HEADERS."""
    async with dialled() as mesh:
        heard = await settled(mesh, mesh.peer.wire.response(1, ("grpc-status", "12"), end=True))
        assert [(head.status, end) for head, end in heard.heads] == [(200, True)]
        assert not mesh.conn.streams


async def test_no_error_after_an_early_reply() -> None:
    """8.1: the reply stands although the request had not ended; the reset only says that it need not."""
    async with dialled() as mesh:
        w = mesh.peer.wire
        heard = await settled(mesh, w.response(1) + w.tail(1) + rst(1, 0), end=False)
        assert len(heard.tails) == 1
        assert not mesh.conn.streams


async def test_goaway_gives_back_what_was_not_processed() -> None:
    """6.8: streams above the last id may be tried elsewhere, those below go on; nothing new is opened."""
    async with dialled() as mesh:
        gone: list[object] = []
        mesh.conn.on_gone = gone.append
        heard = [(await mesh.call())[1] for _ in range(3)]
        w = mesh.peer.wire
        await played(mesh, goaway(3) + w.response(1) + w.tail(1) + w.response(3) + w.tail(3))
        assert [one.resets for one in heard] == [[], [], [(REFUSED, False)]]
        assert [one.ended for one in heard] == [True, True, False]
        assert gone == [mesh.conn]
        assert not mesh.conn.has_room


async def test_refused_is_not_processed() -> None:
    """8.7: REFUSED_STREAM says that nothing was done; other codes do not."""
    async with dialled() as mesh:
        heard = [(await mesh.call())[1] for _ in range(2)]
        await played(mesh, rst(1, REFUSED) + rst(3, CANCEL))
        assert [one.resets for one in heard] == [[(REFUSED, False)], [(CANCEL, True)]]


async def test_the_server_says_how_many_streams() -> None:
    """5.1.2, 6.5.3: the limit may rise and fall at any time; whoever waits for room is told."""
    async with dialled(first=settings({3: 1})) as mesh:
        await played(mesh, b"")
        room: list[object] = []
        mesh.conn.on_room = room.append
        await mesh.call()
        assert not mesh.conn.has_room
        await played(mesh, settings({3: 5}))
        assert mesh.conn.has_room
        assert room == [mesh.conn]
        await mesh.call()
        await played(mesh, settings({3: 1}) + rst(1))
        assert not mesh.conn.has_room
        await played(mesh, rst(3))
        assert mesh.conn.has_room
        assert len(room) == 2


async def test_no_room_before_settings() -> None:
    """3.4: how many streams the server takes is not known before it has spoken."""
    async with dialled(first=b"") as mesh:
        assert not mesh.conn.has_room
        await played(mesh, settings())
        assert mesh.conn.has_room


@pytest.mark.parametrize("first", [b"HTTP/1.1 400 Bad Request\r\n\r\n", ping(), settings(flags=1)])
async def test_a_server_that_speaks_something_else(first: bytes) -> None:
    """3.4: SETTINGS come first."""
    async with dialled(first=first) as mesh:
        seen = await mesh.peer.until(lambda _: False)
        assert seen.goaway == PROTOCOL
        assert not mesh.conn.has_room


async def test_requests_keep_within_windows() -> None:
    """6.9.1: as with replies; the end of the request waits for the bytes before it."""
    async with dialled(first=settings({4: 10})) as mesh:
        await played(mesh, b"")
        stream, heard = await mesh.call(end=False)
        stream.send_data(b"0123456789abcdef", True)
        seen = await mesh.peer.until(lambda seen: 1 in seen.data)
        assert seen.data[1] == b"0123456789"
        assert mesh.reactor.ledger.held_bytes == 6
        await played(mesh, window(1, 100))
        assert seen.data[1] == b"0123456789abcdef"
        assert 1 in seen.ended
        assert mesh.reactor.ledger.held_bytes == 0
        await played(mesh, mesh.peer.wire.response(1) + mesh.peer.wire.tail(1))
        assert heard.ended


async def test_a_window_above_the_largest() -> None:
    """6.9.1: FLOW_CONTROL_ERROR on the stream, while we still send on it."""
    async with dialled() as mesh:
        heard = await settled(mesh, window(1, MAX_WINDOW), end=False)
        assert mesh.peer.seen.resets == {1: FLOW_CONTROL}
        assert heard.resets == [(FLOW_CONTROL, True)]


async def test_more_than_the_window_takes() -> None:
    """6.9.1: a server that sends beyond our window loses the stream, not the connection."""
    async with dialled(Limits(stream_window_bytes=65_535)) as mesh:
        _, heard = await mesh.call(heard=Greedy())
        await played(mesh, mesh.peer.wire.response(1) + data(1, bytes(16_384)) * 5)
        assert mesh.peer.seen.resets == {1: FLOW_CONTROL}
        assert heard.resets == [(FLOW_CONTROL, True)]
