"""The guard under attack: what would stop or starve a grpc.aio server ends here, and others are served meanwhile.

The witness is a grpcio client with a connection of its own, which makes one call after another; every one of them must
come back. The server behind is a real grpc.aio server: that it goes on serving is what is proved.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import struct
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest

from tests.conformance.http2 import wire
from tests.conformance.http2.peer import RawPeer, connected
from tests.conformance.http2.wire import CALM, Wire, data, head, raw, rst, window
from tests.integration.control.guarded import GuardProcess
from tests.sidecars import CHANNEL_OPTIONS, Calls, Mesh, channel_to

PATH = "/test.Agent/Unary"
FIELDS: list[tuple[str | bytes, str | bytes]] = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", PATH),
    (":authority", "mesh"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
]
MESSAGE = b"\0\0\0\0\2hi"
FRAMES = 200_000
SEED = 11


@pytest.fixture(scope="module")
def guard(mesh: Mesh) -> GuardProcess:
    return GuardProcess(mesh, "attacked", "--max-connections", "64")


def with_path(path: bytes) -> list[tuple[str | bytes, str | bytes]]:
    return [(name, path if name == ":path" else value) for name, value in FIELDS]


class Witness:
    """Makes one call after another for as long as it runs."""

    def __init__(self, channel: grpc.aio.Channel):
        self._call = channel.unary_unary(PATH)
        self._over = False
        self.calls = 0
        self.running = asyncio.ensure_future(self._go_on())

    async def _go_on(self) -> None:
        while not self._over:
            text = b"%d" % self.calls
            assert await self._call(text, timeout=20) == text
            self.calls += 1

    async def more(self, count: int = 3) -> None:
        """So many calls more have come back; its failure if one has not."""
        wanted = self.calls + count
        while self.calls < wanted and not self.running.done():
            await asyncio.sleep(0.001)
        if self.running.done():
            self.running.result()

    async def finish(self) -> None:
        self._over = True
        await self.running


@contextlib.asynccontextmanager
async def witnessed(guard: GuardProcess) -> AsyncIterator[Witness]:
    """Somebody else's calls go through before, during and after the block."""
    async with grpc.aio.insecure_channel(guard.target, options=CHANNEL_OPTIONS) as channel:
        witness = Witness(channel)
        try:
            await witness.more()
            yield witness
            await witness.more()
        finally:
            await witness.finish()


# -- the request that stops grpcio -------------------------------------------------------------------------------------


async def send_path(port: int, path: bytes) -> RawPeer:
    """One raw request of this :path on a connection of its own, and what was answered."""
    async with connected(port) as peer:
        peer.send(head(1, peer.wire.block(with_path(path)), False), data(1, MESSAGE, True))
        await peer.until(lambda seen: seen.resets or seen.ended)
    return peer


def is_serving(target: str) -> bool:
    with channel_to(target) as channel:
        return Calls(channel, timeout_s=10).unary(b"alive").code() is grpc.StatusCode.OK


async def test_a_path_that_is_not_utf8_stops_a_bare_server(mesh: Mesh) -> None:
    """Why there is a guard. A grpcio that has mended this needs no proof of it."""
    bare = mesh.peer("bare")
    assert is_serving(bare.address)
    await send_path(bare.port, b"/\xff\xfe/\x80")
    if is_serving(bare.address):
        pytest.skip(f"grpcio {grpc.__version__} goes on serving")
    assert bare.child.process.poll() is None  # it lives, and will never serve again
    assert not is_serving(bare.address)


async def test_the_same_bytes_do_not_stop_a_guarded_one(guard: GuardProcess) -> None:
    async with witnessed(guard):
        for path in (b"/\xff\xfe/\x80", b"/\xc3\x28/x", b"/a.B/\x80", b"/\xed\xa0\x80/\xf0", b"/ /\x01", b"\xff"):
            assert (await send_path(guard.port, path)).seen.resets == {1: wire.PROTOCOL}
    assert guard.peer.child.process.poll() is None


ODD_VALUES = [
    b"",
    b"\x80",
    b"\xff" * 300,
    "€".encode(),
    b"%zz",
    b"=",
    b"A" * 5_000,
    b"1",
    b"-1",
    b"1S",
    b"99999999999H",
]
ODD_NAMES = [
    "grpc-timeout",
    "grpc-encoding",
    "grpc-accept-encoding",
    "content-type",
    "user-agent",
    "x-any",
    "x-any-bin",
]
ODD_NAMES += ["grpc-status", "grpc-message", "x-key", "authorization", "cookie", "grpc-previous-rpc-attempts", "host"]


ODD_BODIES = [b"", b"\1\0\0\0\1x", b"\0\xff\xff\xff\xff", b"\7\0", b"\0\0\0\0", MESSAGE * 3, bytes(50), b"\xff" * 50]


async def test_odd_requests_do_not_stop_it_either(guard: GuardProcess) -> None:
    """Fields that HTTP/2 allows and gRPC does not expect, and bodies that are no message: answered somehow, each by its
    deadline at the latest, with the server serving on."""
    requests = []
    for name in ODD_NAMES:
        kept = [field for field in FIELDS if field[0] != (":authority" if name == "host" else name)]
        requests += [([*kept, (name, value)], MESSAGE) for value in ODD_VALUES]
    requests += [([*FIELDS, ("grpc-timeout", "100m")], body) for body in ODD_BODIES]
    for odd in ((":method", "GET"), (":method", "PUT"), (":scheme", "ftp"), (":path", "/" + "p" * 9_000)):
        requests.append(([odd if field[0] == odd[0] else field for field in FIELDS], MESSAGE))
    async with witnessed(guard), connected(guard.port) as peer:
        wanted = set(range(1, 2 * len(requests), 2))  # all at once: grpcio takes its time to answer what is malformed
        for stream_id, (fields, body) in zip(sorted(wanted), requests, strict=True):
            peer.send(head(stream_id, peer.wire.block(fields), False), data(stream_id, body, True))
        seen = await peer.until(lambda seen: wanted <= seen.ended | seen.resets.keys())
        assert not seen.closed
    assert guard.peer.child.process.poll() is None


