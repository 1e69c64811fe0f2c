"""One bidirectional gRPC call of the sidecar's own, as messages.

Always holds: messages come out whole and in order; one message and all that wait are bounded, and a peer that breaks
gRPC's framing or a bound ends the call; after the end `receive` gives what had come before it, then raises `Ended`.

Deliberately not here: dialling (`edge.rpc`), what messages mean.
"""

from __future__ import annotations

import asyncio
from collections import deque

from outrider_http2 import frames
from outrider_http2.client import ClientConnection
from outrider_http2.head import Head, Rest
from outrider_http2.stream import Handler, Stream
from outrider_sidecar.core import errors

_PREFIX = 5  # bytes before a message: a flag for compression and its length


class Ended(Exception):
    """The call is over: a gRPC status and a text."""

    def __init__(self, status: int, text: str):
        name = errors.NAMES[status] if 0 <= status < len(errors.NAMES) else str(status)
        super().__init__(f"{name}: {text}" if text else name)
        self.status = status
        self.text = text


class MessageStream(Handler):
    """`send` messages, `receive` messages, `finish` or `close` at the end. Lives on one loop."""

    def __init__(self, conn: ClientConnection, head: Head, max_message_bytes: int):
        self._max_message_bytes = max_message_bytes
        self._partial = bytearray()
        self._messages: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._arrived = asyncio.Event()
        self.ended: Ended | None = None
        self._stream = conn.open_stream(self)
        self._stream.send_head(head)

    @property
    def stalled(self) -> bool:
        """Whether what was sent still waits for the peer to take it."""
        return self._stream.queue is not None

    def send(self, message: bytes) -> None:
        """One message; into the void after the end."""
        if self.ended is None:
            self._stream.send_data(b"\0" + len(message).to_bytes(4, "big") + message)

    async def receive(self) -> bytes:
        """The next message. Ended: there is none any more."""
        while not self._messages:
            if self.ended is not None:
                raise self.ended
            self._arrived.clear()
            await self._arrived.wait()
        message = self._messages.popleft()
        self._waiting_bytes -= len(message)
        return message

    def finish(self) -> None:
        """Say that nothing more is sent: the peer reads what was sent, then ends the call."""
        if self.ended is None:
            self._stream.send_data(b"", True)

    def close(self) -> None:
        """End the call from our side, at once: the peer may drop what it has not read."""
        if self.ended is None:
            self._end(errors.CANCELLED, "")
            self._stream.reset(frames.CANCEL)

    # -- the peer --------------------------------------------------------------------------------------------------

    def on_head(self, stream: Stream, head: Head, rest: Rest, end: bool) -> None:
        if head.status != 200:
            self._refuse(errors.from_http(head.status), f"HTTP {head.status}")
        elif end:
            self.on_tail(stream, head, rest)

    def on_data(self, stream: Stream, data: bytes, end: bool) -> None:
        partial = self._partial
        partial += data
        while len(partial) >= _PREFIX:
            size = int.from_bytes(partial[1:_PREFIX], "big")
            if partial[0]:
                self._refuse(errors.INTERNAL, "the peer sent a compressed message, which was not agreed on")
                return
            if size > self._max_message_bytes:
                reason = f"the peer sent a message of {size} bytes; at most {self._max_message_bytes} are read"
                self._refuse(errors.RESOURCE_EXHAUSTED, reason)
                return
            if len(partial) < _PREFIX + size:
                break
            self._messages.append(bytes(partial[_PREFIX : _PREFIX + size]))
            del partial[: _PREFIX + size]
            self._waiting_bytes += size
            self._arrived.set()
        if self._waiting_bytes > 2 * self._max_message_bytes:
            self._refuse(errors.RESOURCE_EXHAUSTED, "the peer sends messages faster than they are read")
            return
        stream.credit(len(data))
        if end:
            self._end(errors.INTERNAL, "the peer ended the call without trailers")

    def on_tail(self, stream: Stream, head: Head, rest: Rest) -> None:
        self._end(errors.status_of(head), errors.decode_message(rest.values.get(b"grpc-message", b"")))
        if not stream.local_closed:
            stream.reset(frames.NO_ERROR)

    def on_reset(self, stream: Stream, code: int, processed: bool) -> None:
        failed = stream.conn.failed
        self._end(errors.UNAVAILABLE, failed.reason if failed is not None else frames.error_name(code))

    def on_drain(self, stream: Stream, sent_bytes: int) -> None:
        """Who sends asks `stalled`."""

    def _refuse(self, status: int, text: str) -> None:
        self._end(status, text)
        self._stream.reset(frames.CANCEL)

    def _end(self, status: int, text: str) -> None:
        if self.ended is None:
            self.ended = Ended(status, text)
            self._partial.clear()
            self._arrived.set()
