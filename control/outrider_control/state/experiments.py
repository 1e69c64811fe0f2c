"""Experiments as they stand, and their course.

Always holds: an experiment is changed only by who knows its row's newest version; who was overtaken changes nothing and
is told so. Its course is bounded: once it is full every second look of it goes.

Deliberately not here: what an experiment's state means (`loops.experiment`).
"""

from __future__ import annotations

from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from outrider_control.state.rows import replace_rows
from outrider_control.state.schema import experiments as table
from outrider_control.state.schema import looks, splits

MAX_EXPERIMENTS = 10_000
MAX_LOOKS = 240  # kept of one experiment
_MAX_READ = 1_000


class ExperimentRow(NamedTuple):
    """One experiment. `version` grows with every change; 0: it is not in the store yet."""

    name: str
    agent_id: str
    version: int
    state: str  # draft, running, paused, stopped
    spec: bytes  # outrider.v1.ExperimentSpec
    carried: str  # JSON: from look to look
    decision: str  # JSON: the last look's
    verdict: str
    winner: str
    reason: str
    rollout: str
    author: str
    created_ms: int
    started_ms: int = 0
    stopped_ms: int = 0


class LookRow(NamedTuple):
    """One look of the course."""

    experiment: str
    number: int
    at_ms: int
    units: int
    comparisons: str  # JSON: [[variant, effect, low, high], ...]


def get(connection: Connection, name: str) -> ExperimentRow | None:
    """One; None: there is none of that name."""
    row = connection.execute(sa.select(table).where(table.c.name == name)).first()
    return ExperimentRow(*row) if row is not None else None


def in_state(connection: Connection, *states: str) -> list[ExperimentRow]:
    """Oldest first."""
    query = sa.select(table).where(table.c.state.in_(states)).order_by(table.c.created_ms, table.c.name)
    return [ExperimentRow(*row) for row in connection.execute(query)]


def newest(connection: Connection, agent_id: str = "", state: str = "") -> list[ExperimentRow]:
    """Newest first; of one agent and in one state, or all."""
    query = sa.select(table).order_by(table.c.created_ms.desc(), table.c.name).limit(_MAX_READ)
    if agent_id:
        query = query.where(table.c.agent_id == agent_id)
    if state:
        query = query.where(table.c.state == state)
    return [ExperimentRow(*row) for row in connection.execute(query)]


def ended_before(connection: Connection, before_ms: int) -> list[ExperimentRow]:
    """Those that stopped before and whose splits still stand."""
    over = sa.and_(table.c.stopped_ms > 0, table.c.stopped_ms < before_ms, table.c.name.in_(sa.select(splits.c.name)))
    return [ExperimentRow(*row) for row in connection.execute(sa.select(table).where(over).order_by(table.c.name))]


def count(connection: Connection) -> int:
    """All that are kept."""
    return connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()


def add(connection: Connection, row: ExperimentRow) -> ExperimentRow:
    """A new one, at version 1."""
    added = row._replace(version=1)
    connection.execute(sa.insert(table).values(added._asdict()))
    return added


def change(connection: Connection, row: ExperimentRow) -> ExperimentRow | None:
    """The row as it is given, at the next version; None: it has another version by now, nothing is done."""
    of_version = sa.and_(table.c.name == row.name, table.c.version == row.version)
    values = row._replace(version=row.version + 1)._asdict()
    found = connection.execute(sa.update(table).where(of_version).values(values).returning(*table.columns)).first()
    return ExperimentRow(*found) if found is not None else None


def put_look(connection: Connection, look: LookRow) -> None:
    """Add to the course."""
    replace_rows(connection, looks, [look._asdict()])
    of = looks.c.experiment == look.experiment
    kept = connection.execute(sa.select(sa.func.count()).select_from(looks).where(of)).scalar_one()
    if kept > MAX_LOOKS:
        numbers = connection.execute(sa.select(looks.c.number).where(of).order_by(looks.c.number)).scalars().all()
        gone = numbers[1:-1:2]  # the first and the last stay
        connection.execute(sa.delete(looks).where(of, looks.c.number.in_(gone)))


def course(connection: Connection, name: str) -> list[LookRow]:
    """Oldest first."""
    query = sa.select(looks).where(looks.c.experiment == name).order_by(looks.c.number)
    return [LookRow(*row) for row in connection.execute(query)]


def prune(connection: Connection, before_ms: int, portion: int) -> int:
    """Take away those that stopped before and whose splits are gone, with their courses; how many."""
    over = sa.and_(
        table.c.stopped_ms > 0, table.c.stopped_ms < before_ms, table.c.name.not_in(sa.select(splits.c.name))
    )
    names = connection.execute(sa.select(table.c.name).where(over).limit(portion)).scalars().all()
    connection.execute(sa.delete(looks).where(looks.c.experiment.in_(names)))
    return connection.execute(sa.delete(table).where(table.c.name.in_(names))).rowcount
