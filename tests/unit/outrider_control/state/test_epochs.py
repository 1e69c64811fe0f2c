from __future__ import annotations

import pytest

from outrider.policy import PolicyError
from outrider_control.state import epochs, revision
from outrider_control.state.database import Database


async def test_values_only_rise_whatever_the_clock_does(database: Database) -> None:
    assert await database.read(epochs.current) == (0, [], 0)
    assert await database.write(epochs.bump, "tax", "", "", 1_000) == 1_000
    assert await database.write(epochs.bump, "", "acme", "", 1_000) == 1_001
    assert await database.write(epochs.bump, "", "", "invoices", 5) == 1_002
    assert await database.write(epochs.bump, "tax", "", "", 9_000) == 9_000
    floor, scopes, newest = await database.read(epochs.current)
    assert (floor, newest) == (0, 4)
    assert scopes == [("", "", "invoices", 1_002), ("", "acme", "", 1_001), ("tax", "", "", 9_000)]


async def test_all_scopes_at_once_raise_the_floor(database: Database) -> None:
    await database.write(epochs.bump, "tax", "", "", 1_000)
    assert await database.write(epochs.bump, "", "", "", 500) == 1_001
    assert await database.read(epochs.current) == (1_001, [("tax", "", "", 1_000)], 2)
    assert await database.write(epochs.raise_floor, 2_000) == 2_000
    assert await database.read(epochs.current) == (2_000, [], 3)


async def test_past_the_bound_the_floor_rises_above_all(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epochs, "MAX_SCOPES", 3)
    for number in range(3):
        assert await database.write(epochs.bump, "tax", "", f"tag{number}", 1_000) == 1_000 + number
    assert await database.write(epochs.bump, "tax", "", "tag3", 1_000) == 1_004
    assert await database.read(epochs.current) == (1_004, [], 4)
    assert await database.write(epochs.bump, "tax", "", "tag0", 1_000) == 1_005
    assert await database.read(revision.current) == 5


async def test_parts_that_are_no_names_are_named(database: Database) -> None:
    with pytest.raises(PolicyError) as caught:
        await database.write(epochs.bump, "tax", "a" * 2_000, "", 1_000)
    assert caught.value.path == "tenant_id"
    with pytest.raises(PolicyError) as caught:
        await database.write(epochs.bump, "tax", "", "a\0b", 1_000)
    assert caught.value.path == "tag"
    assert await database.read(epochs.current) == (0, [], 0)
