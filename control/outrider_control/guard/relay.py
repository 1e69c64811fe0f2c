"""One stream of a client and the stream of the backend it goes on: bytes and fields pass as they came.

Always holds: a request goes to the backend once; credit returns to either side as the other takes bytes, so a relay
holds no more than a stream's window in each direction; whichever side ends the stream early, the other hears of it at
once; a backend that is not there is an UNAVAILABLE in trailers.

Deliberately not here: connections (`backend`, `listener`), identity (`peer`), messages, retries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from outrider_http2 import frames
from outrider_http2.client import ClientConnection
from outrider_http2.head import Head, Rest
from outrider_http2.hpack import literal
from outrider_http2.stream import Handler, Stream

if TYPE_CHECKING:
    from outrider_control.guard.backend import Backend

RESOURCE_EXHAUSTED = 8
UNAVAILABLE = 14
_MESSAGE_SAFE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
_HEADS = {
    status: Head(((b"content-type", b"application/grpc"), (b"grpc-status", b"%d" % status)), status=200)
    for status in (RESOURCE_EXHAUSTED, UNAVAILABLE)
}
_TAILS = {status: Head(((b"grpc-status", b"%d" % status),)) for status in (RESOURCE_EXHAUSTED, UNAVAILABLE)}


class Relay(Handler):
    """The handler of the client's stream. `begin` once; the backend answers by `open` or `refused`."""

    __slots__ = ("_backend", "_body", "_down", "_ended", "_extra", "_head", "_held_bytes", "_owed", "_up", "over")

    def __init__(self, backend: Backend, down: Stream, head: Head, extra: bytes, ended: bool):
        self._backend = backend
        self._down = down
        self._head: Head | None = head
        self._extra = extra  # literals beside the head
        self._ended = ended  # the request has
        self._up: Stream | None = None
        self._body: list[bytes] | None = None  # came before there was a connection
        self._held_bytes = 0  # of it
        self._owed = 0  # request bytes the backend has not taken yet
        self.over = False  # nothing more will come from the backend

    def begin(self) -> None:
        """Get a stream of the backend, now or soon, unless the client has cancelled already."""
        if not self.over:
            self._backend.join(self)

    def open(self, conn: ClientConnection) -> None:
        """A connection has room: send what there is of the request."""
        head, extra = self._head, self._extra
        assert head is not None
        self._head, self._extra = None, b""
        up = self._up = conn.open_stream(Reply(self, self._down))
        body = self._body
        if body is None:
            up.send_head(head, extra, self._ended)
            return
        up.send_head(head, extra)
        self._drop_body()
        for data in body:
            up.send_data(data)
        if self._ended:
            up.send_data(b"", True)
        if up.queue is None:
            self.request_taken(0, True)

    def refused(self, reason: str) -> None:
        """No connection could be had."""
        self.fail(UNAVAILABLE, reason)

    # -- the request -----------------------------------------------------------------------------------------------

    def on_head(self, stream: Stream, head: Head, rest: Rest, end: bool) -> None:
        """Of clients' streams only: this one is a server's."""

    def on_data(self, stream: Stream, data: bytes, end: bool) -> None:
        if end:
            self._ended = True
        up = self._up
        size = len(data)
        if up is not None:
            up.send_data(data, end)
            if up.queue is None:
                stream.credit(size)
            else:
                self._owed += size
        elif self.over:
            stream.credit(size)
        elif size:
            self._owed += size
            self._keep(data, size)

    def on_tail(self, stream: Stream, head: Head, rest: Rest) -> None:
        """Request trailers: gRPC has none, so they only end the request, and bring no field past the guard."""
        self.on_data(stream, b"", True)

    def _keep(self, data: bytes, size: int) -> None:
        if self._body is None:
            self._body = []
            self._backend.ledger.stalled[self] = None
        self._body.append(data)
        self._held_bytes += size
        self._backend.ledger.hold(size)

    def _drop_body(self) -> None:
        if self._body is not None:
            self._body = None
            self._backend.ledger.stalled.pop(self, None)
            self._backend.ledger.release(self._held_bytes)
            self._held_bytes = 0

    def cut(self) -> None:
        """The process holds too much, and this request has waited longest."""
        self._backend.leave(self)
        self.fail(RESOURCE_EXHAUSTED, "the control plane holds too many unread bytes; try again later")

    def request_taken(self, size: int, all_taken: bool) -> None:
        """The backend took request bytes that had waited."""
        size = self._owed if all_taken else min(size, self._owed)
        if size:
            self._owed -= size
            self._down.credit(size)

    def on_reset(self, stream: Stream, code: int, processed: bool) -> None:
        """The client is gone or has cancelled."""
        up = self._up
        if up is None and not self.over:
            self._backend.leave(self)
        self.finish()
        if up is not None:
            up.reset(frames.CANCEL)

    # -- the reply -------------------------------------------------------------------------------------------------

    def on_drain(self, stream: Stream, sent_bytes: int) -> None:
        """The client took reply bytes that had waited."""
        if self._up is not None:
            handler = self._up.handler
            if isinstance(handler, Reply):
                handler.reply_taken(self._up, sent_bytes, stream.queue is None)
        elif stream.queue is None:
            self._release()

    def end(self) -> None:
        """The reply is whole: what the client still sends is of no use to anybody."""
        up = self._up
        self.finish()
        if up is not None and not up.local_closed:
            up.reset(frames.CANCEL)
        if self._down.queue is None:
            self._release()

    def _release(self) -> None:
        """The reply has left: a client that is still sending need not go on."""
        if not self._ended:
            self._down.reset(frames.NO_ERROR)

    def fail(self, status: int, text: str, replied: bool = False) -> None:
        """End the call with a status of the guard's own."""
        if self.over:
            return
        down = self._down
        extra = literal(b"grpc-message", quote(text, safe=_MESSAGE_SAFE).encode())
        if not replied:
            down.send_head(_HEADS[status], extra, True)
        elif down.queue is None:
            down.send_tail(_TAILS[status], extra)
        else:  # half a message waits for a client that does not read: only a reset is prompt and honest
            down.reset(frames.INTERNAL_ERROR)
        self.end()

    def finish(self) -> None:
        """Let go of the backend's stream; relays and streams know each other, and nothing may be left for the
        collector."""
        self.over = True
        self._up = None
        self._drop_body()


