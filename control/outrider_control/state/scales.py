"""How many instances each agent is to have, who paused that, and what the leader last said of it.

Always holds: a number is changed only by who knows the row's newest version, together with its entry in the journal;
who was overtaken changes nothing and is told so. Pausing raises the version too: a change that was on its way loses.

Deliberately not here: what the number should be (`loops.scale`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from outrider_control.core.decision import Decision
from outrider_control.state import journal, schema
from outrider_control.state.schema import scales as table
from outrider_control.state.upsert import upsert

_MAX_REPORT = 64 * 1024  # characters


class ScaleRow(NamedTuple):
    """One agent. Version 0: there is no row that counts yet."""

    agent_id: str
    version: int = 0
    desired: int | None = None
    changed_ms: int = 0  # when `desired` was last changed; 0: never
    paused_ms: int = 0  # 0: it is not paused
    paused_by: str = ""
    paused_reason: str = ""
    report: str = ""  # JSON
    reported_ms: int = 0


def current(connection: Connection) -> dict[str, ScaleRow]:
    """All rows, by agent."""
    return {row.agent_id: ScaleRow(*row) for row in connection.execute(sa.select(table).order_by(table.c.agent_id))}


def of_agent(connection: Connection, agent_id: str) -> ScaleRow:
    """One row; where there is none, one of version 0."""
    row = connection.execute(sa.select(table).where(table.c.agent_id == agent_id)).first()
    return ScaleRow(*row) if row is not None else ScaleRow(agent_id)


def change(
    connection: Connection, agent_id: str, version: int, desired: int, changed_ms: int, entry: Decision | None
) -> ScaleRow | None:
    """The row with a new number, and `entry` in the journal; None: it has another version by now, nothing is done."""
    row = _put(connection, agent_id, version, desired=desired, changed_ms=changed_ms)
    if row is not None and entry is not None:
        journal.append(connection, entry)
    return row


def pause(connection: Connection, agent_id: str, author: str, reason: str, now_ms: int) -> ScaleRow:
    """The row, paused, with an entry in the journal."""
    standing = _held(connection, agent_id)
    values = {"paused_ms": max(1, now_ms), "paused_by": journal.stored(author), "paused_reason": journal.stored(reason)}
    row = _put(connection, agent_id, standing.version, **values)
    assert row is not None  # its row is held
    journal.append(connection, _entry(row, author, reason, "pause", now_ms))
    return row


def resume(connection: Connection, agent_id: str, author: str, reason: str, now_ms: int) -> ScaleRow:
    """The row, not paused any more, with an entry in the journal; as it is where it was not paused."""
    standing = _held(connection, agent_id)
    if not standing.paused_ms:
        return standing
    row = _put(connection, agent_id, standing.version, paused_ms=0, paused_by="", paused_reason="")
    assert row is not None  # its row is held
    journal.append(connection, _entry(row, author, reason, "resume", now_ms))
    return row


def is_newest(connection: Connection, agent_id: str, version: int) -> bool:
    """Whether nobody has changed the row since."""
    return of_agent(connection, agent_id).version == version


def report(connection: Connection, reports: Iterable[tuple[str, str]], now_ms: int) -> None:
    """What the leader says of agents, as JSON; it changes no version. One that is too long is left out."""
    rows = [
        {"agent_id": agent_id, "report": text, "reported_ms": now_ms}
        for agent_id, text in sorted(reports)
        if len(text) <= _MAX_REPORT
    ]
    if rows:
        connection.execute(upsert(connection, table, ["agent_id"], ["report", "reported_ms"]), rows)


def prune(connection: Connection) -> int:
    """Take away rows of agents that are deleted; how many."""
    live = sa.select(schema.agents.c.agent_id).where(schema.agents.c.deleted == 0)
    return connection.execute(sa.delete(table).where(table.c.agent_id.not_in(live))).rowcount


def _entry(row: ScaleRow, author: str, reason: str, action: str, now_ms: int) -> Decision:
    return Decision("scale", author, reason, row.agent_id, {}, {"action": action, "desired": row.desired}, now_ms)


def _held(connection: Connection, agent_id: str) -> ScaleRow:
    """The row, made where there is none, and nobody else changes it before this transaction ends."""
    connection.execute(upsert(connection, table, ["agent_id"], []), [{"agent_id": agent_id}])
    held = sa.select(table).where(table.c.agent_id == agent_id).with_for_update()
    return ScaleRow(*connection.execute(held).one())


def _put(connection: Connection, agent_id: str, version: int, **values: object) -> ScaleRow | None:
    if not version:  # a row of version 0 may be there for its report
        connection.execute(upsert(connection, table, ["agent_id"], []), [{"agent_id": agent_id}])
    of_version = sa.and_(table.c.agent_id == agent_id, table.c.version == version)
    statement = sa.update(table).where(of_version).values(version=version + 1, **values).returning(*table.columns)
    row = connection.execute(statement).first()
    return ScaleRow(*row) if row is not None else None
