"""Trace: every call gets ids, W3C context goes in and out, and every ended call leaves one span.

Always holds: it is the outermost step, so sheds, refusals and cache hits are seen; the reply's head and trailers carry
`x-outrider-call-id` (the span id) and `x-outrider-trace-id`; `traceparent` is rewritten with our span id and
`tracestate` passed on. The record is built once, when the call is over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from outrider.policy import LANES
from outrider_http2.hpack import literal
from outrider_http2.turn import Turn
from outrider_sidecar.core.call import NORMAL, Call, Step
from outrider_sidecar.core.runtime import AgentState, Runtime
from outrider_sidecar.core.span import CLIENT, DETACHED, Admission, Attempt, Details, Generation, Span
from outrider_sidecar.engines.sampler import Sampler
from outrider_sidecar.engines.series import Series
from outrider_sidecar.engines.trace_context import build as build_traceparent
from outrider_sidecar.engines.trace_context import new_ids, new_span_id, parse, tracestate

_CALL_ID: Final = literal(b"x-outrider-call-id", b"0" * 16)[:-16]
_TRACE_ID: Final = literal(b"x-outrider-trace-id", b"0" * 32)[:-32]
_TRACEPARENT: Final = literal(b"traceparent", b"0" * 55)[:-55]
_span: Final[Any] = tuple.__new__  # what Span's own __new__ calls, less a frame of 30 arguments: 0.7 us a call
_NO_ATTEMPTS: Final[tuple[Attempt, ...]] = ()
_ONE_IN_16: Final = 48  # "0", the last hex digit of the trace ids whose calls carry details whatever became of them


def build(runtime: Runtime) -> Step:
    """The entry step."""
    getrandbits = runtime.rng.getrandbits
    sampler: Sampler = runtime.sampler
    flags_of = sampler.flags
    always = sampler.ratio >= 1.0
    record = runtime.record

    def trace(call: Call) -> None:
        values = call.rest.values
        raw = values.get(b"traceparent")
        parent = parse(raw) if raw is not None else None
        if parent is None:
            trace_id, span_id = new_ids(getrandbits)
            parent_id = b""
            state = b""
            flags = 1 if always else flags_of(None, trace_id)
        else:
            trace_id, parent_id, flags = parent
            span_id = new_span_id(getrandbits)
            flags = flags_of(flags, trace_id)
            state = values.get(b"tracestate", b"")
            if state:
                state = tracestate((state,))  # repeated headers come joined by commas
        call.trace = (trace_id, span_id, parent_id, state, flags)
        call.ids = b"%b%b%b%b" % (_CALL_ID, span_id, _TRACE_ID, trace_id)
        forward = _TRACEPARENT + build_traceparent(trace_id, span_id, flags)
        call.forward = forward + literal(b"tracestate", state) if state else forward
        call.done.append(record)

    return trace


class Recorder:
    """What becomes of an ended call's facts: one record for everybody. `takers` are given every span.

    It is made once the turn's writes have left: no caller waits for it.
    """

    __slots__ = ("_clock", "_failures", "_series", "_takers", "_turn")

    def __init__(
        self,
        series: Series,
        clock: Callable[[], float],
        failures: frozenset[int],
        takers: list[Callable[[Span], Any]],
        turn: Turn,
    ):
        self._series = series
        self._clock = clock
        self._failures = failures  # statuses that are the agent's or the mesh's failure
        self._takers = takers
        self._turn = turn

    def record(self, call: Call) -> None:
        """The call is over."""
        if not call.ended_at:
            call.ended_at = self._clock()
        self._turn.after(self._record, call)

    def _record(self, call: Call) -> None:
        route: Any = call.route
        if route is not None and not call.hop & DETACHED:
            state: AgentState = route.state
            state.calls += 1
            if call.status in self._failures:
                state.failed += 1
        span = span_of(call, call.ended_at, call.snapshot.kind)
        self._series.record(span)
        for take in self._takers:
            take(span)


def span_of(call: Call, now: float, kind: int = CLIENT) -> Span:
    """The record of an ended call; fields by position because this runs for every call."""
    trace_id, span_id, parent_id, state, flags = call.trace
    route: Any = call.route  # None where the call was refused before it had one
    started_at = call.started_at
    tried = call.tried
    facts = call.payload
    first_byte_at = call.first_byte_at
    status = call.status
    details = _details(call) if status or trace_id[-1] == _ONE_IN_16 or len(tried) > 1 else None
    unlike, alike = call.rest.values, call.head.values
    tenant = unlike.get(b"x-tenant-id") or alike.get(b"x-tenant-id")
    session = unlike.get(b"x-session-id") or alike.get(b"x-session-id")  # metadata beats the message
    return _span(
        Span,
        (
            trace_id,
            span_id,
            parent_id,
            state,
            flags,
            kind,
            call.head.path_text,
            route.agent_id if route is not None else "",
            tried[-1].address if tried else "",
            call.started_ns,
            int((now - started_at) * 1e6),
            status,
            call.message,
            _admission(call) if call.queue_s or call.lane != NORMAL or call.degraded is not None else None,
            int(call.connect_s * 1e6),
            int((first_byte_at - started_at) * 1e6) if first_byte_at else 0,
            call.request_bytes,
            call.reply_bytes,
            call.cache_verdict,
            call.cache_tier,
            call.treatment.variant if call.treatment is not None else "",
            session.decode("utf-8", "replace") if session else facts.session_id if facts is not None else "",
            call.unit,
            _attempts(call) if call.attempts is not None else _NO_ATTEMPTS,
            _generation(call) if facts is not None or call.tokens is not None else None,
            call.compressed,
            tuple(call.notes) if call.notes else (),
            call.hop,
            tenant.decode("utf-8", "replace") if tenant else facts.tenant_id if facts is not None else "",
            details,
        ),
    )


def _admission(call: Call) -> Admission:
    return Admission(int(call.queue_s * 1e6), LANES[call.lane], tuple(call.degraded or ()))


def _details(call: Call) -> Details | None:
    if call.compared:
        return Details(call.cache_key, tuple([f"{one.address} {load:.6g}" for one, load in call.compared]))
    return Details(call.cache_key) if call.cache_key else None


def _generation(call: Call) -> Generation | None:
    asked, reply = call.payload, call.tokens
    model = asked.model if asked is not None else ""
    if call.treatment is not None and call.treatment.rewrite is not None:
        model = call.treatment.rewrite.model or model
    if reply is None:
        return Generation("invoke_agent", model) if model else None
    return Generation(
        "invoke_agent",
        model,
        reply.model,
        reply.finish_reason,
        reply.input_tokens,
        reply.output_tokens,
        reply.cache_read_tokens,
        reply.cache_write_tokens,
    )


def child_ids(call: Call, parent: Call | None, runtime: Runtime) -> None:
    """Give a call that serves others a span of its own, under the first of them; it is recorded when it ends."""
    getrandbits = runtime.rng.getrandbits
    trace_id, span_id = new_ids(getrandbits)
    if parent is not None and parent.trace[0]:
        trace_id, parent_id, _, state, flags = parent.trace
    else:
        parent_id, state = b"", b""
        flags = runtime.sampler.flags(None, trace_id)
    call.trace = (trace_id, span_id, parent_id, state, flags)
    call.done.insert(0, runtime.record)


def _attempts(call: Call) -> tuple[Attempt, ...]:
    return tuple(
        [
            Attempt(address, int(start_s * 1e6), int(total_s * 1e6), status, reason)
            for address, start_s, total_s, status, reason in call.attempts or ()
        ]
    )
