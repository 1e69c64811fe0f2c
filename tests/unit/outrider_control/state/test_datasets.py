"""Datasets: a version never changes, a question never changes its part."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, delete, func, select

from outrider_control.core.example_key import PARTS, Shares, group_of, key_of
from outrider_control.state import datasets, examples, journal, schema
from outrider_control.state.database import Database
from outrider_control.state.examples import APPROVED, CANDIDATE, Review

NOW_MS = 1_800_000_000_000


def put(
    database: Database, questions: Sequence[str], state: str = APPROVED, agent_id: str = "tax", correction: str = ""
) -> None:
    """Examples of these questions, each with a correction of its own."""

    def insert(connection: Connection) -> None:
        for at, question in enumerate(questions):
            key = key_of(agent_id, question, f"{correction} {at}", "")
            values = {
                "agent_id": agent_id, "key": key, "group_key": group_of(agent_id, question, key), "state": state,
                "input": question, "output": "", "correction": f"{correction} {at}", "complaint": "", "labels": "[]",
                "trace_ids": "[]", "pieces": 1, "first_ms": 0, "last_ms": 0,
            }  # fmt: skip
            connection.execute(schema.examples.insert().values(**values))

    database.write_now(insert)


def freeze(database: Database, shares: Shares = Shares(), agent_id: str = "tax") -> datasets.DatasetRow:  # noqa: B008
    return database.write_now(datasets.create, agent_id, shares, "ann", "for training", NOW_MS)


def text(database: Database, version: int, part: str = "", agent_id: str = "tax") -> str:
    lines: list[str] = []
    after = -1
    while found := database.read_now(datasets.lines, agent_id, version, part, after):
        after = found[-1][0]
        lines += [line for _, line in found]
    return "".join(lines)


def parts_of(jsonl: str) -> dict[str, str]:
    """Part by question; a question in two parts is an error."""
    parts: dict[str, str] = {}
    for line in jsonl.splitlines():
        row = json.loads(line)
        assert parts.setdefault(row["input"].lower(), row["part"]) == row["part"]
    return parts


def test_a_version_is_what_was_approved(database: Database) -> None:
    put(database, [f"question {at}" for at in range(500)])
    put(database, ["not yet"], CANDIDATE)
    put(database, ["another's"], agent_id="law")
    made = freeze(database)
    jsonl = text(database, 1)
    assert (made.version, made.author, made.reason, made.created_ms) == (1, "ann", "for training", NOW_MS)
    assert made.digest == hashlib.sha256(jsonl.encode()).hexdigest()
    assert made.counts == {part: len(text(database, 1, part).splitlines()) for part in PARTS}
    assert sum(made.counts.values()) == len(jsonl.splitlines()) == 500
    assert [json.loads(line)["id"] for line in jsonl.splitlines()] == sorted(
        json.loads(line)["id"] for line in jsonl.splitlines()
    )
    (entry,) = database.read_now(journal.read, kind="dataset")
    assert (entry.author, entry.agent_id, entry.outcome["digest"]) == ("ann", "tax", made.digest)


def test_a_version_stays_whatever_becomes_of_its_examples(database: Database) -> None:
    put(database, [f"question {at}" for at in range(20)])
    first = freeze(database)
    before = text(database, 1)
    (one, *_) = database.read_now(examples.listed)
    database.write_now(examples.review, one.id, Review(APPROVED, "x", "bob", correction="other"), NOW_MS)
    second = freeze(database)
    database.write_now(lambda connection: connection.execute(delete(schema.examples)))
    assert text(database, 1) == before
    assert second.version == 2
    assert second.digest != first.digest
    assert text(database, 2) != before
    found = database.read_now(datasets.all_versions, "tax")
    assert {row.version: row.digest for row in found} == {1: first.digest, 2: second.digest}
    assert database.read_now(datasets.of_version, "tax") == second
    assert database.read_now(datasets.of_version, "tax", 1) == first
    assert database.read_now(datasets.of_version, "tax", 3) is None


def test_the_same_examples_give_the_same_bytes(database: Database) -> None:
    put(database, [f"question {at}" for at in range(50)])
    assert freeze(database).digest == freeze(database).digest


def test_without_an_approved_example_there_is_none(database: Database) -> None:
    put(database, ["not yet"], CANDIDATE)
    with pytest.raises(datasets.NothingApproved):
        freeze(database)
    left = database.read_now(lambda one: one.execute(select(func.count()).select_from(schema.datasets)).scalar_one())
    assert left == 0
    assert database.read_now(journal.read, kind="dataset") == []


def test_too_many_are_refused_whole(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "MAX_EXAMPLES", 250)
    put(database, [f"question {at}" for at in range(251)])
    with pytest.raises(datasets.TooMany):
        freeze(database)
    assert database.read_now(datasets.of_version, "tax") is None


SHARES = st.sampled_from([Shares(), Shares(0.5, 0.25, 0.25), Shares(0.1, 0.1, 0.8), Shares(1.0, 0.0, 0.0)])
STEPS = st.lists(st.tuples(st.lists(st.integers(0, 40), max_size=15), SHARES), min_size=1, max_size=5)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(steps=STEPS)
def test_a_question_is_in_one_part_in_every_version(sqlite_url: str, steps: list[tuple[list[int], Shares]]) -> None:
    database = Database.open(sqlite_url)
    try:
        for table in (schema.examples, schema.datasets, schema.dataset_items):
            database.write_now(lambda connection, of=table: connection.execute(delete(of)))
        known: dict[str, str] = {}
        written: dict[int, str] = {}
        for number, (questions, shares) in enumerate(steps):
            # Near-duplicates: the same question in other letters, with another correction each.
            put_more = [f"Question {one}" if number % 2 else f"question  {one}" for one in questions]
            put(database, put_more, correction=str(number))
            if not known and not questions:
                continue
            made = freeze(database, shares)
            written[made.version] = text(database, made.version)
            for question, part in parts_of(written[made.version]).items():
                assert known.setdefault(" ".join(question.split()), part) == part
        for version, jsonl in written.items():
            assert text(database, version) == jsonl
    finally:
        database.close_now()
