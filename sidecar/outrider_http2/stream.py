"""One HTTP/2 stream: its two half-closed flags, its windows, and the bytes that wait for window or socket.

Always holds: bytes leave in order; `queue` is None exactly when nothing waits, and what waits begins with bytes, never
with an empty end or trailers; nothing leaves after the end of this side; credit goes back to the peer only by
`credit`, so the holder of the stream decides how much the peer may send; a handler hears of the end once.

Deliberately not here: parsing, and anything about messages.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final, Protocol

from outrider_http2 import frames
from outrider_http2.compiled import mypyc_attr
from outrider_http2.frames import pack_head
from outrider_http2.head import Head, Rest

if TYPE_CHECKING:
    from outrider_http2.connection import Connection


BULKY_BYTES: Final = 8_192  # a frame so large is not copied once more to leave with others in one piece
SHUT: Final = -(1 << 40)  # the window of a side that has ended: no credit opens it


@mypyc_attr(allow_interpreted_subclasses=True)
class Handler:
    """Who owns a stream's incoming side. Every method may send on any stream, or reset it."""

    __slots__ = ()

    def on_head(self, stream: Stream, head: Head, rest: Rest, end: bool) -> None:
        """The peer's (final) head: asked of clients only."""
        raise NotImplementedError  # abstract

    def on_data(self, stream: Stream, data: bytes, end: bool) -> None:
        raise NotImplementedError  # abstract

    def on_tail(self, stream: Stream, head: Head, rest: Rest) -> None:
        raise NotImplementedError  # abstract

    def on_reset(self, stream: Stream, code: int, processed: bool) -> None:
        """The stream is gone before its end. `processed` is False when the peer vouches that it did nothing."""
        raise NotImplementedError  # abstract

    def on_drain(self, stream: Stream, sent_bytes: int) -> None:
        """So many queued bytes went out; `stream.queue is None` tells that all did."""
        raise NotImplementedError  # abstract


class Sink:
    """The sending half of a stream, or of what stands in for one."""

    __slots__ = ("queue",)

    queue: deque[tuple[Any, ...]] | None  # what waits: (data, end) or (None, head, extra)

    def send_head(self, head: Head, extra: bytes = b"", end: bool = False) -> None:
        raise NotImplementedError  # abstract

    def send_data(self, data: bytes, end: bool = False) -> None:
        raise NotImplementedError  # abstract

    def send_tail(self, head: Head, extra: bytes = b"") -> None:
        raise NotImplementedError  # abstract

    def credit(self, size: int) -> None:
        raise NotImplementedError  # abstract

    def reset(self, code: int) -> None:
        raise NotImplementedError  # abstract


