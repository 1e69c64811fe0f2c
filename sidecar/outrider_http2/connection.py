"""The receiving half of the HTTP/2 state machine (RFC 9113): every frame checked, then acted upon.

Always holds: a frame has no effect before it is valid; all that a peer can make us keep is bounded by `Limits`; work
per call of `receive` is bounded by `turn_units` and the remainder waits in `rest`; connection credit returns on
receipt, stream credit when taken.

Deliberately not here: roles (`server`, `client`), sockets (`shell`), message framing.
"""

from __future__ import annotations

from typing import Final

from outrider_http2 import frames
from outrider_http2.base import Base, Fault
from outrider_http2.fields import FieldError
from outrider_http2.frames import unpack_head
from outrider_http2.head import Head, Rest
from outrider_http2.hpack import HeaderListTooLarge, HpackError
from outrider_http2.stream import Stream

_BLOCK_UNITS: Final = 4  # what a header block costs of a turn, where another frame costs one
_WINDOWS_PER_UNIT: Final = 16  # windows moved by one SETTINGS value


class Connection(Base):
    """What both roles do with received bytes. Roles say what a preface, a new stream and a block on one mean."""

    def open(self) -> None:
        """Our side of the preface; called once the socket is there."""
        raise NotImplementedError  # abstract

    def start(self, data: bytes) -> int:
        """Check what must come first; returns where frames begin, or -1 to wait for more."""
        raise NotImplementedError  # abstract

    def is_idle(self, stream_id: int) -> bool:
        """Whether a stream of this id has not been opened yet."""
        raise NotImplementedError  # abstract

    def on_block(self, stream_id: int, block: bytes, end: bool) -> None:
        """A whole header block on any stream."""
        raise NotImplementedError  # abstract

    def receive(self, data: bytes) -> None:
        """Feed received bytes. Afterwards `more` tells that whole frames are left for another turn."""
        if self.is_over():
            return
        if self.rest:
            data = self.rest + data
        self.received_at = now = self.now
        self.more = False
        at, end = 0, len(data)
        units = self.limits.turn_units
        try:
            if self.first_frame:
                at = self.start(data)
                if at < 0:
                    self.rest = data
                    return
            while end - at >= 9:
                # Octet by octet: compiled, a quarter of what struct costs.
                length = data[at] << 16 | data[at + 1] << 8 | data[at + 2]
                if length > frames.DEFAULT_FRAME:
                    raise Fault(frames.FRAME_SIZE_ERROR, f"a frame of {length} bytes; at most 16384 are taken")
                stop = at + 9 + length
                if stop > end:
                    break
                if units <= 0:
                    self.more = True
                    break
                kind = data[at + 3]
                flags = data[at + 4]
                stream_id = (data[at + 5] & 0x7F) << 24 | data[at + 6] << 16 | data[at + 7] << 8 | data[at + 8]
                if self.assembling is not None and kind != frames.CONTINUATION:
                    raise Fault(frames.PROTOCOL_ERROR, "a header block was interrupted by another frame")
                if kind == frames.DATA:  # most frames are of these two kinds: no detour through the table
                    units -= 1
                    self._on_data(flags, stream_id, data, at + 9, stop)
                elif kind == frames.HEADERS:
                    units -= self._on_headers(flags, stream_id, data, at + 9, stop)
                elif kind < 10:
                    units -= _KINDS[kind](self, flags, stream_id, data, at + 9, stop) or 1
                else:
                    units -= 1
                    self.take_control("unknown")
                at = stop
                if self.closed or self.failed is not None:
                    return
        except Fault as error:
            self.fail(error.code, error.reason)
            return
        self.rest = data[at:] if at < end else b""
        if not self.rest and self.assembling is None:
            self.partial_at = 0.0
        elif not self.partial_at or (at and self.assembling is None):  # a header block has one deadline for all of it
            self.partial_at = now

    def expect_settings(self, data: bytes, at: int) -> int:
        """The first frame must be SETTINGS; returns `at`, or -1 while its header is incomplete."""
        if len(data) - at < 9:
            return -1
        word, flags, _ = unpack_head(data, at)
        if word & 0xFF != frames.SETTINGS or flags & frames.ACK:
            raise Fault(frames.PROTOCOL_ERROR, "the first frame must be SETTINGS")
        self.first_frame = False
        return at

    def take_control(self, what: str, count: int = 1) -> None:
        """Count a frame that costs us work and moves nothing; one that costs much counts as many."""
        if not self.control_bucket.take(self.now, count, self.ended_well):
            raise Fault(frames.ENHANCE_YOUR_CALM, f"too many {what} frames")

    def _stream_error(self, stream_id: int, code: int) -> None:
        stream = self.streams.get(stream_id)
        if stream is not None:
            self.reject(stream, code)
        else:
            self.write_control(frames.rst_stream(stream_id, code))
            self.mark_reset(stream_id, self.stream_window)
            self.take_reset()

    # -- DATA ------------------------------------------------------------------------------------------------------

    def _on_data(self, flags: int, stream_id: int, data: bytes, at: int, stop: int) -> None:
        length = stop - at
        # Connection credit returns on receipt: what a stalled stream holds must not starve the others.
        self.recv_window -= length
        if self.recv_window < 0:
            raise Fault(frames.FLOW_CONTROL_ERROR, "the connection's window was exceeded")
        due = self.recv_due + length
        if due * 2 >= self.limits.connection_window_bytes:
            self.recv_window += due
            self.write(frames.window_update(0, due))
            due = 0
        self.recv_due = due
        if flags & 8:
            at, stop = _unpad(data, at, stop)
        stream = self.streams.get(stream_id)
        if stream is None:
            self._on_stray(stream_id, "DATA", length)
            return
        end = flags & 1 == 1
        size = stop - at
        stream.recv_window -= length
        if stream.remote_closed:
            self.reject(stream, frames.STREAM_CLOSED)
            return
        if stream.recv_window < 0:
            self.reject(stream, frames.FLOW_CONTROL_ERROR)
            return
        if not stream.remote_head:
            self.reject(stream, frames.PROTOCOL_ERROR)
            return
        if length != size:
            stream.credit(length - size)
        if not size and not end:
            self.take_control("empty DATA")
            return
        if stream.length_left >= 0:
            stream.length_left -= size
            if stream.length_left < 0 or (end and stream.length_left):
                self.reject(stream, frames.PROTOCOL_ERROR)
                return
        handler = stream.handler
        if end:
            stream.remote_closed = True
            if stream.local_closed:
                self.forget(stream)
        if handler is not None:
            handler.on_data(stream, data[at:stop], end)

    def _on_stray(self, stream_id: int, what: str, size: int = 0) -> None:
        """A frame on a stream that is not there; `size` is what it takes of the stream's window."""
        if stream_id == 0 or self.is_idle(stream_id):
            raise Fault(frames.PROTOCOL_ERROR, f"{what} on stream {stream_id}, which is not open")
        window = self.resets.get(stream_id)
        if window is None:
            self._stream_error(stream_id, frames.STREAM_CLOSED)
        elif 0 < size <= window:  # sent before our reset arrived
            self.resets[stream_id] = window - size
        else:
            self.take_control(f"late {what}")

    # -- header blocks ---------------------------------------------------------------------------------------------

    def _on_headers(self, flags: int, stream_id: int, data: bytes, at: int, stop: int) -> int:
        if stream_id == 0:
            raise Fault(frames.PROTOCOL_ERROR, "HEADERS on stream 0")
        if flags & 8:
            at, stop = _unpad(data, at, stop)
        if flags & 0x20:
            if stop - at < 5:
                raise Fault(frames.FRAME_SIZE_ERROR, "HEADERS too short for its priority fields")
            at += 5
        if flags & 4:
            self.on_block(stream_id, data[at:stop], flags & 1 == 1)
        else:
            self.assembling = (stream_id, flags, [data[at:stop]], stop - at)
        return _BLOCK_UNITS

    def _on_continuation(self, flags: int, stream_id: int, data: bytes, at: int, stop: int) -> None:
        if self.assembling is None or self.assembling[0] != stream_id:
            raise Fault(frames.PROTOCOL_ERROR, "CONTINUATION without a header block to continue")
        _, first_flags, parts, size = self.assembling
        size += stop - at
        parts.append(data[at:stop])
        if size > self.limits.header_block_bytes or len(parts) > self.limits.max_continuations:
            raise Fault(frames.ENHANCE_YOUR_CALM, "a header block larger than is taken")
        if flags & 4:
            self.assembling = None
            self.on_block(stream_id, b"".join(parts), first_flags & 1 == 1)
        else:
            self.assembling = (stream_id, first_flags, parts, size)

    def parse(self, block: bytes, trailers: bool) -> tuple[Head, Rest]:
        """Decode and validate a block. FieldError and HeaderListTooLarge concern one stream only."""
        decoder = self.decoder
        if decoder.generation != self.parsed_at:
            self.parsed_heads.clear()
            self.parsed_tails.clear()
            self.parsed_at = decoder.generation
        known = self.parsed_tails if trailers else self.parsed_heads
        found = known.get(block)
        if found is not None:
            self.parsed_hits += 1
            return found
        try:
            fields = decoder.decode(block)
        except HpackError as error:
            raise Fault(frames.COMPRESSION_ERROR, str(error)) from error
        heads = self.heads
        if trailers:
            found = heads.trailers(fields)
        else:
            found = heads.response(fields) if self.client_side else heads.request(fields)
        if decoder.generation == self.parsed_at:
            self.remember(known, block, found)
        return found

    def parse_stray(self, block: bytes) -> None:
        """A block nobody waits for still moves the decoder's table."""
        try:
            self.parse(block, True)
        except (FieldError, HeaderListTooLarge):
            pass

    def on_trailers(self, stream: Stream, block: bytes, end: bool) -> None:
        """A block after the head: it must be the last."""
        try:
            head, rest = self.parse(block, True)
        except (FieldError, HeaderListTooLarge):
            self.reject(stream, frames.PROTOCOL_ERROR)
            return
        if stream.remote_closed:
            self.reject(stream, frames.STREAM_CLOSED)
            return
        if not end or stream.length_left > 0:
            self.reject(stream, frames.PROTOCOL_ERROR)
            return
        handler = stream.handler
        stream.remote_closed = True
        if stream.local_closed:
            self.forget(stream)
        if handler is not None:
            handler.on_tail(stream, head, rest)

    # -- control frames --------------------------------------------------------------------------------------------

    def _on_priority(self, flags: int, stream_id: int, data: bytes, at: int, stop: int) -> None:
        if stream_id == 0:
            raise Fault(frames.PROTOCOL_ERROR, "PRIORITY on stream 0")
        self.take_control("PRIORITY")
        if stop - at != 5:
            if self.is_idle(stream_id):  # no stream to reset yet
                raise Fault(frames.FRAME_SIZE_ERROR, "PRIORITY must carry 5 bytes")
            self._stream_error(stream_id, frames.FRAME_SIZE_ERROR)

    def _on_rst(self, flags: int, stream_id: int, data: bytes, at: int, stop: int) -> None:
        if stop - at != 4:
            raise Fault(frames.FRAME_SIZE_ERROR, "RST_STREAM must carry 4 bytes")
        stream = self.streams.get(stream_id)
        if stream is None:
            if stream_id == 0 or self.is_idle(stream_id):
                raise Fault(frames.PROTOCOL_ERROR, f"RST_STREAM on stream {stream_id}, which is not open")
            self.take_control("late RST_STREAM")
            return
        code = int.from_bytes(data[at:stop], "big")
        handler = stream.handler
        self.forget(stream)
        if handler is not None:
            handler.on_reset(stream, code, code != frames.REFUSED_STREAM)
        if not self.client_side:
            self.take_reset()

    def _on_settings(self, flags: int, stream_id: int, data: bytes, at: int, stop: int) -> int:
        if stream_id:
            raise Fault(frames.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & frames.ACK:
            if at != stop:
                raise Fault(frames.FRAME_SIZE_ERROR, "a SETTINGS acknowledgement must be empty")
            self.settings_acked = True
            self.take_control("SETTINGS")
            return 1
        if (stop - at) % 6:
            raise Fault(frames.FRAME_SIZE_ERROR, "SETTINGS must be a multiple of 6 bytes")
        values = (stop - at) // 6
        if values > self.limits.max_settings:
            raise Fault(frames.ENHANCE_YOUR_CALM, "too many values in one SETTINGS frame")
        units = 1
        for offset in range(at, stop, 6):
            key = data[offset] << 8 | data[offset + 1]
            if key == frames.INITIAL_WINDOW_SIZE:  # moves the windows of all streams
                units += len(self.streams) // _WINDOWS_PER_UNIT
        self.take_control("SETTINGS", units)
        for offset in range(at, stop, 6):
            key = data[offset] << 8 | data[offset + 1]
            self._on_setting(key, int.from_bytes(data[offset + 2 : offset + 6], "big"))
        self.peer_settings = True
        self.write_control(frames.SETTINGS_ACK)
        self.pump()
        self.on_peer_settings()
        return units

    def on_peer_settings(self) -> None:
        """The peer's SETTINGS have been applied."""

    def _on_setting(self, key: int, value: int) -> None:
        if key == frames.INITIAL_WINDOW_SIZE:
            if value > frames.MAX_WINDOW:
                raise Fault(frames.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE above 2**31-1")
            delta = value - self.peer_stream_window
            self.peer_stream_window = value
            for stream in self.streams.values():
                stream.send_window += delta
                if stream.send_window > frames.MAX_WINDOW:
                    raise Fault(frames.FLOW_CONTROL_ERROR, "a stream's window rose above 2**31-1")
                if delta > 0:
                    stream.send_top += delta
                    if stream.queue is not None and stream.send_window > 0:
                        self.blocked[stream] = None
        elif key == frames.HEADER_TABLE_SIZE:
            self.resize_encoder(value)
        elif key == frames.MAX_CONCURRENT_STREAMS:
            self.peer_max_streams = value
        elif key == frames.MAX_FRAME_SIZE:
            if not frames.DEFAULT_FRAME <= value <= 2**24 - 1:
                raise Fault(frames.PROTOCOL_ERROR, "MAX_FRAME_SIZE out of range")
        elif key == frames.ENABLE_PUSH and (value > 1 or (value and self.client_side)):
            raise Fault(frames.PROTOCOL_ERROR, "ENABLE_PUSH out of range")

    def _on_push_promise(self, flags: int, stream_id: int, data: bytes, at: int, stop: int) -> None:
        raise Fault(frames.PROTOCOL_ERROR, "PUSH_PROMISE is not allowed")

    def _on_ping(self, flags: int, stream_id: int, data: bytes, at: int, stop: int) -> None:
        if stream_id:
            raise Fault(frames.PROTOCOL_ERROR, "PING on a stream")
        if stop - at != 8:
            raise Fault(frames.FRAME_SIZE_ERROR, "PING must carry 8 bytes")
        self.take_control("PING")
        if flags & frames.ACK:
            self.on_ping_ack(data[at:stop])
        else:
            self.write_control(frames.ping(data[at:stop], ack=True))

    def on_ping_ack(self, payload: bytes) -> None:
        """The peer answered a PING of ours."""

    def _on_goaway(self, flags: int, stream_id: int, data: bytes, at: int, stop: int) -> None:
        if stream_id:
            raise Fault(frames.PROTOCOL_ERROR, "GOAWAY on a stream")
        if stop - at < 8:
            raise Fault(frames.FRAME_SIZE_ERROR, "GOAWAY must carry 8 bytes at least")
        self.take_control("GOAWAY")
        last = int.from_bytes(data[at : at + 4], "big") & 0x7FFFFFFF
        self.peer_goaway = int.from_bytes(data[at + 4 : at + 8], "big")
        self.draining = True
        if self.client_side:
            for stream in [stream for stream in self.streams.values() if stream.id > last]:
                handler = stream.handler
                if self.streams.get(stream.id) is not stream:
                    continue  # the handler of another one has ended it
                self.forget(stream)
                if handler is not None:
                    handler.on_reset(stream, frames.REFUSED_STREAM, False)
        self.on_peer_goaway()

    def on_peer_goaway(self) -> None:
        """The peer takes no new streams."""

    def _on_window_update(self, flags: int, stream_id: int, data: bytes, at: int, stop: int) -> None:
        if stop - at != 4:
            raise Fault(frames.FRAME_SIZE_ERROR, "WINDOW_UPDATE must carry 4 bytes")
        increment = int.from_bytes(data[at:stop], "big") & 0x7FFFFFFF
        if stream_id == 0:
            if not increment:
                raise Fault(frames.PROTOCOL_ERROR, "WINDOW_UPDATE by zero")
            was_shut = self.send_window <= 0
            self.send_window += increment
            if self.send_window > self.send_top:  # credit for bytes that were sent is free, more room is not
                if self.send_window > frames.MAX_WINDOW:
                    raise Fault(frames.FLOW_CONTROL_ERROR, "the connection's window rose above 2**31-1")
                self.send_top = self.send_window
                self.take_control("WINDOW_UPDATE")
            if was_shut and self.blocked:
                self.pump()
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            if self.is_idle(stream_id):
                raise Fault(frames.PROTOCOL_ERROR, f"WINDOW_UPDATE on stream {stream_id}, which is not open")
            self.take_control("late WINDOW_UPDATE")
            return
        if not increment:
            self.reject(stream, frames.PROTOCOL_ERROR)
            return
        stream.send_window += increment
        if stream.send_window > stream.send_top:
            if stream.send_window > frames.MAX_WINDOW:
                self.reject(stream, frames.FLOW_CONTROL_ERROR)
                return
            stream.send_top = stream.send_window
            self.take_control("WINDOW_UPDATE")
        if stream.queue is not None and stream.send_window > 0:
            self.blocked[stream] = None
            stream.pump()


def _unpad(data: bytes, at: int, stop: int) -> tuple[int, int]:
    if at >= stop:
        raise Fault(frames.FRAME_SIZE_ERROR, "a padded frame without a pad length")
    pad = data[at]
    if at + 1 + pad > stop:
        raise Fault(frames.PROTOCOL_ERROR, "padding longer than the frame")
    return at + 1, stop - pad


_KINDS: Final = (
    Connection._on_data,
    Connection._on_headers,
    Connection._on_priority,
    Connection._on_rst,
    Connection._on_settings,
    Connection._on_push_promise,
    Connection._on_ping,
    Connection._on_goaway,
    Connection._on_window_update,
    Connection._on_continuation,
)
