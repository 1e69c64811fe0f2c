"""Ratings by agent, variant and time: only of calls that are known, and never a zero for nothing."""

from __future__ import annotations

from typing import Any

import pytest

from outrider_control.core.call_record import CallRecord
from outrider_control.state import call_index, feedback, satisfaction
from outrider_control.state.database import Database
from outrider_control.state.feedback import NewFeedback

NOW_MS = 1_800_000_000_000
SECOND_MS = 1_000


def of(variant: str, agent_id: str = "tax") -> CallRecord:
    return CallRecord(f"{agent_id[:3]}{variant[-1:]:>5}".encode(), b"t" * 16, NOW_MS, 0, agent_id, variant, "", "")


def say(database: Database, call: CallRecord, *ratings: float | None, at_ms: int = NOW_MS, **fields: Any) -> None:
    base = NewFeedback("", call.call_id.hex(), "", "", None, "", "", (), {}, "", "", "", at_ms)
    items = [
        base._replace(feedback_id=f"{call} {at_ms} {at} {fields}", rating=rating, **fields)
        for at, rating in enumerate(ratings)
    ]
    database.write_now(feedback.take, items, NOW_MS)


@pytest.fixture(autouse=True)
def rated(database: Database) -> None:
    database.write_now(call_index.add, [of("exp=A"), of("exp=B,ui=x"), of("", "law")])
    say(database, of("exp=A"), 1.0, 2.0)
    say(database, of("exp=B,ui=x"), 5.0, at_ms=NOW_MS - 70 * SECOND_MS)
    say(database, of("exp=B,ui=x"), None, complaint="no")
    say(database, of("", "law"), None, labels=("ok",))
    say(database, of("unknown"), 5.0, agent_id="tax")


def test_by_agent_and_variant(database: Database) -> None:
    found = database.read_now(satisfaction.by_variant, 0, NOW_MS)
    assert list(found) == [("law", ""), ("tax", ""), ("tax", "exp=A"), ("tax", "exp=B"), ("tax", "ui=x")]
    assert {key: (sums.ratings, sums.mean, sums.complaints) for key, sums in found.items()} == {
        ("law", ""): (0, None, 0),
        ("tax", ""): (3, 8 / 3, 1),
        ("tax", "exp=A"): (2, 1.5, 0),
        ("tax", "exp=B"): (1, 5.0, 1),
        ("tax", "ui=x"): (1, 5.0, 1),
    }


def test_of_a_time_and_an_agent(database: Database) -> None:
    assert database.read_now(satisfaction.by_agent, 0, NOW_MS)["tax"].mean == 8 / 3
    recent = database.read_now(satisfaction.by_agent, NOW_MS - SECOND_MS, NOW_MS, "tax")
    assert {name: sums.mean for name, sums in recent.items()} == {"tax": 1.5}
    assert database.read_now(satisfaction.by_agent, NOW_MS + 1, NOW_MS + 2) == {}


def test_by_window_and_by_text(database: Database) -> None:
    windows = database.read_now(satisfaction.by_window, 0, NOW_MS, 60 * SECOND_MS, "tax")
    assert {start: sums.mean for start, sums in windows.items()} == {NOW_MS: 1.5, NOW_MS - 120 * SECOND_MS: 5.0}
    texts = database.read_now(satisfaction.by_text, 0, NOW_MS, "tax")
    assert {text: sums.mean for text, sums in texts.items()} == {"exp=A": 1.5, "exp=B,ui=x": 5.0}
    assert satisfaction.together(texts.values()).mean == 8 / 3
    assert satisfaction.together([]).mean is None
