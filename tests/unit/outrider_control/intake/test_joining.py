"""The leader's turn: joins, learns and tidies what is due, and only reads where nothing is."""

from __future__ import annotations

from typing import Any

import pytest

from outrider_control.core.call_record import CallRecord
from outrider_control.intake import joining
from outrider_control.intake.joining import Joining
from outrider_control.state import call_index, examples, feedback
from outrider_control.state.database import Database
from outrider_control.state.feedback import NewFeedback

NOW_MS = 1_800_000_000_000
CALL = CallRecord(b"c" * 8, b"t" * 16, NOW_MS, 0, "tax", "", "", "")


class Turns:
    """Turns at a time that is told."""

    def __init__(self, database: Database, **settings: Any):
        self.now_ms = NOW_MS
        self.marked: list[str] = []
        self.database = database
        given = {"max_calls": 1_000, "learning": True, "min_batch": 2} | settings
        self.joining = Joining(database, lambda: self.now_ms, self._mark, **given)

    async def _mark(self, trace_id: str) -> None:
        self.marked.append(trace_id)

    async def say(self, *ids: str, **fields: Any) -> None:
        base = NewFeedback("", CALL.call_id.hex(), "", "", 1.0, "42", "", (), {}, "", "", "", 0)
        items = [base._replace(feedback_id=one, **fields) for one in ids]
        await self.database.write(feedback.take, items, self.now_ms)

    async def examples(self) -> list[examples.ExampleRow]:
        return await self.database.read(examples.listed)


async def test_feedback_that_came_first_is_joined_marked_and_learnt_from(database: Database) -> None:
    turns = Turns(database)
    await turns.say("f1", "f2")
    await turns.joining.turn()
    assert await turns.examples() == []
    await database.write(call_index.add, [CALL])
    await turns.joining.turn()
    assert turns.marked == [CALL.trace_id.hex()]
    assert [row.count for row in await turns.examples()] == [2]
    assert turns.joining.gathered == 2


async def test_one_alone_waits_a_minute(database: Database) -> None:
    turns = Turns(database)
    await database.write(call_index.add, [CALL])
    await turns.say("f1")
    await turns.joining.turn()
    assert await turns.examples() == []
    turns.now_ms += examples.WAIT_MS
    await turns.joining.turn()
    assert len(await turns.examples()) == 1


async def test_without_learning_nothing_is_learnt_until_it_is_on(database: Database) -> None:
    await database.write(call_index.add, [CALL])
    turns = Turns(database, learning=False)
    await turns.say("f1", "f2")
    await turns.joining.turn()
    assert await turns.examples() == []
    await Turns(database).joining.turn()
    assert len(await turns.examples()) == 1


async def test_more_than_one_portion_is_gathered_in_one_turn(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examples, "PORTION", 3)
    turns = Turns(database)
    await database.write(call_index.add, [CALL])
    await turns.say(*[f"f{at}" for at in range(8)])
    await turns.joining.turn()
    assert [row.count for row in await turns.examples()] == [8]


async def test_a_turn_with_nothing_to_do_only_reads(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns(database)
    await database.write(call_index.add, [CALL])
    await turns.joining.turn()
    monkeypatch.setattr(database, "write", None)
    await turns.joining.turn()


async def test_many_runs_are_tidied(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_index, "_MANY", 3)
    for at in range(3):
        await database.write(call_index.add, [CALL._replace(call_id=bytes([at]) * 8)])
    turns = Turns(database)
    await turns.joining.turn()
    assert await database.read(call_index.is_untidy) is False
    assert await database.read(call_index.size) == 3


async def test_a_span_that_cannot_be_kept_undoes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(trace_id: str) -> None:
        raise RuntimeError("full")

    await joining.keep_spans(fail, {"t1", "t2"})
    assert [record.getMessage() for record in caplog.records] == ["the spans of trace t1 cannot be kept: full"]
