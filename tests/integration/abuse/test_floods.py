"""Floods: half a million cheap frames in one go, and everything that makes a server work for nothing.

Each is cut off with ENHANCE_YOUR_CALM while a call of another client takes no more than a bounded number of turns.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from outrider_http2.limits import Limits
from tests.conformance.http2 import wire
from tests.conformance.http2.wire import CALM, COMPRESSION, PROTOCOL, Wire, data, head, raw, rst, window
from tests.integration.abuse.attacked import GRPC, attacked, message

FRAMES = 500_000
LIMITS = Limits()
FLOODS = {
    "PING": wire.ping(),
    "PING acknowledgements": wire.ping(ack=True),
    "SETTINGS": wire.settings(),
    "SETTINGS with a value": wire.settings({4: 70_000}),
    "SETTINGS acknowledgements": wire.settings(flags=1),
    "PRIORITY": wire.priority(1),
    "GOAWAY": wire.goaway(),
    "empty DATA": data(1),
    "padded empty DATA": data(1, pad=2),
    "WINDOW_UPDATE": window(0, 1),
    "WINDOW_UPDATE on a stream": window(1, 1),
    "unknown frames": raw(0x99, 0, 0),
    "unknown frames with a body": raw(0x99, 0, 1, bytes(64)),
    "late RST_STREAM": rst(3),
    "late WINDOW_UPDATE": window(3, 1),
    "late DATA": data(3, b"x"),
}


@pytest.mark.parametrize("name", FLOODS)
async def test_flood(name: str) -> None:
    """Stream 1 is open and waits for its request; stream 3 has been reset by its caller."""
    async with attacked() as scene:
        w = Wire()
        opened = head(1, w.block(GRPC), False) + head(3, w.block(GRPC), False) + rst(3)
        attacker = await scene.flood(opened, FLOODS[name] * FRAMES)
        assert attacker.seen.goaway == CALM
        assert attacker.seen.closed
        assert len(attacker.seen.frames) <= 2 * LIMITS.control_burst


async def test_a_flood_of_small_settings_with_many_streams() -> None:
    """Every change of INITIAL_WINDOW_SIZE moves the window of every stream: the work is shared out over turns."""
    async with attacked() as scene:
        w = Wire()
        opened = b"".join(head(2 * n + 1, w.block(GRPC), False) for n in range(LIMITS.max_streams))
        swing = wire.settings([(4, 1_000 + n % 2) for n in range(30)])
        attacker = await scene.flood(opened, swing * 20_000)
        assert attacker.seen.goaway == CALM


async def test_continuation_flood() -> None:
    """CVE-2024-27316 and its like: a header block without end, of empty frames or of full ones."""
    for part in (b"", b"\x00\x01a\x01b", bytes(16_384)):
        async with attacked() as scene:
            endless = wire.continuation(1, part, last=False) * min(FRAMES, 64_000_000 // (9 + len(part)))
            attacker = await scene.flood(head(1, b"", last=False), endless)
            assert attacker.seen.goaway == CALM
            assert all(len(conn.rest) <= 1 << 20 for conn in scene.servers())


async def test_hpack_bomb() -> None:
    """An entry of 4 KB named sixteen thousand times in a block: 64 MB if anybody spelled it out."""
    async with attacked() as scene:
        entry = b"\x40\x01a" + b"\x7f" + _integer(3_900 - 127) + b"v" * 3_900
        attacker = await scene.flood(head(1, entry), head(3, b"\xbe" * 16_000))
        assert attacker.seen.goaway == COMPRESSION
        assert scene.counters.open == 0


async def test_a_smaller_bomb_is_answered_each_time() -> None:
    """Lists beyond the limit, but not absurd: answered, counted as resets, and cut off in the end."""
    async with attacked() as scene:
        entry = b"\x40\x01a" + b"\x7f" + _integer(3_900 - 127) + b"v" * 3_900
        bombs = b"".join(head(2 * n + 3, b"\xbe" * 30) for n in range(10_000))
        attacker = await scene.flood(head(1, entry), bombs)
        assert attacker.seen.goaway == CALM
        assert attacker.seen.blocks[3][0]["grpc-status"] == "8"
        assert len(attacker.seen.ended) <= 2 * LIMITS.reset_burst


async def test_heads_that_never_repeat() -> None:
    """What is remembered of header blocks is bounded, by count and by size, however many there are."""
    async with attacked() as scene, scene.attacker() as peer:
        fields = [("x-unique", "v"), *[(f"x-pad{n}", "p" * 50) for n in range(8)]]
        for n in range(6_000):
            block = peer.wire.block([*GRPC, (f"x-{n}", f"{n}"), *fields])
            peer.send(head(2 * n + 1, block), wire.window(0, 1_000))
            if n % 500 == 499:
                await peer.until(lambda seen: len(seen.ended) == n + 1)  # noqa: B023
        heads = scene.mesh.reactor.heads
        assert len(heads._known) <= heads._max_heads
        for conn in scene.servers():
            assert len(conn.parsed_heads) <= 512
            assert len(conn.blocks) <= 512
        assert len(scene.mesh.runtime.snapshot._by_head) <= 4_096


@pytest.mark.parametrize("ended", [False, True])
async def test_rapid_reset(ended: bool) -> None:
    """CVE-2023-44487: the upstream sees no more of it than the burst, and is told of every cancellation."""
    async with attacked() as scene:
        w = Wire()
        block = w.block(GRPC)
        block = w.block(GRPC)  # all indexed
        first = head(1, Wire().block(GRPC))
        storm = b"".join(head(n, block, ended) + rst(n) for n in range(3, 200_003, 2))
        attacker = await scene.flood(first, storm)
        assert attacker.seen.goaway == CALM
        await scene.quiet()
        assert scene.counters.open == 0
        assert scene.counters.calls + scene.counters.cancelled <= 2 * LIMITS.reset_burst + scene.witness.calls


def _short(kind: int, size: int) -> Callable[[int], bytes]:
    return lambda stream_id: raw(kind, 0, stream_id, bytes(size))


PROVOCATIONS: dict[str, Callable[[int], bytes]] = {
    "WINDOW_UPDATE by 0": lambda n: window(n, 0),
    "WINDOW_UPDATE above the largest window": lambda n: window(n, 2**31 - 1),
    "PRIORITY of a wrong size": _short(2, 4),
    "DATA behind the end": lambda n: data(n, b"", True) + data(n, b"x"),
    "HEADERS behind the end": lambda n: data(n, b"", True) + head(n, b"\x88"),
    "trailers that do not end": lambda n: head(n, b"", False),
    "pseudo-headers in trailers": lambda n: head(n, b"\x88"),
}


@pytest.mark.parametrize("name", PROVOCATIONS)
async def test_made_you_reset(name: str) -> None:
    """CVE-2025-8671: resets the server is provoked to send count as if the client had sent them."""
    async with attacked() as scene:
        w = Wire()
        first = head(1, w.block(GRPC), False)
        block = w.block(GRPC)
        provoke = PROVOCATIONS[name]
        attacker = await scene.flood(first, b"".join(head(n, block, False) + provoke(n) for n in range(3, 60_003, 2)))
        assert attacker.seen.goaway == CALM
        assert len(attacker.seen.resets) <= 2 * LIMITS.reset_burst
        await scene.quiet()
        assert scene.counters.open == 0


async def test_more_streams_than_allowed() -> None:
    """Streams beyond the limit are refused, and whoever does not stop is cut off; none of them reaches the upstream."""
    async with attacked() as scene:
        w = Wire()
        first = head(1, w.block(GRPC), False)
        block = w.block(GRPC)
        attacker = await scene.flood(first, b"".join(head(n, block, False) for n in range(3, 200_003, 2)))
        assert attacker.seen.goaway == CALM
        assert scene.counters.calls <= scene.witness.calls
        await scene.quiet()
        assert scene.counters.open == 0


@pytest.mark.parametrize("preface", [b"GET / HTTP/1.1\r\n\r\n" * 100_000, bytes(1 << 20), b"\xff" * (1 << 20)])
async def test_something_else_altogether(preface: bytes) -> None:
    async with attacked() as scene, scene.attacker(preface) as peer:
        seen = await peer.until(lambda _: False)
        assert seen.goaway == PROTOCOL


async def test_a_name_that_stops_grpc_servers() -> None:
    """A :path outside ASCII stops some servers for good: it is refused here and never forwarded."""
    async with attacked() as scene, scene.attacker() as peer:
        path = (":path", b"/\xff\xfe/\x80")
        peer.send(head(1, peer.wire.block([path if name == ":path" else (name, value) for name, value in GRPC])))
        seen = await peer.probe()
        assert seen.resets == {1: PROTOCOL}
        assert scene.counters.open == 0
        assert scene.counters.calls == scene.witness.calls
        peer.send(head(3, peer.wire.block(GRPC), False), data(3, message(b"x"), True))
        await peer.until(lambda seen: 3 in seen.ended)


def _integer(rest: int) -> bytes:
    """The continuation of an HPACK integer whose prefix is full."""
    out = bytearray()
    while rest >= 128:
        out.append(rest & 127 | 128)
        rest >>= 7
    return bytes((*out, rest))


def test_integer() -> None:
    assert _integer(1337 - 31) == struct.pack("BB", 154, 10)
