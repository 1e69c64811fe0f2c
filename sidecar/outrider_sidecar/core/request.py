"""The receiving half of a call: request bytes from the caller to whoever takes them.

Always holds: bytes nobody has taken are bounded and not credited to the caller; what is kept for a further attempt is
at most `body_limit` bytes, is counted in the process's ledger, and is dropped as soon as none can follow.

Deliberately not here: steps, the reply and the end (`call`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from outrider_http2.head import Head, Rest
from outrider_http2.stream import Handler, Sink

if TYPE_CHECKING:
    from outrider_http2.stream import Stream
    from outrider_sidecar.core.runtime import Runtime

BODY_BYTES_UNCOUNTED: Final = 16 * 1024  # smaller bodies are bounded by the number of streams


class Request(Handler):
    """See the module. `down` is a stream, or anything with its sending half."""

    __slots__ = (
        "attempt",
        "body",
        "body_bytes",
        "body_limit",
        "body_waiter",
        "down",
        "head",
        "held_bytes",
        "over",
        "request_bytes",
        "request_ended",
        "rest",
        "runtime",
        "uncredited",
    )

    def __init__(self, runtime: Runtime, down: Sink, head: Head, rest: Rest, ended: bool):
        self.runtime = runtime
        self.down = down
        self.head = head
        self.rest = rest
        self.over = False
        self.request_ended = ended
        self.request_bytes = 0
        self.body: list[bytes] | None = []  # what a (further) attempt sends; None: it cannot be replayed
        self.body_bytes = 0
        self.body_limit = runtime.replay_bytes
        self.body_waiter: Callable[[Any], Any] | None = None
        self.held_bytes = 0
        self.uncredited = 0
        self.attempt: Any = None  # the Attempt that takes live request data, or a place in somebody's flight

    def run(self) -> None:
        """Run the steps that have not run yet."""
        raise NotImplementedError  # abstract

    def cut(self) -> None:
        """The process holds too much and this call has held its share longest."""
        raise NotImplementedError  # abstract

    def want_body(self, limit: int, then: Callable[[Any], Any]) -> bool:
        """Call `then(call)` when the whole request is here or more than `limit` bytes are; True while it must wait.

        While waiting, what has come is credited, so that `limit` may exceed the stream's window.
        """
        if self.request_ended or self.body_bytes > limit:
            return False
        self.body_limit = max(limit, self.body_limit)
        self.body_waiter = then
        self.credit_all()
        return True

    def on_data(self, stream: Stream, data: bytes, end: bool) -> None:
        size = len(data)
        if end:
            self.request_ended = True
        if self.over:
            self.down.credit(size)
            return
        self.request_bytes += size
        attempt = self.attempt
        if self.body is not None and not self._keep(data, size):
            return  # keeping it went past the cap of held bytes, and this very call was cut for it
        if attempt is not None:
            up = attempt.stream
            self.uncredited += size
            if up is not None:
                up.send_data(data, end)
                if up.queue is None:
                    self.credit_all()
            return
        waiter = self.body_waiter
        if waiter is None:
            self.uncredited += size
        else:
            self.down.credit(size)
            if end or self.body_bytes > self.body_limit:
                self.body_waiter = None
                if not waiter(self):
                    self.run()

    def on_tail(self, stream: Stream, head: Head, rest: Rest) -> None:
        """Request trailers: gRPC has none, so they only end the request."""
        self.on_data(stream, b"", True)

    def _keep(self, data: bytes, size: int) -> bool:
        """Whether the call has survived it."""
        total = self.body_bytes + size
        if total > self.body_limit and self.attempt is not None and self.attempt.stream is not None:
            self.drop_body()  # it is all upstream already, and too much to be kept for another try
            return True
        self.body.append(data)  # type: ignore[union-attr]
        self.body_bytes = total
        if total > BODY_BYTES_UNCOUNTED:
            ledger = self.runtime.ledger
            if not self.held_bytes:
                ledger.stalled[self] = None
            self.held_bytes += size
            ledger.hold(size)
        return not self.over

    def replace_body(self, data: bytes) -> bool:
        """Attempts send this in place of what came, which is the whole request; whether the call has survived it."""
        self.body = [data]
        self.body_bytes = len(data)
        self.body_limit = max(self.body_limit, len(data))
        held_bytes = len(data) if len(data) > BODY_BYTES_UNCOUNTED else 0
        more_bytes = held_bytes - self.held_bytes
        ledger = self.runtime.ledger
        if more_bytes <= 0:
            ledger.release(-more_bytes)
            self.held_bytes = held_bytes
            if not held_bytes:
                ledger.stalled.pop(self, None)
            return True
        if not self.held_bytes:
            ledger.stalled[self] = None
        self.held_bytes = held_bytes
        ledger.hold(more_bytes)
        return not self.over

    def drop_body(self) -> None:
        """No further attempt will be made: forget what was kept for one."""
        self.body = None
        if self.held_bytes:
            self.runtime.ledger.release(self.held_bytes)
            self.runtime.ledger.stalled.pop(self, None)
            self.held_bytes = 0

    def credit_all(self) -> None:
        owed = self.uncredited
        if owed:
            self.uncredited = 0
            self.down.credit(owed)

    def request_taken(self, size: int, all_taken: bool) -> None:
        """An attempt's upstream took queued request bytes."""
        if all_taken:
            self.credit_all()
        else:
            size = min(size, self.uncredited)
            self.uncredited -= size
            self.down.credit(size)
