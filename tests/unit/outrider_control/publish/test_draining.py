"""Endpoints that drain: leases still, but sidecars are not told of them, at any control plane and after a restart."""

from __future__ import annotations

from typing import Any

import pytest

from outrider.v1 import mesh_pb2
from outrider_control.publish.resources import ENDPOINTS, ResourceId
from outrider_control.state import leases
from outrider_control.state.database import Database
from tests.watchers import Control, Watcher, until


async def _register(control: Control, address: str, **more: Any) -> str:
    async with control.stub() as stub:
        endpoint = mesh_pb2.Endpoint(agent_id="a", address=address, **more)
        return (await stub.Register(mesh_pb2.RegisterRequest(endpoint=endpoint))).lease_id


def _marks(control: Control) -> dict[str, bool]:
    return {lease.address: lease.draining for lease in control.fleet.leases.of_agent("a")}


async def test_it_leaves_the_balancers_and_comes_back(database: Database) -> None:
    async with Control(database) as control, Watcher(control.target) as watcher:
        first = await _register(control, "h:1")
        await _register(control, "h:2")
        version = await control.publisher.lessor.mark("a", ["h:1"], True)
        assert await control.publisher.confirmed(ENDPOINTS, "a", version, 5) == (1, 1)
        assert watcher.addresses("a") == ["h:2"]
        assert _marks(control) == {"h:1": True, "h:2": False}
        assert await control.publisher.renew([first]) == []  # it is a lease still
        assert await control.publisher.lessor.mark("a", ["h:1"], True) == version  # nothing new
        await control.publisher.lessor.mark("a", ["h:2"], True)
        await until(lambda: watcher.addresses("a") == [])
        await control.publisher.lessor.mark("a", ["h:1", "h:2", "h:3"], False)
        await until(lambda: watcher.addresses("a") == ["h:1", "h:2"])
        assert await control.publisher.lessor.mark("nobody", ["h:1"], True) == 0


async def test_the_mark_stays_however_often_it_registers_again(database: Database) -> None:
    async with Control(database) as control, Watcher(control.target) as watcher:
        await _register(control, "h:1")
        await control.publisher.lessor.mark("a", ["h:1"], True)
        await control.publisher.refresh()
        again = await _register(control, "h:1", capacity=7)
        await control.publisher.refresh()
        assert _marks(control) == {"h:1": True}
        assert watcher.addresses("a") == []
        await control.publisher.deregister(again)
        await control.publisher.refresh()
        await _register(control, "h:1")  # another one, later
        await until(lambda: watcher.addresses("a") == ["h:1"])
        assert _marks(control) == {"h:1": False}


async def test_a_new_process_behind_a_sidecar_serves(database: Database) -> None:
    """What a sidecar announces is its own as long as it lives; the next one at that address is another."""
    announcement = mesh_pb2.Announcement(endpoints=[mesh_pb2.Endpoint(agent_id="a", address="h:1")])
    async with Control(database) as control, Watcher(control.target, "egress") as egress:
        async with Watcher(control.target, "first") as first:
            await first.send(announcement=announcement)
            await until(lambda: egress.addresses("a") == ["h:1"])
            await control.publisher.lessor.mark("a", ["h:1"], True)
            await until(lambda: egress.addresses("a") == [])
            changed = mesh_pb2.Endpoint(agent_id="a", address="h:1", weight=3)
            await first.send(announcement=mesh_pb2.Announcement(endpoints=[changed]))
            await until(lambda: b"h:1" in control.fleet.leases.of_agent("a")[0].endpoint)
            await control.publisher.refresh()
            assert _marks(control) == {"h:1": True}
        async with Watcher(control.target, "second") as second:
            await second.send(announcement=announcement)
            await until(lambda: egress.addresses("a") == ["h:1"])
            assert _marks(control) == {"h:1": False}


async def test_other_control_planes_and_the_next_one_know(database: Database) -> None:
    async with Control(database, "one") as one, Control(database, "two") as two:
        await _register(one, "h:1")
        await _register(two, "h:2")
        await one.publisher.refresh()
        await one.publisher.lessor.mark("a", ["h:1", "h:2"], True)
        await two.publisher.refresh()
        await one.publisher.refresh()
        assert _marks(one) == _marks(two) == {"h:1": True, "h:2": True}
        await _register(two, "h:2", weight=2)  # at one that has heard of it
        await one.publisher.refresh()
        assert _marks(one) == {"h:1": True, "h:2": True}
        await two.publisher.refresh()
        key = ResourceId(ENDPOINTS, "a")
        assert one.fleet.catalog.version(key) == two.fleet.catalog.version(key)
    async with Control(database, "after") as after, Watcher(after.target) as watcher:
        await until(lambda: watcher.updates)
        assert _marks(after) == {"h:1": True, "h:2": True}
        assert watcher.addresses("a") == []


@pytest.mark.parametrize("known", [True, False])
async def test_a_mark_that_is_news_while_a_lease_is_put(database: Database, known: bool) -> None:
    async with Control(database, "one") as one, Control(database, "two") as two:
        await _register(one, "h:1")
        await two.publisher.refresh()
        await database.write(leases.mark, "a", ["h:1"], True)
        if known:
            await two.publisher.refresh()
        await _register(two, "h:1", weight=2)
        for control in (one, two):
            await control.publisher.refresh()
            assert _marks(control) == {"h:1": True}
