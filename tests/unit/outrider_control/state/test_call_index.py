"""The index of calls: found before and after runs are merged and divided, bounded, units last to go."""

from __future__ import annotations

import random

import pytest
from sqlalchemy import Connection, func, select

from outrider_control.core.call_record import CallRecord
from outrider_control.state import call_index
from outrider_control.state.database import Database
from outrider_control.state.schema import calls as table

NOW_MS = 1_800_000_000_000


def some(count: int, seed: int = 1, units: bool = False, at_ms: int = NOW_MS) -> list[CallRecord]:
    rng = random.Random(seed)
    return [
        CallRecord(
            rng.randbytes(8), rng.randbytes(16), at_ms + at, 0, "tax", "exp=B", "t1", f"exp={at:032x}" if units else ""
        )
        for at in range(count)
    ]


def add(database: Database, calls: list[CallRecord], at_once: int = 10) -> None:
    for at in range(0, len(calls), at_once):
        database.write_now(call_index.add, calls[at : at + at_once])


def tidy(database: Database, max_calls: int = 10**9) -> None:
    def all_of_it(connection: Connection) -> None:
        while found := call_index.news(connection):
            call_index.looked(connection, [one for one, _ in found])
        while call_index.is_untidy(connection):
            call_index.tidy(connection, max_calls)

    database.write_now(all_of_it)


def rows(database: Database) -> int:
    return database.read_now(
        lambda connection: connection.execute(select(func.count()).select_from(table)).scalar_one()
    )


def check(database: Database, calls: list[CallRecord], lost: int = 0) -> None:
    found = database.read_now(call_index.find, {call.call_id for call in calls}, {call.trace_id for call in calls})
    assert len(calls) - len(found.calls) == lost
    for call in calls:
        if call.call_id in found.calls:
            assert found.calls[call.call_id] == call
            assert found.traces[call.trace_id] == [call]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_index, "FLUSH", 300)
    monkeypatch.setattr(call_index, "_SMALL", 50)
    monkeypatch.setattr(call_index, "_MANY", 5)


@pytest.mark.usefixtures("small")
def test_calls_are_found_at_every_stage(database: Database) -> None:
    calls = some(1_000)
    for begin in range(0, 1_000, 90):
        add(database, calls[begin : begin + 90])
        check(database, calls[: begin + 90])
        tidy(database)
        check(database, calls[: begin + 90])
    assert database.read_now(call_index.size) == 1_000
    check(database, some(20, seed=9), lost=20)
    for call in calls[::100]:  # few ids take another way than many
        check(database, [call])


@pytest.mark.usefixtures("small")
def test_small_runs_are_merged(database: Database) -> None:
    add(database, some(100), at_once=10)
    assert rows(database) == 10
    tidy(database)
    assert rows(database) == 1
    check(database, some(100))


@pytest.mark.usefixtures("small")
def test_a_trace_of_several_calls_is_found_whole(database: Database) -> None:
    calls = [call._replace(trace_id=b"t" * 16) for call in some(350)]
    add(database, calls[:320])
    tidy(database)
    add(database, calls[320:])
    found = database.read_now(call_index.find, set(), {b"t" * 16})
    assert sorted(found.traces[b"t" * 16]) == sorted(calls)
    assert found.calls == {}


@pytest.mark.usefixtures("small")
def test_past_the_bound_the_oldest_go_and_units_last(database: Database) -> None:
    with_units, plain = some(300, seed=1, units=True), some(300, seed=2)
    for calls in (with_units, plain, some(300, seed=3)):
        add(database, calls, at_once=100)
        tidy(database, 650)
    assert database.read_now(call_index.size) == 600
    check(database, with_units)
    check(database, plain, lost=300)
    for seed in (4, 5):
        add(database, some(300, seed=seed, units=True), at_once=100)
        tidy(database, 650)
    check(database, with_units, lost=300)


def test_old_runs_are_pruned(database: Database) -> None:
    add(database, some(10, seed=1, at_ms=NOW_MS - 1_000))
    add(database, some(10, seed=2))
    assert database.write_now(call_index.prune, NOW_MS) == 1
    check(database, some(10, seed=2))


def test_news_are_told_until_they_were_looked_at(database: Database) -> None:
    assert database.read_now(call_index.has_news) is False
    add(database, some(20))
    assert database.read_now(call_index.has_news) is True
    found = database.read_now(call_index.news)
    assert len(found) == 2
    database.write_now(call_index.looked, [found[0][0]])
    assert [one for one, _ in database.read_now(call_index.news)] == [found[1][0]]
