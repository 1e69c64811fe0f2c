"""A raw peer on a real socket: sends any bytes, reads frames with hyperframe, and says what came of it.

Always holds: nothing waits for time to pass. A PING behind the bytes under test comes back when all of them have been
worked on; a connection that fails instead says GOAWAY and closes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from hpack import Decoder
from hyperframe import frame as hf

from outrider_http2.client import ClientConnection
from outrider_http2.head import Head, Rest
from outrider_http2.limits import Limits
from outrider_http2.server import ServerConnection
from outrider_http2.shell import Reactor, Shell, clock
from outrider_http2.stream import Handler, Stream
from tests.conformance.http2 import wire

OK = Head(((b"content-type", b"application/grpc"),), status=200)
TAIL = Head(((b"grpc-status", b"0"),))
PATIENCE_S = 10.0  # a test that would hang fails instead


@dataclass
class Outcome:
    """What the other side said, in frames and by stream."""

    frames: list[hf.Frame] = field(default_factory=list)
    goaway: int | None = None
    last_stream_id: int | None = None
    resets: dict[int, int] = field(default_factory=dict)
    blocks: dict[int, list[dict[str, str]]] = field(default_factory=dict)
    data: dict[int, bytes] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    acks: int = 0
    settings: dict[int, int] = field(default_factory=dict)
    pongs: list[bytes] = field(default_factory=list)
    closed: bool = False

    def status(self, stream_id: int) -> str:
        return self.blocks[stream_id][0][":status"]


class RawPeer:
    """One end of a connection. `seen` collects everything received so far."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.reader = reader
        self.writer = writer
        self.wire = wire.Wire()
        self.decoder = Decoder()
        self.seen = Outcome()
        self._block: tuple[int, bytearray] | None = None
        self._probes = 0

    def send(self, *parts: bytes) -> None:
        self.writer.write(b"".join(parts))

    async def frame(self) -> hf.Frame | None:
        """The next frame, recorded; None once the other side has closed."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                top = await self.reader.readexactly(9)
                one, length = hf.Frame.parse_frame_header(memoryview(top))
                one.parse_body(memoryview(await self.reader.readexactly(length)))
        except (asyncio.IncompleteReadError, ConnectionResetError, BrokenPipeError):
            self.seen.closed = True
            return None
        self._record(one)
        return one

    def _record(self, one: hf.Frame) -> None:
        seen = self.seen
        seen.frames.append(one)
        if isinstance(one, hf.GoAwayFrame):
            seen.goaway, seen.last_stream_id = one.error_code, one.last_stream_id
        elif isinstance(one, hf.RstStreamFrame):
            seen.resets[one.stream_id] = one.error_code
        elif isinstance(one, hf.SettingsFrame):
            seen.acks += "ACK" in one.flags
            seen.settings.update(one.settings)
        elif isinstance(one, hf.PingFrame) and "ACK" in one.flags:
            seen.pongs.append(one.opaque_data)
        elif isinstance(one, hf.DataFrame):
            seen.data[one.stream_id] = seen.data.get(one.stream_id, b"") + one.data
        elif isinstance(one, hf.HeadersFrame):
            self._block = (one.stream_id, bytearray(one.data))
        elif isinstance(one, hf.ContinuationFrame):
            assert self._block is not None
            self._block[1].extend(one.data)
        if isinstance(one, hf.HeadersFrame | hf.ContinuationFrame) and "END_HEADERS" in one.flags:
            assert self._block is not None
            stream_id, block = self._block
            fields = {str(name): str(value) for name, value in self.decoder.decode(bytes(block))}
            seen.blocks.setdefault(stream_id, []).append(fields)
        if "END_STREAM" in one.flags:
            seen.ended.add(one.stream_id)

    async def until(self, condition: Callable[[Outcome], object]) -> Outcome:
        """Read on until the condition holds or the connection is closed."""
        while not condition(self.seen) and not self.seen.closed:
            await self.frame()
        return self.seen

    async def probe(self) -> Outcome:
        """Everything sent so far has been worked on, or the connection is over."""
        self._probes += 1
        payload = b"probe%03d" % self._probes
        self.send(wire.ping(payload))
        return await self.until(lambda seen: payload in seen.pongs)

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


class Answering(Handler):
    """The handler of a stream of the test server; the path says what it does.

    `/echo` sends the request's bytes back when it has ended; `/early` answers at once and resets with NO_ERROR; `/hold`
    never answers; `/size/N` answers N bytes at once. Credit is given on receipt, but for `/keep`.
    """

    def __init__(self, log: list[str], head: Head, keeps: bool):
        self.log = log
        self.head = head
        self.keeps = keeps
        self.body: list[bytes] = []

    def begin(self, stream: Stream, end: bool) -> None:
        path = self.head.path
        if path == b"/early":
            stream.send_head(OK)
            stream.send_tail(TAIL)
            if not end:
                stream.reset(wire.NO_ERROR)
        elif path.startswith(b"/size/"):
            stream.send_head(OK)
            stream.send_data(bytes(int(path[6:])))
            stream.send_tail(TAIL)
        elif end:
            self.answer(stream)

    def answer(self, stream: Stream) -> None:
        if self.head.path in (b"/hold", b"/keep"):
            return
        stream.send_head(OK)
        stream.send_data(b"".join(self.body))
        stream.send_tail(TAIL)

    def on_head(self, stream: Stream, head: Head, rest: Rest, end: bool) -> None:
        raise AssertionError("a server's handler gets no head")

    def on_data(self, stream: Stream, data: bytes, end: bool) -> None:
        self.body.append(data)
        if not self.keeps:
            stream.credit(len(data))
        if end:
            self.answer(stream)

    def on_tail(self, stream: Stream, head: Head, rest: Rest) -> None:
        self.answer(stream)

    def on_reset(self, stream: Stream, code: int, processed: bool) -> None:
        self.log.append(f"reset {stream.id} {code}")

    def on_drain(self, stream: Stream, sent_bytes: int) -> None:
        pass


class TestServer:
    """A real ServerConnection on a real socket."""

    __test__ = False

    def __init__(self, limits: Limits):
        self.reactor = Reactor(asyncio.get_running_loop(), limits)
        self.conns: list[ServerConnection] = []
        self.log: list[str] = []

    def make(self) -> Shell:
        reactor = self.reactor
        conn = ServerConnection(self.accept, reactor.limits, reactor.heads, reactor.turn, reactor.ledger, clock())
        self.conns.append(conn)
        return Shell(reactor, conn)

    def accept(self, stream: Stream, head: Head, rest: Rest, end: bool) -> None:
        handler = Answering(self.log, head, head.path == b"/keep")
        stream.handler = handler
        handler.begin(stream, end)


@contextlib.asynccontextmanager
async def serving(limits: Limits | None = None) -> AsyncIterator[tuple[TestServer, int]]:
    """A server on a free port; leaving checks that it holds no bytes for anybody."""
    server = TestServer(limits or Limits())
    raised: list[object] = []
    server.reactor.loop.set_exception_handler(lambda _, context: raised.append(context))
    listening = await server.reactor.loop.create_server(server.make, "127.0.0.1", 0)
    try:
        yield server, listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        await server.reactor.close()
        server.reactor.loop.set_exception_handler(None)
        assert not raised, raised
        assert server.reactor.ledger.held_bytes == 0
        assert not server.reactor.ledger.stalled


@contextlib.asynccontextmanager
async def connected(port: int, preface: bytes | None = None) -> AsyncIterator[RawPeer]:
    """A raw client that has sent `preface` (by default a good one) and nothing more."""
    peer = RawPeer(*await asyncio.open_connection("127.0.0.1", port))
    peer.send(wire.PREFACE + wire.settings() + wire.settings(flags=wire.ACK) if preface is None else preface)
    try:
        yield peer
    finally:
        await peer.close()


@dataclass
class Heard(Handler):
    """What the handler of a client's stream was told."""

    heads: list[tuple[Head, bool]] = field(default_factory=list)
    data: bytes = b""
    tails: list[Head] = field(default_factory=list)
    resets: list[tuple[int, bool]] = field(default_factory=list)
    ended: bool = False

    def on_head(self, stream: Stream, head: Head, rest: Rest, end: bool) -> None:
        self.heads.append((head, end))
        self.ended |= end

    def on_data(self, stream: Stream, data: bytes, end: bool) -> None:
        self.data += data
        self.ended |= end
        stream.credit(len(data))

    def on_tail(self, stream: Stream, head: Head, rest: Rest) -> None:
        self.tails.append(head)
        self.ended = True

    def on_reset(self, stream: Stream, code: int, processed: bool) -> None:
        self.resets.append((code, processed))

    def on_drain(self, stream: Stream, sent_bytes: int) -> None:
        pass


