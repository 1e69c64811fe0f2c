"""Sums of units in the store: counted once, in the order of their changes, bounded."""

from __future__ import annotations

import pytest

from outrider_control.state import experiments, splits, unit_sums
from outrider_control.state.database import Database
from outrider_control.state.unit_sums import Counts, Told, UnitRow
from tests.units import call, put, put_split


async def rows(database: Database, since: int = 0, limit: int = 100) -> list[UnitRow]:
    return await database.read(unit_sums.changed_since, "test", since, limit)


async def test_calls_are_added_to_their_units(database: Database) -> None:
    await put_split(database)
    await put(database, [call("u1"), call("u2", "b", failed=True), call("u1", failed=True), call("u3", split="none")])
    found = {row.unit: (row.variant, row.sums.vector("error_rate")[:2]) for row in await rows(database)}
    assert found == {"u1": ("a", (1, 2)), "u2": ("b", (1, 1))}
    await put(database, [call("u1")])
    assert {row.unit: row.sums.seen.calls for row in await rows(database)} == {"u1": 3, "u2": 1}
    assert await database.read(unit_sums.counts, "test") == Counts(2, 0)


async def test_what_was_before_a_unit_had_a_variant_is_its_history(database: Database) -> None:
    await put_split(database)
    await put(database, [call("u", ""), call("u", "")])
    (row,) = await rows(database)
    assert (row.variant, row.sums.vector("error_rate")) == ("", (0, 0, 0, 2))
    await put(database, [call("u", "b")])
    (row,) = await rows(database)
    assert (row.variant, row.sums.vector("error_rate")) == ("b", (0, 1, 0, 2))


async def test_a_unit_with_two_variants_is_marked_for_good(database: Database) -> None:
    await put_split(database)
    await put(database, [call("u", "a")])
    await put(database, [call("u", "b")])
    await put(database, [call("u", "a")])
    (row,) = await rows(database)
    assert (row.variant, row.flipped) == ("a", True)


async def test_changes_are_read_in_their_order_and_whole(database: Database) -> None:
    await put_split(database)
    await put(database, [call(f"a{at}") for at in range(3)])
    await put(database, [call("b0"), call("a1")])
    first = await rows(database, limit=1)
    assert {row.unit for row in first} == {"a0", "a2"}  # all of the first change that is not of a later one
    assert {row.unit for row in await rows(database, first[-1].changed)} == {"b0", "a1"}
    assert await rows(database, 99) == []


async def test_what_was_said_joins_its_unit(database: Database) -> None:
    await put_split(database)
    await put(database, [call("u")])
    said = Told("test=u,other=v", "test=a", 4.0, True, {"accuracy": 1.0})
    await database.write(unit_sums.tell, [said, said._replace(units="test=nobody")], 5)
    (row,) = await rows(database)
    assert row.sums.vector("rating")[:2] == (4, 1)
    assert row.sums.vector("score:accuracy")[:2] == (1, 1)
    await database.write(unit_sums.tell, [said._replace(sign=-1)], 6)
    (row,) = await rows(database)
    assert row.sums.vector("rating")[:2] == (0, 0)


async def test_units_past_the_bound_are_counted_and_left_out(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unit_sums, "MAX_UNITS", 2)
    await put_split(database)
    await put(database, [call("u1"), call("u2"), call("u3"), call("u4")])
    await put(database, [call("u1"), call("u5")])
    assert {row.unit: row.sums.seen.calls for row in await rows(database)} == {"u1": 2, "u2": 1}
    assert await database.read(unit_sums.counts, "test") == Counts(2, 3)


async def test_sums_of_splits_that_are_gone_go(database: Database) -> None:
    await put_split(database)
    await put(database, [call(f"u{at}") for at in range(5)])
    assert await database.write(unit_sums.prune, 3) == 0
    await database.write(splits.remove, "test")
    row = experiments.ExperimentRow("test", "agent", 1, "stopped", b"", "", "", "", "", "", "", "me", 1, 1, 2)
    await database.write(experiments.add, row)
    assert await database.write(unit_sums.prune, 3) == 0
    assert await database.write(experiments.prune, 10, 5) == 1
    assert await database.write(unit_sums.prune, 3) == 3
    assert await database.write(unit_sums.prune, 3) == 2
    assert await database.read(unit_sums.counts, "test") == Counts()


async def test_a_split_begins_anew(database: Database) -> None:
    await put_split(database)
    await put(database, [call("u")])
    await database.write(unit_sums.forget, "test")
    assert await rows(database) == []
    assert list(unit_sums.pairs_of("a=1,b,=2,c=,d=3")) == [("a", "1"), ("d", "3")]
