"""The journal of decisions: what somebody or a loop did, from what, and why.

Always holds: entries are only added, in the transaction of what they tell of, and never changed; ids grow. An entry is
bounded: of inputs or outcome past the bound only their size is kept.

Deliberately not here: how long they are kept (`retention`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from outrider_control.core.decision import Decision
from outrider_control.state.schema import decisions

_MAX_CHARS = 64 * 1024  # of inputs, of outcome
_MAX_REASON = 4_096
_MAX_READ = 10_000


def append(connection: Connection, decision: Decision) -> int:
    """The new entry's id."""
    statement = sa.insert(decisions).values(_row(decision)).returning(decisions.c.id)
    return connection.execute(statement).scalar_one()


def append_all(connection: Connection, several: Iterable[Decision]) -> None:
    """Append several at once, in their order."""
    rows = [_row(decision) for decision in several]
    if rows:
        connection.execute(sa.insert(decisions), rows)


def read(
    connection: Connection, agent_id: str = "", kind: str = "", since_ms: int = 0, limit: int = 100
) -> list[Decision]:
    """Entries, newest first; an empty filter lets all through."""
    query = sa.select(decisions).order_by(decisions.c.id.desc()).limit(max(1, min(limit, _MAX_READ)))
    if agent_id:
        query = query.where(decisions.c.agent_id == agent_id)
    if kind:
        query = query.where(decisions.c.kind == kind)
    if since_ms:
        query = query.where(decisions.c.at_ms >= since_ms)
    return [
        Decision(
            row.kind, row.author, row.reason, row.agent_id, json.loads(row.inputs), json.loads(row.outcome), row.at_ms,
            row.id,
        )
        for row in connection.execute(query)
    ]  # fmt: skip


def stored(text: str) -> str:
    """Somebody's words as they can be kept: bounded, and without NUL, which PostgreSQL does not take."""
    return text[:_MAX_REASON].replace("\0", "")


def _row(decision: Decision) -> dict[str, Any]:
    return {
        "at_ms": decision.at_ms,
        "kind": decision.kind,
        "agent_id": decision.agent_id,
        "author": stored(decision.author),
        "reason": stored(decision.reason),
        "inputs": _text(decision.inputs),
        "outcome": _text(decision.outcome),
    }


def _text(values: Mapping[str, Any]) -> str:
    text = json.dumps(dict(values), ensure_ascii=False)
    return text if len(text) <= _MAX_CHARS else json.dumps({"truncated_chars": len(text)})
