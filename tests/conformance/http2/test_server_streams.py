"""A server against the life of streams and their windows (RFC 9113, 5.1, 5.2, 6.9)."""

from __future__ import annotations

from collections.abc import Callable

from hyperframe.frame import WindowUpdateFrame

from outrider_http2.limits import Limits
from tests.conformance.http2.cases import Case, fine, refused, reset, run, table
from tests.conformance.http2.peer import connected, serving
from tests.conformance.http2.wire import (
    CLOSED,
    FLOW_CONTROL,
    MAX_WINDOW,
    NO_ERROR,
    PROTOCOL,
    REFUSED,
    Wire,
    continuation,
    data,
    head,
    priority,
    rst,
    settings,
    window,
)

HELD = "/hold"
TWO = Limits(max_streams=2)


def half_closed(then: Callable[[Wire], bytes]) -> Callable[[Wire], bytes]:
    """A request that has ended and is not answered, and then..."""
    return lambda w: w.open(1, end=True, path=HELD) + then(w)


def cancelled(then: Callable[[Wire], bytes]) -> Callable[[Wire], bytes]:
    """A request the client has reset, and then..."""
    return lambda w: w.open(1) + rst(1) + then(w)


def over(then: Callable[[Wire], bytes]) -> Callable[[Wire], bytes]:
    """A request that has been answered, and then..."""
    return lambda w: w.open(1, end=True) + then(w)


def reset_by_us(then: Callable[[Wire], bytes]) -> Callable[[Wire], bytes]:
    """A stream the server has reset, and what was already on its way."""
    return lambda w: w.open(1) + window(1, 0) + then(w)


