"""How content callers are: ratings and complaints of calls that are known, by agent, variant and time.

Always holds: only feedback that is joined with its call counts, by the time it was given; a mean of nothing is None,
never 0.

Deliberately not here: feedback itself (`feedback`), the sums that experiments decide on (`unit_sums`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from outrider_control.state.schema import feedback as table

MAX_ROWS = 10_000


class Ratings(NamedTuple):
    """Sums of one agent, variant or time."""

    ratings: int
    total: float
    complaints: int

    @property
    def mean(self) -> float | None:
        return self.total / self.ratings if self.ratings else None


NOTHING = Ratings(0, 0.0, 0)


def by_variant(connection: Connection, from_ms: int, to_ms: int, agent_id: str = "") -> dict[tuple[str, str], Ratings]:
    """By (agent, "split=variant"); under (agent, "") all of the agent's. A call in several splits is in each."""
    rows = _sums(connection, (table.c.agent_id, table.c.variant), from_ms, to_ms, agent_id)
    found: dict[tuple[str, str], Ratings] = {}
    for (agent, variant), sums in rows:
        for one in ("", *[pair for pair in variant.split(",") if pair]):
            found[agent, one] = together((found.get((agent, one), NOTHING), sums))
    return dict(sorted(found.items()))


def by_agent(connection: Connection, from_ms: int, to_ms: int, agent_id: str = "") -> dict[str, Ratings]:
    """By agent."""
    return {agent: sums for (agent,), sums in _sums(connection, (table.c.agent_id,), from_ms, to_ms, agent_id)}


def by_text(connection: Connection, from_ms: int, to_ms: int, agent_id: str = "") -> dict[str, Ratings]:
    """By the variants of a call together, as its span has them: "split=variant[,...]"."""
    rows = _sums(connection, (table.c.variant,), from_ms, to_ms, agent_id)
    return {variant: sums for (variant,), sums in rows}


def by_window(
    connection: Connection, from_ms: int, to_ms: int, window_ms: int, agent_id: str = ""
) -> dict[int, Ratings]:
    """By the start of the window it was given in, unix milliseconds."""
    start = table.c.at_ms - table.c.at_ms % window_ms
    return {start_ms: sums for (start_ms,), sums in _sums(connection, (start,), from_ms, to_ms, agent_id)}


def together(several: Iterable[Ratings]) -> Ratings:
    """The sums of all."""
    ratings, total, complaints = NOTHING
    for one in several:
        ratings, total, complaints = ratings + one.ratings, total + one.total, complaints + one.complaints
    return Ratings(ratings, total, complaints)


def _sums(
    connection: Connection, by: tuple[sa.ColumnElement[Any], ...], from_ms: int, to_ms: int, agent_id: str
) -> list[tuple[tuple[Any, ...], Ratings]]:
    complains = sa.case((table.c.complaint != "", 1), else_=0)
    query = sa.select(*by, sa.func.count(table.c.rating), sa.func.sum(table.c.rating), sa.func.sum(complains)).where(
        table.c.joined == 1, table.c.at_ms >= from_ms, table.c.at_ms <= to_ms
    )
    if agent_id:
        query = query.where(table.c.agent_id == agent_id)
    rows = connection.execute(query.group_by(*by).limit(MAX_ROWS)).all()
    return [(row[:-3], Ratings(row[-3], float(row[-2] or 0.0), int(row[-1] or 0))) for row in map(tuple, rows)]
