"""A server against frames: preface, layout, and what each type of frame must hold (RFC 9113, 3.4, 4, 6 and 7)."""

from __future__ import annotations

import struct

from outrider_http2.limits import Limits
from tests.conformance.http2 import wire
from tests.conformance.http2.cases import Case, fine, refused, reset, run, table
from tests.conformance.http2.peer import connected, serving
from tests.conformance.http2.wire import (
    CALM,
    COMPRESSION,
    FLOW_CONTROL,
    FRAME_SIZE,
    PREFACE,
    PROTOCOL,
    Wire,
    continuation,
    data,
    goaway,
    head,
    ping,
    priority,
    raw,
    rst,
    settings,
    window,
)

ODD = 0x77  # no type of frame


def nothing(_: Wire) -> bytes:
    return b""


def split(w: Wire, *sizes: int) -> list[bytes]:
    """A request's block in parts of these sizes and a remainder."""
    block = w.request()
    parts, at = [], 0
    for size in sizes:
        parts.append(block[at : at + size])
        at += size
    return [*parts, block[at:]]


def in_parts(w: Wire, *sizes: int) -> bytes:
    first, *others, last = split(w, *sizes)
    return b"".join(
        [head(1, first, last=False), *(continuation(1, part, False) for part in others), continuation(1, last)]
    )


def within_block(between: bytes) -> bytes:
    """Something between HEADERS and its CONTINUATION."""
    first, second = split(Wire(), 3)
    return head(1, first, last=False) + between + continuation(1, second)


