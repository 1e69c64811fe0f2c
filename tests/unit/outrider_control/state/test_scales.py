"""Numbers of instances in the store: who is overtaken changes nothing."""

from __future__ import annotations

import asyncio

import pytest

from outrider.policy import Agent
from outrider_control.core.decision import Decision
from outrider_control.state import agents, journal, retention, scales
from outrider_control.state.database import Database
from outrider_control.state.retention import Retention
from outrider_control.state.scales import ScaleRow


def entry(reason: str = "more calls") -> Decision:
    return Decision("scale", "scaler", reason, "tax", at_ms=5)


async def test_a_change_is_in_the_journal_and_needs_the_newest_version(database: Database) -> None:
    assert await database.read(scales.of_agent, "tax") == ScaleRow("tax")
    first = await database.write(scales.change, "tax", 0, 3, 5, entry())
    assert first == ScaleRow("tax", 1, 3, 5)
    assert await database.write(scales.change, "tax", 0, 9, 6, entry("too late")) is None
    second = await database.write(scales.change, "tax", 1, 4, 7, entry("again"))
    assert second == ScaleRow("tax", 2, 4, 7)
    assert await database.write(scales.change, "tax", 7, 9, 8, entry("from nowhere")) is None
    assert await database.write(scales.change, "gone", 7, 9, 8, entry("from nowhere")) is None
    assert await database.read(scales.current) == {"tax": second}
    assert [one.reason for one in await database.read(journal.read, "tax", "scale")] == ["again", "more calls"]
    assert await database.read(scales.is_newest, "tax", 2)
    assert not await database.read(scales.is_newest, "tax", 1)


async def test_a_change_without_an_entry(database: Database) -> None:
    assert await database.write(scales.change, "tax", 0, 3, 0, None) == ScaleRow("tax", 1, 3)
    assert await database.read(journal.read) == []


async def test_pausing_outruns_a_change_on_its_way(database: Database) -> None:
    await database.write(scales.change, "tax", 0, 3, 5, entry())
    paused = await database.write(scales.pause, "tax", "ann\0", "night", 9)
    assert paused == ScaleRow("tax", 2, 3, 5, 9, "ann", "night")
    assert await database.write(scales.change, "tax", 1, 4, 7, entry("late")) is None
    again = await database.write(scales.pause, "tax", "bob", "longer", 11)
    assert (again.version, again.paused_by, again.paused_reason) == (3, "bob", "longer")
    resumed = await database.write(scales.resume, "tax", "ann", "day", 12)
    assert resumed == ScaleRow("tax", 4, 3, 5)
    assert await database.write(scales.resume, "tax", "ann", "day", 13) == resumed
    told = [(one.author, one.reason, one.outcome.get("action")) for one in await database.read(journal.read, "tax")]
    assert told[:3] == [("ann", "day", "resume"), ("bob", "longer", "pause"), ("ann", "night", "pause")]
    assert len(told) == 4


async def test_an_agent_without_a_number_may_be_paused(database: Database) -> None:
    row = await database.write(scales.pause, "tax", "ann", "not yet", 9)
    assert (row.version, row.desired, row.paused_ms) == (1, None, 9)


async def test_a_report_changes_no_version(database: Database) -> None:
    await database.write(scales.change, "tax", 0, 3, 5, entry())
    await database.write(scales.report, [("tax", "{}"), ("law", "[]"), ("long", "x" * 100_000)], 77)
    rows = await database.read(scales.current)
    assert rows["tax"] == ScaleRow("tax", 1, 3, 5, report="{}", reported_ms=77)
    assert rows["law"] == ScaleRow("law", report="[]", reported_ms=77)
    assert "long" not in rows
    changed = await database.write(scales.change, "law", 0, 1, 5, None)
    assert changed is not None
    assert (changed.version, changed.report) == (1, "[]")
    await database.write(scales.report, [], 78)


async def test_rows_of_deleted_agents_go(database: Database) -> None:
    await database.write(agents.apply, [agents.Wanted(Agent("tax")), agents.Wanted(Agent("law"))], "ann", "", 1)
    for agent_id in ("tax", "law", "never"):
        await database.write(scales.change, agent_id, 0, 3, 5, None)
    await database.write(agents.delete, ["law"], "ann", "", 2)
    assert (await database.write(retention.prune, 3, Retention()))["scales"] == 2
    assert list(await database.read(scales.current)) == ["tax"]


@pytest.mark.parametrize("times", [8])
async def test_of_several_that_know_the_same_version_one_wins(store_url: str, times: int) -> None:
    stores = [Database.open(store_url) for _ in range(2)]
    try:
        await stores[0].write(scales.change, "tax", 0, 1, 0, None)
        for version in range(1, times):
            tries = [
                store.write(scales.change, "tax", version, version * 10 + at, 0, entry())
                for at, store in enumerate((*stores, *stores))
            ]
            won = [row for row in await asyncio.gather(*tries) if row is not None]
            assert [row.version for row in won] == [version + 1]
            assert (await stores[1].read(scales.of_agent, "tax")).desired == won[0].desired
        assert len(await stores[0].read(journal.read, "tax")) == times - 1
    finally:
        for store in stores:
            store.close_now()
