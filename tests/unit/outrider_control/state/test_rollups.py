"""Folding deltas into rollups, on both stores."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import pytest
import sqlalchemy as sa

from outrider_control.core.cardinality import Bounds, Cardinality
from outrider_control.core.figures import Figures, merged
from outrider_control.core.query import LEVELS_S
from outrider_control.core.sample import OTHER, Sample, SeriesKey
from outrider_control.core.windows import Windows
from outrider_control.state import rollups
from outrider_control.state.database import Database
from outrider_control.state.schema import deltas, series
from outrider_control.state.schema import rollups as rows
from tests.figure_samples import NOW_MS, same, sample, some, together


def delta(samples: Iterable[Sample]) -> bytes:
    windows = Windows()
    for one in samples:
        windows.add(one.key, one.end_ms, one)
    return windows.encode()


def append(database: Database, samples: Iterable[Sample]) -> None:
    database.write_now(rollups.append_delta, delta(samples))


def fold_all(database: Database, bounds: Bounds | None = None, max_deltas: int = 256, max_windows: int = 1_000) -> int:
    """Folds all there is; in how many folds."""
    cardinality = Cardinality(bounds)
    folds = 0
    while True:
        folds += 1
        if not database.write_now(rollups.fold, NOW_MS, cardinality, max_deltas, max_windows).more:
            return folds


def stored(database: Database, window_s: int, totals: bool) -> dict[tuple[str, int, SeriesKey | None], Figures]:
    """All rows of one width: of agents as a whole, or of their series."""
    names = ("agent_id", "method", "variant", "endpoint", "tenant")

    def read(connection: sa.Connection) -> dict[tuple[str, int, SeriesKey | None], Figures]:
        keys = {
            row.id: SeriesKey(*(getattr(row, name) for name in names)) for row in connection.execute(series.select())
        }
        return {
            (row.agent_id, row.start_s, keys.get(row.series_id)): Figures.decode(row.figures)
            for row in connection.execute(rows.select().where(rows.c.window_s == window_s))
            if (row.series_id == rollups.TOTAL) is totals
        }

    return database.read_now(read)


def by_hand(samples: Iterable[Sample], window_s: int, totals: bool) -> dict[tuple[str, int, SeriesKey | None], Figures]:
    groups: dict[tuple[str, int, SeriesKey | None], list[Sample]] = {}
    for one in samples:
        start_s = one.end_ms // 1000 // window_s * window_s
        groups.setdefault((one.key.agent_id, start_s, None if totals else one.key), []).append(one)
    return {key: together(group) for key, group in groups.items()}


@pytest.mark.parametrize("bounds", [{}, {"max_deltas": 3, "max_windows": 7}], ids=["at once", "in small chunks"])
def test_rollups_are_the_samples_at_every_width(database: Database, bounds: dict[str, Any]) -> None:
    rng = random.Random(1)
    everything: list[Sample] = []
    for _ in range(3):
        for _ in range(5):
            samples = some(rng, 40, age_ms=3_000_000)
            everything += samples
            append(database, samples)
        fold_all(database, **bounds)
    assert database.read_now(rollups.delta_ids) == []
    for window_s in LEVELS_S:
        for totals in (False, True):
            found, wanted = stored(database, window_s, totals), by_hand(everything, window_s, totals)
            assert found.keys() == wanted.keys()
            assert all(same(found[key], figures) for key, figures in wanted.items())


def test_a_fold_that_fails_changes_nothing(database: Database) -> None:
    samples = some(random.Random(2), 30)
    append(database, samples)

    def fail(connection: sa.Connection) -> None:
        rollups.fold(connection, NOW_MS, Cardinality())
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        database.write_now(fail)
    assert len(database.read_now(rollups.delta_ids)) == 1
    assert stored(database, 10, True) == {}
    fold_all(database)
    fold_all(database)
    assert same(merged(list(stored(database, 3600, True).values())), together(samples))


def test_what_is_too_much_goes_back_and_is_not_lost(database: Database) -> None:
    samples = some(random.Random(3), 200, agents=10, series=10)
    append(database, samples)
    done = database.write_now(rollups.fold, NOW_MS, Cardinality(), 256, 20)
    assert done.more
    assert len(database.read_now(rollups.delta_ids)) == 1
    assert fold_all(database, max_windows=20) > 2
    assert same(merged(list(stored(database, 60, False).values())), together(samples))


def test_the_fold_bounds_series_also_where_the_takers_did_not(database: Database) -> None:
    append(database, [sample(f"agent-{number}") for number in range(50)])
    append(database, [sample("agent-1", method=f"/s/m{number}", endpoint="e") for number in range(50)])
    fold_all(database, Bounds(agents=5, series=10))
    found = stored(database, 60, True)
    assert {key[0] for key in found} == {*(f"agent-{number}" for number in range(5)), OTHER}
    assert merged(list(found.values())).requests == 100
    assert next(figures.requests for key, figures in found.items() if key[0] == OTHER) == 45
    of_one = [key for key in stored(database, 60, False) if key[0] == "agent-1"]
    assert len(of_one) <= 10 + 5


def test_what_is_stored_and_cannot_be_read_is_counted_and_stops_nothing(database: Database) -> None:
    append(database, [sample()])
    fold_all(database)

    def damage(connection: sa.Connection) -> None:
        connection.execute(deltas.insert().values(figures=b"junk"))
        connection.execute(rows.update().where(rows.c.window_s == 10).values(figures=b"\1"))

    database.write_now(damage)
    append(database, [sample(), sample()])
    done = database.write_now(rollups.fold, NOW_MS, Cardinality())
    assert (done.deltas, done.unreadable) == (2, 3)  # the delta, the series' row and the agent's
    assert merged(list(stored(database, 60, True).values())).requests == 3
    assert merged(list(stored(database, 10, True).values())).requests == 2


def test_a_batch_number_is_taken_once(database: Database) -> None:
    def take(source: str, sequence: int) -> bool:
        return database.write_now(rollups.take_sequence, source, sequence, NOW_MS)

    assert [take("a", 1), take("a", 1), take("b", 1), take("a", 3), take("a", 2), take("a", 4)] == [
        True,
        False,
        True,
        True,
        False,
        True,
    ]
    assert database.write_now(rollups.prune_sources, NOW_MS) == 0
    assert database.write_now(rollups.prune_sources, NOW_MS + 1) == 2


def test_active_series_are_those_of_the_last_day(database: Database) -> None:
    append(database, [sample("old", NOW_MS - 2 * 86_400_000), sample("new", method="/s/m", tenant="t")])
    fold_all(database)
    found = database.read_now(rollups.active_series, NOW_MS)
    assert found == [(SeriesKey("new", method="/s/m", tenant="t"), NOW_MS)]
    assert database.read_now(rollups.agents) == ["new", "old"]


def test_each_width_is_kept_as_long_as_it_is_said(database: Database) -> None:
    day_ms = 86_400_000
    ages_ms = {"hour": 3_600_000, "day": day_ms, "month": 30 * day_ms, "year": 365 * day_ms}
    append(database, [sample(name, NOW_MS - age_ms) for name, age_ms in ages_ms.items()])
    fold_all(database)
    gone = database.write_now(rollups.prune, NOW_MS)
    assert gone == 2 * (3 + 2 * 2 + 1)  # of each an agent's row and a series' one
    left = {window_s: {key[0] for key in stored(database, window_s, True)} for window_s in LEVELS_S}
    assert left == {10: {"hour"}, 60: {"hour", "day"}, 600: {"hour", "day"}, 3600: {"hour", "day", "month"}}
    assert database.read_now(rollups.agents) == ["day", "hour", "month"]


def test_odd_names_are_stored_on_both(database: Database) -> None:
    odd = sample("a\0b", method="/s/\ud800", tenant="x" * 1_000, endpoint="日本")
    append(database, [odd._replace(key=Cardinality().place(odd.key, NOW_MS))])
    fold_all(database)
    ((key, figures),) = stored(database, 60, False).items()
    assert key[2] == SeriesKey("ab", "/s/?", "", "日本", "x" * 256)
    assert figures.requests == 1