# -- floods ------------------------------------------------------------------------------------------------------------


def rapid_reset() -> bytes:
    w = Wire()
    first = head(1, w.block(FIELDS), False)
    block = w.block(FIELDS)
    return first + b"".join(head(n, block, False) + rst(n) for n in range(3, 60_003, 2))


def header_bomb() -> bytes:
    """An entry of 4 KB named four thousand times in a block."""
    value = 3_900
    size = b"\x7f" + bytes(((value - 127) & 127 | 128, (value - 127) >> 7))
    return head(1, b"\x40\x01a" + size + b"v" * value) + head(3, b"\xbe" * 4_000)


def opened(frame: bytes) -> bytes:
    """A flood of one frame behind an open stream."""
    return head(1, Wire().block(FIELDS), False) + frame * FRAMES


FLOODS = {
    "rapid reset": rapid_reset(),
    "PING": opened(wire.ping()),
    "SETTINGS": opened(wire.settings()),
    "empty DATA": opened(data(1)),
    "WINDOW_UPDATE": opened(window(0, 1)),
    "PRIORITY": opened(wire.priority(1)),
    "unknown frames": opened(raw(0x99, 0, 0)),
    "CONTINUATION": head(1, b"", last=False) + wire.continuation(1, b"", last=False) * FRAMES,
    "large CONTINUATION": head(1, b"", last=False) + wire.continuation(1, bytes(16_384), last=False) * 1_000,
}


@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood_ends_its_connection_and_no_other(guard: GuardProcess, name: str) -> None:
    async with witnessed(guard) as witness, connected(guard.port) as attacker:
        attacker.send(FLOODS[name])
        seen = await attacker.until(lambda _: False)
        assert seen.goaway == CALM
        await witness.more()
    await settled(guard)


async def test_a_header_bomb(guard: GuardProcess) -> None:
    async with witnessed(guard), connected(guard.port) as attacker:
        attacker.send(header_bomb())
        seen = await attacker.until(lambda _: False)
        assert seen.goaway in (CALM, wire.COMPRESSION)
    await settled(guard)


async def test_headers_beyond_the_limit_are_answered(guard: GuardProcess) -> None:
    async with witnessed(guard), connected(guard.port) as peer:
        peer.send(head(1, peer.wire.block([*FIELDS, *[(f"x-{n}", "v" * 1_000) for n in range(6)]]), False))
        peer.send(data(1, MESSAGE, True))
        assert (await peer.until(lambda seen: 1 in seen.ended)).blocks[1][-1]["grpc-status"] == "0"
        peer.send(head(3, peer.wire.block([*FIELDS, *[(f"x-{n}", "v" * 1_000) for n in range(17)]]), True))
        assert (await peer.until(lambda seen: 3 in seen.ended)).blocks[3][0]["grpc-status"] == "8"


# -- silence -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "begins",
    [b"", wire.PREFACE[:10], wire.PREFACE + wire.settings(), wire.PREFACE + wire.settings() + b"\0\1\0\0", None],
)
async def test_silent_connections_keep_nobody_out(guard: GuardProcess, begins: bytes | None) -> None:
    """Twice as many as there may be, each with less than a request, or with a request that goes no further."""
    before = guard.figures()["connections_evicted"]
    async with witnessed(guard), contextlib.AsyncExitStack() as stack:
        for _ in range(128):
            peer = await stack.enter_async_context(connected(guard.port, begins))
            if begins is None:
                peer.send(head(1, peer.wire.block(FIELDS)[:-3], last=False))
        async with connected(guard.port) as late:
            late.send(head(1, late.wire.block(FIELDS), False), data(1, MESSAGE, True))
            assert 1 in (await late.until(lambda seen: 1 in seen.ended)).ended
    assert guard.figures()["connections_evicted"] > before


@pytest.mark.parametrize(
    "speech", [b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"\x16\x03\x01\x02\0\1" + bytes(500), bytes(9_000)]
)
async def test_what_is_not_http2_is_sent_away(guard: GuardProcess, speech: bytes) -> None:
    async with connected(guard.port, speech) as peer:
        assert (await peer.until(lambda _: False)).goaway == wire.PROTOCOL


async def test_random_bytes_behind_a_good_preface(guard: GuardProcess) -> None:
    rng = random.Random(SEED)
    async with witnessed(guard):
        for _ in range(60):
            noise = b"".join(
                struct.pack(">I", rng.randrange(64))[1:]
                + bytes((rng.randrange(12), rng.randrange(256)))
                + struct.pack(">I", rng.choice([0, 1, 3, 5]))
                + rng.randbytes(rng.randrange(64))
                for _ in range(40)
            )
            async with connected(guard.port) as peer:
                peer.send(noise)
                peer.writer.write_eof()
                await peer.until(lambda _: False)
    await settled(guard)


async def settled(guard: GuardProcess) -> None:
    """Nothing is left of any call: neither in the guard nor, as far as it tells, in the server behind."""
    async with asyncio.timeout(15):
        while not guard.is_settled():
            await asyncio.sleep(0.01)
    assert guard.serves()
