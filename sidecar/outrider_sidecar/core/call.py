"""A call: one incoming stream, the steps it runs through, and the reply on its way back.

Always holds: steps run in order and a parked call runs nothing until `run`; the reply's head, data and tail leave
in that order and the call ends exactly once; `on_done` callbacks run last-in-first-out, once, whatever the end was.

Deliberately not here: which steps there are (`stack`), request bytes (`request`), upstream tries (`attempt`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from outrider_http2 import frames
from outrider_http2.head import Head, Rest
from outrider_http2.hpack import literal
from outrider_sidecar.core import errors
from outrider_sidecar.core.request import Request
from outrider_sidecar.core.span import DETACHED, THROUGH_INGRESS, Compression
from outrider_sidecar.core.timeout import timeout_literal

if TYPE_CHECKING:
    from outrider_http2.stream import Sink, Stream
    from outrider_sidecar.core.attempt import Attempt
    from outrider_sidecar.core.payload import Payload, ReplyFacts, ReplyReader, RequestFacts
    from outrider_sidecar.core.runtime import Route, Runtime, Snapshot
    from outrider_sidecar.core.stage import Stage, Tap
    from outrider_sidecar.core.treatment import Labels, Treatment
    from outrider_sidecar.core.wheel import Timer

Step = Callable[["Call"], Any]

# Lanes, as indices of `policy.LANES`.
LOW: Final = 0
NORMAL: Final = 1
HIGH: Final = 2
CRITICAL: Final = 3

_LANES: Final = {b"low": LOW, b"normal": NORMAL, b"high": HIGH, b"critical": CRITICAL}

CLIENT: Final = "client"  # `ended_by` of calls their caller cancelled
# Trace id, span id, parent id, tracestate, flags.
NO_TRACE: Final[tuple[bytes, bytes, bytes, bytes, int]] = (b"", b"", b"", b"", 0)


class Call(Request):
    """See the module. `down` is a stream, or anything with its sending half; `route` is set by the identify step."""

    __slots__ = (
        "adapter", "at", "attempts", "cache_key", "cache_tier", "cache_verdict", "compared", "compress", "compressed",
        "connect_s", "deadline", "degraded", "done", "ended_at", "ended_by", "first_byte_at", "forward", "hedges",
        "hop", "ids", "labels", "lane", "live", "message", "notes", "parked_here", "payload", "prepared", "queue_s",
        "reader", "replied", "reply_bytes", "retrier", "route", "snapshot", "stages", "started_at", "started_ns",
        "status", "steps", "tail_extra", "tap", "timer", "tokens", "trace", "treatment", "tried", "unit", "waiter",
    )  # fmt: skip

    def __init__(
        self, runtime: Runtime, snapshot: Snapshot, down: Sink, head: Head, rest: Rest, ended: bool, now: float
    ):
        super().__init__(runtime, down, head, rest, ended)
        self.snapshot = snapshot
        self.started_at = now
        self.started_ns = time.time_ns()
        self.steps: tuple[Step, ...] = snapshot.steps
        self.at = 0
        self.route: Route = None  # type: ignore[assignment]  # set by identify before any other step reads it
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
        self.trace: tuple[bytes, bytes, bytes, bytes, int] = NO_TRACE
        self.adapter: Payload | None = None  # who reads the reply's messages
        self.reader: ReplyReader | None = None
        self.payload: RequestFacts | None = None
        self.tokens: ReplyFacts | None = None
        self.stages: list[Stage] | None = None
        self.tap: Tap | None = None  # the flight that listens to this reply
        self.lane = NORMAL
        self.queue_s = 0.0  # waited for admission
        self.waiter: Any = None  # its place in the queue, while it waits (filters.admit)
        self.connect_s = 0.0  # waited for connections
        self.degraded: list[str] | None = None  # steps of `policy.DEGRADATIONS` this call felt
        self.treatment: Treatment | None = None  # its variants, and what they change (filters.experiment)
        self.unit = ""  # as `Span.unit`
        self.labels: Labels = ()  # of the endpoints that its variants bind it to
        self.compress: bool | None = None  # whether its request is made smaller; None: as the policy says
        self.compressed: Compression | None = None
        self.prepared: Any = None  # how far its request is read to be compressed (filters.compress)
        self.parked_here = False  # until the worker answers; not with the call that takes over its work
        self.cache_verdict = ""
        self.cache_tier = ""
        self.cache_key = b""
        self.compared: tuple[tuple[Any, float], ...] = ()  # endpoints and loads the last pick was made of
        self.hop = 0  # bits of `Span.hop`
        self.notes: list[str] | None = None
        self.replied = False
        self.first_byte_at = 0.0
        self.reply_bytes = 0
        self.status = -1
        self.message = ""
        self.ended_at = 0.0  # its answer was whole; 0: when the call is over
        self.ended_by = ""
        self.done: list[Callable[[Call], Any]] = []
        runtime.calls.add(self)

    # -- steps -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run steps, from the start or after a step has parked the call, until one does that or answers (returns
        True), or none is left."""
        while not self.over:
            at = self.at
            if at >= len(self.steps):
                return
            self.at = at + 1
            if self.steps[at](self):
                return

    def on_done(self, callback: Callable[[Call], Any]) -> None:
        """Register what must happen exactly once when the call is over."""
        self.done.append(callback)

    def note(self, text: str) -> None:
        """What a feature that stepped aside says on the span; bounded."""
        if self.notes is None:
            self.notes = []
        if len(self.notes) < 8 and text not in self.notes:
            self.notes.append(text)

    def value(self, name: bytes) -> bytes:
        """First value of a metadata field, or empty."""
        return self.rest.values.get(name) or self.head.values.get(name, b"")

    def read_lane(self) -> int:
        """The lane the caller asks for: `x-priority`, else what the message says, else normal; low for nobody."""
        raw = self.rest.values.get(b"x-priority") or self.head.values.get(b"x-priority")
        if self.hop == DETACHED:
            self.lane = LOW
        elif raw is not None:
            lane = _LANES.get(raw)
            if lane is None:
                self.note("admit: x-priority is not one of low, normal, high, critical")
                lane = NORMAL
            self.lane = lane
        elif self.payload is not None and 1 <= self.payload.priority <= 4:
            self.lane = self.payload.priority - 1  # outrider.v1.Priority counts from 1
        return self.lane

    def set_deadline(self, when: float) -> None:
        """The call ends by then (monotonic seconds; 0: never)."""
        if self.timer is not None:
            self.timer.cancel()
        self.deadline = when
        self.timer = self.runtime.wheel.at(when, self.expire) if when else None

    def detach(self, down: Sink) -> Call:
        """A call of its own for the same request, whose reply goes to `down`; it continues at the same step."""
        call = Call(self.runtime, self.snapshot, down, self.head, self.rest, True, self.runtime.clock())
        call.route = self.route
        call.steps = self.steps
        call.at = self.at
        call.forward = self.forward
        call.body = list(self.body) if self.body is not None else None
        call.body_bytes = self.body_bytes
        call.body_limit = max(call.body_limit, self.body_bytes)
        call.request_bytes = self.request_bytes
        call.adapter = self.adapter
        call.payload = self.payload
        call.treatment = self.treatment  # its unit is not counted: nobody's call says nothing of one
        call.compress = self.compress
        call.labels = self.labels
        call.cache_key = self.cache_key
        call.lane = self.lane
        call.hop = DETACHED
        return call

    def hand_over(self, down: Sink) -> Call:
        """Everything under way goes to a call of its own, except the caller and the span, which end here."""
        call = self.detach(down)
        call.done = self.done[1:]  # all but the outermost: the record of this call
        self.done = self.done[:1]
        if self.held_bytes:
            call.held_bytes, self.held_bytes = self.held_bytes, 0
            self.runtime.ledger.stalled.pop(self, None)
            self.runtime.ledger.stalled[call] = None
        call.tried = self.tried
        call.attempts = self.attempts
        call.retrier = self.retrier
        call.live, self.live = self.live, 0
        call.degraded = self.degraded
        call.queue_s = self.queue_s
        call.waiter, self.waiter = self.waiter, None
        if call.waiter is not None:
            call.waiter.call = call
            if call.waiter.queued:
                self.queue_s = self.runtime.clock() - call.waiter.queued_at
        call.replied = self.replied
        call.first_byte_at = self.first_byte_at
        call.hop |= self.hop
        self.hop &= ~THROUGH_INGRESS
        call.compared = self.compared
        call.reader = self.reader
        self.reader = None
        call.attempt, self.attempt = self.attempt, None
        call.hedges, self.hedges = self.hedges, None
        if call.attempt is not None:
            call.attempt.call = call
        for hedge in call.hedges or ():
            hedge.call = call
        return call

    def leave_flight(self) -> None:
        """If others wait for this call's reply, hand its work over to them."""
        if self.tap is not None:
            self.tap.leader_leaves(self)

    def go_on(self) -> None:
        """After a hand-over: if the work stood between two attempts, make the next one now."""
        if self.waiter is not None:
            self.route.state.admission.requeue(self)
        elif self.attempt is None and not self.over and self.tried:
            self.steps[-1](self)
        elif self.attempt is None and not self.over and not self.replied:
            self.at -= 1  # the step that had parked it
            self.run()

    def upstream_extra(self, now: float) -> bytes:
        """Literals for the next attempt's head: what is left of the deadline, trace context, this call's own fields."""
        extra = self.forward + self.rest.literals
        if self.deadline:
            left_us = int((self.deadline - now) * 1e6)
            extra += timeout_literal(left_us)
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
        if self.tap is not None:
            self.tap.on_head(head, extra)
        self.down.send_head(head, self.ids + extra)

    def reply_data(self, data: bytes) -> bool:
        """Message bytes; True when they left, False when they wait and more should not come."""
        if not self.first_byte_at:
            self.first_byte_at = self.runtime.clock()
        if self.reader is not None:
            self.reader.feed(data)
        tap = self.tap
        if tap is not None:
            tap.on_data(data)
        if self.stages is not None:
            for stage in self.stages:
                data = stage.feed(data)
            if not data:
                return tap is None or tap.takes_more(True)
        self.reply_bytes += len(data)
        down = self.down
        down.send_data(data)
        if tap is not None:
            return tap.takes_more(down.queue is None)
        return down.queue is None

    def reply_tail(self, head: Head, extra: bytes, status: int) -> None:
        """Trailers, or the only block of a trailers-only reply (`head.status` is set); ends the call."""
        down = self.down
        if self.body is not None:
            self.drop_body()
        if self.reader is not None:
            self.tokens = self.reader.facts()
        tap, self.tap = self.tap, None
        if self.stages is not None and not head.status:
            self._flush_stages(status)
        if head.status:
            down.send_head(head, self.ids + self.tail_extra + extra, True)
        else:
            down.send_tail(head, self.ids + self.tail_extra + extra)
        if not self.request_ended and down.queue is None:
            down.reset(frames.NO_ERROR)  # the reply is whole: the caller need not send the remainder
        self.finish(status)
        if tap is not None:
            tap.on_tail(head, extra, status)

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
            tap, self.tap = self.tap, None
            self.down.reset(frames.CANCEL)
            self.finish(status)
            if tap is not None:
                tap.on_tail(errors.ERROR_TAILS[status], extra, status)
        return True

    def cut(self) -> None:
        """The process holds too much and this call has held its share longest: its copy goes, or the call does."""
        tries = self.hedges or (self.attempt,)
        if all([attempt is not None and attempt.stream is not None for attempt in tries]):
            self.drop_body()  # it is upstream; what is kept would serve a further try only
        else:
            self.fail(errors.RESOURCE_EXHAUSTED, "the sidecar's limit of held bytes is reached (limits.held_bytes)")

    def commit(self, attempt: Attempt) -> bool:
        """Of several attempts under way this one answers; the others are cancelled. Whether the call has survived."""
        hedges, self.hedges = self.hedges, None
        self.attempt = attempt
        for other in hedges or ():
            if other is not attempt:
                other.abort()
        return not self.over

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

    def on_reset(self, stream: Stream | None, code: int, processed: bool) -> None:
        """The caller is gone or has cancelled."""
        if self.over:
            return
        self.leave_flight()
        self.ended_by = CLIENT
        self.message = f"cancelled by the caller ({frames.error_name(code)})"
        self.abort_attempts()
        self.finish(errors.CANCELLED)

    def on_drain(self, stream: Stream, sent_bytes: int) -> None:
        """The caller took queued reply bytes."""
        attempt = self.attempt
        if self.tap is not None:
            self.tap.taken(sent_bytes, stream.queue is None)
        elif attempt is not None:
            attempt.reply_taken(sent_bytes, stream.queue is None)
        elif self.over and stream.queue is None and not self.request_ended:
            stream.reset(frames.NO_ERROR)

    def expire(self) -> None:
        """The deadline has passed."""
        if not self.over:
            self.ended_by = "deadline"
            self.leave_flight()
            waited_ms = (self.runtime.clock() - self.started_at) * 1e3
            where = "" if self.tried else ", before an endpoint was reached"
            self.fail(errors.DEADLINE_EXCEEDED, f"deadline exceeded after {waited_ms:.0f} ms{where}")

    def finish(self, status: int) -> None:
        """The call is over; runs the done callbacks."""
        if self.over:
            return
        self.over = True
        self.status = status
        # Calls and attempts know each other: without this each call would be left for the cycle collector.
        self.attempt = None
        self.hedges = None
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
        self.credit_all()
