"""One try of a call at one endpoint: the handler of an upstream stream.

Always holds: `pending` of the endpoint and the connector's slot are given back exactly once; the first attempt whose
reply has a head answers the call and the others are cancelled; feedback goes to balancer, outlier detector and
breaker once per attempt.

Deliberately not here: which endpoint (the dispatch filter), whether to try again (the retry filter).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from outrider_http2 import frames
from outrider_http2.head import Head, Rest
from outrider_http2.stream import Handler
from outrider_sidecar.core import errors
from outrider_sidecar.core.span import THROUGH_INGRESS

if TYPE_CHECKING:
    from outrider_http2.client import ClientConnection
    from outrider_http2.stream import Stream
    from outrider_sidecar.core.call import Call
    from outrider_sidecar.core.endpoint import Endpoint

ABORTED: Final = -1  # the status an attempt cancelled by us ends with
MAX_PUSHBACK_S: Final = 300.0  # what an endpoint may ask a retry to wait
LOAD_REPORT: Final = b"endpoint-load-metrics-bin"  # ORCA, in trailers
_CALL_ID: Final = b"x-outrider-call-id"  # every reply of a sidecar carries it: here it is an ingress's


class Attempt(Handler):
    """A try under way. `start` once; afterwards it reports to its call."""

    __slots__ = (
        "call",
        "endpoint",
        "first_byte",
        "grant",
        "http_status",
        "over",
        "owed",
        "started_at",
        "stream",
        "timer",
        "waited",
    )

    def __init__(self, call: Call, endpoint: Endpoint, now: float):
        self.call = call
        self.endpoint = endpoint
        self.stream: Stream | None = None
        self.started_at = now  # it is started at once
        self.first_byte = False
        self.over = False
        self.owed = 0  # reply bytes the caller has not taken yet
        self.http_status = 0  # of a reply that is not gRPC
        self.timer: Any = None
        self.waited = False  # for a connection
        self.grant: Any = None  # the breaker's leave, given back with the outcome

    def start(self) -> None:
        """Take the endpoint's slot and open a stream, now or when a connection is ready."""
        call = self.call
        endpoint = self.endpoint
        endpoint.pending += 1
        endpoint.calls += 1
        call.live += 1
        conn = endpoint.connector.conn
        if conn is not None and conn.has_room:
            self.open(conn)
        else:
            self.waited = True
            endpoint.connector.wait(self)

    def open(self, conn: ClientConnection) -> None:
        """A connection has room: send the head and what there is of the body."""
        call = self.call
        now = self.started_at
        if self.waited:
            now = call.runtime.clock()
            call.connect_s += now - self.started_at
        stream = conn.open_stream(self)
        self.stream = stream
        body = call.body
        head = call.head
        extra = call.upstream_extra(now)
        if not body:
            stream.send_head(head, extra, call.request_ended)
            return
        stream.send_head(head, extra)
        if len(body) == 1:
            stream.send_data(body[0], call.request_ended)
        else:
            for data in body[:-1]:
                stream.send_data(data)
            stream.send_data(body[-1], call.request_ended)
        if call.uncredited and stream.queue is None:
            call.request_taken(0, True)

    def refused(self, reason: str) -> None:
        """No connection could be had; nothing was sent."""
        agent_id = self.call.route.agent_id
        self._failed(errors.UNAVAILABLE, f"agent {agent_id!r}, endpoint {self.endpoint.address}: {reason}", False)

    # -- the reply -------------------------------------------------------------------------------------------------

    def on_head(self, stream: Stream, head: Head, rest: Rest, end: bool) -> None:
        call = self.call
        if end:
            self._only_tail(head, rest)
            return
        if head.status != 200 or not head.values.get(b"content-type", b"").startswith(b"application/grpc"):
            self.http_status = head.status  # not gRPC: the body is of no use to the caller
            return
        if self.timer is not None:
            self.timer.cancel()
        if call.hedges is not None and not call.commit(self):
            return
        if call.body is not None:
            call.drop_body()
        if _CALL_ID in rest.values:
            call.hop |= THROUGH_INGRESS
        call.reply_head(head, rest.literals)

    def on_data(self, stream: Stream, data: bytes, end: bool) -> None:
        call = self.call
        first = not self.first_byte
        now = 0.0
        if first:
            self.first_byte = True
            now = call.runtime.clock()
            call.route.state.pool.balancer.first_byte(self.endpoint, now - self.started_at, now)
        if self.http_status:
            stream.credit(len(data))
            if end:
                self._not_grpc()
            return
        if data:
            if not call.first_byte_at:
                call.first_byte_at = now or call.runtime.clock()
            if call.reply_data(data):
                stream.credit(len(data))
            else:
                self.owed += len(data)
        if first and call.route.state.pool.heard is not None:  # last, as others may go on at that
            call.route.state.pool.heard(call, now - self.started_at, now)
        if end:
            self._failed(errors.INTERNAL, f"{self.endpoint.address} ended the reply without trailers", True)

    def on_tail(self, stream: Stream, head: Head, rest: Rest) -> None:
        if self.http_status:
            self._not_grpc()
            return
        call = self.call
        status = errors.status_of(head)
        if not stream.local_closed:
            stream.reset(frames.CANCEL)  # the endpoint has answered before it had the whole request
        now = self._settle(status, rest)
        if call.over:
            return
        call.ended_at = now
        if status:
            call.message = errors.decode_message(rest.values.get(b"grpc-message", b""))
        call.reply_tail(head, self._tail_extra(rest), status)

    def _tail_extra(self, rest: Rest) -> bytes:
        """What trailers carry beside their head; at an ingress the agent's load, where it has not told itself."""
        extra = self.endpoint.connector.literal + rest.literals
        report = self.call.route.state.pool.load_report
        if report is not None and LOAD_REPORT not in rest.values:
            extra += report(self.call.runtime.clock())
        return extra

    def _only_tail(self, head: Head, rest: Rest) -> None:
        """A trailers-only reply: an error as a rule, and perhaps one worth another try."""
        call = self.call
        if head.status != 200 and b"grpc-status" not in head.values:
            self.http_status = head.status
            self._not_grpc()
            return
        status = errors.status_of(head)
        stream = self.stream
        if stream is not None and not stream.local_closed:
            stream.reset(frames.CANCEL)
        self._settle(status, rest)
        if call.over or (status and self._goes_on(status, rest, True)):
            return
        if call.hedges is not None and not call.commit(self):
            return
        call.replied = True
        if _CALL_ID in rest.values:
            call.hop |= THROUGH_INGRESS
        if status:
            call.message = errors.decode_message(rest.values.get(b"grpc-message", b""))
        call.reply_tail(head, self._tail_extra(rest), status)

    def _not_grpc(self) -> None:
        code = self.http_status
        self._failed(errors.from_http(code), f"{self.endpoint.address} answered HTTP {code}, which is not gRPC", True)

    def on_reset(self, stream: Stream, code: int, processed: bool) -> None:
        reason = f"{self.endpoint.address} ended the stream with {frames.error_name(code)}"
        status = errors.from_reset(code)
        if code == frames.NO_ERROR or (status == errors.CANCELLED and stream.conn.closed):
            status = errors.UNAVAILABLE
        self._failed(status, reason, processed)

    def on_drain(self, stream: Stream, sent_bytes: int) -> None:
        if self.call.attempt is self:
            self.call.request_taken(sent_bytes, stream.queue is None)

    def reply_taken(self, size: int, all_taken: bool) -> None:
        """The caller took reply bytes that had waited."""
        size = self.owed if all_taken else min(size, self.owed)
        self.owed -= size
        if self.stream is not None:
            self.stream.credit(size)

    # -- the end ---------------------------------------------------------------------------------------------------

    def _failed(self, status: int, message: str, processed: bool) -> None:
        """Over without a reply of the endpoint's own."""
        if self.over:
            return
        call = self.call
        self.over = True
        stream = self.stream
        if stream is not None:
            stream.reset(frames.CANCEL)
        self._settle(status, None, message)
        if call.over or self._goes_on(status, None, processed):
            return
        call.attempt = None
        call.fail(status, message, self.endpoint.connector.literal)

    def _goes_on(self, status: int, rest: Rest | None, processed: bool) -> bool:
        """Whether the call outlives this failure: another attempt is under way, or one is made."""
        call = self.call
        if call.replied:
            return False
        if call.hedges is not None and call.outlives(self):
            return True
        return call.retrier is not None and call.retrier(call, self, status, rest, processed)

    def time_out(self) -> None:
        """The time for one try is over and no reply has begun."""
        if self.over or self.call.replied:
            return
        address = self.endpoint.address
        if self.stream is None:
            self.endpoint.connector.leave(self)
            self._failed(errors.UNAVAILABLE, f"{address}: no connection within the per-try timeout", False)
        else:
            self._failed(errors.UNAVAILABLE, f"{address} gave no reply within the per-try timeout", True)

    def abort(self) -> None:
        """Cancel upstream at once: the caller is gone, out of time, or answered by another attempt."""
        if self.over:
            return
        self.over = True
        if self.stream is not None:
            self.stream.reset(frames.CANCEL)
        else:
            self.endpoint.connector.leave(self)
        self._settle(ABORTED, None)

    def _settle(self, status: int, rest: Rest | None, message: str = "") -> float:
        """Give everything back and tell the engines, once; the endpoint knows: who waits may come to it at once.

        Returns the time it did so.
        """
        self.over = True
        call = self.call
        endpoint = self.endpoint
        endpoint.pending -= 1
        call.live -= 1
        if self.timer is not None:
            self.timer.cancel()
        now = call.runtime.clock()
        pool = call.route.state.pool
        if not self.first_byte:
            pool.balancer.first_byte(endpoint, now - self.started_at, now)
        penalty_s = 0.0
        if rest is not None:
            if status > 0:
                penalty_s = max(0.0, pushback_s(rest) or 0.0)
            if pool.wants_reports:
                report = rest.values.get(LOAD_REPORT)
                if report is not None:
                    pool.report(endpoint, report, now)
        pool.settled(self, status, penalty_s, now)
        if status > 0 or call.attempts is not None or len(call.tried) > 1:
            if call.attempts is None:
                call.attempts = []
            if len(call.attempts) < 16:
                call.attempts.append(
                    (endpoint.address, self.started_at - call.started_at, now - self.started_at, status, message)
                )
        return now


def pushback_s(rest: Rest) -> float | None:
    """`grpc-retry-pushback-ms` in seconds; negative means never, None that there is none."""
    raw = rest.values.get(b"grpc-retry-pushback-ms")
    if raw is None:
        return None
    if not raw.isdigit():
        return -1.0  # gRFC A6: an unparsable value means do not retry
    return min(int(raw) / 1e3, MAX_PUSHBACK_S) if len(raw) <= 9 else MAX_PUSHBACK_S