class Reply(Handler):
    """The handler of the backend's stream."""

    __slots__ = ("_down", "_owed", "_relay", "_replied")

    def __init__(self, relay: Relay, down: Stream):
        self._relay = relay
        self._down = down
        self._owed = 0  # reply bytes the client has not taken yet
        self._replied = False

    def on_head(self, stream: Stream, head: Head, rest: Rest, end: bool) -> None:
        self._replied = True
        self._down.send_head(head, rest.literals, end)
        if end:
            self._relay.end()

    def on_data(self, stream: Stream, data: bytes, end: bool) -> None:
        down = self._down
        down.send_data(data, end)
        if down.queue is None:
            stream.credit(len(data))
        else:
            self._owed += len(data)
        if end:
            self._relay.end()

    def on_tail(self, stream: Stream, head: Head, rest: Rest) -> None:
        self._down.send_tail(head, rest.literals)
        self._relay.end()

    def on_reset(self, stream: Stream, code: int, processed: bool) -> None:
        relay = self._relay
        if relay.over:
            return
        if stream.conn.is_over():
            relay.fail(UNAVAILABLE, "the connection to the control plane's server was lost", self._replied)
            return
        # A reset without an error would read as success, and REFUSED_STREAM vouches that nothing was done.
        code = code if code != frames.NO_ERROR else frames.INTERNAL_ERROR
        self._down.reset(code if processed else frames.REFUSED_STREAM)
        relay.finish()

    def on_drain(self, stream: Stream, sent_bytes: int) -> None:
        self._relay.request_taken(sent_bytes, stream.queue is None)

    def reply_taken(self, up: Stream, size: int, all_taken: bool) -> None:
        """The client took reply bytes that had waited."""
        size = self._owed if all_taken else min(size, self._owed)
        if size:
            self._owed -= size
            up.credit(size)