LIFE = [
    refused("5.1", "idle: DATA", lambda w: data(1, b"x"), PROTOCOL),
    refused("5.1", "idle: RST_STREAM", lambda w: rst(1), PROTOCOL),
    refused("5.1", "idle: WINDOW_UPDATE", lambda w: window(1, 100), PROTOCOL),
    refused("5.1", "idle: CONTINUATION", lambda w: continuation(1), PROTOCOL),
    fine("5.1", "idle: PRIORITY", lambda w: priority(9)),
    reset("5.1", "half closed: DATA", half_closed(lambda w: data(1, b"x")), CLOSED),
    reset("5.1", "half closed: HEADERS", half_closed(lambda w: w.tail(1)), CLOSED),
    refused("5.1", "half closed: CONTINUATION", half_closed(lambda w: continuation(1)), CLOSED, PROTOCOL),
    fine("5.1", "half closed: WINDOW_UPDATE", half_closed(lambda w: window(1, 100))),
    fine("5.1", "half closed: PRIORITY", half_closed(lambda w: priority(1))),
    fine("5.1", "half closed: RST_STREAM", half_closed(lambda w: rst(1))),
    reset("5.1", "closed by RST_STREAM: DATA", cancelled(lambda w: data(1, b"x")), CLOSED),
    refused("5.1", "closed by RST_STREAM: HEADERS", cancelled(lambda w: w.open(1)), CLOSED),
    refused("5.1", "closed by RST_STREAM: CONTINUATION", cancelled(lambda w: continuation(1)), CLOSED, PROTOCOL),
    fine("5.1", "closed by RST_STREAM: WINDOW_UPDATE", cancelled(lambda w: window(1, 100))),
    fine("5.1", "closed by RST_STREAM: PRIORITY", cancelled(lambda w: priority(1))),
    fine("5.1", "closed by RST_STREAM: RST_STREAM", cancelled(lambda w: rst(1))),
    reset("5.1", "closed: DATA", over(lambda w: data(1, b"x")), CLOSED),
    refused("5.1", "closed: HEADERS", over(lambda w: w.open(1)), CLOSED),
    refused("5.1", "closed: CONTINUATION", over(lambda w: continuation(1)), CLOSED, PROTOCOL),
    fine("5.1", "closed: WINDOW_UPDATE", over(lambda w: window(1, 100)), 1),
    fine("5.1", "closed: RST_STREAM", over(lambda w: rst(1)), 1),
    fine("5.1", "closed: PRIORITY", over(lambda w: priority(1)), 1),
    reset("5.1", "reset by us: late DATA", reset_by_us(lambda w: data(1, b"x") * 3), PROTOCOL),
    reset("5.1", "reset by us: late trailers", reset_by_us(lambda w: w.tail(1, ("x-late", "1"))), PROTOCOL),
    reset("5.1", "reset by us: late broken trailers", reset_by_us(lambda w: w.tail(1, ("x ", "1"))), PROTOCOL),
    reset("5.1", "reset by us: late RST_STREAM", reset_by_us(lambda w: rst(1)), PROTOCOL),
    reset("5.1", "reset by us: late WINDOW_UPDATE", reset_by_us(lambda w: window(1, 0)), PROTOCOL),
    refused("5.1.1", "an even id", lambda w: w.open(2), PROTOCOL),
    refused("5.1.1", "a smaller id than before", lambda w: w.open(5, path=HELD) + w.open(3), PROTOCOL),
    refused("5.1.1", "DATA on an even id", lambda w: data(2, b"x"), PROTOCOL),
    refused("5.1.1", "RST_STREAM on an even id", lambda w: rst(2), PROTOCOL),
    reset("5.1.1", "DATA on a skipped id", lambda w: w.open(5, path=HELD) + data(3, b"x"), CLOSED, stream=3),
    fine("5.1.1", "ids may skip", lambda w: w.open(7, end=True) + w.open(55, end=True), 7, 55),
    reset(
        "5.1.2",
        "one stream too many",
        lambda w: w.open(1, path=HELD) + w.open(3, path=HELD) + w.open(5, path=HELD) + rst(1),
        REFUSED,
        stream=5,
        limits=TWO,
    ),
    reset(
        "5.1.2",
        "a refused stream's block still counts for the table",
        lambda w: (
            w.open(1, path=HELD)
            + w.open(3, path=HELD)
            + w.open(5, ("x-new", "entered here"), path=HELD)
            + rst(1)
            + w.open(7, ("x-new", "entered here"), end=True)
        ),
        REFUSED,
        stream=5,
        limits=TWO,
        answers=(7,),
    ),
    fine(
        "5.1.2",
        "an ended stream makes room",
        lambda w: b"".join(w.open(1 + 2 * n, end=True) for n in range(10)),
        1,
        19,
        limits=TWO,
    ),
    reset(
        "5.4.2",
        "a stream error leaves the others",
        lambda w: w.open(1) + w.open(3) + window(1, 0) + data(3, b"x", True),
        PROTOCOL,
        answers=(3,),
    ),
]
WINDOWS = [
    refused("6.9.1", "a window above 2^31-1", lambda w: window(0, MAX_WINDOW) * 2, FLOW_CONTROL),
    reset("6.9.1", "a stream's window above 2^31-1", lambda w: w.open() + window(1, MAX_WINDOW), FLOW_CONTROL),
    refused(
        "6.9.2",
        "SETTINGS raise a window above 2^31-1",
        lambda w: w.open() + window(1, MAX_WINDOW - 65_535) + settings({4: 65_536}),
        FLOW_CONTROL,
    ),
    fine("6.9.1", "the largest window", lambda w: window(0, MAX_WINDOW - 65_535)),
    reset(
        "6.9.1",
        "more DATA than the stream takes",
        lambda w: w.open(1, path="/keep") + data(1, bytes(16_384)) * 17,
        FLOW_CONTROL,
    ),
    reset(
        "6.9.1",
        "padding counts",
        lambda w: (
            w.open(1, path="/keep") + data(1, bytes(16_384)) * 15 + data(1, bytes(16_128), pad=254) + data(1, b"xy")
        ),
        FLOW_CONTROL,
    ),
    fine("6.9", "DATA in tiny frames", lambda w: w.open() + data(1, b"x") * 500 + data(1, b"", True), 1),
    fine("6.9", "WINDOW_UPDATE before DATA", lambda w: w.open() + window(1, 5) + data(1, b"x", True), 1),
]


@table([*LIFE, *WINDOWS])
async def test_server(case: Case) -> None:
    await run(case)


async def test_data_keeps_within_the_stream_window() -> None:
    """6.9.1: a window of one byte gets one byte; each further byte of credit another one."""
    async with serving() as (_, port), connected(port) as peer:
        peer.send(settings({4: 1}), peer.wire.open(1, end=True, path="/size/3"))
        seen = await peer.probe()
        assert seen.data[1] == b"\0"
        peer.send(window(1, 1))
        await peer.until(lambda seen: len(seen.data[1]) == 2)
        assert 1 not in seen.ended
        peer.send(window(1, 1))
        await peer.until(lambda seen: 1 in seen.ended)
        assert seen.data[1] == bytes(3)


