"""The index of calls: which agent, variant and units a call had, for feedback that comes later.

A commit of the intake adds its calls as one run (`core.call_record`), so that a call costs next to nothing. Runs that
were looked at for feedback that waits are merged, and once they hold `FLUSH` calls divided by the last byte of the call
id, so that a later search reads a two hundred and fifty-sixth of what there is; traces are divided the same way.

Always holds: a call that was added is found until it is pruned; the index is bounded in calls and in age, and calls
without a unit go first. Who searches for feedback's sake, and who changes runs, holds `lock`: what is added meanwhile
has not been looked at yet, so that feedback and its call never miss each other, over all control planes of a store.

Deliberately not here: which calls are added (`intake.call_gate`), feedback (`state.feedback`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from outrider_control.core import call_record
from outrider_control.core.call_record import CALL_BYTES, TRACE_BYTES, CallRecord
from outrider_control.state.schema import calls as table
from outrider_control.state.schema import meta
from outrider_control.state.upsert import upsert

FLUSH = 16_384  # calls that are divided together
_PARTS = 256  # by the last byte of an id
_FRESH = -1  # the part of runs that are not divided yet
_TRACES = _PARTS  # parts from here on are of traces
_SMALL = 1_024  # calls: runs of fewer are merged ...
_MANY = 64  # ... once there are so many
_NEWS = 512  # runs that are looked at together
_LOCK = "feedback"  # a row of `meta`
_PAIR_BYTES = TRACE_BYTES + CALL_BYTES


class Found(NamedTuple):
    """What was found, by id."""

    calls: dict[bytes, CallRecord]
    traces: dict[bytes, list[CallRecord]]


def lock(connection: Connection) -> None:
    """Nobody else joins feedback or changes runs before this transaction ends."""
    statement = upsert(connection, meta, ["name"], ["number"])
    connection.execute(statement, [{"name": _LOCK, "number": 0, "text": ""}])


def add(connection: Connection, calls: Sequence[CallRecord]) -> None:
    """Calls that were heard of, as one run."""
    if calls:
        row = _row(_FRESH, 0, int(any([call.units for call in calls])), calls)
        connection.execute(sa.insert(table), [row])


def find(connection: Connection, call_ids: AbstractSet[bytes], trace_ids: AbstractSet[bytes]) -> Found:
    """The calls of these ids, and those of these traces, as far as they are known."""
    found = Found({}, {})
    if not call_ids and not trace_ids:
        return found
    fresh = connection.execute(sa.select(table.c.run).where(table.c.part == _FRESH)).scalars().all()
    for run in fresh:
        _put(found, call_record.find_calls(run, call_ids), call_record.find_traces(run, trace_ids))
    in_traces = _calls_of_traces(connection, trace_ids)
    wanted = call_ids | in_traces
    parts = {one[-1] for one in wanted}
    if parts:
        query = sa.select(table.c.run).where(table.c.part.in_(parts))
        for run in connection.execute(query).scalars():
            records = call_record.find_calls(run, wanted)
            by_call = [one for one in records if one.call_id in call_ids]
            _put(found, by_call, [one for one in records if one.trace_id in trace_ids])
    return found


def news(connection: Connection) -> list[tuple[int, bytes]]:
    """(id, run) of runs that nobody has looked at yet, the oldest first."""
    query = sa.select(table.c.id, table.c.run).where(table.c.part == _FRESH, table.c.looked == 0)
    return [(row.id, row.run) for row in connection.execute(query.order_by(table.c.id).limit(_NEWS))]


def has_news(connection: Connection) -> bool:
    """Whether there is a run that nobody has looked at."""
    query = sa.select(table.c.id).where(table.c.part == _FRESH, table.c.looked == 0).limit(1)
    return connection.execute(query).first() is not None


def looked(connection: Connection, ids: Iterable[int]) -> None:
    """These runs were looked at for all feedback that waits."""
    connection.execute(sa.update(table).where(table.c.id.in_(list(ids))).values(looked=1))


def is_untidy(connection: Connection) -> bool:
    """Whether `tidy` has anything to merge or to divide."""
    small, calls = _standing(connection)
    return small >= _MANY or calls >= FLUSH


def tidy(connection: Connection, max_calls: int) -> None:
    """Merge small runs, divide what is enough, and keep to the bound."""
    lock(connection)
    small, calls = _standing(connection)
    if calls >= FLUSH:
        _divide(connection)
        _bound(connection, max_calls)
    elif small >= _MANY:
        query = _looked_at().where(table.c.calls < _SMALL)
        ids, merged = _read(connection, query)
        connection.execute(sa.delete(table).where(table.c.id.in_(ids)))
        row = _row(_FRESH, 0, int(any([call.units for call in merged])), merged)
        connection.execute(sa.insert(table), [row | {"looked": 1}])


def prune(connection: Connection, before_ms: int) -> int:
    """Delete runs whose last call began before; how many."""
    return connection.execute(sa.delete(table).where(table.c.last_ms < before_ms)).rowcount


def size(connection: Connection) -> int:
    """How many calls are held."""
    query = sa.select(sa.func.coalesce(sa.func.sum(table.c.calls), 0)).where(table.c.part < _TRACES)
    return int(connection.execute(query).scalar_one())


def _standing(connection: Connection) -> tuple[int, int]:
    """(small runs that were looked at, calls in all that were)."""
    is_small = sa.case((table.c.calls < _SMALL, 1), else_=0)
    query = sa.select(sa.func.sum(is_small), sa.func.sum(table.c.calls))
    row = connection.execute(query.where(table.c.part == _FRESH, table.c.looked == 1)).one()
    return int(row[0] or 0), int(row[1] or 0)


def _looked_at() -> Any:
    query = sa.select(table.c.id, table.c.run).where(table.c.part == _FRESH, table.c.looked == 1)
    return query.order_by(table.c.id)


def _read(connection: Connection, query: Any) -> tuple[list[int], list[CallRecord]]:
    rows = connection.execute(query.limit(4 * _MANY)).all()
    calls: list[CallRecord] = []
    ids = []
    for row in rows:
        if len(calls) >= 2 * FLUSH:
            break
        ids.append(row.id)
        calls += call_record.decode(row.run)
    return ids, calls


def _divide(connection: Connection) -> None:
    ids, calls = _read(connection, _looked_at())
    by_part: dict[tuple[int, int], list[CallRecord]] = {}
    pairs: dict[tuple[int, int], list[bytes]] = {}
    last_ms = 0
    for call in calls:
        units = int(bool(call.units))
        by_part.setdefault((units, call.call_id[-1]), []).append(call)
        pairs.setdefault((units, _TRACES + call.trace_id[-1]), []).append(call.trace_id + call.call_id)
        last_ms = max(last_ms, call.at_ms)
    flush = ids[-1]
    rows = [_row(part, flush, units, some) for (units, part), some in by_part.items()]
    for (units, part), some in pairs.items():
        rows.append(
            {
                "part": part,
                "flush": flush,
                "units": units,
                "calls": len(some),
                "looked": 1,
                "last_ms": last_ms,
                "run": b"".join(some),
            }
        )
    connection.execute(sa.delete(table).where(table.c.id.in_(ids)))
    connection.execute(sa.insert(table), rows)


def _bound(connection: Connection, max_calls: int) -> None:
    """Let the oldest go past the bound: those without a unit before the others."""
    over = size(connection) - max_calls
    if over <= 0:
        return
    query = sa.select(table.c.units, table.c.flush, sa.func.sum(table.c.calls).label("calls"))
    query = query.where(table.c.part >= 0, table.c.part < _TRACES).group_by(table.c.units, table.c.flush)
    for row in connection.execute(query.order_by(table.c.units, table.c.flush)).all():
        if over <= 0:
            break
        gone = sa.and_(table.c.part >= 0, table.c.units == row.units, table.c.flush == row.flush)
        connection.execute(sa.delete(table).where(gone))
        over -= int(row.calls)


def _row(part: int, flush: int, units: int, calls: Sequence[CallRecord]) -> dict[str, Any]:
    return {
        "part": part,
        "flush": flush,
        "units": units,
        "calls": len(calls),
        "looked": int(part != _FRESH),
        "last_ms": max([call.at_ms for call in calls]),
        "run": call_record.encode(calls),
    }


def _put(found: Found, by_call: Iterable[CallRecord], by_trace: Iterable[CallRecord]) -> None:
    for call in by_call:
        found.calls[call.call_id] = call
    for call in by_trace:
        found.traces.setdefault(call.trace_id, []).append(call)


def _calls_of_traces(connection: Connection, trace_ids: AbstractSet[bytes]) -> set[bytes]:
    """Ids of the divided calls of these traces."""
    if not trace_ids:
        return set()
    query = sa.select(table.c.run).where(table.c.part.in_({_TRACES + one[-1] for one in trace_ids}))
    found: set[bytes] = set()
    for run in connection.execute(query).scalars():
        for trace_id in trace_ids:
            at = run.find(trace_id)
            while at >= 0:
                if at % _PAIR_BYTES == 0:
                    found.add(run[at + TRACE_BYTES : at + _PAIR_BYTES])
                at = run.find(trace_id, at + 1)
    return found
