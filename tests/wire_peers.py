"""The two peers of `tests.wire`: who calls, and who is called.

Always holds: what a peer hears of a stream comes as head, data, tail and ends once, else the peer raises; a peer that
does not read gives no credit.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

from outrider_http2 import frames
from outrider_http2.head import Head, Rest
from outrider_http2.hpack import literal
from outrider_http2.stream import Handler, Stream
from outrider_sidecar.core import errors

_CONTENT_TYPE = (b"content-type", b"application/grpc")


class Flows(Protocol):
    """Where the bytes move."""

    def flow(self) -> None: ...


@lru_cache(maxsize=512)
def request_head(path: str, authority: str, *fields: tuple[str, str]) -> Head:
    """A gRPC request's head."""
    more = tuple([(name.encode(), value.encode()) for name, value in fields])
    names = {name for name, _ in more}
    kept = () if b"content-type" in names else (_CONTENT_TYPE,)
    method = dict(more).get(b":method", b"POST")
    regular = (*kept, *[field for field in more if not field[0].startswith(b":")])
    return Head(regular, method, b"http", authority.encode(), path.encode())


@lru_cache(maxsize=512)
def reply_head(status: int, *fields: tuple[str, str]) -> Head:
    """A reply's head; without `content-type` among the fields it is gRPC's."""
    more = tuple([(name.encode(), value.encode()) for name, value in fields])
    names = {name for name, _ in more}
    return Head((*(() if b"content-type" in names else (_CONTENT_TYPE,)), *more), status=status)


@lru_cache(maxsize=512)
def tail_head(status: int, *fields: tuple[str, str]) -> Head:
    """Trailers."""
    more = tuple([(name.encode(), value.encode()) for name, value in fields])
    return Head(((b"grpc-status", b"%d" % status), *more))


class Peer(Handler):
    """What one side of a stream has heard."""

    def __init__(self, flows: Flows, stream: Stream, reads: bool):
        self.flows = flows
        self.stream = stream
        self.reads = reads
        self.head: Head | None = None
        self.head_rest: Rest | None = None
        self.chunks: list[bytes] = []
        self.tail: Head | None = None
        self.tail_rest: Rest | None = None
        self.reset_code: int | None = None
        self.processed = True
        self.heard_end = False
        self._unread_bytes = 0

    def on_head(self, stream: Stream, head: Head, rest: Rest, end: bool) -> None:
        assert self.head is None, "a second head"
        assert not self.over
        self.head, self.head_rest = head, rest
        if end:
            self.heard_end = True
            if b"grpc-status" in head.values:
                self.tail, self.tail_rest = head, rest

    def on_data(self, stream: Stream, data: bytes, end: bool) -> None:
        assert self.head is not None, "data before the head"
        assert not self.over, "data after the end"
        self.chunks.append(bytes(data))
        self.heard_end = end
        if self.reads:
            stream.credit(len(data))
        else:
            self._unread_bytes += len(data)

    def on_tail(self, stream: Stream, head: Head, rest: Rest) -> None:
        assert self.head is not None, "a tail before the head"
        assert not self.over, "a second end"
        self.tail, self.tail_rest = head, rest
        self.heard_end = True

    def on_reset(self, stream: Stream, code: int, processed: bool) -> None:
        assert self.reset_code is None, "a second reset"
        self.reset_code = code
        self.processed = processed

    def on_drain(self, stream: Stream, sent_bytes: int) -> None:
        """Peers queue without bound."""

    @property
    def over(self) -> bool:
        """Nothing more is to be heard."""
        return self.heard_end or self.reset_code is not None

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    def read(self) -> None:
        """Take what has come, and whatever comes."""
        self.reads = True
        size, self._unread_bytes = self._unread_bytes, 0
        if size:
            self.stream.credit(size)
        self.flows.flow()

    def take(self, size: int) -> None:
        """Take so many bytes and no more."""
        self._unread_bytes -= size
        self.stream.credit(size)
        self.flows.flow()

    def stop_reading(self) -> None:
        self.reads = False

    def send(self, data: bytes, end: bool = False) -> None:
        self.stream.send_data(data, end)
        self.flows.flow()

    def cancel(self, code: int = frames.CANCEL) -> None:
        """Reset the stream from this side."""
        if self.reset_code is None:
            self.reset_code = code
        self.stream.reset(code)
        self.flows.flow()


class Caller(Peer):
    """The caller's end of a call."""

    @property
    def status(self) -> int | None:
        """The gRPC status, once there is one."""
        return errors.status_of(self.tail) if self.tail is not None else None

    @property
    def message(self) -> str:
        assert self.tail_rest is not None
        return errors.decode_message(self.tail_rest.values.get(b"grpc-message", b""))

    def trailer(self, name: str) -> str:
        """A trailer's value, or empty."""
        if self.tail is None:
            return ""
        rest = self.tail_rest.values if self.tail_rest is not None else {}
        return (self.tail.values.get(name.encode()) or rest.get(name.encode(), b"")).decode()


class Served(Peer):
    """The agent's end of one try."""

    def __init__(self, flows: Flows, stream: Stream, head: Head, rest: Rest, end: bool):
        super().__init__(flows, stream, True)
        self.head, self.head_rest = head, rest
        self.heard_end = end
        self.sent: list[bytes] = []
        self.answered = False  # a head has been sent
        self.status: int | None = None  # sent

    def value(self, name: str) -> str:
        """A request field's value, or empty."""
        assert self.head is not None
        assert self.head_rest is not None
        return (self.head.values.get(name.encode()) or self.head_rest.values.get(name.encode(), b"")).decode()

    @property
    def alive(self) -> bool:
        """Whether the agent may still say something."""
        return self.reset_code is None and self.status is None

    def begin(self, *fields: tuple[str, str], status: int = 200) -> None:
        """Initial metadata."""
        self.answered = True
        self.stream.send_head(reply_head(status, *fields))
        self.flows.flow()

    def data(self, data: bytes, end: bool = False) -> None:
        """DATA of a reply; with `end` no trailers follow, which gRPC does not allow."""
        self.sent.append(data)
        if end:
            self.status = errors.UNKNOWN
        self.send(data, end)

    def finish(self, status: int = 0, *fields: tuple[str, str], text: str = "") -> None:
        """Trailers."""
        self.status = status
        self.stream.send_tail(tail_head(status, *fields), errors.message_literal(text) if text else b"")
        self.flows.flow()

    def refuse(self, status: int, *fields: tuple[str, str], text: str = "", pushback_ms: bytes | None = None) -> None:
        """A trailers-only reply."""
        self.answered = True
        self.status = status
        extra = errors.message_literal(text) if text else b""
        if pushback_ms is not None:
            extra += literal(b"grpc-retry-pushback-ms", pushback_ms)
        self.stream.send_head(reply_head(200, ("grpc-status", str(status)), *fields), extra, True)
        self.flows.flow()

    def reply(self, *chunks: bytes, status: int = 0) -> None:
        """A whole reply."""
        self.begin()
        for chunk in chunks:
            self.data(chunk)
        self.finish(status)
