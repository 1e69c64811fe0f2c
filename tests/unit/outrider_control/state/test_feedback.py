"""Feedback finds its call, whichever comes first, and is counted once."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, delete

from outrider_control.core.call_record import CallRecord
from outrider_control.state import call_index, feedback, schema, unit_sums
from outrider_control.state.database import Database
from outrider_control.state.feedback import DUPLICATE, TAKEN, UNKNOWN_CALL, NewFeedback

NOW_MS = 1_800_000_000_000
DAY_MS = 86_400_000
UNIT = "f" * 32


def call(at: int = 1, **fields: Any) -> CallRecord:
    base = CallRecord(
        at.to_bytes(8, "big"), at.to_bytes(16, "big"), NOW_MS - 1_000, 0, "tax", "exp=B", "t1", f"exp={UNIT}"
    )
    return base._replace(**fields)


def said(of: CallRecord | None = None, feedback_id: str = "f1", **fields: Any) -> NewFeedback:
    base = NewFeedback(feedback_id, (of or call()).call_id.hex(), "", "", 4.0, "", "", (), {}, "", "", "", 0)
    return base._replace(**fields)


def by_trace(of: CallRecord | None = None, feedback_id: str = "f1", **fields: Any) -> NewFeedback:
    return said(of, feedback_id, call_id="", trace_id=(of or call()).trace_id.hex(), **fields)


def rows(database: Database, **query: Any) -> list:
    return database.read_now(feedback.of_trace_or_agent, 0, **query)


class Sums:
    """What the sums of units were told, added up."""

    def __init__(self) -> None:
        self.told: list[unit_sums.Told] = []

    def tell(self, connection: Connection, told: list[unit_sums.Told], now_ms: int) -> None:
        self.told += told

    def by_unit(self) -> dict[str, tuple[int, float, int]]:
        """(pieces, ratings, complaints) by units and variant; nothing where all was taken back."""
        sums: dict[str, tuple[int, float, int]] = {}
        for units, variant, rating, complaint, _, sign in self.told:
            count, total, complaints = sums.get(f"{units} {variant}", (0, 0.0, 0))
            entry = (count + sign, total + sign * (rating or 0.0), complaints + sign * complaint)
            sums[f"{units} {variant}"] = entry
        return {name: entry for name, entry in sums.items() if entry != (0, 0.0, 0)}


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> Sums:
    made = Sums()
    monkeypatch.setattr(unit_sums, "tell", made.tell)
    return made


def test_feedback_takes_over_what_its_call_had(database: Database, sums: Sums) -> None:
    database.write_now(call_index.add, [call()])
    item = said(scores={"accuracy": 1.0}, labels=("tone",), complaint="no", agent_id="somebody-else")
    taken = database.write_now(feedback.take, [item], NOW_MS)
    assert taken.outcomes == [TAKEN]
    assert taken.bad_traces == {call().trace_id.hex()}
    (row,) = rows(database)
    assert (row.agent_id, row.tenant, row.variant, row.units) == ("tax", "t1", "exp=B", f"exp={UNIT}")
    assert (row.trace_id, row.joined, row.at_ms) == (call().trace_id.hex(), 1, NOW_MS)
    assert sums.told == [unit_sums.Told(f"exp={UNIT}", "exp=B", 4.0, True, {"accuracy": 1.0}, 1)]


def test_the_same_again_is_taken_once(database: Database, sums: Sums) -> None:
    database.write_now(call_index.add, [call()])
    assert database.write_now(feedback.take, [said(), said()], NOW_MS).outcomes == [TAKEN, DUPLICATE]
    assert database.write_now(feedback.take, [said(rating=1.0)], NOW_MS).outcomes == [DUPLICATE]
    assert [row.rating for row in rows(database)] == [4.0]
    assert len(sums.told) == 1


def test_an_unknown_call_is_kept_marked_and_joined_later(database: Database, sums: Sums) -> None:
    taken = database.write_now(feedback.take, [said(agent_id="tax", rating=1.0)], NOW_MS)
    assert (taken.outcomes, taken.bad_traces) == ([UNKNOWN_CALL], set())
    assert [row.joined for row in rows(database, unknown_only=True)] == [0]
    assert database.write_now(feedback.join_news, NOW_MS) == set()
    database.write_now(call_index.add, [call(2), call()])
    assert database.write_now(feedback.join_news, NOW_MS + DAY_MS) == {call().trace_id.hex()}
    assert rows(database, unknown_only=True) == []
    assert sums.by_unit() == {f"exp={UNIT} exp=B": (1, 1.0, 0)}
    assert database.read_now(call_index.has_news) is False
    assert database.write_now(feedback.join_news, NOW_MS) == set()
    assert len(sums.told) == 1


def test_what_waited_too_long_is_looked_at_no_more(database: Database, sums: Sums) -> None:
    database.write_now(feedback.take, [said()], NOW_MS)
    database.write_now(call_index.add, [call()])
    database.write_now(feedback.join_news, NOW_MS + feedback.WAIT_MS + 1)
    assert len(rows(database, unknown_only=True)) == 1
    assert sums.told == []


def test_by_trace_it_is_of_the_first_call_of_the_agent(database: Database, sums: Sums) -> None:
    first = call(1, units="exp=1", at_ms=NOW_MS - 50)
    ingress = first._replace(call_id=b"i" * 8, rank=1, at_ms=NOW_MS - 90)
    other = first._replace(call_id=b"o" * 8, agent_id="other", units="exp=2", at_ms=NOW_MS - 80)
    later = first._replace(call_id=b"l" * 8, units="exp=3", at_ms=NOW_MS - 10)
    database.write_now(call_index.add, [later, ingress, other, first])
    items = [by_trace(first, "any"), by_trace(first, "tax", agent_id="tax"), by_trace(first, "none", agent_id="x")]
    assert database.write_now(feedback.take, items, NOW_MS).outcomes == [TAKEN, TAKEN, UNKNOWN_CALL]
    found = {row.feedback_id: row.call_id for row in rows(database)}
    assert found == {"any": other.call_id.hex(), "tax": first.call_id.hex(), "none": ""}


ARRIVALS = st.permutations(range(9))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(order=ARRIVALS, twice=st.sets(st.integers(0, 8)), joins=st.sets(st.integers(0, 8)), seed=st.integers(0, 99))
def test_any_order_of_calls_and_feedback_gives_the_same_sums(
    sqlite_url: str, order: list[int], twice: set[int], joins: set[int], seed: int
) -> None:
    rng = random.Random(seed)
    calls = [
        call(1, units="exp=1", at_ms=NOW_MS - 30),
        call(2, trace_id=call(1).trace_id, units="exp=2", at_ms=NOW_MS - 20),
        call(3, trace_id=call(1).trace_id, units="exp=3", at_ms=NOW_MS - rng.choice([10, 40])),
        call(4, units="", variant=""),
    ]
    items = [
        said(calls[1], "f1", rating=2.0),
        said(calls[1], "f2", rating=None, complaint="no"),
        by_trace(calls[0], "f3", rating=5.0),
        said(calls[3], "f4", rating=1.0),
        said(call(9), "f5", rating=3.0),
    ]
    events: list[CallRecord | NewFeedback] = [*calls, *items]
    made = Sums()
    database = Database.open(sqlite_url)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(unit_sums, "tell", made.tell)
            database.write_now(_clear)
            for place in itertools.chain(order, twice):
                event = events[place]
                if isinstance(event, NewFeedback):
                    database.write_now(feedback.take, [event], NOW_MS)
                else:
                    database.write_now(call_index.add, [event])
                if place in joins:
                    database.write_now(feedback.join_news, NOW_MS)
            database.write_now(feedback.join_news, NOW_MS)
            state = {row.feedback_id: (row.call_id, row.joined) for row in rows(database)}
    finally:
        database.close_now()
    first = min(calls[:3], key=lambda one: one.order)
    expected = {"exp=2 exp=B": (2, 2.0, 1)}
    count, total, complaints = expected.get(f"{first.units} exp=B", (0, 0.0, 0))
    expected[f"{first.units} exp=B"] = (count + 1, total + 5.0, complaints)
    assert made.by_unit() == expected
    assert state["f3"] == (first.call_id.hex(), 1)
    assert state["f5"] == (call(9).call_id.hex(), 0)


def _clear(connection: Connection) -> None:
    connection.execute(delete(schema.calls))
    connection.execute(delete(schema.feedback))


def test_old_feedback_goes_and_what_is_in_an_approved_example_stays(database: Database, sums: Sums) -> None:
    database.write_now(call_index.add, [call()])
    items = [said(feedback_id="plain"), said(feedback_id="approved"), said(feedback_id="candidate")]
    database.write_now(feedback.take, items, NOW_MS)
    database.write_now(feedback.take, [said(feedback_id="new")], NOW_MS + 1)
    database.write_now(_examples)
    assert database.write_now(feedback.prune, NOW_MS + 1) == 2
    assert {row.feedback_id for row in rows(database)} == {"approved", "new"}


def _examples(connection: Connection) -> None:
    for number, state in enumerate(("approved", "candidate"), 1):
        values = dict.fromkeys(("agent_id", "group_key", "input", "output", "correction", "complaint"), "")
        values |= {"key": state, "state": state, "labels": "[]", "trace_ids": "[]"}
        figures = {"id": number, "pieces": 1, "first_ms": 0, "last_ms": 0}
        connection.execute(schema.examples.insert().values(**values, **figures))
        one = schema.feedback.c.feedback_id == state
        connection.execute(schema.feedback.update().where(one).values(example_id=number))


def test_what_a_tenant_said_can_be_erased(database: Database, sums: Sums) -> None:
    database.write_now(call_index.add, [call(1), call(2, tenant="t2")])
    database.write_now(
        feedback.take, [said(call(1), "approved"), said(call(1), "candidate"), said(call(2), "f3")], NOW_MS
    )
    database.write_now(_examples)
    assert database.write_now(feedback.erase, "t1") == 2
    assert [row.feedback_id for row in rows(database)] == ["f3"]
    left = database.read_now(lambda connection: connection.execute(schema.examples.select()).all())
    assert [row.state for row in left] == ["approved"]


def test_a_clock_that_is_ahead_says_nothing_of_when(database: Database, sums: Sums) -> None:
    items = [said(feedback_id="ahead", at_ms=NOW_MS + DAY_MS), said(feedback_id="before", at_ms=NOW_MS - DAY_MS)]
    database.write_now(feedback.take, items, NOW_MS)
    assert {row.feedback_id: row.at_ms for row in rows(database)} == {"ahead": NOW_MS, "before": NOW_MS - DAY_MS}
