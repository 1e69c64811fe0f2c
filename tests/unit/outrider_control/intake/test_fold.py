"""When folds happen."""

from __future__ import annotations

import asyncio

import pytest

from outrider_control.core.windows import Windows
from outrider_control.intake.fold import Fold
from outrider_control.state import rollups
from outrider_control.state.database import Database, DatabaseError
from tests.figure_samples import NOW_MS, sample


def clock_ms() -> int:
    return NOW_MS


async def append(database: Database, count: int = 1) -> None:
    windows = Windows()
    one = sample()
    windows.add(one.key, one.end_ms, one)
    for _ in range(count):
        await database.write(rollups.append_delta, windows.encode())


async def test_all_there_is_is_folded(database: Database) -> None:
    fold = Fold(database, clock_ms)
    assert await fold.once() == 0
    await append(database, rollups.MAX_DELTAS + 3)
    assert await fold.once() == rollups.MAX_DELTAS + 3
    assert await database.read(rollups.delta_ids) == []


async def test_only_the_leader_folds_and_a_failure_is_tried_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await append(database)
    fold = Fold(database, clock_ms, interval_s=0.001)
    leading, asked = False, 0

    def leads() -> bool:
        nonlocal asked
        asked += 1
        return leading

    async def until(reached: int) -> None:
        while asked < reached:
            await asyncio.sleep(0.001)

    def fail(*_: object) -> None:
        raise DatabaseError("store", "the disk is full", "full")

    task = asyncio.ensure_future(fold.run(leads))
    await until(3)
    assert len(await database.read(rollups.delta_ids)) == 1
    with monkeypatch.context() as failing:
        failing.setattr(rollups, "fold", fail)
        leading = True
        await until(asked + 3)
        assert "the disk is full" in fold.warning
    while await database.read(rollups.delta_ids):
        await asyncio.sleep(0.001)
    await until(asked + 2)
    assert (fold.warning, fold.rows) == ("", 8)
    task.cancel()
    await asyncio.wait([task])


async def test_what_cannot_be_read_is_counted_and_said(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    await database.write(rollups.append_delta, b"junk")
    fold = Fold(database, clock_ms)
    assert await fold.once() == 1
    assert fold.unreadable == 1
    assert "could not be read" in caplog.text
