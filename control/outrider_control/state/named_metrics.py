"""Metrics that agents sent by themselves, by minute.

Always holds: written by the fold alone (which excludes others of its kind), so that no addition is lost.

Deliberately not here: how many names an agent may have (`core.metric_figures.MetricNames`).
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, delete, select, tuple_

from outrider_control.core.metric_figures import MetricFigures, MetricKey
from outrider_control.core.windows import MetricWindow
from outrider_control.state.schema import named_metrics
from outrider_control.state.upsert import upsert

_ROWS = 400  # of one statement: within SQLite's bound of parameters
_key = (
    named_metrics.c.agent_id,
    named_metrics.c.start_s,
    named_metrics.c.name,
    named_metrics.c.unit,
    named_metrics.c.kind,
)
_KEY_NAMES = [column.name for column in _key]


def merge(connection: Connection, windows: Mapping[MetricWindow, MetricFigures]) -> None:
    """Adds figures to those of the store. In a transaction that excludes others that do."""
    items = list(windows.items())
    for at in range(0, len(items), _ROWS):
        part = items[at : at + _ROWS]
        adding = {
            (metric.agent_id, start_s, metric.name, metric.unit, metric.kind): figures
            for (start_s, metric), figures in part
        }
        found = connection.execute(select(*_key, named_metrics.c.figures).where(tuple_(*_key).in_(list(adding))))
        for *key, data in found.all():
            try:
                before = MetricFigures.decode(data)
            except ValueError:
                continue  # what cannot be read is replaced
            before.merge(adding[tuple(key)])
            adding[tuple(key)] = before
        rows = [dict(zip(_KEY_NAMES, key, strict=True), figures=figures.encode()) for key, figures in adding.items()]
        connection.execute(upsert(connection, named_metrics, _KEY_NAMES, ("figures",)), rows)


def read(connection: Connection, agent_id: str, since_s: int) -> dict[MetricKey, MetricFigures]:
    """One agent's metrics ("": all agents'), from the minute `since_s` falls into."""
    statement = select(*_key, named_metrics.c.figures).where(named_metrics.c.start_s >= since_s // 60 * 60)
    if agent_id:
        statement = statement.where(named_metrics.c.agent_id == agent_id)
    together: dict[MetricKey, MetricFigures] = {}
    for found_id, _, name, unit, kind, data in connection.execute(statement.order_by(named_metrics.c.start_s)):
        try:
            figures = MetricFigures.decode(data)
        except ValueError:
            continue
        key = MetricKey(found_id, name, unit, kind)
        if key in together:
            together[key].merge(figures)
        else:
            together[key] = figures
    return together


def names(connection: Connection, since_ms: int) -> list[MetricKey]:
    """The metrics there are since a time."""
    columns = (named_metrics.c.agent_id, named_metrics.c.name, named_metrics.c.unit, named_metrics.c.kind)
    statement = select(*columns).where(named_metrics.c.start_s >= since_ms // 1000).distinct()
    return [MetricKey(*row) for row in connection.execute(statement)]


def prune(connection: Connection, before_ms: int) -> int:
    """Deletes what is older; how many rows."""
    return connection.execute(delete(named_metrics).where(named_metrics.c.start_s < before_ms // 1000)).rowcount
