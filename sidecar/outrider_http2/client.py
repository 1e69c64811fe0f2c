"""The client's role: streams are opened by us, up to what the peer allows.

Always holds: a connection that has had its GOAWAY opens nothing more; streams the peer did not process are given back
with `processed=False`, so that the caller may try elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from outrider_http2 import frames
from outrider_http2.connection import Connection
from outrider_http2.fields import FieldError
from outrider_http2.head import Heads
from outrider_http2.hpack import HeaderListTooLarge
from outrider_http2.limits import Limits
from outrider_http2.stream import Handler, Ledger, Stream
from outrider_http2.turn import Turn


class ClientConnection(Connection):
    """`on_ready` is called once the peer's SETTINGS are known, `on_room` when a stream more may be opened."""

    client_side = True

    def __init__(self, limits: Limits, heads: Heads, turn: Turn, ledger: Ledger, now: float, scheme: bytes = b"http"):
        super().__init__(limits, heads, turn, ledger, now, scheme)
        self.next_id = 1
        self.on_ready: Callable[[ClientConnection], None] = _nothing
        self.on_gone: Callable[[ClientConnection], None] = _nothing  # takes no new streams
        self.on_room: Callable[[ClientConnection], None] = _nothing

    def open(self) -> None:
        """Our side of the preface; called once the socket is there."""
        limits = self.limits
        more = limits.connection_window_bytes - frames.DEFAULT_WINDOW
        self.write(
            frames.PREFACE
            + frames.settings(
                (
                    (frames.ENABLE_PUSH, 0),
                    (frames.INITIAL_WINDOW_SIZE, limits.stream_window_bytes),
                    (frames.MAX_HEADER_LIST_SIZE, limits.header_list_bytes),
                )
            )
            + (frames.window_update(0, more) if more > 0 else b"")
        )

    @property
    def has_room(self) -> bool:
        """Whether one more stream may be opened now."""
        return (
            not self.draining
            and self.peer_settings
            and len(self.streams) < self.peer_max_streams
            and self.next_id < frames.MAX_STREAM_ID
        )

    def open_stream(self, handler: Handler | None) -> Stream:
        """A new stream; the caller has checked `has_room` and sends a head next."""
        stream_id = self.next_id
        self.next_id = stream_id + 2
        stream = Stream(self, stream_id, handler)
        self.streams[stream_id] = stream
        return stream

    def start(self, data: bytes) -> int:
        return self.expect_settings(data, 0)

    def is_idle(self, stream_id: int) -> bool:
        return stream_id >= self.next_id or stream_id & 1 == 0

    def forget(self, stream: Stream) -> None:
        super().forget(stream)
        if len(self.streams) + 1 == self.peer_max_streams:
            self.on_room(self)

    def on_peer_settings(self) -> None:
        self.on_ready(self)
        if self.has_room:  # perhaps only now: the peer may raise its limit at any time
            self.on_room(self)

    def on_peer_goaway(self) -> None:
        self.on_gone(self)
        if not self.streams:
            self.on_quiet(self)

    def on_block(self, stream_id: int, block: bytes, end: bool) -> None:
        stream = self.streams.get(stream_id)
        if stream is None:
            self.parse_stray(block)
            self._on_stray(stream_id, "HEADERS")
            return
        if stream.remote_head:
            self.on_trailers(stream, block, end)
            return
        try:
            head, rest = self.parse(block, False)
        except (FieldError, HeaderListTooLarge):
            self.reject(stream, frames.PROTOCOL_ERROR)
            return
        if head.status < 200:
            if end or head.status == 101:  # HTTP/2 knows no switching of protocols
                self.reject(stream, frames.PROTOCOL_ERROR)
            else:
                self.take_control("informational HEADERS")
            return
        stream.remote_head = True
        handler = stream.handler
        if rest.length is not None:
            stream.length_left = rest.length
        if end:
            stream.remote_closed = True
            if stream.local_closed:
                self.forget(stream)
        if handler is not None:
            handler.on_head(stream, head, rest, end)

    def shutdown(self) -> None:
        """Open nothing more; `on_quiet` is called when the last stream is over."""
        if not self.draining:
            self.draining = True
            self.on_gone(self)
            if not self.streams:
                self.on_quiet(self)


def _nothing(_: Any) -> None:
    pass
