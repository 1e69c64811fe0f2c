"""Rollouts as they stand, and the outbox: what is still to be told of them.

Always holds: a rollout is changed only by who knows its row's newest version; who was overtaken changes nothing and is
told so. A message is in the outbox from the transaction of what it tells of until it was delivered or given up; those
of one URL go in order. The outbox is bounded.

Deliberately not here: what a rollout's state means (`loops.rollout`), sending (`loops.rollout.webhook`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from outrider_control.state.schema import outbox, splits
from outrider_control.state.schema import rollouts as table

MAX_OUTBOX = 10_000
MAX_ROLLOUTS = 10_000
MAX_BACKOFF_MS = 300_000  # between two attempts
_MAX_READ = 1_000


class RolloutRow(NamedTuple):
    """One rollout. `version` grows with every change; 0: it is not in the store yet."""

    name: str
    agent_id: str
    version: int
    phase: str
    spec: bytes  # outrider.v1.RolloutSpec
    state: str  # JSON
    author: str
    experiment: str  # whose verdict began it; empty: none
    split: str  # whose weights it moves
    split_version: int  # the revision of the split as it was last put
    created_ms: int
    ended_ms: int = 0


class Message(NamedTuple):
    """What one URL is to be told."""

    id: int
    rollout: str
    agent_id: str
    url: str
    body: str  # JSON
    key: str  # the same for every attempt
    created_ms: int
    attempts: int
    due_ms: int


def get(connection: Connection, name: str) -> RolloutRow | None:
    """One; None: there is none of that name."""
    row = connection.execute(sa.select(table).where(table.c.name == name)).first()
    return RolloutRow(*row) if row is not None else None


def under_way(connection: Connection, agent_id: str = "") -> list[RolloutRow]:
    """Those that have not ended, oldest first; of one agent, or of all."""
    query = sa.select(table).where(table.c.ended_ms == 0).order_by(table.c.created_ms, table.c.name)
    if agent_id:
        query = query.where(table.c.agent_id == agent_id)
    return [RolloutRow(*row) for row in connection.execute(query)]


def newest(connection: Connection, agent_id: str = "", limit: int = _MAX_READ) -> list[RolloutRow]:
    """Newest first; of one agent, or of all."""
    query = sa.select(table).order_by(table.c.created_ms.desc(), table.c.name).limit(limit)
    if agent_id:
        query = query.where(table.c.agent_id == agent_id)
    return [RolloutRow(*row) for row in connection.execute(query)]


def of_split(connection: Connection, split: str) -> RolloutRow | None:
    """The newest one that moves the weights of a split."""
    query = sa.select(table).where(table.c.split == split).order_by(table.c.created_ms.desc(), table.c.name).limit(1)
    row = connection.execute(query).first()
    return RolloutRow(*row) if row is not None else None


def count(connection: Connection) -> int:
    """All that are kept."""
    return connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()


def add(connection: Connection, row: RolloutRow) -> RolloutRow:
    """A new one, at version 1."""
    added = row._replace(version=1)
    connection.execute(sa.insert(table).values(added._asdict()))
    return added


def change(connection: Connection, row: RolloutRow) -> RolloutRow | None:
    """The row as it is given, at the next version; None: it has another version by now, nothing is done."""
    of_version = sa.and_(table.c.name == row.name, table.c.version == row.version)
    values = row._replace(version=row.version + 1)._asdict()
    found = connection.execute(sa.update(table).where(of_version).values(values).returning(*table.columns)).first()
    return RolloutRow(*found) if found is not None else None


def prune(connection: Connection, before_ms: int, portion: int) -> int:
    """Take away those that ended before, but for the newest of a split that stands; how many."""
    other = table.alias()
    followed = sa.exists().where(other.c.split == table.c.split, other.c.created_ms > table.c.created_ms)
    void = sa.or_(table.c.split.not_in(sa.select(splits.c.name)), followed)
    over = sa.and_(table.c.ended_ms > 0, table.c.ended_ms < before_ms, void)
    some = sa.select(table.c.name).where(over).limit(portion)
    return connection.execute(sa.delete(table).where(table.c.name.in_(some))).rowcount


# -- the outbox ------------------------------------------------------------------------------------------------------


def tell(connection: Connection, row: RolloutRow, urls: Sequence[str], body: str, key: str, now_ms: int) -> int:
    """A message for each URL; how many were taken: 0 where the outbox is full."""
    if not urls:
        return 0
    waiting = connection.execute(sa.select(sa.func.count()).select_from(outbox)).scalar_one()
    if waiting + len(urls) > MAX_OUTBOX:
        return 0
    message: dict[str, Any] = {
        "rollout": row.name,
        "agent_id": row.agent_id,
        "body": body,
        "key": key,
        "created_ms": now_ms,
        "attempts": 0,
        "due_ms": now_ms,
    }
    connection.execute(sa.insert(outbox), [{**message, "url": url} for url in urls])
    return len(urls)


def due(connection: Connection, now_ms: int, limit: int) -> list[Message]:
    """What is to be sent: of each URL the oldest, if its time has come.

    A message that is due further ahead than any backoff waits for a clock that was set back: it is due too.
    """
    first = sa.select(sa.func.min(outbox.c.id)).group_by(outbox.c.url)
    now = sa.or_(outbox.c.due_ms <= now_ms, outbox.c.due_ms > now_ms + MAX_BACKOFF_MS)
    query = sa.select(outbox).where(outbox.c.id.in_(first), now)
    return [Message(*row) for row in connection.execute(query.order_by(outbox.c.due_ms, outbox.c.id).limit(limit))]


def delivered(connection: Connection, ids: Iterable[int]) -> None:
    """They are told."""
    connection.execute(sa.delete(outbox).where(outbox.c.id.in_(list(ids))))


def failed(connection: Connection, message_id: int, attempts: int, due_ms: int) -> None:
    """One is to be tried again."""
    connection.execute(sa.update(outbox).where(outbox.c.id == message_id).values(attempts=attempts, due_ms=due_ms))


def waiting(connection: Connection) -> list[Message]:
    """All of the outbox, oldest first."""
    return [Message(*row) for row in connection.execute(sa.select(outbox).order_by(outbox.c.id))]
