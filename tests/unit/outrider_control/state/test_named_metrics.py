"""Metrics that agents sent by themselves, on both stores."""

from __future__ import annotations

import sqlalchemy as sa

from outrider_control.core.metric_figures import MetricFigures, MetricKey
from outrider_control.core.windows import MetricWindow
from outrider_control.intake.metrics import MetricPoint
from outrider_control.state import named_metrics
from outrider_control.state.database import Database
from outrider_control.state.schema import named_metrics as table
from tests.figure_samples import NOW_MS

MINUTE_S = NOW_MS // 60_000 * 60
DEPTH = MetricKey("tax", "depth", "1", "gauge")


def figures(*values: float, kind: str = "gauge") -> MetricFigures:
    found = MetricFigures(kind)
    for value in values:
        found.add(MetricPoint("tax", MINUTE_S, "depth", "1", kind, value, 1, value, value))
    return found


def test_minutes_add_up(database: Database) -> None:
    for values in ((1.0, 5.0), (3.0,)):
        database.write_now(named_metrics.merge, {MetricWindow(MINUTE_S, DEPTH): figures(*values)})
    calls = MetricKey("tax", "calls", "1", "sum")
    many = {
        MetricWindow(MINUTE_S - 60 * number, calls): figures(2.0, kind="sum") for number in range(900)
    }  # more than one statement takes
    database.write_now(named_metrics.merge, many)
    found = database.read_now(named_metrics.read, "tax", MINUTE_S - 599)
    assert found[DEPTH].encode() == figures(1.0, 5.0, 3.0).encode()
    assert found[calls].value == 22  # of eleven minutes
    assert database.read_now(named_metrics.read, "law", 0) == {}
    assert len(database.read_now(named_metrics.read, "", 0)) == 2
    assert sorted(database.read_now(named_metrics.names, 0)) == [calls, DEPTH]
    assert database.read_now(named_metrics.names, (MINUTE_S + 60) * 1000) == []


def test_the_last_value_is_that_of_the_last_minute(database: Database) -> None:
    windows = {MetricWindow(MINUTE_S - 60 * number, DEPTH): figures(number) for number in range(5)}
    database.write_now(named_metrics.merge, windows)
    assert database.read_now(named_metrics.read, "tax", 0)[DEPTH].value == 0


def test_what_cannot_be_read_is_replaced(database: Database) -> None:
    database.write_now(named_metrics.merge, {MetricWindow(MINUTE_S, DEPTH): figures(1.0)})

    def damage(connection: sa.Connection) -> None:
        connection.execute(table.update().values(figures=b"junk"))

    database.write_now(damage)
    assert database.read_now(named_metrics.read, "tax", 0) == {}
    database.write_now(named_metrics.merge, {MetricWindow(MINUTE_S, DEPTH): figures(2.0)})
    assert database.read_now(named_metrics.read, "tax", 0)[DEPTH].value == 2


def test_old_minutes_go(database: Database) -> None:
    windows = {MetricWindow(MINUTE_S - 60 * number, DEPTH): figures(number) for number in range(5)}
    database.write_now(named_metrics.merge, windows)
    assert database.write_now(named_metrics.prune, (MINUTE_S - 120) * 1000) == 2
