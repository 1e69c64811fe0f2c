"""The server's role: streams are opened by the peer and handed to `accept`.

Always holds: stream ids only rise; past `max_streams` a stream is refused, not queued; draining announces itself
first (GOAWAY with the highest id, a PING), so that streams already on their way are still served.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from outrider_http2 import frames
from outrider_http2.base import OWED, Fault
from outrider_http2.connection import Connection
from outrider_http2.fields import FieldError
from outrider_http2.head import Head, Heads, Rest
from outrider_http2.hpack import HeaderListTooLarge
from outrider_http2.limits import Limits
from outrider_http2.stream import Ledger, Stream
from outrider_http2.turn import Turn

Accept = Callable[[Stream, Head, Rest, bool], None]
_DRAIN_PING: Final = b"draining"
_HEAD_OWED: Final = 4  # a reply's head and trailers weigh as much as so many control frames
_TOO_LARGE: Final = Head(
    (
        (b"content-type", b"application/grpc"),
        (b"grpc-status", b"8"),
        (b"grpc-message", b"request metadata larger than this server takes"),
    ),
    status=200,
)


class ServerConnection(Connection):
    """`accept(stream, head, rest, end)` is called for each new stream and must set its handler."""

    client_side = False

    def __init__(
        self,
        accept: Accept,
        limits: Limits,
        heads: Heads,
        turn: Turn,
        ledger: Ledger,
        now: float,
        scheme: bytes = b"http",
    ):
        super().__init__(limits, heads, turn, ledger, now, scheme)
        self.accept = accept
        self._last_served = frames.MAX_STREAM_ID
        self._drain_at = 0.0

    def open(self) -> None:
        """Our side of the preface; called once the socket is there."""
        limits = self.limits
        more = limits.connection_window_bytes - frames.DEFAULT_WINDOW
        self.write(
            frames.settings(
                (
                    (frames.MAX_CONCURRENT_STREAMS, limits.max_streams),
                    (frames.INITIAL_WINDOW_SIZE, limits.stream_window_bytes),
                    (frames.MAX_HEADER_LIST_SIZE, limits.header_list_bytes),
                )
            )
            + (frames.window_update(0, more) if more > 0 else b"")
        )

    def start(self, data: bytes) -> int:
        size = len(frames.PREFACE)
        if data[:size] != frames.PREFACE[: len(data)]:
            raise Fault(frames.PROTOCOL_ERROR, "not an HTTP/2 connection preface")
        return self.expect_settings(data, size) if len(data) >= size else -1

    def is_idle(self, stream_id: int) -> bool:
        return stream_id > self.last_peer_id or stream_id & 1 == 0

    def on_block(self, stream_id: int, block: bytes, end: bool) -> None:
        stream = self.streams.get(stream_id)
        if stream is not None:
            self.on_trailers(stream, block, end)
            return
        if stream_id <= self.last_peer_id or not stream_id & 1:
            self._on_old_block(stream_id, block)
            return
        self.last_peer_id = stream_id
        if self.paused and not self.may_owe(_HEAD_OWED):
            raise Fault(frames.ENHANCE_YOUR_CALM, OWED)
        try:
            head, rest = self.parse(block, False)
        except FieldError:
            self._stream_error(stream_id, frames.PROTOCOL_ERROR)
            return
        except HeaderListTooLarge:
            self._refuse_large(stream_id, end)
            return
        if stream_id > self._last_served or len(self.streams) >= self.limits.max_streams:
            self._stream_error(stream_id, frames.REFUSED_STREAM)
            return
        stream = Stream(self, stream_id, None)
        stream.remote_head = True
        stream.remote_closed = end
        if rest.length is not None:
            if end and rest.length:
                self._stream_error(stream_id, frames.PROTOCOL_ERROR)
                return
            stream.length_left = rest.length
        self.streams[stream_id] = stream
        self.accept(stream, head, rest, end)

    def _on_old_block(self, stream_id: int, block: bytes) -> None:
        """A block on a stream that can no longer be opened: harmless only where our reset was on its way."""
        if stream_id in self.resets:
            self.parse_stray(block)
            self.take_control("late HEADERS")
            return
        if not stream_id & 1:
            raise Fault(frames.PROTOCOL_ERROR, f"HEADERS on stream {stream_id}: a client's ids are odd")
        code = frames.STREAM_CLOSED if stream_id in self.recent else frames.PROTOCOL_ERROR
        raise Fault(code, f"HEADERS on stream {stream_id}, which is closed")

    def _refuse_large(self, stream_id: int, end: bool) -> None:
        block = self.encoder.encode(_TOO_LARGE.response_fields())
        self.blocks.clear()
        self.write_control(frames.header_frames(stream_id, block, True, self.max_send_frame))
        if not end:
            self._stream_error(stream_id, frames.NO_ERROR)
        else:
            self.take_reset()

    # -- draining --------------------------------------------------------------------------------------------------

    def shutdown(self) -> None:
        """Begin to drain: streams on their way are still taken until the peer has answered a PING."""
        if not self.draining and self.failed is None and not self.closed:
            self.draining = True
            self._drain_at = self.now
            self.write(frames.goaway(frames.MAX_STREAM_ID, frames.NO_ERROR) + frames.ping(_DRAIN_PING))

    def on_ping_ack(self, payload: bytes) -> None:
        if payload == _DRAIN_PING and self.draining:
            self.finish_shutdown()

    def tick(self, now: float) -> None:
        super().tick(now)
        if self._drain_at and not self.goaway_sent and now - self._drain_at > self.limits.ping_timeout_s:
            self.finish_shutdown()

    def finish_shutdown(self) -> None:
        """The last stream id is final; later streams are refused."""
        if not self.goaway_sent and self.failed is None and not self.closed:
            self.goaway_sent = True
            self._last_served = self.last_peer_id
            self.write(frames.goaway(self.last_peer_id, frames.NO_ERROR))
            if not self.streams:
                self.on_quiet(self)