class Greedy(Heard):
    """Takes all and gives no credit for it."""

    def on_data(self, stream: Stream, data: bytes, end: bool) -> None:
        self.data += data


REQUEST = Head(
    ((b"content-type", b"application/grpc"), (b"te", b"trailers")), b"POST", b"http", b"localhost", b"/test.Agent/Unary"
)


class Dialled:
    """A real ClientConnection whose server is a raw peer."""

    def __init__(self, reactor: Reactor, conn: ClientConnection, peer: RawPeer):
        self.reactor = reactor
        self.conn = conn
        self.peer = peer

    async def call(self, end: bool = True, heard: Heard | None = None) -> tuple[Stream, Heard]:
        """Open a stream; its HEADERS have arrived at the raw peer when this returns."""
        heard = heard or Heard()
        stream = self.conn.open_stream(heard)
        stream.send_head(REQUEST, b"", end)
        await self.peer.until(lambda seen: stream.id in seen.blocks)
        return stream, heard


@contextlib.asynccontextmanager
async def dialled(limits: Limits | None = None, first: bytes | None = None) -> AsyncIterator[Dialled]:
    """A client connection to a raw server that has sent `first` (by default empty SETTINGS)."""
    accepted: asyncio.Future[RawPeer] = asyncio.get_running_loop().create_future()

    def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set_result(RawPeer(reader, writer))

    listening = await asyncio.start_server(on_connection, "127.0.0.1", 0)
    reactor = Reactor(asyncio.get_running_loop(), limits)
    raised: list[object] = []
    reactor.loop.set_exception_handler(lambda _, context: raised.append(context))
    conn = ClientConnection(reactor.limits, reactor.heads, reactor.turn, reactor.ledger, clock())
    ready = asyncio.Event()
    conn.on_ready = lambda _: ready.set()
    conn.on_closed = lambda _: ready.set()
    port = listening.sockets[0].getsockname()[1]
    await reactor.loop.create_connection(lambda: Shell(reactor, conn), "127.0.0.1", port)
    peer = await accepted
    assert await peer.reader.readexactly(len(wire.PREFACE)) == wire.PREFACE
    peer.send(wire.settings() if first is None else first)
    try:
        if first is None:
            await ready.wait()
        yield Dialled(reactor, conn, peer)
    finally:
        listening.close()
        await peer.close()
        await reactor.close()
        reactor.loop.set_exception_handler(None)
        assert not raised, raised
        assert reactor.ledger.held_bytes == 0
