"""Learning examples: made of corrections and complaints, approved, edited or rejected by people.

Always holds: a piece of feedback is in one example at most, and is counted there once; feedback that says the same of
the same question of an agent is one example. What nobody sent is empty, never made up. A review changes an example and
is in the journal in one transaction; the journal holds nobody's words but the reason. What a reviewer wrote is not
changed by feedback that comes later.

Deliberately not here: when candidates are made (the leader's chores), frozen examples (`datasets`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from outrider_control.core.decision import Decision
from outrider_control.core.example_key import group_of, key_of
from outrider_control.state import call_index, journal
from outrider_control.state.schema import examples as table
from outrider_control.state.schema import feedback

CANDIDATE, APPROVED, REJECTED = "candidate", "approved", "rejected"
STATES = (CANDIDATE, APPROVED, REJECTED)
MAX_TRACES = 20  # of one example
MAX_LABELS = 50
PORTION = 500  # pieces of feedback that become examples in one transaction
WAIT_MS = 60_000  # what waits longer goes without others
UNKNOWN_WAIT_MS = 600_000  # feedback of an agent whose call is not known by then is learnt from all the same


class UnknownExample(LookupError):
    """There is no such example."""


class ExampleRow(NamedTuple):
    """One example."""

    id: int
    agent_id: str
    input: str
    output: str
    correction: str
    complaint: str
    labels: list[str]
    state: str
    trace_ids: list[str]
    count: int
    first_ms: int
    last_ms: int
    reviewer: str
    review_reason: str
    group: str


class Review(NamedTuple):
    """What somebody decided; None leaves a text as it is."""

    state: str
    reason: str
    author: str
    input: str | None = None
    correction: str | None = None


def are_due(connection: Connection, min_batch: int, now_ms: int) -> bool:
    """Whether so many pieces wait, or one has waited long enough."""
    ready = _ready(now_ms)
    query = sa.select(feedback.c.received_ms).where(ready).order_by(feedback.c.received_ms).limit(min_batch)
    waiting = connection.execute(query).scalars().all()
    return len(waiting) >= min_batch or (len(waiting) > 0 and waiting[0] <= now_ms - WAIT_MS)


def gather(connection: Connection, now_ms: int) -> int:
    """Make candidates of what waits, the oldest first, or add it to the examples there are; how many pieces."""
    call_index.lock(connection)
    query = sa.select(feedback).where(_ready(now_ms)).order_by(feedback.c.received_ms, feedback.c.feedback_id)
    rows = connection.execute(query.limit(PORTION)).all()
    together: dict[tuple[str, str], list[Row[Any]]] = {}
    for row in rows:
        together.setdefault((row.agent_id, key_of(row.agent_id, row.input, row.correction, row.complaint)), []).append(
            row
        )
    for (agent_id, key), same in together.items():
        example_id = _merge(connection, agent_id, key, same)
        ids = [row.feedback_id for row in same]
        taken = sa.update(feedback).where(feedback.c.feedback_id.in_(ids)).values(to_learn=0, example_id=example_id)
        connection.execute(taken)
    return len(rows)


def listed(
    connection: Connection, agent_id: str = "", state: str = "", after_id: int = 0, limit: int = 100
) -> list[ExampleRow]:
    """Examples in the order of their ids."""
    query = sa.select(table).where(table.c.id > after_id).order_by(table.c.id).limit(limit)
    if agent_id:
        query = query.where(table.c.agent_id == agent_id)
    if state:
        query = query.where(table.c.state == state)
    return [_example(row) for row in connection.execute(query)]


def counts(connection: Connection, agent_id: str = "") -> dict[str, int]:
    """How many there are in each state."""
    query = sa.select(table.c.state, sa.func.count()).group_by(table.c.state)
    if agent_id:
        query = query.where(table.c.agent_id == agent_id)
    found: dict[str, int] = {row[0]: row[1] for row in connection.execute(query)}
    return {state: found.get(state, 0) for state in STATES}


def review(connection: Connection, example_id: int, done: Review, now_ms: int) -> ExampleRow:
    """The example as it is after a review. UnknownExample."""
    row = connection.execute(sa.select(table).where(table.c.id == example_id).with_for_update()).first()
    if row is None:
        raise UnknownExample(example_id)
    values: dict[str, Any] = {
        "state": done.state,
        "reviewer": journal.stored(done.author),
        "review_reason": journal.stored(done.reason),
        "reviewed_ms": now_ms,
    }
    edited = []
    for name, text in (("input", done.input), ("correction", done.correction)):
        if text is not None and text != getattr(row, name):
            values[name] = text
            edited.append(name)
    if "input" in edited:  # it is in the part of the question it asks, which is not the one that was sent
        values["group_key"] = group_of(row.agent_id, values["input"], row.key)
    after = connection.execute(
        sa.update(table).where(table.c.id == example_id).values(**values).returning(*table.columns)
    ).one()
    inputs = {"id": example_id, "state": row.state, "count": row.pieces}
    outcome = {"id": example_id, "state": done.state, "edited": edited}
    journal.append(connection, Decision("example", done.author, done.reason, row.agent_id, inputs, outcome, now_ms))
    return _example(after)


def prune(connection: Connection, before_ms: int, portion: int) -> int:
    """Delete what is not approved and was said last before; how many."""
    over = sa.and_(table.c.state != APPROVED, table.c.last_ms < before_ms)
    some = sa.select(table.c.id).where(over).limit(portion)
    return connection.execute(sa.delete(table).where(table.c.id.in_(some))).rowcount


def _ready(now_ms: int) -> sa.ColumnElement[bool]:
    """What can become an example now: a call that is not known yet may still say whose it was."""
    unknown = sa.and_(feedback.c.agent_id != "", feedback.c.received_ms <= now_ms - UNKNOWN_WAIT_MS)
    return sa.and_(feedback.c.to_learn == 1, sa.or_(feedback.c.joined == 1, unknown))


def _merge(connection: Connection, agent_id: str, key: str, same: Sequence[Row[Any]]) -> int:
    """The id of the example that these pieces of feedback are."""
    row = connection.execute(
        sa.select(table).where(table.c.agent_id == agent_id, table.c.key == key).with_for_update()
    ).first()
    labels = _gathered(row.labels if row is not None else "[]", [json.loads(one.labels) for one in same], MAX_LABELS)
    traces = _gathered(
        row.trace_ids if row is not None else "[]", [[one.trace_id] for one in same if one.trace_id], MAX_TRACES
    )
    values: dict[str, Any] = {
        "labels": labels,
        "trace_ids": traces,
        "pieces": len(same) + (row.pieces if row is not None else 0),
        "first_ms": min([one.at_ms for one in same] + ([row.first_ms] if row is not None else [])),
        "last_ms": max([one.at_ms for one in same] + ([row.last_ms] if row is not None else [])),
    }
    if row is not None:
        if not row.output and row.state == CANDIDATE:
            values["output"] = next((one.output for one in same if one.output), "")
        connection.execute(sa.update(table).where(table.c.id == row.id).values(**values))
        return row.id
    first = same[0]
    values |= {
        "agent_id": agent_id,
        "key": key,
        "group_key": group_of(agent_id, first.input, key),
        "state": CANDIDATE,
        "input": first.input,
        "output": next((one.output for one in same if one.output), ""),
        "correction": first.correction,
        "complaint": first.complaint,
    }
    return connection.execute(sa.insert(table).values(**values).returning(table.c.id)).scalar_one()


def _gathered(there: str, more: Sequence[Sequence[str]], most: int) -> str:
    """A JSON list with what is new in it, in the order it came, up to the bound."""
    together = dict.fromkeys([*json.loads(there), *[one for some in more for one in some]])
    return json.dumps(list(together)[:most], ensure_ascii=False)


def _example(row: Any) -> ExampleRow:
    return ExampleRow(
        row.id, row.agent_id, row.input, row.output, row.correction, row.complaint, json.loads(row.labels), row.state,
        json.loads(row.trace_ids), row.pieces, row.first_ms, row.last_ms, row.reviewer, row.review_reason,
        row.group_key,
    )  # fmt: skip
