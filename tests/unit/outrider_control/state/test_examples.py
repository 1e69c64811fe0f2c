"""Candidates are made of feedback once, alike ones are one, and reviews are kept."""

from __future__ import annotations

from typing import Any

import pytest

from outrider_control.core.call_record import CallRecord
from outrider_control.state import call_index, examples, feedback, journal
from outrider_control.state.database import Database
from outrider_control.state.examples import APPROVED, CANDIDATE, REJECTED, Review
from outrider_control.state.feedback import NewFeedback

NOW_MS = 1_800_000_000_000
CALL = CallRecord(b"c" * 8, b"t" * 16, NOW_MS - 1_000, 0, "tax", "", "", "")


def say(database: Database, count: int = 1, at_ms: int = NOW_MS, **fields: Any) -> None:
    base = NewFeedback("", CALL.call_id.hex(), "", "", None, "42", "", (), {}, "", "What?", "41", 0)
    items = [base._replace(feedback_id=f"{at_ms}-{at}-{sorted(fields.items())}", **fields) for at in range(count)]
    database.write_now(feedback.take, items, at_ms)


def listed(database: Database, **query: Any) -> list[examples.ExampleRow]:
    return database.read_now(examples.listed, **query)


def gather(database: Database, at_ms: int = NOW_MS) -> int:
    return database.write_now(examples.gather, at_ms)


def reviewed(database: Database, example_id: int, state: str, **edits: str) -> examples.ExampleRow:
    return database.write_now(examples.review, example_id, Review(state, "looks right", "ann", **edits), NOW_MS)


@pytest.fixture(autouse=True)
def known_call(database: Database) -> None:
    database.write_now(call_index.add, [CALL])


def test_a_correction_becomes_a_candidate_with_its_trace(database: Database) -> None:
    say(database, labels=("sum",), complaint="wrong")
    assert gather(database) == 1
    (row,) = listed(database)
    assert (row.agent_id, row.state, row.input, row.output) == ("tax", CANDIDATE, "What?", "41")
    assert (row.correction, row.complaint, row.labels, row.count) == ("42", "wrong", ["sum"], 1)
    assert row.trace_ids == [CALL.trace_id.hex()]
    assert gather(database) == 0


def test_what_nobody_sent_stays_empty(database: Database) -> None:
    say(database, correction="", complaint="rude", input="", output="")
    gather(database)
    assert [(row.input, row.output, row.correction) for row in listed(database)] == [("", "", "")]


def test_ratings_alone_teach_nothing(database: Database) -> None:
    say(database, correction="", rating=1.0)
    assert gather(database) == 0
    assert database.read_now(examples.are_due, 1, NOW_MS + examples.WAIT_MS) is False


def test_what_says_the_same_is_one_example(database: Database) -> None:
    say(database, 3, labels=("a",))
    say(database, at_ms=NOW_MS + 1, correction=" 42 ", input="WHAT?", labels=("b",))
    gather(database, NOW_MS + 1)
    say(database, at_ms=NOW_MS + 2, labels=("a", "c"))
    gather(database, NOW_MS + 2)
    (row,) = listed(database)
    assert (row.count, row.labels, row.first_ms, row.last_ms) == (5, ["a", "b", "c"], NOW_MS, NOW_MS + 2)
    say(database, at_ms=NOW_MS + 3, correction="43")
    gather(database, NOW_MS + 3)
    assert [row.correction for row in listed(database)] == ["42", "43"]


def test_they_are_made_when_there_are_enough_or_one_has_waited(database: Database) -> None:
    say(database, 4)
    assert database.read_now(examples.are_due, 5, NOW_MS + examples.WAIT_MS - 1) is False
    assert database.read_now(examples.are_due, 4, NOW_MS) is True
    assert database.read_now(examples.are_due, 5, NOW_MS + examples.WAIT_MS) is True


def test_an_unknown_call_teaches_later_and_only_where_an_agent_is_named(database: Database) -> None:
    say(database, call_id="00" * 7 + "01", agent_id="tax")
    say(database, call_id="00" * 7 + "02", correction="nobody's")
    assert gather(database, NOW_MS) == 0
    assert gather(database, NOW_MS + examples.UNKNOWN_WAIT_MS) == 1
    database.write_now(call_index.add, [CALL._replace(call_id=bytes(7) + b"\2", agent_id="law")])
    database.write_now(feedback.join_news, NOW_MS)
    assert gather(database, NOW_MS) == 1
    assert [(row.agent_id, row.correction) for row in listed(database)] == [("tax", "42"), ("law", "nobody's")]


def test_a_review_is_kept_and_in_the_journal_without_anybodys_words(database: Database) -> None:
    say(database)
    gather(database)
    (row,) = listed(database)
    after = reviewed(database, row.id, APPROVED, correction="forty-two")
    assert (after.state, after.correction, after.input) == (APPROVED, "forty-two", "What?")
    assert (after.reviewer, after.review_reason) == ("ann", "looks right")
    (entry,) = database.read_now(journal.read, kind="example")
    assert (entry.author, entry.reason, entry.agent_id) == ("ann", "looks right", "tax")
    assert entry.outcome == {"id": row.id, "state": APPROVED, "edited": ["correction"]}
    assert "42" not in str(entry.inputs)
    say(database, at_ms=NOW_MS + 1, output="39")
    gather(database, NOW_MS + 1)
    (later,) = listed(database)
    assert (later.state, later.correction, later.output, later.count) == (APPROVED, "forty-two", "41", 2)
    assert reviewed(database, row.id, REJECTED).state == REJECTED
    with pytest.raises(examples.UnknownExample):
        reviewed(database, row.id + 1, APPROVED)


def test_lists_go_by_pages_and_states(database: Database) -> None:
    for at in range(5):
        say(database, correction=str(at))
    gather(database)
    ids = [row.id for row in listed(database)]
    reviewed(database, ids[1], REJECTED)
    assert [row.id for row in listed(database, limit=2)] == ids[:2]
    assert [row.id for row in listed(database, after_id=ids[1])] == ids[2:]
    assert [row.id for row in listed(database, state=REJECTED)] == [ids[1]]
    assert listed(database, agent_id="law") == []
    assert database.read_now(examples.counts) == {CANDIDATE: 4, APPROVED: 0, REJECTED: 1}
    assert database.read_now(examples.counts, "law") == {CANDIDATE: 0, APPROVED: 0, REJECTED: 0}


def test_what_is_not_approved_goes_in_time(database: Database) -> None:
    for at in range(3):
        say(database, correction=str(at))
    gather(database)
    ids = [row.id for row in listed(database)]
    reviewed(database, ids[0], APPROVED)
    reviewed(database, ids[1], REJECTED)
    assert database.write_now(examples.prune, NOW_MS, 100) == 0
    assert database.write_now(examples.prune, NOW_MS + 1, 100) == 2
    assert [row.id for row in listed(database)] == ids[:1]
