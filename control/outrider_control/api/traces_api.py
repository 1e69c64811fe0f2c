"""Kept calls: lists of traces, a trace whole, and how its calls came to their ends.

Always holds: what cannot be read of a kept span is said in its place; one damaged span hides no other.

Deliberately not here: which spans are kept (`intake.tail`), what a span's steps are (`explain`).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Final

from outrider.v1 import operator_pb2
from outrider_control.api import convert, requests
from outrider_control.api.errors import Invalid, NotFound
from outrider_control.api.explain import Price, explain_trace
from outrider_control.intake import names, span_view
from outrider_control.intake.reader import Reader
from outrider_control.intake.span_view import SpanView
from outrider_control.state.kept_spans import KeptSpan, KeptTrace

MAX_MIN_MS: Final = 86_400_000
_ID: Final = re.compile(r"[0-9a-fA-F]{16}|[0-9a-fA-F]{32}")
_REASONS: Final = ("error", "slow", "rated", "variant", "sampled")  # why a trace was kept, the most telling first
_SLICE: Final = 100  # spans that are read without a pause: some 5 ms

# (model, provider, input, output, cache read, cache write tokens, unix seconds) -> nano-dollars, as `Prices` has it.
TokenPrice = Callable[[str, str, int, int, int, int, int], int | None]


class TracesApi:
    """What is kept of calls; `price` is what tokens cost, where that is known."""

    def __init__(self, reader: Reader, clock_ms: Callable[[], int], price: TokenPrice | None):
        self._reader = reader
        self._clock_ms = clock_ms
        self._price = pricing(price, clock_ms) if price is not None else None

    async def list_some(self, request: operator_pb2.ListTracesRequest) -> operator_pb2.ListTracesReply:
        """Traces, newest first."""
        agent_id = requests.name(request.agent_id, "agent_id")
        since_ms = self._clock_ms() - requests.since_ms(request.since_ms, requests.HOUR_MS)
        min_ms = requests.number(request.min_ms, 0, MAX_MIN_MS, "min_ms")
        limit = requests.limit(request.limit, 50)
        found = await self._reader.traces(since_ms, agent_id, request.errors, min_ms, limit)
        summaries: list[operator_pb2.TraceSummary] = []
        for at, trace in enumerate(found):
            if at % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
            summaries.append(summary(trace))
        return operator_pb2.ListTracesReply(traces=requests.slim(summaries, ("method",)))

    async def get(self, request: operator_pb2.GetTraceRequest) -> operator_pb2.Trace:
        """All kept spans of one trace."""
        kept = await self._kept(request.trace_id)
        records: list[operator_pb2.SpanRecord] = []
        for at, one in enumerate(kept):
            if at % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
            view = read(one)
            records.append(unreadable(one) if view is None else convert.span(view, one.kept))
        return operator_pb2.Trace(
            trace_id=kept[0].trace_id, spans=requests.slim(records, ("events", "attributes", "message"))
        )

    async def explain(self, request: operator_pb2.ExplainTraceRequest) -> operator_pb2.ExplainTraceReply:
        """The decisions made for the calls of one trace."""
        kept = await self._kept(request.trace_id)
        views: list[SpanView] = []
        for at, one in enumerate(kept):
            if at % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
            view = read(one)
            if view is not None:
                views.append(view)
        calls = [convert.explanation(call) for call in explain_trace(views, self._price)]
        return operator_pb2.ExplainTraceReply(trace_id=kept[0].trace_id, calls=requests.slim(calls, ("steps",)))

    async def _kept(self, trace_id: str) -> Sequence[KeptSpan]:
        if not _ID.fullmatch(trace_id):
            raise Invalid("trace_id", "is neither a trace id (32 hex digits) nor a call id (16)")
        kept = await self._reader.trace(trace_id)
        if not kept:
            text = "kept are calls that failed, slow ones, those of experiments and a share of the rest, for a time"
            raise NotFound(f"no span of {trace_id} is kept: {text}")
        return kept


def pricing(price_of: TokenPrice, clock_ms: Callable[[], int]) -> Price:
    """What a span's tokens cost by today's prices."""

    def price(span: SpanView) -> int | None:
        model, provider = (
            _text(span, names.RESPONSE_MODEL, names.REQUEST_MODEL),
            _text(span, names.PROVIDER, names.SYSTEM),
        )
        return price_of(
            model,
            provider,
            _count(span, names.INPUT_TOKENS),
            _count(span, names.OUTPUT_TOKENS),
            _count(span, names.CACHE_READ_TOKENS),
            _count(span, names.CACHE_WRITE_TOKENS, names.CACHE_CREATION_TOKENS),
            clock_ms() // 1_000,
        )

    return price


def summary(trace: KeptTrace) -> operator_pb2.TraceSummary:
    """A trace by its first span that is ours, else by its first."""
    first: tuple[KeptSpan, SpanView] | None = None
    for one in trace.spans:
        view = read(one)
        if view is not None and (first is None or view.ours):
            first = (one, view)
            if view.ours:
                break
    reasons = {one.kept for one in trace.spans}
    kept = next((reason for reason in _REASONS if reason in reasons), trace.spans[0].kept if trace.spans else "")
    if first is None:
        if not trace.spans:
            return operator_pb2.TraceSummary(trace_id=trace.trace_id)
        one = trace.spans[0]
        return operator_pb2.TraceSummary(
            trace_id=trace.trace_id,
            agent_id=one.agent_id,
            status="ERROR" if one.failed else "OK",
            at_unix_ms=one.start_ms,
            duration_ms=one.duration_us / 1_000,
            spans=trace.count,
            kept=kept,
        )
    return convert.summary(first[1], kept, trace.count, _text(first[1], names.CACHE))


def read(kept: KeptSpan) -> SpanView | None:
    """What a kept span says; None if its bytes are damaged, or those of a newer version."""
    try:
        return span_view.view(kept.span)
    except ValueError:
        return None


def unreadable(kept: KeptSpan) -> operator_pb2.SpanRecord:
    """A span of which only the store's columns are known."""
    start_ns = kept.start_ms * 1_000_000
    return operator_pb2.SpanRecord(
        span_id=kept.span_id,
        agent_id=kept.agent_id,
        start_unix_ns=start_ns,
        end_unix_ns=start_ns + kept.duration_us * 1_000,
        status="ERROR" if kept.failed else "OK",
        message="the bytes of this span cannot be read: damaged, or written by a newer version",
        kept=kept.kept,
    )


def _text(span: SpanView, *names_of_it: str) -> str:
    for name in names_of_it:
        value = span.attributes.get(name)
        if isinstance(value, str) and value:
            return value
    return ""


def _count(span: SpanView, *names_of_it: str) -> int:
    for name in names_of_it:
        value = span.attributes.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0