async def test_data_keeps_within_the_connection_window() -> None:
    """6.9.1: 65,535 bytes in all, whatever the streams' own windows are; trailers need no window."""
    async with serving() as (_, port), connected(port) as peer:
        peer.send(settings({4: MAX_WINDOW}), peer.wire.open(1, end=True, path="/size/60000"))
        peer.send(peer.wire.open(3, end=True, path="/size/60000"), peer.wire.open(5, end=True, path="/size/0"))
        seen = await peer.probe()
        assert sum(map(len, seen.data.values())) == 65_535
        assert seen.ended == {1, 5}
        peer.send(window(0, 54_465))
        await peer.until(lambda seen: 3 in seen.ended)
        assert len(seen.data[1]) == len(seen.data[3]) == 60_000


async def test_a_window_may_become_negative() -> None:
    """6.9.2: after INITIAL_WINDOW_SIZE has shrunk nothing is sent until the window is positive again."""
    async with serving() as (_, port), connected(port) as peer:
        peer.send(settings({4: 1_000}), peer.wire.open(1, end=True, path="/size/1500"))
        seen = await peer.probe()
        assert len(seen.data[1]) == 1_000
        peer.send(settings({4: 100}), window(1, 900))  # -900, then 0
        peer.send(peer.wire.open(3, end=True))
        await peer.until(lambda seen: 3 in seen.ended)
        assert len(seen.data[1]) == 1_000
        peer.send(window(1, 1))
        await peer.until(lambda seen: len(seen.data[1]) == 1_001)
        peer.send(settings({4: 65_535}))
        await peer.until(lambda seen: 1 in seen.ended)
        assert len(seen.data[1]) == 1_500


async def test_streams_share_the_connection_window() -> None:
    """5.2: a stream whose own window is shut does not hold up the others; those take turns."""
    async with serving() as (_, port), connected(port) as peer:
        peer.send(settings({4: 0}))
        peer.send(*[peer.wire.open(1 + 2 * n, end=True, path="/size/40000") for n in range(4)])
        peer.send(window(3, 40_000), window(5, 40_000), window(7, 40_000))
        seen = await peer.probe()
        assert 1 not in seen.data
        assert sum(map(len, seen.data.values())) == 65_535
        peer.send(window(0, 54_465))
        await peer.until(lambda seen: {3, 5, 7} <= seen.ended)
        assert 1 not in seen.ended
        peer.send(window(1, 40_000), window(0, 40_000))
        await peer.until(lambda seen: 1 in seen.ended)


async def test_credit_comes_back() -> None:
    """6.9: what the handler takes is announced to the peer, on the stream and on the connection."""
    async with serving() as (_, port), connected(port) as peer:
        peer.send(peer.wire.open(1), *[data(1, bytes(16_384))] * 16)
        await peer.probe()
        updates = [one for one in peer.seen.frames if isinstance(one, WindowUpdateFrame)]
        assert sum(one.window_increment for one in updates if one.stream_id == 1) >= 16 * 16_384 - 128 * 1024
        peer.send(data(1, b"", True))
        seen = await peer.until(lambda seen: 1 in seen.blocks)
        assert seen.status(1) == "200"


async def test_the_reply_may_come_first() -> None:
    """8.1: a whole reply before the request has ended, then RST_STREAM(NO_ERROR); what is on its way is ignored."""
    async with serving() as (_, port), connected(port) as peer:
        peer.send(peer.wire.open(1, path="/early"), data(1, b"late") * 10, peer.wire.tail(1))
        seen = await peer.probe()
        kinds = [type(one).__name__ for one in seen.frames if one.stream_id == 1]
        assert kinds == ["HeadersFrame", "HeadersFrame", "RstStreamFrame"]
        assert seen.ended == {1}
        assert seen.resets == {1: NO_ERROR}
        assert not seen.closed


async def test_a_reset_stream_is_told_once() -> None:
    """5.4.2: the handler hears of the client's RST_STREAM, with its code, and frames after it are not its business."""
    async with serving() as (server, port), connected(port) as peer:
        peer.send(peer.wire.open(1), data(1, b"x"), rst(1, 8), rst(1, 8), head(3, peer.wire.request()))
        await peer.until(lambda seen: 3 in seen.ended)
        assert server.log == ["reset 1 8"]
        assert not server.conns[0].streams
