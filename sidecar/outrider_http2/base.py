"""What an HTTP/2 connection remembers, how it writes and how it ends.

Always holds: no I/O and no clock (`now` is set by the shell before each call); a connection that fails says why in a
GOAWAY, tells every stream's handler once, and reads nothing more; data never leaves while the socket is full.

Deliberately not here: parsing (`connection`), roles (`server`, `client`), sockets (`shell`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from outrider_http2 import frames
from outrider_http2.head import Head, Heads, Rest
from outrider_http2.hpack import Decoder, Encoder
from outrider_http2.limits import Bucket, Limits
from outrider_http2.stream import SHUT, Ledger, Stream
from outrider_http2.turn import Speaker, Turn

KNOWN_BLOCKS: Final = 512  # encoded or decoded blocks remembered per connection
KNOWN_BLOCK_BYTES: Final = 1_024
UNKNOWN_BLOCKS: Final = 8 * KNOWN_BLOCKS  # not remembered after a time when few came again
RECENT: Final = 256  # streams that are remembered after their end
OWED: Final = "too many answers owed to a peer that does not read"


def nowhere(_: Any) -> None:
    """Where bytes and news go when nobody takes them."""


class Fault(Exception):
    """A fault that ends the connection with a GOAWAY of this code."""

    def __init__(self, code: int, reason: str):
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Base(Speaker):
    """What both roles share. `out` is drained by the shell through `flush`; `write_out` is set by it."""

    client_side = False

    def __init__(self, limits: Limits, heads: Heads, turn: Turn, ledger: Ledger, now: float, scheme: bytes = b"http"):
        self.limits = limits
        self.heads = heads
        self.turn = turn
        self.ledger = ledger
        self.scheme = scheme
        self.now = now
        self.out: list[bytes] = []
        self.write_out: Callable[[bytes], None] = nowhere
        self.write_parts: Callable[[list[bytes]], None] = nowhere  # of what is too much to be copied again
        self.bulky = False  # this turn's output is
        self.on_closed: Callable[[Any], None] = nowhere
        self.on_quiet: Callable[[Any], None] = nowhere  # draining and the last stream is gone
        self.peer: Any = None  # whatever the owner wants to remember
        # State of the machine.
        self.streams: dict[int, Stream] = {}
        self.blocked: dict[Stream, None] = {}  # bytes wait, and not for the stream's own window
        self.recent = [0] * RECENT  # a ring of stream ids that ended on both sides
        self._recent_at = 0
        self.resets: dict[int, int] = {}  # streams we have reset lately: octets of DATA that may come late
        self.last_peer_id = 0
        self.paused = False
        self.closed = False
        self.failed: Fault | None = None
        self.draining = False  # no new streams
        self.goaway_sent = False
        self.peer_goaway: int | None = None  # its error code
        self.rest = b""
        self.pump_more = False  # queues could send more than a turn may
        self.more = False  # `rest` holds whole frames that wait for the next turn
        self.assembling: tuple[int, int, list[bytes], int] | None = None
        self.first_frame = True
        # Settings and windows.
        self.decoder = Decoder(4_096, limits.header_list_bytes)
        self.encoder = Encoder(4_096)
        self.blocks: dict[Head, bytes] = {}
        self.parsed_heads: dict[bytes, tuple[Head, Rest]] = {}
        self.parsed_tails: dict[bytes, tuple[Head, Rest]] = {}
        self.parsed_at = -1
        self.parsed_hits = 0  # since either was last full
        self.unparsed = 0  # blocks that are not remembered: those before were hardly ever met again
        self._resized = False  # the next block opens with a table size update
        self.stream_window = limits.stream_window_bytes
        self.recv_window = max(limits.connection_window_bytes, frames.DEFAULT_WINDOW)
        self.recv_due = 0
        self.send_window = self.send_top = frames.DEFAULT_WINDOW  # now, and the most there was
        self.peer_stream_window = frames.DEFAULT_WINDOW
        self.peer_max_streams = frames.MAX_WINDOW
        self.max_send_frame = frames.DEFAULT_FRAME
        # Guards and timers.
        self.control_bucket = Bucket(limits.control_burst, limits.control_per_s, now, limits.control_per_stream)
        self.reset_bucket = Bucket(limits.reset_burst, limits.reset_per_s, now, limits.reset_per_stream)
        self.ended_well = 0  # streams, but for those that count as resets
        self._stalled_control = 0
        self.opened_at = now
        self.received_at = now
        self.settings_acked = False
        self.peer_settings = False
        self.ping_at = 0.0  # keepalive PING in flight since
        self.partial_at = 0.0  # an incomplete frame or block waits since
        self.idle_at = now

    # -- output ----------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Append bytes to this turn's output."""
        if not self.out:
            self.turn.add(self)
        self.out.append(data)

    def write_control(self, data: bytes) -> None:
        """As `write`, for answers a peer can provoke: bounded while it does not read."""
        if self.paused and not self.may_owe(1):
            self.fail(frames.ENHANCE_YOUR_CALM, OWED)
        else:
            self.write(data)

    def may_owe(self, count: int) -> bool:
        """While the socket is full: whether so many answers more may be kept for a peer that does not read."""
        self._stalled_control += count
        return self._stalled_control <= self.limits.stalled_control_frames

    def flush(self) -> None:
        """Hand the turn's output to the socket."""
        out = self.out
        if out:
            self.out = []
            if self.bulky:
                self.bulky = False
                self.write_parts(out)
            else:
                self.write_out(out[0] if len(out) == 1 else b"".join(out))

    def pause(self) -> None:
        """The socket is full: data waits in the streams' queues."""
        self.paused = True

    def resume(self) -> None:
        """The socket takes bytes again."""
        self.paused = False
        self._stalled_control = 0
        self.pump()

    def is_stuck(self) -> bool:
        """Whether no data can leave: the socket is full, or the connection's window is used up."""
        return self.paused or self.send_window <= 0

    def pump(self) -> None:
        """Let blocked streams send in turn, one frame each, up to the bound of a turn."""
        left = self.limits.turn_out_bytes
        blocked = self.blocked
        while blocked and left > 0 and not self.is_stuck():
            moved = False
            for stream in list(blocked):
                if stream not in blocked:
                    continue
                sent = stream.pump(self.max_send_frame)
                if sent or stream not in blocked:
                    moved = True
                    left -= sent
                    if stream in blocked:  # the others first
                        del blocked[stream]
                        blocked[stream] = None
                    if left <= 0 or self.is_stuck():
                        break
            if not moved:
                self.pump_more = False
                return
        self.pump_more = bool(blocked) and not self.paused and self.send_window > 0

    def encode_head(self, head: Head) -> bytes:
        """Encode a request or response head and remember the block while the encoder's table stands."""
        fields = head.response_fields() if head.status else head.request_fields(self.scheme)
        return self._encode(head, fields)

    def encode_tail(self, head: Head) -> bytes:
        """Encode trailers and remember the block."""
        return self._encode(head, head.fields)

    def _encode(self, head: Head, fields: Any) -> bytes:
        encoder = self.encoder
        before = encoder.generation
        block = encoder.encode(fields)
        blocks = self.blocks
        if encoder.generation != before or len(blocks) >= KNOWN_BLOCKS:
            # Indices have moved (this very block inserted): nothing remembered is valid any more.
            blocks.clear()
        if self._resized:
            self._resized = False
        elif encoder.generation == before and len(block) <= KNOWN_BLOCK_BYTES:
            blocks[head] = block
        return block

    def remember(self, known: dict[bytes, tuple[Head, Rest]], block: bytes, parsed: tuple[Head, Rest]) -> None:
        """Keep what a block was found to be, but for a while where hardly any is met again."""
        if self.unparsed:
            self.unparsed -= 1
        elif len(block) <= KNOWN_BLOCK_BYTES:
            if len(known) >= KNOWN_BLOCKS:
                known.clear()
                if self.parsed_hits < KNOWN_BLOCKS:
                    self.unparsed = UNKNOWN_BLOCKS
                self.parsed_hits = 0
            known[block] = parsed

    def resize_encoder(self, table_bytes: int) -> None:
        """The peer's SETTINGS_HEADER_TABLE_SIZE."""
        self.encoder.resize(table_bytes)
        self.blocks.clear()
        self._resized = True

    # -- streams ---------------------------------------------------------------------------------------------------

    def forget(self, stream: Stream) -> None:
        """The stream is over on both sides. Whoever still has to tell its handler has taken it before."""
        stream_id = stream.id
        streams = self.streams
        if streams.get(stream_id) is None:
            return
        del streams[stream_id]
        stream.local_closed = stream.remote_closed = True
        stream.handler = None  # a stream and its handler know each other: nothing may be left for the collector
        stream.send_window = SHUT
        if stream.queue is not None:
            stream.drop_queue()
        at = self._recent_at
        self.recent[at] = stream_id
        self._recent_at = at + 1 if at + 1 < RECENT else 0
        self.ended_well += 1
        if not streams:
            self.idle_at = self.now
            if self.draining:
                self.on_quiet(self)

    def mark_reset(self, stream_id: int, window: int) -> None:
        """Frames still on their way for a stream we have reset are ignored, not answered: DATA up to its window."""
        resets = self.resets
        resets[stream_id] = window
        if len(resets) > 1_000:
            del resets[next(iter(resets))]

    def reject(self, stream: Stream, code: int) -> None:
        """The peer broke a rule on one stream: reset it and tell its handler. Provoked resets count as resets."""
        handler = stream.handler
        stream.reset(code)
        if handler is not None:
            handler.on_reset(stream, code, True)
        if not self.client_side:  # what is ours to open is ours to limit
            self.take_reset()

    def take_reset(self) -> None:
        """Count a stream of the peer's that ended by a reset, ours or the peer's."""
        self.ended_well -= 1
        if not self.reset_bucket.take(self.now, 1, self.ended_well):
            raise Fault(frames.ENHANCE_YOUR_CALM, "too many resets")

    # -- the end ---------------------------------------------------------------------------------------------------

    def is_over(self) -> bool:
        """Whether nothing more is read."""
        return self.closed or self.failed is not None

    def fail(self, code: int, reason: str) -> None:
        """End the connection with a GOAWAY; all streams are told. The shell closes the socket after the flush."""
        if self.closed or self.failed is not None:
            return
        self.failed = Fault(code, reason)
        self.write(frames.goaway(self.last_peer_id, code, reason.encode("ascii", "replace")[:200]))
        self._abandon(code)

    def lost(self) -> None:
        """The socket is gone."""
        if not self.closed:
            self.closed = True
            self.out.clear()
            self.write_out = self.write_parts = nowhere
            self._abandon(frames.CANCEL if self.client_side is False else frames.CONNECT_ERROR)
            self.on_closed(self)

    def _abandon(self, code: int) -> None:
        self.draining = True
        self.rest = b""
        self.more = False
        self.assembling = None
        while self.streams:
            stream = next(iter(self.streams.values()))
            handler = stream.handler
            self.forget(stream)
            if handler is not None:
                handler.on_reset(stream, code, True)

    def shutdown(self) -> None:
        """Begin to drain: no new streams, and `on_quiet` when the last one is over."""
        raise NotImplementedError  # abstract

    def tick(self, now: float) -> None:
        """Timeouts, about once a second."""
        self.now = now
        limits = self.limits
        if self.closed or self.failed is not None:
            return
        if self.first_frame:
            if now - self.opened_at > limits.preface_timeout_s:
                self.fail(frames.PROTOCOL_ERROR, "no connection preface in time")
        elif not self.settings_acked and now - self.opened_at > limits.settings_timeout_s:
            self.fail(frames.SETTINGS_TIMEOUT, "SETTINGS were not acknowledged in time")
        elif self.partial_at and not self.more and now - self.partial_at > limits.stall_timeout_s:
            self.fail(frames.ENHANCE_YOUR_CALM, "a frame or header block was left incomplete")
        elif not self.streams and limits.idle_timeout_s and now - self.idle_at > limits.idle_timeout_s:
            self.fail(frames.NO_ERROR, "idle")
        elif self.ping_at:
            if self.received_at > self.ping_at:
                self.ping_at = 0.0
            elif now - self.ping_at > limits.ping_timeout_s:
                self.fail(frames.NO_ERROR, "keepalive PING unanswered")
        elif limits.max_age_s and not self.draining and now - self.opened_at > limits.max_age_s:
            self.shutdown()
        elif limits.ping_interval_s and self.streams and now - self.received_at > limits.ping_interval_s:
            self.ping_at = now
            self.write(frames.ping(b"outrider"))
