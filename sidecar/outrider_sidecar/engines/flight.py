"""Single-flight: one upstream call for all concurrent callers of the same key.

The flight is a detached call that runs the steps below the cache; its callers are readers of what it brings. Always
holds: a reader that leaves (cancelled, out of time) disturbs nobody, and the last one leaving cancels the flight; a
late reader gets everything from the first byte on; DEADLINE_EXCEEDED, CANCELLED and RESOURCE_EXHAUSTED are not shared
among several readers: those still there start again once. What is kept for late readers is bounded by `max_bytes`;
past it nobody joins, the slowest reader sets the pace and readers stalled for `STALL_S` are cut.

Deliberately not here: keys and storing (the cache filter).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from outrider_http2.head import Head
from outrider_sidecar.core import errors
from outrider_sidecar.core.call import Call

STALL_S = 10.0
UNSHARED = frozenset({errors.DEADLINE_EXCEEDED, errors.CANCELLED, errors.RESOURCE_EXHAUSTED})
MAX_ELECTIONS = 2


class Reader:
    """A caller's place in a flight; to its call it looks like an attempt under way."""

    __slots__ = ("call", "flight")
    stream = None

    def __init__(self, flight: Flight, call: Call):
        self.flight = flight
        self.call = call

    def abort(self) -> None:
        self.flight.leave(self.call)

    def reply_taken(self, size: int, all_taken: bool) -> None:
        if all_taken:
            self.flight.reader_drained()


class Flight:
    """The sending half the detached call answers into. `ended(flight, status)` is called once, on a whole reply."""

    __slots__ = (
        "call",
        "chunks",
        "elections",
        "ended",
        "gaps_ms",
        "head",
        "held_bytes",
        "key",
        "last_at",
        "max_bytes",
        "queue",
        "readers",
        "restart",
        "size",
        "stall",
        "tail",
    )

    def __init__(
        self,
        key: bytes,
        max_bytes: int,
        ended: Callable[[Flight, int], Any],
        restart: Callable[[Flight, list[Call]], Any],
    ):
        self.key = key
        self.max_bytes = max_bytes
        self.ended = ended
        self.restart = restart
        self.call: Call = None  # type: ignore[assignment]  # set by `launch`
        self.readers: list[Call] = []
        self.head: tuple[Head, bytes] | None = None
        self.chunks: list[bytes] | None = []  # None: no longer kept, nobody may join
        self.gaps_ms: list[int] = []
        self.size = 0
        self.held_bytes = 0
        self.last_at = 0.0
        self.tail: Head | None = None
        self.queue: Any = None  # not None: readers must catch up first
        self.stall: Any = None
        self.elections = 0

    # -- readers ---------------------------------------------------------------------------------------------------

    @property
    def open(self) -> bool:
        """Whether one more caller may join."""
        return self.chunks is not None and self.tail is None

    def join(self, call: Call) -> None:
        """A caller becomes a reader and is given what has come so far."""
        self.readers.append(call)
        call.attempt = Reader(self, call)  # type: ignore[assignment]
        if self.head is not None:
            call.reply_head(*self.head)
            for chunk in self.chunks or ():
                call.reply_data(chunk)
        flight = self.call
        if flight is not None and flight.deadline and (not call.deadline or call.deadline > flight.deadline):
            flight.set_deadline(call.deadline)

    def leave(self, call: Call) -> None:
        """A reader is gone; the last one cancels the flight."""
        if call in self.readers:
            self.readers.remove(call)
            if not self.readers and not self.call.over:
                self.call.on_reset(None, 8, True)  # type: ignore[arg-type]
                self.forget()
                self.ended(self, errors.CANCELLED)
            elif self.queue is not None:
                self.reader_drained()

    def reader_drained(self) -> None:
        """A reader has caught up: go on when all have."""
        if self.queue is None or any(reader.down.queue is not None for reader in self.readers):
            return
        self._unstall()
        self.call.on_drain(self, 0)  # type: ignore[arg-type]

    def _unstall(self) -> None:
        self.queue = None
        if self.stall is not None:
            self.stall.cancel()
            self.stall = None

    def _cut_stalled(self) -> None:
        """Some readers hold up the others: cut them."""
        self.stall = None
        stalled = [reader for reader in self.readers if reader.down.queue is not None]
        if len(stalled) < len(self.readers):
            for reader in stalled:
                reader.fail(errors.RESOURCE_EXHAUSTED, "stalled while others read the same reply")
        self.reader_drained()

    # -- the sending half of the detached call ---------------------------------------------------------------------

    def send_head(self, head: Head, extra: bytes = b"", end: bool = False) -> None:
        if end:
            self._finish(head, extra)
            return
        self.head = (head, extra)
        self.last_at = self.call.runtime.clock()
        for reader in self.readers:
            reader.reply_head(head, extra)

    def send_data(self, data: bytes, end: bool = False) -> None:
        chunks = self.chunks
        if chunks is not None:
            self._keep(chunks, data)
        for reader in self.readers:
            reader.reply_data(data)
        if self.chunks is None and self.queue is None and any(r.down.queue is not None for r in self.readers):
            self.queue = self.readers
            runtime = self.call.runtime
            self.stall = runtime.wheel.at(runtime.clock() + STALL_S, self._cut_stalled)

    def _keep(self, chunks: list[bytes], data: bytes) -> None:
        size = len(data)
        self.size += size
        if self.size > self.max_bytes:
            self.forget()
            return
        if size:
            now = self.call.runtime.clock()
            self.gaps_ms.append(int((now - self.last_at) * 1e3))
            self.last_at = now
            chunks.append(data)
            if self.size > 65_536:
                ledger = self.call.runtime.ledger
                if not self.held_bytes:
                    ledger.stalled[self] = None
                self.held_bytes += size
                ledger.hold(size)

    def forget(self) -> None:
        """Stop keeping what passes; nobody may join any more."""
        self.chunks = None
        if self.held_bytes:
            ledger = self.call.runtime.ledger
            ledger.stalled.pop(self, None)
            ledger.release(self.held_bytes)
            self.held_bytes = 0

    cut = forget  # the process holds too much: this flight gives up its copy, not its readers

    def send_tail(self, head: Head, extra: bytes = b"") -> None:
        self._finish(head, extra)

    def _finish(self, head: Head, extra: bytes) -> None:
        status = errors.status_of(head)
        if self.stall is not None:
            self._unstall()
        readers, self.readers = self.readers, []
        if (
            status in UNSHARED
            and self.head is None
            and len(readers) > 1
            and self.elections < MAX_ELECTIONS
            and self.call.ended_by != "restart"
        ):
            self.tail = head
            self.forget()
            self.ended(self, status)
            self.restart(self, readers)
            return
        self.tail = head
        message = self.call.message
        self.readers = readers
        self.ended(self, status)
        self.readers = []
        for reader in readers:
            reader.attempt = None
            reader.message = message
            reader.reply_tail(head, extra, status)
        if self.held_bytes:
            self.forget()

    def reset(self, code: int) -> None:
        """The detached call failed with bytes still waiting at readers."""
        readers, self.readers = self.readers, []
        self.forget()
        self.ended(self, errors.INTERNAL)
        for reader in readers:
            reader.attempt = None
            reader.fail(errors.UNAVAILABLE, self.call.message)

    def credit(self, size: int) -> None:
        """The request was whole before the flight began."""
