"""What has come of units, kept up to date: as if it were counted anew every time."""

from __future__ import annotations

import random

import pytest

from outrider_control.loops import tally
from outrider_control.loops.experiment.types import Metric
from outrider_control.loops.tally import Tallies
from outrider_control.state import unit_sums
from outrider_control.state.database import Database
from outrider_control.state.unit_sums import Told
from tests.units import call, put, put_split

METRICS = [Metric("error_rate"), Metric("latency_quantile", quantile=0.9), Metric("rating")]


def plain(tallies: Tallies) -> dict[str, tuple[object, ...]]:
    found = tallies.seen("test", METRICS)
    return {
        name: (
            one.units,
            one.calls,
            one.feedback,
            one.satisfaction,
            {key: (m.n, [round(v, 6) for v in (*m.sums, *m.products)]) for key, m in one.moments.items()},
            [(bucket, round(share, 9)) for bucket, share, _ in one.buckets.shares()] if one.buckets else None,
        )
        for name, one in sorted(found.items())
        if one.units
    }


async def test_what_is_kept_up_to_date_is_what_would_be_counted_anew(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tally, "PORTION", 7)
    rng = random.Random(1)
    await put_split(database)
    kept = Tallies(database)
    kept.want("test", METRICS)
    for _ in range(8):
        units = [f"u{rng.randrange(30)}" for _ in range(12)]
        calls = [
            call(
                unit,
                rng.choice(("", "a")) if int(unit[1:]) % 2 else rng.choice(("b", "b", "b", "a")),
                failed=rng.random() < 0.3,
                total_us=rng.randrange(1_000_000),
            )
            for unit in units
        ]
        await put(database, calls)
        told = Told(f"test={units[0]}", "test=a", float(rng.randrange(6)), False, {})
        await database.write(unit_sums.tell, [told], 1)
        await kept.refresh()
        anew = Tallies(database)
        anew.want("test", METRICS)
        await anew.refresh()
        assert plain(kept) == plain(anew)
        assert kept.flipped("test") == anew.flipped("test")
    assert kept.flipped("test")
    assert set(plain(kept)) == {"a", "b"}


async def test_a_metric_that_is_asked_for_later_counts_everything(database: Database) -> None:
    await put_split(database)
    await put(database, [call("u", failed=True), call("v", "b")])
    tallies = Tallies(database)
    tallies.want("test", [Metric("cost")])
    await tallies.refresh()
    assert "error_rate" not in tallies.seen("test", METRICS)["a"].moments
    await tallies.refresh()
    assert tallies.seen("test", METRICS)["a"].moments["error_rate"].sums[:2] == [1.0, 1.0]


async def test_what_nobody_needs_is_forgotten(database: Database) -> None:
    tallies = Tallies(database)
    tallies.want("test", [Metric("attribute:x"), Metric("cost")])
    assert tallies.attributes == {"x"}
    tallies.keep("one", ["test"])
    tallies.keep("two", [])
    assert tallies.attributes == {"x"}
    tallies.keep("one", [])
    assert tallies.attributes == set()
    await tallies.refresh()
    assert tallies.seen("test", METRICS) == {}
