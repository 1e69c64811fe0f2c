"""Datasets: approved examples of an agent, frozen under a version.

Always holds: a version is written once, line by line as it is exported, and nothing changes it: the same version gives
the same bytes for ever, whatever becomes of its examples. Examples of one group (one question) are in one part, and
that part is the same in every version: the shares that are asked for divide what no version has divided yet.

Deliberately not here: what an example is (`examples`), its line and its part (`core.example_key`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from outrider_control.core import example_key
from outrider_control.core.decision import Decision
from outrider_control.core.example_key import PARTS, Shares
from outrider_control.state import call_index, journal
from outrider_control.state.examples import APPROVED, ExampleRow, listed
from outrider_control.state.schema import dataset_items as items
from outrider_control.state.schema import datasets as table

MAX_EXAMPLES = 100_000  # of one version
_ROWS = 200  # of one statement; an example has up to some 140 KB
READ_ROWS = 200


class NothingApproved(LookupError):
    """The agent has no approved examples."""


class TooMany(ValueError):
    """The agent has more approved examples than a version holds."""


class DatasetRow(NamedTuple):
    """One version, without its lines."""

    agent_id: str
    version: int
    created_ms: int
    author: str
    reason: str
    counts: dict[str, int]
    digest: str


def create(connection: Connection, agent_id: str, shares: Shares, author: str, reason: str, now_ms: int) -> DatasetRow:
    """Freeze all approved examples of an agent. NothingApproved, TooMany."""
    call_index.lock(connection)
    version = _next_version(connection, agent_id, author, reason, now_ms)
    digest = hashlib.sha256()
    counts: dict[str, int] = dict.fromkeys(PARTS, 0)
    divided: dict[str, str] = {}
    position = after_id = 0
    while rows := listed(connection, agent_id, APPROVED, after_id, _ROWS):
        after_id = rows[-1].id
        _divide(connection, agent_id, version, rows, shares, divided)
        lines = []
        for row in rows:
            part = divided[row.group]
            line = example_key.line(
                row.id, part, row.input, row.output, row.correction, row.complaint, row.labels, row.trace_ids
            )
            lines.append(_item(agent_id, version, position, part, row.group, line))
            digest.update(line.encode())
            counts[part] += 1
            position += 1
        if position > MAX_EXAMPLES:
            raise TooMany(f"{agent_id}: more than {MAX_EXAMPLES:,} approved examples")
        connection.execute(sa.insert(items), lines)
    if not position:
        raise NothingApproved(agent_id)
    found = DatasetRow(agent_id, version, now_ms, author, reason, counts, digest.hexdigest())
    mine = sa.and_(table.c.agent_id == agent_id, table.c.version == version)
    connection.execute(sa.update(table).where(mine).values(counts=json.dumps(counts), digest=found.digest))
    outcome = {"version": version, "counts": counts, "digest": found.digest}
    journal.append(connection, Decision("dataset", author, reason, agent_id, shares._asdict(), outcome, now_ms))
    return found


def all_versions(connection: Connection, agent_id: str = "", limit: int = 1_000) -> list[DatasetRow]:
    """Versions, newest first."""
    query = sa.select(table).order_by(table.c.created_ms.desc(), table.c.agent_id, table.c.version.desc()).limit(limit)
    if agent_id:
        query = query.where(table.c.agent_id == agent_id)
    return [_dataset(row) for row in connection.execute(query)]


def of_version(connection: Connection, agent_id: str, version: int = 0) -> DatasetRow | None:
    """One version; 0: the newest. None: there is none."""
    query = sa.select(table).where(table.c.agent_id == agent_id)
    if version:
        query = query.where(table.c.version == version)
    row = connection.execute(query.order_by(table.c.version.desc()).limit(1)).first()
    return _dataset(row) if row is not None else None


def lines(
    connection: Connection, agent_id: str, version: int, part: str = "", after: int = -1
) -> list[tuple[int, str]]:
    """(position, line), the first `READ_ROWS` after a position."""
    query = sa.select(items.c.position, items.c.line)
    query = query.where(items.c.agent_id == agent_id, items.c.version == version, items.c.position > after)
    if part:
        query = query.where(items.c.part == part)
    rows = connection.execute(query.order_by(items.c.position).limit(READ_ROWS))
    return [(row.position, row.line) for row in rows]


def _next_version(connection: Connection, agent_id: str, author: str, reason: str, now_ms: int) -> int:
    """The number of a version that is begun."""
    newest = sa.select(sa.func.coalesce(sa.func.max(table.c.version), 0)).where(table.c.agent_id == agent_id)
    version = int(connection.execute(newest).scalar_one()) + 1
    row = {
        "agent_id": agent_id,
        "version": version,
        "created_ms": now_ms,
        "author": journal.stored(author),
        "reason": journal.stored(reason),
        "counts": "{}",
        "digest": "",
    }
    connection.execute(sa.insert(table), [row])
    return version


def _divide(
    connection: Connection,
    agent_id: str,
    version: int,
    rows: Sequence[ExampleRow],
    shares: Shares,
    divided: dict[str, str],
) -> None:
    """Say which part each group is in: as in the versions before, else by its hash."""
    fresh = sorted({row.group for row in rows} - divided.keys())
    if not fresh:
        return
    query = sa.select(items.c.group_key, items.c.part).distinct()
    before = query.where(items.c.agent_id == agent_id, items.c.group_key.in_(fresh), items.c.version < version)
    divided.update({row.group_key: row.part for row in connection.execute(before)})
    for group in fresh:
        divided.setdefault(group, example_key.part_of(group, shares))


def _item(agent_id: str, version: int, position: int, part: str, group: str, line: str) -> dict[str, Any]:
    return {
        "agent_id": agent_id,
        "version": version,
        "position": position,
        "part": part,
        "group_key": group,
        "line": line,
    }


def _dataset(row: Row[Any]) -> DatasetRow:
    return DatasetRow(
        row.agent_id, row.version, row.created_ms, row.author, row.reason, json.loads(row.counts), row.digest
    )
