"""A call: one incoming stream, the steps it runs through, and the reply on its way back.

Always holds: steps run in order and a parked call runs nothing until `resume`; the reply's head, data and tail leave
in that order and the call ends exactly once; `on_done` callbacks run last-in-first-out, once, whatever the end was;
request bytes not yet taken by an attempt are bounded and not credited to the caller.

Deliberately not here: which steps there are (`stack`), upstream tries (`attempt`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from outrider_http2 import frames
from outrider_http2.head import Head, Rest
from outrider_http2.hpack import literal
from outrider_sidecar.core import errors

if TYPE_CHECKING:
    from outrider_http2.stream import Stream
    from outrider_sidecar.core.attempt import Attempt
    from outrider_sidecar.core.payload import Payload, ReplyFacts, ReplyReader, RequestFacts
    from outrider_sidecar.core.stage import Stage
    from outrider_sidecar.core.runtime import Route, Runtime, Snapshot
    from outrider_sidecar.core.wheel import Timer

Step = Callable[["Call"], Any]

BODY_BYTES_UNCOUNTED = 16 * 1024  # smaller bodies are bounded by the number of streams
CLIENT = "client"  # `ended_by` of calls their caller cancelled


_TIMEOUT_PREFIX = {size: literal(b"grpc-timeout", b"0" * size)[:-size] for size in range(2, 10)}


def _timeout_literal(left_us: int) -> bytes:
    """`grpc-timeout` as a literal: at most eight digits, rounded down, never zero."""
    if left_us < 100_000_000:
        value = b"%du" % max(1, left_us)
    elif left_us < 100_000_000_000:
        value = b"%dm" % (left_us // 1_000)
    else:
        value = b"%dS" % min(left_us // 1_000_000, 99_999_999)
    return _TIMEOUT_PREFIX[len(value)] + value


class Call:
    """See the module. `down` is a stream, or anything with its sending half; `route` is set by the identify step."""

    __slots__ = (
        "adapter",
        "at",
        "attempt",
        "attempts",
        "body",
        "body_bytes",
        "body_limit",
        "body_waiter",
        "cache_tier",
        "cache_verdict",
        "connect_s",
        "deadline",
        "done",
        "down",
        "ended_by",
        "first_byte_at",
        "forward",
        "head",
        "held_bytes",
        "hedges",
        "ids",
        "live",
        "message",
        "notes",
        "over",
        "payload",
        "reader",
        "replied",
        "reply_bytes",
        "request_bytes",
        "request_ended",
        "rest",
        "retrier",
        "route",
        "runtime",
        "snapshot",
        "stages",
        "started_at",
        "started_ns",
        "status",
        "steps",
        "tail_extra",
        "timer",
        "tokens",
        "trace",
        "tried",
        "uncredited",
    )

    def __init__(self, runtime: Runtime, snapshot: Snapshot, down: Any, head: Head, rest: Rest, ended: bool, now: float):
        self.runtime = runtime
        self.snapshot = snapshot
        self.down = down
        self.head = head
        self.rest = rest
        self.started_at = now
        self.started_ns = time.time_ns()
        self.steps: tuple[Step, ...] = snapshot.steps
        self.at = 0
        self.route: Route = None  # type: ignore[assignment]  # set by identify before any other step reads it
        self.request_ended = ended
        self.request_bytes = 0
        self.body: list[bytes] | None = []  # what a (further) attempt sends; None: it cannot be replayed
        self.body_bytes = 0
        self.body_limit = runtime.replay_bytes
        self.body_waiter: Step | None = None
        self.held_bytes = 0
        self.uncredited = 0
        self.attempt: Attempt | None = None  # the one that takes live request data
        self.hedges: list[Attempt] | None = None
        self.tried: list[Any] = []  # endpoints of attempts so far
        self.attempts: list[tuple] | None = None  # facts of ended attempts, for the span
        self.live = 0  # attempts under way
        self.retrier: Any = None
        self.deadline = 0.0  # monotonic seconds; 0: none
        self.timer: Timer | None = None
        self.ids = b""  # literals every head and tail of the reply carries
        self.tail_extra = b""  # literals the tail carries
        self.forward = b""  # literals every attempt's head carries
        self.trace: Any = None
        self.adapter: Payload | None = None  # who reads the reply's messages
        self.reader: ReplyReader | None = None
        self.payload: RequestFacts | None = None
        self.tokens: ReplyFacts | None = None
        self.stages: list[Stage] | None = None
        self.connect_s = 0.0  # waited for connections
        self.cache_verdict = ""
        self.cache_tier = ""
        self.notes: list[str] | None = None
        self.replied = False
        self.first_byte_at = 0.0
        self.reply_bytes = 0
        self.over = False
        self.status = -1
        self.message = ""
        self.ended_by = ""
        self.done: list[Callable[[Call], Any]] = []
        runtime.calls.add(self)

    # -- steps -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run steps until one parks or answers the call (returns True), or none is left."""
        while not self.over:
            at = self.at
            if at >= len(self.steps):
                return
            self.at = at + 1
            if self.steps[at](self):
                return

    resume = run

    def on_done(self, callback: Callable[[Call], Any]) -> None:
        """Register what must happen exactly once when the call is over."""
        self.done.append(callback)

    def note(self, text: str) -> None:
        """What a feature that stepped aside says on the span; bounded."""
        if self.notes is None:
            self.notes = []
        if len(self.notes) < 8:
            self.notes.append(text)

    def value(self, name: bytes) -> bytes:
        """First value of a metadata field, or empty."""
        return self.rest.values.get(name) or self.head.values.get(name, b"")

    def set_deadline(self, when: float) -> None:
        """The call ends by then (monotonic seconds; 0: never)."""
        if self.timer is not None:
            self.timer.cancel()
        self.deadline = when
        self.timer = self.runtime.wheel.at(when, self.expire) if when else None

    def detach(self, down: Any, at: int) -> Call:
        """A call of its own for the same request, whose reply goes to `down`; it continues at step `at`.

        It takes over what was kept of the request body.
        """
        call = Call(self.runtime, self.snapshot, down, self.head, self.rest, True, self.runtime.clock())
        call.route = self.route
        call.steps = self.route.steps
        call.at = at
        call.forward = self.forward
        call.body = self.body if self.body is not None else []
        call.body_bytes = self.body_bytes
        call.request_bytes = self.request_bytes
        call.adapter, self.adapter = self.adapter, None
        call.payload = self.payload
        call.body_limit = max(call.body_limit, self.body_bytes)
        if self.held_bytes:
            call.held_bytes, self.held_bytes = self.held_bytes, 0
            self.runtime.ledger.stalled.pop(self, None)
            self.runtime.ledger.stalled[call] = None
        self.body = None
        return call

    # -- the request -----------------------------------------------------------------------------------------------

    def want_body(self, limit: int, then: Step) -> bool:
        """Call `then(call)` when the whole request is here or more than `limit` bytes are; True while it must wait.

        While waiting, what has come is credited, so that `limit` may exceed the stream's window.
        """
        if self.request_ended or self.body_bytes > limit:
            return False
        self.body_limit = max(limit, self.body_limit)
        self.body_waiter = then
        self._credit_all()
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
        if self.body is not None:
            self._keep(data, size)
        if attempt is not None:
            up = attempt.stream
            self.uncredited += size
            if up is not None:
                up.send_data(data, end)
                if up.queue is None:
                    self._credit_all()
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

    def _keep(self, data: bytes, size: int) -> None:
        total = self.body_bytes + size
        if total > self.body_limit and self.attempt is not None:
            self.drop_body()
            return
        self.body.append(data)  # type: ignore[union-attr]
        self.body_bytes = total
        if total > BODY_BYTES_UNCOUNTED:
            ledger = self.runtime.ledger
            if not self.held_bytes:
                ledger.stalled[self] = None
            self.held_bytes += size
            ledger.hold(size)

    def drop_body(self) -> None:
        """No further attempt will be made: forget what was kept for one."""
        self.body = None
        if self.held_bytes:
            self.runtime.ledger.release(self.held_bytes)
            self.runtime.ledger.stalled.pop(self, None)
            self.held_bytes = 0

    def cut(self) -> None:
        """The process holds too much and this call has held its share longest."""
        self.fail(errors.RESOURCE_EXHAUSTED, "the sidecar's limit of held bytes is reached (limits.held_bytes)")

    def _credit_all(self) -> None:
        owed = self.uncredited
        if owed:
            self.uncredited = 0
            self.down.credit(owed)

    def request_taken(self, size: int, all_taken: bool) -> None:
        """An attempt's upstream took queued request bytes."""
        if all_taken:
            self._credit_all()
        else:
            size = min(size, self.uncredited)
            self.uncredited -= size
            self.down.credit(size)

    def upstream_extra(self) -> bytes:
        """Literals for the next attempt's head: what is left of the deadline, trace context, this call's own fields."""
        extra = self.forward + self.rest.literals
        if self.deadline:
            left_us = int((self.deadline - self.runtime.clock()) * 1e6)
            extra += _timeout_literal(left_us)
        retries = len(self.tried) - 1
        if retries > 0:
            extra += literal(b"grpc-previous-rpc-attempts", b"%d" % retries)
        return extra

    # -- the reply -------------------------------------------------------------------------------------------------

    def reply_head(self, head: Head, extra: bytes = b"") -> None:
        """Initial metadata. From here on no other attempt may answer."""
        self.replied = True
        if self.adapter is not None:
            self.reader = self.adapter.reader(head.values.get(b"grpc-encoding", b""))
        if self.stages is not None:
            for stage in self.stages:
                stage.head(head)
        self.down.send_head(head, self.ids + extra)

    def reply_data(self, data: bytes) -> bool:
        """Message bytes; True when they left, False when they wait and more should not come."""
        if not self.first_byte_at:
            self.first_byte_at = self.runtime.clock()
        if self.reader is not None:
            self.reader.feed(data)
        if self.stages is not None:
            for stage in self.stages:
                data = stage.feed(data)
            if not data:
                return True
        self.reply_bytes += len(data)
        down = self.down
        down.send_data(data)
        return down.queue is None

    def reply_tail(self, head: Head, extra: bytes, status: int) -> None:
        """Trailers, or the only block of a trailers-only reply (`head.status` is set); ends the call."""
        down = self.down
        if self.body is not None:
            self.drop_body()
        if self.reader is not None:
            self.tokens = self.reader.facts()
        if self.stages is not None and not head.status:
            self._flush_stages(status)
        if head.status:
            down.send_head(head, self.ids + self.tail_extra + extra, True)
        else:
            down.send_tail(head, self.ids + self.tail_extra + extra)
        if not self.request_ended and down.queue is None:
            down.reset(frames.NO_ERROR)  # the reply is whole: the caller need not send the remainder
        self.finish(status)

    def _flush_stages(self, status: int) -> None:
        data = b""
        for stage in self.stages or ():
            data = (stage.feed(data) if data else b"") + stage.flush(status)
        for at in range(0, len(data), frames.DEFAULT_FRAME):
            self.down.send_data(data[at : at + frames.DEFAULT_FRAME])
        self.reply_bytes += len(data)

    def fail(self, status: int, message: str, extra: bytes = b"") -> bool:
        """Answer with a status of our own; returns True so that a step can `return call.fail(...)`."""
        if self.over:
            return True
        self.message = message
        self.abort_attempts()
        extra += errors.message_literal(message)
        if not self.replied:
            self.replied = True
            self.reply_tail(errors.ERROR_HEADS[status], extra, status)
        elif self.down.queue is None:
            self.reply_tail(errors.ERROR_TAILS[status], extra, status)
        else:
            # Half a message is on its way to a caller that does not read: only a reset is prompt and honest.
            self.down.reset(frames.CANCEL)
            self.finish(status)
        return True

    def commit(self, attempt: Attempt) -> None:
        """Of several attempts under way this one answers; the others are cancelled."""
        hedges, self.hedges = self.hedges, None
        self.attempt = attempt
        for other in hedges or ():
            if other is not attempt:
                other.abort()

    def outlives(self, attempt: Attempt) -> bool:
        """One of several attempts has failed; True while another one may still answer."""
        hedges = self.hedges
        if hedges is None:
            return False
        if attempt in hedges:
            hedges.remove(attempt)
        if len(hedges) <= 1:
            self.hedges = None
        if hedges:
            self.attempt = hedges[0]
        return bool(hedges)

    def abort_attempts(self) -> None:
        """Cancel whatever is under way upstream."""
        attempt, self.attempt = self.attempt, None
        if attempt is not None:
            attempt.abort()
        if self.hedges is not None:
            hedges, self.hedges = self.hedges, None
            for hedge in hedges:
                hedge.abort()

    def on_reset(self, stream: Stream, code: int, processed: bool) -> None:
        """The caller is gone or has cancelled."""
        if self.over:
            return
        self.ended_by = CLIENT
        self.message = f"cancelled by the caller ({frames.error_name(code)})"
        self.abort_attempts()
        self.finish(errors.CANCELLED)

    def on_drain(self, stream: Stream, sent_bytes: int) -> None:
        """The caller took queued reply bytes."""
        attempt = self.attempt
        if attempt is not None:
            attempt.reply_taken(sent_bytes, stream.queue is None)
        elif self.over and stream.queue is None and not self.request_ended:
            stream.reset(frames.NO_ERROR)

    def expire(self) -> None:
        """The deadline has passed."""
        if not self.over:
            self.ended_by = "deadline"
            waited_ms = (self.runtime.clock() - self.started_at) * 1e3
            where = "" if self.live else ", before an endpoint was reached"
            self.fail(errors.DEADLINE_EXCEEDED, f"deadline exceeded after {waited_ms:.0f} ms{where}")

    def finish(self, status: int) -> None:
        """The call is over; runs the done callbacks."""
        if self.over:
            return
        self.over = True
        self.status = status
        self.body_waiter = None
        if self.body is not None:
            self.drop_body()
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        done = self.done
        while done:
            done.pop()(self)
        self.runtime.calls.discard(self)
        self._credit_all()