class Stream(Sink):
    """One stream of one connection. Windows in bytes."""

    __slots__ = (
        "conn",
        "credit_due",
        "handler",
        "id",
        "length_left",
        "local_closed",
        "queued",
        "recv_window",
        "remote_closed",
        "remote_head",
        "send_top",
        "send_window",
    )

    def __init__(self, conn: Connection, stream_id: int, handler: Handler | None):
        self.conn = conn
        self.id = stream_id
        self.handler = handler  # None once we have reset the stream
        self.send_window = self.send_top = conn.peer_stream_window  # now, and the most there was
        self.recv_window = conn.stream_window
        self.credit_due = 0  # taken bytes not yet announced to the peer
        self.queue = None
        self.queued = 0
        self.local_closed = False
        self.remote_closed = False
        self.remote_head = False  # the peer's (final) head has come
        self.length_left = -1  # of the peer's content-length; -1: it sent none

    # -- sending ---------------------------------------------------------------------------------------------------

    def send_head(self, head: Head, extra: bytes = b"", end: bool = False) -> None:
        """The block of a head plus ready literals. Never waits: it comes first."""
        if self.local_closed:
            return
        conn = self.conn
        block = conn.blocks.get(head)
        if block is None:
            block = conn.encode_head(head)
        size = len(block) + len(extra)
        if not conn.out:
            conn.turn.add(conn)
        if size <= conn.max_send_frame:
            conn.out += (pack_head(size << 8 | 1, 5 if end else 4, self.id), block, extra)
        else:
            conn.out.append(frames.header_frames(self.id, block + extra, end, conn.max_send_frame))
        if end:
            self._close_local()

    def send_data(self, data: bytes, end: bool = False) -> None:
        """Message bytes; what window or socket cannot take now waits in the queue."""
        conn = self.conn
        size = len(data)
        if (
            self.queue is None
            and size <= self.send_window
            and size <= conn.send_window
            and size <= conn.max_send_frame
            and not conn.paused
        ) or (end and not size and self.queue is None and not self.local_closed):  # an empty frame needs no window
            if not conn.out:
                conn.turn.add(conn)
            conn.out += (pack_head(size << 8, 1 if end else 0, self.id), data)
            if size >= BULKY_BYTES:
                conn.bulky = True
            self.send_window -= size
            conn.send_window -= size
            if end:
                self._close_local()
        elif not self.local_closed and (size or end):
            most = conn.max_send_frame
            for at in range(0, size - most, most):  # whole frames: a part of one is all that is ever copied twice
                self._wait((data[at : at + most], False), most)
            last = data[(size - 1) // most * most :] if size > most else data
            self._wait((last, end), len(last))
            self.pump()

    def send_tail(self, head: Head, extra: bytes = b"") -> None:
        """Trailers; they leave after all queued data and close this side."""
        if self.queue is not None:
            self._wait((None, head, extra), 0)  # encoded when it leaves: tables move in the order of the wire
            return
        if self.local_closed:
            return
        conn = self.conn
        block = conn.blocks.get(head)
        if block is None:
            block = conn.encode_tail(head)
        size = len(block) + len(extra)
        if not conn.out:
            conn.turn.add(conn)
        if size <= conn.max_send_frame:
            conn.out += (pack_head(size << 8 | 1, 5, self.id), block, extra)
        else:
            conn.out.append(frames.header_frames(self.id, block + extra, True, conn.max_send_frame))
        self._close_local()

    def reset(self, code: int) -> None:
        """RST_STREAM now; queued bytes are dropped and the handler hears nothing more."""
        conn = self.conn
        if conn.streams.get(self.id) is self:
            self.handler = None  # should this very frame be one too many and end the connection
            conn.write_control(frames.rst_stream(self.id, code))
            conn.mark_reset(self.id, self.recv_window)
            conn.forget(self)

    def _close_local(self) -> None:
        self.local_closed = True
        self.send_window = SHUT
        if self.remote_closed:
            self.conn.forget(self)

    def _wait(self, item: tuple, size: int) -> None:
        if self.local_closed:
            return  # cut by the ledger between two parts
        if self.queue is None:
            self.queue = deque()
            self.conn.blocked[self] = None
            self.conn.ledger.stalled[self] = None
        self.queue.append(item)
        self.queued += size
        self.conn.ledger.hold(size)

    def pump(self, max_bytes: int = frames.MAX_WINDOW) -> int:
        """Move queued bytes out as far as windows, socket and `max_bytes` allow; returns how many went."""
        conn = self.conn
        sent = 0
        queue = self.queue
        while queue and not conn.paused:
            item = queue[0]
            data = item[0]
            if data is None:
                queue.clear()
                self._unblock()
                self.send_tail(item[1], item[2])
                break
            size = len(data)
            room = min(self.send_window, conn.send_window, conn.max_send_frame, max_bytes - sent)
            if size and room <= 0:
                if self.send_window <= 0:
                    conn.blocked.pop(self, None)  # only its own window can set it going again
                break
            if size > room:
                part, end = data[:room], False
                queue.popleft()
                queue.appendleft((data[room:], item[1]))
            else:
                part, end = data, item[1]
                queue.popleft()
            if not conn.out:
                conn.turn.add(conn)
            size = len(part)
            conn.out += (pack_head(size << 8, 1 if end else 0, self.id), part)
            if size >= BULKY_BYTES:
                conn.bulky = True
            self.send_window -= size
            conn.send_window -= size
            sent += size
            if end:
                self._unblock()
                self._close_local()
                break
        if queue is not None and not queue and self.queue is queue:
            self._unblock()
        if sent:
            self.queued -= sent
            conn.ledger.release(sent)
            if self.queue is not None:
                conn.ledger.moved(self)
            if self.handler is not None:
                self.handler.on_drain(self, sent)
        return sent

    def _unblock(self) -> None:
        self.queue = None
        self.conn.blocked.pop(self, None)
        self.conn.ledger.stalled.pop(self, None)

    def cut(self) -> None:
        """The process holds too much and this stream has been stalled longest: reset it, and tell its handler."""
        handler = self.handler
        self.reset(frames.ENHANCE_YOUR_CALM)
        if handler is not None:
            handler.on_reset(self, frames.ENHANCE_YOUR_CALM, True)

    def drop_queue(self) -> None:
        """Forget all queued bytes, as when the stream ends early."""
        if self.queue is not None:
            self._unblock()
            self.conn.ledger.release(self.queued)
            self.queued = 0

    # -- receiving -------------------------------------------------------------------------------------------------

    def credit(self, size: int) -> None:
        """The receiver took `size` bytes: the peer may send as many again (announced in large steps)."""
        if self.remote_closed:
            return
        due = self.credit_due + size
        conn = self.conn
        if due * 2 >= conn.stream_window:
            self.credit_due = 0
            self.recv_window += due
            if self.id in conn.streams:
                conn.write(frames.window_update(self.id, due))
        else:
            self.credit_due = due


class Holder(Protocol):
    """Whoever holds bytes for somebody who does not take them."""

    def cut(self) -> None:
        """Let go of them at once: the process holds too much."""
        ...


class Ledger:
    """Bytes held for slow peers by a whole process; past the cap the longest-stalled holder is cut."""

    __slots__ = ("cap_bytes", "cut", "held_bytes", "stalled")

    def __init__(self, cap_bytes: int = 64 * 1024 * 1024):
        self.cap_bytes = cap_bytes
        self.held_bytes = 0
        self.stalled: dict[Any, None] = {}  # holders, the oldest stall first
        self.cut = 0  # holders cut

    def hold(self, size: int) -> None:
        self.held_bytes += size
        while self.held_bytes > self.cap_bytes and self.stalled:
            holder = next(iter(self.stalled))
            del self.stalled[holder]
            self.cut += 1
            holder.cut()

    def release(self, size: int) -> None:
        self.held_bytes -= size

    def moved(self, holder: Holder) -> None:
        """A stalled holder made progress: it is now the one that stalled last."""
        self.stalled.pop(holder, None)
        self.stalled[holder] = None