PREFACES = [
    fine("3.4", "preface and SETTINGS", nothing),
    fine(
        "3.4", "SETTINGS with values", nothing, preface=PREFACE + settings({1: 100, 3: 5, 4: 70_000, 5: 20_000, 6: 9})
    ),
    refused("3.4", "another preface", nothing, PROTOCOL, preface=b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\r" + settings()),
    refused("3.4", "HTTP 1.1", nothing, PROTOCOL, preface=b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"),
    refused("3.4", "no SETTINGS first", nothing, PROTOCOL, preface=PREFACE + ping()),
    refused("3.4", "HEADERS first", lambda w: w.open(), PROTOCOL, preface=PREFACE),
    refused("3.4", "an acknowledgement first", nothing, PROTOCOL, preface=PREFACE + settings(flags=1)),
    refused("3.4", "SETTINGS on a stream first", nothing, PROTOCOL, preface=PREFACE + settings(stream_id=1)),
]
LAYOUT = [
    fine("4.1", "an unknown type is ignored", lambda w: raw(ODD, 0, 0, b"x" * 8)),
    fine("4.1", "an unknown type on a stream is ignored", lambda w: raw(ODD, 0xFF, 1, b"x" * 8)),
    fine("4.1", "unknown flags are ignored", lambda w: raw(6, 0x16, 0, bytes(8))),
    fine("4.1", "the reserved bit is ignored", lambda w: raw(6, 0, 1 << 31, bytes(8))),
    fine("4.1", "the reserved bit of a stream is ignored", lambda w: head(1 | 1 << 31, w.request()), 1),
    fine("4.2", "DATA of 2^14 bytes", lambda w: w.open() + data(1, bytes(16_384), True), 1),
    fine("4.2", "an unknown frame of 2^14 bytes", lambda w: raw(ODD, 0, 0, bytes(16_384))),
    refused("4.2", "DATA larger than allowed", lambda w: w.open() + data(1, bytes(16_385)), FRAME_SIZE),
    refused("4.2", "HEADERS larger than allowed", lambda w: head(1, bytes(16_385)), FRAME_SIZE),
    refused("4.2", "SETTINGS larger than allowed", lambda w: raw(4, 0, 0, bytes(16_386)), FRAME_SIZE),
    refused("4.2", "an unknown frame larger than allowed", lambda w: raw(ODD, 0, 0, bytes(16_385)), FRAME_SIZE),
    refused("4.2", "the size alone is enough", lambda w: raw(0, 0, 1, b"", length=2**24 - 1), FRAME_SIZE),
    refused("4.3", "a block that is no HPACK", lambda w: head(1, b"\x00\x01"), COMPRESSION),
    refused("4.3", "a broken block on trailers", lambda w: w.open() + head(1, b"\xff\xff\xff"), COMPRESSION),
    refused("4.3", "PRIORITY within a block", lambda w: within_block(priority(1)), PROTOCOL),
    refused("4.3", "DATA within a block", lambda w: within_block(data(1, b"x")), PROTOCOL),
    refused("4.3", "SETTINGS within a block", lambda w: within_block(settings()), PROTOCOL),
    refused("4.3", "HEADERS of another stream within a block", lambda w: within_block(Wire().open(3)), PROTOCOL),
    refused("5.5", "an unknown frame within a block", lambda w: within_block(raw(ODD, 0, 0)), PROTOCOL),
    fine("5.5", "an unknown setting is ignored", lambda w: settings({0x77: 1, 0xFFFF: 2**32 - 1})),
]
FRAMES = [
    refused("6.1", "DATA on stream 0", lambda w: data(0, b"x"), PROTOCOL),
    fine("6.1", "padded DATA", lambda w: w.open() + data(1, b"hello", True, pad=200), 1),
    fine("6.1", "DATA of padding only", lambda w: w.open() + data(1, b"", True, pad=255), 1),
    refused("6.1", "padding as long as the frame", lambda w: w.open() + raw(0, 8, 1, b"\x05abcd"), PROTOCOL),
    refused("6.1", "no room for a pad length", lambda w: w.open() + raw(0, 8, 1), FRAME_SIZE, PROTOCOL),
    refused("6.2", "HEADERS on stream 0", lambda w: head(0, w.request()), PROTOCOL),
    fine("6.2", "padded HEADERS", lambda w: head(1, w.request(), pad=17), 1),
    fine("6.2", "HEADERS with priority", lambda w: head(1, w.request(), depends_on=0), 1),
    fine("6.2", "padded HEADERS with priority", lambda w: head(1, w.request(), pad=3, depends_on=7), 1),
    refused("6.2", "padding longer than HEADERS", lambda w: raw(1, 0xD, 1, b"\x20" + w.request()[:4]), PROTOCOL),
    refused("6.2", "HEADERS too short for priority", lambda w: raw(1, 0x25, 1, b"\0\0"), FRAME_SIZE, PROTOCOL),
    fine("6.3", "PRIORITY on an idle stream", lambda w: priority(1) + w.open(1, end=True), 1),
    refused("6.3", "PRIORITY on stream 0", lambda w: priority(0), PROTOCOL),
    reset("6.3", "PRIORITY of 4 bytes", lambda w: w.open() + raw(2, 0, 1, bytes(4)), FRAME_SIZE),
    refused("6.3", "PRIORITY of 4 bytes on an idle stream", lambda w: raw(2, 0, 1, bytes(4)), FRAME_SIZE),
    fine("5.3.1", "a stream that depends on itself", lambda w: head(1, w.request(), depends_on=1) + priority(1, 1), 1),
    refused("6.4", "RST_STREAM on stream 0", lambda w: rst(0), PROTOCOL),
    refused("6.4", "RST_STREAM on an idle stream", lambda w: rst(1), PROTOCOL),
    refused("6.4", "RST_STREAM of 3 bytes", lambda w: w.open() + raw(3, 0, 1, bytes(3)), FRAME_SIZE),
    refused("6.5", "an acknowledgement that is not empty", lambda w: settings({3: 1}, flags=1), FRAME_SIZE),
    refused("6.5", "SETTINGS on a stream", lambda w: settings(stream_id=1), PROTOCOL),
    refused("6.5", "SETTINGS of 3 bytes", lambda w: raw(4, 0, 0, bytes(3)), FRAME_SIZE),
    refused("6.5.2", "ENABLE_PUSH of 2", lambda w: settings({2: 2}), PROTOCOL),
    refused("6.5.2", "INITIAL_WINDOW_SIZE of 2^31", lambda w: settings({4: 2**31}), FLOW_CONTROL),
    refused("6.5.2", "MAX_FRAME_SIZE below 2^14", lambda w: settings({5: 16_383}), PROTOCOL),
    refused("6.5.2", "MAX_FRAME_SIZE of 2^24", lambda w: settings({5: 2**24}), PROTOCOL),
    fine("6.5.2", "extreme good values", lambda w: settings({1: 2**32 - 1, 2: 1, 3: 0, 4: 2**31 - 1, 5: 2**24 - 1})),
    fine("6.5.3", "the same setting twice", lambda w: settings([(4, 100), (4, 70_000)])),
    refused("6.5", "more values than anyone needs", lambda w: settings([(3, 1)] * 100), CALM),
    refused("6.6", "PUSH_PROMISE from a client", lambda w: raw(5, 4, 1, struct.pack(">I", 2) + w.request()), PROTOCOL),
    fine("6.7", "an acknowledgement nobody waits for", lambda w: ping(b"nobodys!", ack=True)),
    refused("6.7", "PING on a stream", lambda w: raw(6, 0, 1, bytes(8)), PROTOCOL),
    refused("6.7", "PING of 6 bytes", lambda w: raw(6, 0, 0, bytes(6)), FRAME_SIZE),
    refused("6.7", "PING of 9 bytes", lambda w: raw(6, 0, 0, bytes(9)), FRAME_SIZE),
    refused("6.8", "GOAWAY on a stream", lambda w: raw(7, 0, 1, bytes(8)), PROTOCOL),
    refused("6.8", "GOAWAY of 7 bytes", lambda w: raw(7, 0, 0, bytes(7)), FRAME_SIZE),
    fine("6.8", "after GOAWAY what is open is served", lambda w: w.open() + goaway() + data(1, b"x", True), 1),
    refused("6.9", "WINDOW_UPDATE by 0", lambda w: window(0, 0), PROTOCOL),
    reset("6.9", "WINDOW_UPDATE by 0 on a stream", lambda w: w.open() + window(1, 0), PROTOCOL),
    refused("6.9", "WINDOW_UPDATE of 3 bytes", lambda w: raw(8, 0, 0, bytes(3)), FRAME_SIZE),
    refused("6.9", "WINDOW_UPDATE of 5 bytes on a stream", lambda w: w.open() + raw(8, 0, 1, bytes(5)), FRAME_SIZE),
    fine("6.10", "a block in two frames", lambda w: in_parts(w, 4), 1),
    fine("6.10", "a block in many frames", lambda w: in_parts(w, *[1] * 10), 1),
    fine("6.10", "empty frames of a block", lambda w: in_parts(w, 0, 0, 3, 0), 1),
    refused("6.10", "CONTINUATION after a whole block", lambda w: w.open() + continuation(1, b""), PROTOCOL),
    refused("6.10", "CONTINUATION after the last one", lambda w: in_parts(w, 4) + continuation(1, b""), PROTOCOL),
    refused("6.10", "CONTINUATION first", lambda w: continuation(1, w.request()), PROTOCOL),
    refused("6.10", "CONTINUATION after DATA", lambda w: w.open() + data(1, b"x") + continuation(1), PROTOCOL),
    refused("6.10", "CONTINUATION on stream 0", lambda w: head(1, b"", last=False) + continuation(0), PROTOCOL),
    refused("6.10", "CONTINUATION of another stream", lambda w: head(1, b"", last=False) + continuation(3), PROTOCOL),
    refused(
        "6.10",
        "more frames of a block than anyone needs",
        lambda w: head(1, b"", last=False) + continuation(1, b"", last=False) * 1_000,
        CALM,
    ),
    refused(
        "6.10",
        "a larger block than is taken",
        lambda w: head(1, b"", last=False) + continuation(1, bytes(16_000), last=False) * 10,
        CALM,
    ),
    fine("7", "an unknown error code in RST_STREAM", lambda w: w.open() + rst(1, 0xFEED)),
    fine("7", "an unknown error code in GOAWAY", lambda w: goaway(0, 0xFEED)),
]


@table(PREFACES + LAYOUT + FRAMES)
async def test_server(case: Case) -> None:
    await run(case)


async def test_preface_byte_by_byte() -> None:
    """3.4: nothing is decided before it can be."""
    async with serving() as (_, port), connected(port, b"") as peer:
        for byte in wire.PREFACE + settings({4: 1_000}) + peer.wire.open(1, end=True):
            peer.send(bytes((byte,)))
            await peer.writer.drain()
        seen = await peer.until(lambda seen: 1 in seen.ended)
        assert seen.status(1) == "200"


async def test_settings_come_first_and_are_acknowledged() -> None:
    """3.4, 6.5.3: the server's first frame is SETTINGS; each of ours is acknowledged, in order."""
    async with serving(Limits(max_streams=77)) as (_, port), connected(port) as peer:
        peer.send(settings({3: 1}), settings())
        seen = await peer.probe()
        assert seen.frames[0].type == wire.SETTINGS
        assert seen.settings[wire.MAX_CONCURRENT_STREAMS] == 77
        assert seen.acks == 3
        assert seen.frames[-1].type == wire.PING


async def test_ping_is_echoed() -> None:
    """6.7: the same eight bytes, with ACK."""
    async with serving() as (_, port), connected(port) as peer:
        peer.send(ping(b"\0\xff\x80abcde"))
        seen = await peer.probe()
        assert seen.pongs[0] == b"\0\xff\x80abcde"


async def test_goaway_names_the_last_stream() -> None:
    """5.4.1: a connection error says up to which stream requests were taken; frames after it are not acted on."""
    async with serving() as (server, port), connected(port) as peer:
        peer.send(peer.wire.open(1, path="/hold"), peer.wire.open(5, path="/hold"), window(0, 0))
        peer.send(peer.wire.open(7, end=True))
        seen = await peer.until(lambda _: False)
        assert (seen.goaway, seen.last_stream_id) == (PROTOCOL, 5)
        assert 7 not in seen.blocks
        assert server.log == ["reset 1 1", "reset 5 1"]
