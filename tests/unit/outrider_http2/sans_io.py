"""Connections without sockets: bytes in, bytes out, handlers that note what they are told.

Always holds: nothing is sent before its turn ends; `take` ends the turn and hands over what a socket would get.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from outrider_http2 import frames
from outrider_http2.base import Base
from outrider_http2.client import ClientConnection
from outrider_http2.head import Head, Heads, Rest
from outrider_http2.limits import Limits
from outrider_http2.server import ServerConnection
from outrider_http2.stream import Handler, Ledger, Stream
from outrider_http2.turn import Turn

REQUEST = Head(((b"te", b"trailers"),), b"POST", b"http", b"localhost", b"/test.Agent/Unary")
OK = Head(((b"content-type", b"application/grpc"),), status=200)
TAIL = Head(((b"grpc-status", b"0"),))


class Notes(Handler):
    """A stream's handler: what it was told, in order."""

    def __init__(self) -> None:
        self.stream: Stream | None = None
        self.head: tuple[tuple[bytes, bytes], ...] | None = None
        self.body = b""
        self.tail: tuple[tuple[bytes, bytes], ...] | None = None
        self.ends = 0
        self.resets: list[tuple[int, bool]] = []
        self.drained = 0
        self.owed = 0

    def on_head(self, stream: Stream, head: Head, rest: Rest, end: bool) -> None:
        assert self.head is None
        self.head = head.fields
        self.ends += end

    def on_data(self, stream: Stream, data: bytes, end: bool) -> None:
        assert not self.ends
        assert not self.resets
        self.body += data
        self.owed += len(data)
        self.ends += end

    def on_tail(self, stream: Stream, head: Head, rest: Rest) -> None:
        assert not self.ends
        assert not self.resets
        self.tail = head.fields
        self.ends += 1

    def on_reset(self, stream: Stream, code: int, processed: bool) -> None:
        assert not self.resets
        self.resets.append((code, processed))

    def on_drain(self, stream: Stream, sent_bytes: int) -> None:
        self.drained += sent_bytes


class Bench:
    """What the connections of one process share, without a loop."""

    def __init__(self, limits: Limits | None = None, cap_bytes: int = 64 * 1024 * 1024):
        self.limits = limits or Limits()
        self.heads = Heads()
        self.later: list[Callable[[], None]] = []
        self.turn = Turn(self.later.append)
        self.ledger = Ledger(cap_bytes)
        self.notes: dict[int, Notes] = {}

    def accept(self, stream: Stream, head: Head, rest: Rest, end: bool) -> None:
        notes = self.notes[stream.id] = stream.handler = Notes()
        notes.stream = stream
        notes.head = head.fields
        notes.ends += end

    def server(self) -> ServerConnection:
        conn = ServerConnection(self.accept, self.limits, self.heads, self.turn, self.ledger, 0.0)
        self.attach(conn)
        return conn

    def client(self) -> ClientConnection:
        conn = ClientConnection(self.limits, self.heads, self.turn, self.ledger, 0.0)
        self.attach(conn)
        return conn

    def attach(self, conn: Any) -> None:
        conn.peer = bytearray()
        conn.write_out = conn.peer.extend
        conn.write_parts = lambda parts: conn.peer.extend(b"".join(parts))
        conn.open()

    def call(self, conn: ClientConnection, end: bool = False, notes: Notes | None = None) -> Stream:
        """A stream of a client, its head sent."""
        notes = notes or Notes()
        stream = conn.open_stream(notes)
        notes.stream = stream
        self.notes[stream.id] = notes
        stream.send_head(REQUEST, b"", end)
        return stream

    def take(self, conn: Base) -> bytes:
        """End the turn; what has been written since the last time."""
        self.turn.end()
        taken = bytes(conn.peer)
        conn.peer.clear()
        return taken

    def feed(self, conn: Any, data: bytes, sizes: list[int] | None = None) -> int:
        """Hand over received bytes, in pieces of these sizes over and over; the turns it took."""
        turns, at, n = 0, 0, 0
        while at < len(data):
            size = sizes[n % len(sizes)] if sizes else len(data)
            n += 1
            conn.receive(data[at : at + size])
            at += size
            turns += 1
            while conn.more or conn.pump_more:
                if conn.pump_more:
                    conn.pump()
                if conn.more:
                    conn.receive(b"")
                turns += 1
        return turns

    def greeted(self, **settings: int) -> ServerConnection:
        """A server whose client has said its preface."""
        conn = self.server()
        values = [(getattr(frames, name), value) for name, value in settings.items()]
        conn.receive(frames.PREFACE + frames.settings(values) + frames.SETTINGS_ACK)
        self.take(conn)
        return conn
