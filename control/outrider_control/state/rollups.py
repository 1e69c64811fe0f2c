"""Figures in the store: what came in (deltas), and what it adds up to by window and series (rollups).

A commit appends one delta. The fold takes deltas, adds them to the rollups of ten seconds, a minute, ten minutes and
an hour, and deletes them, in one transaction: whatever happens in between, a delta is either there or in the rollups.
Beside the rows of its series each agent has a row of their total (`TOTAL`), so that no question about an agent as a
whole depends on how many series it has.

Always holds: rollups and deltas together are exactly what was committed; folds exclude each other, on PostgreSQL too.

Deliberately not here: who may have a series (`core.cardinality`), answers (`intake.reader`), when to fold
(`intake.fold`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection, delete, insert, select

from outrider_control.core.cardinality import IDLE_MS, Cardinality
from outrider_control.core.figures import Figures
from outrider_control.core.query import KEEP_S, LEVELS_S, Piece
from outrider_control.core.sample import SeriesKey
from outrider_control.core.windows import Windows
from outrider_control.state import named_metrics
from outrider_control.state.schema import batches, deltas, meta, rollups, series
from outrider_control.state.upsert import upsert

TOTAL = 0  # the "series" of all of an agent's series together; ids count from 1
MAX_DELTAS = 256  # of one fold
MAX_WINDOWS = 1_000  # of ten seconds, of one fold: it holds the writer
_ROWS = 400  # of one statement: within SQLite's bound of parameters
_HOUR_S = 3600
_FOLDS = "folds"  # the row of `meta`

_series_key = (series.c.agent_id, series.c.method, series.c.variant, series.c.endpoint, series.c.tenant)
_rollup_key = (rollups.c.window_s, rollups.c.agent_id, rollups.c.start_s, rollups.c.series_id)


class RollupKey(NamedTuple):
    """One row."""

    window_s: int
    agent_id: str
    start_s: int
    series_id: int


class Folded(NamedTuple):
    """What a fold did."""

    deltas: int  # taken
    rows: int  # of rollups written
    unreadable: int  # deltas and rows that were not figures: they are gone
    more: bool  # whether there is more to fold at once


# Taking in


def take_sequence(connection: Connection, source: str, sequence: int, now_ms: int) -> bool:
    """Whether a batch of a source is new; if so it is now the last one taken."""
    statement = upsert(
        connection,
        batches,
        ("source",),
        ("sequence", "seen_ms"),
        where=lambda new: new.sequence > batches.c.sequence,
    )
    row = {"source": source, "sequence": sequence, "seen_ms": now_ms}
    return connection.execute(statement.returning(batches.c.sequence), row).first() is not None


def append_delta(connection: Connection, figures: bytes) -> None:
    """Adds what one commit took in: `Windows.encode()`."""
    connection.execute(insert(deltas).values(figures=figures))


# Folding


def fold(
    connection: Connection,
    now_ms: int,
    cardinality: Cardinality,
    max_deltas: int = MAX_DELTAS,
    max_windows: int = MAX_WINDOWS,
) -> Folded:
    """Moves deltas into the rollups, oldest first; what is more than `max_windows` goes back as one delta."""
    if connection.execute(select(deltas.c.id).limit(1)).first() is None:
        return Folded(0, 0, 0, False)
    lock_folds(connection)
    rows = connection.execute(select(deltas.c.id, deltas.c.figures).order_by(deltas.c.id).limit(max_deltas)).all()
    together = Windows()
    unreadable = 0
    for _, data in rows:
        try:
            together.merge(Windows.decode(data))
        except ValueError:
            unreadable += 1
    rest = _cut(together, max_windows)
    named_metrics.merge(connection, together.metrics)
    written, odd = _add(connection, _place(together, now_ms, cardinality))
    for part in _parts([row.id for row in rows]):
        connection.execute(delete(deltas).where(deltas.c.id.in_(part)))
    if rest:
        append_delta(connection, rest.encode())
    return Folded(len(rows), written, unreadable + odd, bool(rest) or len(rows) == max_deltas)


def lock_folds(connection: Connection) -> None:
    """Waits for any other fold to end; none begins before this transaction has ended.

    The row that is locked counts folds, for `folds`.
    """
    statement = upsert(connection, meta, ("name",), ())
    connection.execute(statement, {"name": _FOLDS, "number": 0, "text": ""})
    connection.execute(sa.update(meta).where(meta.c.name == _FOLDS).values(number=meta.c.number + 1))


def folds(connection: Connection) -> int:
    """How many folds there were. While it stays the same no delta went, and no id of one stands for another."""
    return connection.execute(select(meta.c.number).where(meta.c.name == _FOLDS)).scalar() or 0


def _cut(windows: Windows, bound: int) -> Windows:
    """Takes away what is more than the bound, agent by agent as far as that goes, and gives it back."""
    rest = Windows()
    if len(windows.figures) > bound:
        keys = sorted(windows.figures, key=lambda key: (key.series.agent_id, key.start_s, key.series))
        rest.figures = {key: windows.figures.pop(key) for key in keys[bound:]}
    if len(windows.metrics) > bound:
        rest.metrics = {key: windows.metrics.pop(key) for key in sorted(windows.metrics)[bound:]}
    return rest


def _place(windows: Windows, now_ms: int, cardinality: Cardinality) -> dict[tuple[int, SeriesKey], Figures]:
    """By ten seconds and the series that has a place in the store."""
    placed: dict[tuple[int, SeriesKey], Figures] = {}
    for (start_s, key), figures in windows.figures.items():
        place = (start_s, cardinality.place(key, now_ms))
        if place in placed:
            placed[place].merge(figures)
        else:
            placed[place] = figures
    return placed


def _add(connection: Connection, placed: Mapping[tuple[int, SeriesKey], Figures]) -> tuple[int, int]:
    """Adds figures to the rows of every level; how many rows, and how many of them could not be read."""
    ids = _series_ids(connection, {key for _, key in placed})
    level: dict[RollupKey, Figures] = {}
    for (start_s, key), figures in placed.items():
        level[RollupKey(LEVELS_S[0], key.agent_id, start_s, ids[key])] = figures
        total = RollupKey(LEVELS_S[0], key.agent_id, start_s, TOTAL)
        level.setdefault(total, Figures()).merge(figures)
    adding = dict(level)
    for window_s in LEVELS_S[1:]:
        level = _coarser(level, window_s)
        adding.update(level)
    unreadable = 0
    for key, data in _stored(connection, adding):
        try:
            adding[key].merge(Figures.decode(data))
        except ValueError:
            unreadable += 1
    if adding:
        names = [column.name for column in _rollup_key]
        rows = [dict(zip(names, key, strict=True), figures=figures.encode()) for key, figures in adding.items()]
        connection.execute(upsert(connection, rollups, names, ("figures",)), rows)
    return len(adding), unreadable


def _stored(connection: Connection, keys: Iterable[RollupKey]) -> Iterator[tuple[RollupKey, bytes]]:
    """The rows there are already: one question for all agents that ask for the same windows."""
    wanted = set(keys)
    starts: dict[tuple[int, str], set[int]] = {}
    for key in wanted:
        starts.setdefault((key.window_s, key.agent_id), set()).add(key.start_s)
    agents: dict[tuple[int, frozenset[int]], list[str]] = {}
    for (window_s, agent_id), of_agent in starts.items():
        agents.setdefault((window_s, frozenset(of_agent)), []).append(agent_id)
    for (window_s, of_agents), names in agents.items():
        for some_starts in _parts(sorted(of_agents)):
            for some_agents in _parts(names):
                rows = select(rollups).where(
                    rollups.c.window_s == window_s,
                    rollups.c.agent_id.in_(some_agents),
                    rollups.c.start_s.in_(some_starts),
                )
                for *found, data in connection.execute(rows):
                    if (key := RollupKey(*found)) in wanted:
                        yield key, data


def _coarser(level: Mapping[RollupKey, Figures], window_s: int) -> dict[RollupKey, Figures]:
    coarser: dict[RollupKey, Figures] = {}
    for key, figures in level.items():
        wider = key._replace(window_s=window_s, start_s=key.start_s // window_s * window_s)
        found = coarser.get(wider)
        if found is None:
            found = coarser[wider] = Figures()
        found.merge(figures)
    return coarser


def _series_ids(connection: Connection, keys: set[SeriesKey]) -> dict[SeriesKey, int]:
    ids = _known_ids(connection, keys)
    missing = [key._asdict() for key in keys if key not in ids]
    if missing:
        connection.execute(insert(series), missing)
        ids |= _known_ids(connection, {key for key in keys if key not in ids})
    return ids


def _known_ids(connection: Connection, keys: set[SeriesKey]) -> dict[SeriesKey, int]:
    found: dict[SeriesKey, int] = {}
    for part in _parts(sorted({key.agent_id for key in keys})):
        rows = connection.execute(select(series.c.id, *_series_key).where(series.c.agent_id.in_(part)))
        for number, *names in rows:
            if (key := SeriesKey(*names)) in keys:
                found[key] = number
    return found


def _parts(items: Sequence) -> Iterator[Sequence]:
    return (items[at : at + _ROWS] for at in range(0, len(items), _ROWS))


# Reading


def active_series(connection: Connection, now_ms: int) -> list[tuple[SeriesKey, int]]:
    """The series of the last day, and when each was last heard of: for `Cardinality.load`."""
    newest = sa.func.max(rollups.c.start_s)
    statement = (
        select(*_series_key, newest)
        .join(rollups, rollups.c.series_id == series.c.id)
        .where(rollups.c.window_s == _HOUR_S, rollups.c.start_s >= (now_ms - IDLE_MS) // 1000 - _HOUR_S)
        .group_by(series.c.id, *_series_key)
    )
    return [
        (SeriesKey(*key), min((start_s + _HOUR_S) * 1000, now_ms)) for *key, start_s in connection.execute(statement)
    ]


def agents(connection: Connection) -> list[str]:
    """Agents that have figures, in order."""
    return list(connection.execute(select(series.c.agent_id).distinct().order_by(series.c.agent_id)).scalars())


def totals(
    connection: Connection, agent_ids: Sequence[str], pieces: Iterable[Piece]
) -> Iterator[tuple[str, int, bytes]]:
    """(agent, start, figures) of agents as a whole, in these pieces of time."""
    for piece in pieces:
        for part in _parts(agent_ids):
            yield from connection.execute(
                select(rollups.c.agent_id, rollups.c.start_s, rollups.c.figures).where(
                    rollups.c.window_s == piece.window_s,
                    rollups.c.agent_id.in_(part),
                    rollups.c.start_s >= piece.from_s,
                    rollups.c.start_s < piece.to_s,
                    rollups.c.series_id == TOTAL,
                )
            )


def by_series(connection: Connection, agent_id: str, pieces: Iterable[Piece]) -> Iterator[tuple[SeriesKey, bytes]]:
    """(series, figures) of one agent in these pieces of time."""
    keys = {
        number: SeriesKey(*key)
        for number, *key in connection.execute(select(series.c.id, *_series_key).where(series.c.agent_id == agent_id))
    }
    for piece in pieces:
        rows = connection.execute(
            select(rollups.c.series_id, rollups.c.figures).where(
                rollups.c.window_s == piece.window_s,
                rollups.c.agent_id == agent_id,
                rollups.c.start_s >= piece.from_s,
                rollups.c.start_s < piece.to_s,
                rollups.c.series_id != TOTAL,
            )
        )
        for number, data in rows:
            if number in keys:
                yield keys[number], data


def delta_ids(connection: Connection) -> list[int]:
    """What is not folded yet, oldest first."""
    return list(connection.execute(select(deltas.c.id).order_by(deltas.c.id)).scalars())


def read_deltas(connection: Connection, ids: Sequence[int]) -> Iterator[bytes]:
    """Deltas by id."""
    for part in _parts(ids):
        yield from connection.execute(select(deltas.c.figures).where(deltas.c.id.in_(part))).scalars()


# Retention


def prune(connection: Connection, now_ms: int, keep_s: Mapping[int, int] = KEEP_S) -> int:
    """Deletes rows older than what each level keeps, and series that have no row left; how many rows.

    Windows of ten minutes are kept as long as those of one, unless it says otherwise.
    """
    lock_folds(connection)
    gone = 0
    for window_s in LEVELS_S:
        cutoff_s = now_ms // 1000 - keep_s.get(window_s, keep_s[60])
        old = sa.and_(rollups.c.window_s == window_s, rollups.c.start_s < cutoff_s)
        ending: Sequence[tuple[str, int]] = ()
        if window_s == _HOUR_S:
            statement = select(rollups.c.agent_id, rollups.c.series_id).where(old, rollups.c.series_id != TOTAL)
            ending = [(agent_id, number) for agent_id, number in connection.execute(statement.distinct())]
        gone += connection.execute(delete(rollups).where(old)).rowcount
        for agent_id, number in ending:
            _forget_series(connection, agent_id, number)
    return gone


def _forget_series(connection: Connection, agent_id: str, number: int) -> None:
    row = select(rollups.c.start_s).where(
        rollups.c.window_s == _HOUR_S, rollups.c.agent_id == agent_id, rollups.c.series_id == number
    )
    if connection.execute(row.limit(1)).first() is None:
        connection.execute(delete(series).where(series.c.id == number))


def prune_sources(connection: Connection, before_ms: int) -> int:
    """Forgets exporters that were last heard of before: none of their batches can be on its way any more."""
    return connection.execute(delete(batches).where(batches.c.seen_ms < before_ms)).rowcount
