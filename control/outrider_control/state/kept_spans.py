"""Spans that were kept whole: what traces are shown and explained from.

Always holds: a span is kept once, whoever sends it how often; every read is bounded and in a stated order.

Deliberately not here: which spans are kept (`intake.tail`), what is in their bytes (`intake.span_view`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection, Row, and_, delete, desc, func, select

from outrider_control.core.cardinality import clean
from outrider_control.state.schema import spans
from outrider_control.state.upsert import upsert

MAX_TRACE_SPANS = 1_000  # of one trace that are read
MAX_TRACES = 1_000  # of one list
LISTED_SPANS = 20  # of each trace of a list
_ROWS = 500  # of one statement: within SQLite's bound of parameters
_LIMIT = 2**62


class KeptSpan(NamedTuple):
    """One span as it is kept."""

    trace_id: str  # 32 hex digits
    span_id: str  # 16 hex digits
    agent_id: str
    start_ms: int
    duration_us: int
    failed: bool
    kept: str  # why: error, slow, sampled, variant, rated
    span: bytes  # intake's encoding


class KeptTrace(NamedTuple):
    """One trace of a list."""

    trace_id: str
    count: int  # kept spans
    spans: list[KeptSpan]  # the first ones by start, at most `LISTED_SPANS`


def put(connection: Connection, kept: Sequence[KeptSpan]) -> None:
    """Keeps spans; those that are kept already stay as they are."""
    if not kept:
        return
    # In one order everywhere: two control planes that wait for each other's rows would be a deadlock.
    unique = {(span.trace_id, span.span_id): span for span in sorted(kept, key=lambda span: span[:2])}
    rows = [
        {
            "trace_id": clean(span.trace_id, 32),
            "span_id": clean(span.span_id, 16),
            "agent_id": clean(span.agent_id),
            "start_ms": min(max(span.start_ms, 0), _LIMIT),
            "duration_us": min(max(span.duration_us, 0), _LIMIT),
            "failed": int(span.failed),
            "kept": clean(span.kept, 32),
            "span": span.span,
        }
        for span in unique.values()
    ]
    connection.execute(upsert(connection, spans, ("trace_id", "span_id"), ()), rows)


def trace(connection: Connection, trace_id: str) -> list[KeptSpan]:
    """The spans of a trace in the order of their starts; [] where none is kept.

    `trace_id`: 32 hex digits, or 16 of a call (the id of one of its spans).
    """
    trace_id = trace_id.lower()
    if len(trace_id) == 16:
        found = connection.execute(select(spans.c.trace_id).where(spans.c.span_id == trace_id).limit(1)).scalar()
        if found is None:
            return []
        trace_id = found
    statement = select(spans).where(spans.c.trace_id == trace_id)
    ordered = statement.order_by(spans.c.start_ms, spans.c.duration_us.desc(), spans.c.span_id)
    return [_kept(row) for row in connection.execute(ordered.limit(MAX_TRACE_SPANS))]


def traces(
    connection: Connection,
    since_ms: int,
    agent_id: str = "",
    errors: bool = False,
    min_us: int = 0,
    limit: int = 50,
) -> list[KeptTrace]:
    """Traces that have a kept span as asked for, newest first. `since_ms`: unix milliseconds."""
    statement = select(spans.c.trace_id, func.max(spans.c.start_ms).label("newest_ms")).where(
        spans.c.start_ms >= since_ms
    )
    if agent_id:
        statement = statement.where(spans.c.agent_id == agent_id)
    if errors:
        statement = statement.where(spans.c.failed == 1)
    if min_us > 0:
        statement = statement.where(spans.c.duration_us >= min_us)
    newest = statement.group_by(spans.c.trace_id).order_by(desc("newest_ms"), spans.c.trace_id)
    ids = [row.trace_id for row in connection.execute(newest.limit(min(max(limit, 1), MAX_TRACES)))]
    counts: dict[str, int] = {}
    first: dict[str, list[KeptSpan]] = {trace_id: [] for trace_id in ids}
    for at in range(0, len(ids), _ROWS):
        part = ids[at : at + _ROWS]
        place = (
            func.row_number()
            .over(partition_by=spans.c.trace_id, order_by=(spans.c.start_ms, spans.c.duration_us.desc()))
            .label("place")
        )
        ranked = select(spans.c.trace_id, spans.c.span_id, place).where(spans.c.trace_id.in_(part)).subquery()
        same = and_(spans.c.trace_id == ranked.c.trace_id, spans.c.span_id == ranked.c.span_id)
        wanted = select(spans).join(ranked, same).where(ranked.c.place <= LISTED_SPANS).order_by(ranked.c.place)
        for row in connection.execute(wanted):
            first[row.trace_id].append(_kept(row))
        number = select(spans.c.trace_id, func.count()).where(spans.c.trace_id.in_(part)).group_by(spans.c.trace_id)
        counts |= dict(connection.execute(number).all())
    return [KeptTrace(trace_id, counts[trace_id], first[trace_id]) for trace_id in ids]


def prune(connection: Connection, before_ms: int, max_rows: int = 0) -> int:
    """Deletes spans that began before, and of the rest the oldest past `max_rows` (0: no bound); how many."""
    gone = connection.execute(delete(spans).where(spans.c.start_ms < before_ms)).rowcount
    if max_rows > 0:
        oldest = select(spans.c.start_ms).order_by(spans.c.start_ms.desc()).offset(max_rows).limit(1)
        cutoff_ms = connection.execute(oldest).scalar()
        if cutoff_ms is not None:
            gone += connection.execute(delete(spans).where(spans.c.start_ms <= cutoff_ms)).rowcount
    return gone


def _kept(row: Row) -> KeptSpan:
    return KeptSpan(
        row.trace_id,
        row.span_id,
        row.agent_id,
        row.start_ms,
        row.duration_us,
        bool(row.failed),
        row.kept,
        row.span,
    )
