"""Splits on their way to sidecars."""

from __future__ import annotations

import dataclasses

from outrider.policy import Agent
from outrider.split_codec import decode_splits
from outrider.v1 import mesh_pb2
from outrider_control.state import splits
from outrider_control.state.database import Database
from tests.units import split
from tests.watchers import Control, Watcher, until

SPLITS = mesh_pb2.RESOURCE_KIND_SPLITS


def held(watcher: Watcher, agent_id: str = "agent") -> list[tuple[str, bool]]:
    """The splits that a sidecar knows, and whether they are open."""
    resource = watcher.held.get((SPLITS, agent_id))
    found = decode_splits(resource.splits.splits, agent_id) if resource is not None else ()
    return [(one.name, one.is_open) for one in found]


async def test_a_split_reaches_a_sidecar_changes_and_goes(database: Database) -> None:
    async with Control(database) as control, Watcher(control.target) as watcher:
        await control.apply(Agent("agent"))
        await database.write(splits.put, split("one"))
        await until(lambda: held(watcher) == [("one", True)])
        await database.write(splits.put, split("two"))
        await until(lambda: held(watcher) == [("one", True), ("two", True)])
        await database.write(splits.put, dataclasses.replace(split("one"), is_open=False))
        await until(lambda: held(watcher) == [("one", False), ("two", True)])
        assert watcher.held[SPLITS, "agent"].splits.splits[1].variants[1].share == 0.5
        await database.write(splits.remove, "one")
        await database.write(splits.remove, "two")
        await until(lambda: (SPLITS, "agent") not in watcher.held)


async def test_a_sidecar_that_was_away_is_told_what_came_and_what_went(database: Database) -> None:
    async with Control(database) as control:
        watcher = Watcher(control.target)
        await database.write(splits.put, split("gone", "first"))
        await database.write(splits.put, split("kept", "second"))
        async with watcher:
            await until(lambda: held(watcher, "second") == [("kept", True)])
        await database.write(splits.remove, "gone")
        await database.write(splits.put, split("new", "third"))
        seen = len(watcher.updates)
        async with watcher:
            await until(lambda: held(watcher, "third") == [("new", True)])
            assert held(watcher, "first") == []
            assert held(watcher, "second") == [("kept", True)]
            sent = [(one.id.kind, one.id.name) for update in watcher.updates[seen:] for one in update.resources]
            assert (SPLITS, "second") not in sent, "what it holds is not sent again"


async def test_a_control_plane_that_starts_has_what_stands(database: Database) -> None:
    await database.write(splits.put, split())
    async with Control(database) as control, Watcher(control.target) as watcher:
        await until(lambda: held(watcher) == [("test", True)])


async def test_another_control_plane_on_the_same_store_finds_it_by_its_revision(
    database: Database, store_url: str
) -> None:
    other = Database.open(store_url)
    async with Control(other) as control, Watcher(control.target) as watcher:
        await until(lambda: watcher.updates)
        await database.write(splits.put, split())
        await control.publisher.refresh()
        await until(lambda: held(watcher) == [("test", True)])
    await other.close()
