"""Feedback: what was said of calls, joined with the call it is of.

Always holds: an id is taken once, however often and to whichever control plane it is sent; what is joined is counted in
the sums of its call's units in the same transaction, once; the result does not depend on whether the call or the
feedback came first. Feedback by trace is of the trace's first call of the agent: one that is heard of later moves it,
for `SETTLE_MS`. What is not known is kept, and looked at again for `WAIT_MS`.

Deliberately not here: what is wrong with an item (`outrider.feedback_check`), what is learnt from it (`examples`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from outrider_control.core.call_record import CallRecord, find_calls, find_traces
from outrider_control.state import call_index, unit_sums
from outrider_control.state.schema import examples
from outrider_control.state.schema import feedback as table

TAKEN = "taken"
UNKNOWN_CALL = "unknown_call"
DUPLICATE = "duplicate"
BAD_RATING = 2.0  # and below: the call's spans are kept to be looked at
WAIT_MS = 7 * 86_400_000
SETTLE_MS = 3_600_000
MAX_WAITING = 20_000  # the newest of what waits: older ones are looked at no more
PORTION = 5_000
_ROWS = 500  # of one statement: within SQLite's bound of parameters
_HEAVY = ("input", "output")


class NewFeedback(NamedTuple):
    """One item, found right. `call_id` or `trace_id` is there, in lower case."""

    feedback_id: str
    call_id: str
    trace_id: str
    agent_id: str
    rating: float | None
    correction: str
    complaint: str
    labels: tuple[str, ...]
    scores: Mapping[str, float]
    author: str
    input: str
    output: str
    at_ms: int

    @property
    def is_bad(self) -> bool:
        """Whether somebody should look at the call."""
        return bool(self.complaint) or (self.rating is not None and self.rating <= BAD_RATING)


class Taken(NamedTuple):
    """What became of the items, in their order, and the traces somebody should look at."""

    outcomes: list[str]
    bad_traces: set[str]


def take(connection: Connection, items: Sequence[NewFeedback], now_ms: int) -> Taken:
    """Keep items, joined with their calls as far as these are known."""
    call_index.lock(connection)
    known = _known(connection, {item.feedback_id for item in items})
    found = call_index.find(
        connection,
        {bytes.fromhex(item.call_id) for item in items if item.call_id},
        {bytes.fromhex(item.trace_id) for item in items if not item.call_id},
    )
    outcomes: list[str] = []
    rows: list[dict[str, Any]] = []
    bad: set[str] = set()
    for item in items:
        if item.feedback_id in known:
            outcomes.append(DUPLICATE)
            continue
        known.add(item.feedback_id)
        call = _first(found.traces.get(bytes.fromhex(item.trace_id), ()), item.agent_id) if not item.call_id else None
        if item.call_id:
            call = found.calls.get(bytes.fromhex(item.call_id))
        row = _row(item, now_ms) | _joined(call)
        rows.append(row)
        outcomes.append(TAKEN if call is not None else UNKNOWN_CALL)
        if item.is_bad and row["trace_id"]:
            bad.add(row["trace_id"])
    if rows:
        connection.execute(sa.insert(table), rows)
        _count(connection, [_Change(row, 1) for row in rows if row["joined"]], now_ms)
    return Taken(outcomes, bad)


def join_news(connection: Connection, now_ms: int) -> set[str]:
    """Join what waits with calls that were heard of since the last time; the traces somebody should look at."""
    call_index.lock(connection)
    runs = call_index.news(connection)
    by_call, by_trace = _waiting(connection, now_ms)
    found: dict[str, CallRecord] = {}  # feedback id -> the best so far
    rows: dict[str, Row[Any]] = {}
    for _, run in runs if by_call or by_trace else ():
        for call in find_calls(run, by_call.keys()):
            for row in by_call[call.call_id]:
                found[row.feedback_id], rows[row.feedback_id] = call, row
        for call in find_traces(run, by_trace.keys()):
            for row in by_trace[call.trace_id]:
                best = found.get(row.feedback_id)
                if row.named_agent in ("", call.agent_id) and (best is None or call.order < best.order):
                    found[row.feedback_id], rows[row.feedback_id] = call, row
    changes: list[_Change] = []
    updates = []
    bad: set[str] = set()
    for feedback_id, call in sorted(found.items()):
        row = rows[feedback_id]
        if row.joined:
            if call.order >= (row.call_rank, row.call_at_ms, bytes.fromhex(row.call_id)):
                continue
            changes.append(_Change(dict(row._mapping), -1))
        after = dict(row._mapping) | _joined(call)
        changes.append(_Change(after, 1))
        updates.append({"key": feedback_id, **_joined(call)})
        if row.complaint or (row.rating is not None and row.rating <= BAD_RATING):
            bad.add(after["trace_id"])
    if updates:
        names = [name for name in updates[0] if name != "key"]
        values = {name: sa.bindparam(name) for name in names}
        connection.execute(sa.update(table).where(table.c.feedback_id == sa.bindparam("key")).values(values), updates)
        _count(connection, changes, now_ms)
    call_index.looked(connection, [one for one, _ in runs])
    return bad


def of_trace_or_agent(
    connection: Connection,
    since_ms: int,
    agent_id: str = "",
    trace_id: str = "",
    unknown_only: bool = False,
    limit: int = 100,
) -> list[Row[Any]]:
    """Feedback that came since (unix milliseconds), newest first, without question and answer."""
    query = sa.select(*[column for column in table.columns if column.name not in _HEAVY])
    query = query.where(table.c.received_ms >= since_ms)
    if agent_id:
        query = query.where(table.c.agent_id == agent_id)
    if trace_id:
        query = query.where(table.c.trace_id == trace_id)
    if unknown_only:
        query = query.where(table.c.joined == 0)
    ordered = query.order_by(table.c.received_ms.desc(), table.c.feedback_id)
    return list(connection.execute(ordered.limit(limit)).all())


def prune(connection: Connection, before_ms: int) -> int:
    """Delete what came before and is not in an approved example, at most `PORTION`; how many."""
    approved = sa.select(examples.c.id).where(examples.c.state == "approved")
    free = sa.or_(table.c.example_id.is_(None), table.c.example_id.not_in(approved))
    some = sa.select(table.c.feedback_id).where(table.c.received_ms < before_ms, free).limit(PORTION)
    return connection.execute(sa.delete(table).where(table.c.feedback_id.in_(some))).rowcount


def erase(connection: Connection, tenant: str) -> int:
    """Delete all that a tenant's callers said, and candidates and rejected examples made of nothing else; how many.

    What is in a dataset stays as it is: datasets are immutable.
    """
    gone = connection.execute(sa.delete(table).where(table.c.tenant == tenant)).rowcount
    used = sa.select(table.c.example_id).where(table.c.example_id.is_not(None))
    left = sa.and_(examples.c.state != "approved", examples.c.id.not_in(used))
    connection.execute(sa.delete(examples).where(left))
    return gone


# -- joining -----------------------------------------------------------------------------------------------------------


class _Change(NamedTuple):
    """A row that is counted in the sums of its units, or (-1) is not any more."""

    row: Mapping[str, Any]
    sign: int


def _first(calls: Iterable[CallRecord], agent_id: str) -> CallRecord | None:
    of_agent = [call for call in calls if agent_id in ("", call.agent_id)]
    return min(of_agent, key=lambda call: call.order) if of_agent else None


def _joined(call: CallRecord | None) -> dict[str, Any]:
    """The columns that say which call it is."""
    if call is None:
        return {}
    return {
        "joined": 1,
        "call_id": call.call_id.hex(),
        "trace_id": call.trace_id.hex(),
        "agent_id": call.agent_id,
        "tenant": call.tenant,
        "variant": call.variant,
        "units": call.units,
        "call_rank": call.rank,
        "call_at_ms": call.at_ms,
    }


def _row(item: NewFeedback, now_ms: int) -> dict[str, Any]:
    return {
        "feedback_id": item.feedback_id,
        "call_id": item.call_id,
        "trace_id": item.trace_id,
        "named_agent": item.agent_id,
        "agent_id": item.agent_id,
        "tenant": "",
        "variant": "",
        "units": "",
        "by_trace": int(not item.call_id),
        "call_rank": 0,
        "call_at_ms": 0,
        "rating": item.rating,
        "correction": item.correction,
        "complaint": item.complaint,
        "labels": json.dumps(item.labels, ensure_ascii=False),
        "scores": json.dumps(dict(item.scores), ensure_ascii=False),
        "author": item.author,
        "input": item.input,
        "output": item.output,
        "at_ms": min(item.at_ms, now_ms) if item.at_ms else now_ms,  # a clock that is ahead says nothing of when
        "received_ms": now_ms,
        "joined": 0,
        "to_learn": int(bool(item.correction or item.complaint)),
    }


def _known(connection: Connection, ids: set[str]) -> set[str]:
    known: set[str] = set()
    ordered = sorted(ids)
    for at in range(0, len(ordered), _ROWS):
        query = sa.select(table.c.feedback_id).where(table.c.feedback_id.in_(ordered[at : at + _ROWS]))
        known.update(connection.execute(query).scalars())
    return known


def _waiting(connection: Connection, now_ms: int) -> tuple[dict[bytes, list[Row[Any]]], dict[bytes, list[Row[Any]]]]:
    """What waits for its call by call id, and what is by trace, settled lately or not at all."""
    columns = (
        *("feedback_id", "call_id", "trace_id", "named_agent", "agent_id", "by_trace", "joined", "variant", "units"),
        *("call_rank", "call_at_ms", "rating", "complaint", "scores"),
    )
    query = sa.select(*[table.c[name] for name in columns]).order_by(table.c.received_ms.desc()).limit(MAX_WAITING)
    waits = query.where(table.c.joined == 0, table.c.received_ms >= now_ms - WAIT_MS)
    settles = query.where(table.c.joined == 1, table.c.by_trace == 1, table.c.received_ms >= now_ms - SETTLE_MS)
    by_call: dict[bytes, list[Row[Any]]] = {}
    by_trace: dict[bytes, list[Row[Any]]] = {}
    for row in (*connection.execute(waits), *connection.execute(settles)):
        if row.by_trace:
            by_trace.setdefault(bytes.fromhex(row.trace_id), []).append(row)
        else:
            by_call.setdefault(bytes.fromhex(row.call_id), []).append(row)
    return by_call, by_trace


def _count(connection: Connection, changes: Iterable[_Change], now_ms: int) -> None:
    """Put what was said into the sums of the units of its calls."""
    told = [
        unit_sums.Told(
            row["units"],
            row["variant"],
            row["rating"],
            bool(row["complaint"]),
            json.loads(row["scores"]),
            sign,
        )
        for row, sign in changes
        if row["units"]
    ]
    if told:
        unit_sums.tell(connection, told, now_ms)
