"""Splits in the store: versions of an agent's set, and what is newer than a revision."""

from __future__ import annotations

import dataclasses

import pytest

from outrider.split import Split
from outrider.split_codec import decode_split
from outrider.v1 import policy_pb2
from outrider_control.state import revision, splits
from outrider_control.state.database import Database
from tests.units import split


def decoded(found: splits.SplitSet) -> list[Split]:
    return [decode_split(policy_pb2.SplitPolicy.FromString(one)) for one in found.splits]


async def test_a_split_comes_differs_and_goes(database: Database) -> None:
    first = await database.write(splits.put, split())
    assert first == await database.read(revision.current)
    assert await database.read(splits.get, "test") == split()
    assert await database.write(splits.put, split()) is None
    closed = dataclasses.replace(split(), is_open=False)
    second = await database.write(splits.put, closed)
    assert second is not None
    assert second > (first or 0)
    assert await database.read(splits.of_agent, "agent") == (closed,)
    third = await database.write(splits.remove, "test")
    assert third is not None
    assert await database.write(splits.remove, "test") is None
    assert await database.read(splits.get, "test") is None
    assert await database.read(splits.version, "agent") == third


async def test_what_is_newer_is_told_by_agent_those_without_splits_too(database: Database) -> None:
    since = await database.read(revision.current)
    await database.write(splits.put, split("one"))
    await database.write(splits.put, split("two"))
    await database.write(splits.put, split("other", "another"))
    news = await database.read(splits.changed_since, since)
    assert {name: [one.name for one in decoded(found)] for name, found in news.items()} == {
        "agent": ["one", "two"],
        "another": ["other"],
    }
    assert news["agent"].revision < news["another"].revision
    later = await database.read(splits.changed_since, news["agent"].revision)
    assert list(later) == ["another"]
    await database.write(splits.remove, "other")
    gone = await database.read(splits.changed_since, news["another"].revision)
    assert gone["another"].splits == []
    assert await database.read(splits.names) == {"one", "two"}


async def test_a_name_is_one_agents(database: Database) -> None:
    await database.write(splits.put, split())
    with pytest.raises(ValueError, match="of the agent 'agent'"):
        await database.write(splits.put, split(agent_id="another"))
    assert await database.read(splits.version, "nobody") == 0
