"""The publisher between a store that fails and sidecars that must not notice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
import sqlalchemy as sa

from outrider.policy import Agent, Optimization
from outrider.v1 import mesh_pb2
from outrider_control.state import agents, leases, schema, sidecars
from outrider_control.state.database import Database, DatabaseError
from tests.watchers import Control, Watcher, until, wall_ms


class Flaky:
    """A database whose transactions fail while it is `away`."""

    def __init__(self, db: Database):
        self._db = db
        self.away = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    async def write(self, function: Callable[..., Any], *args: Any) -> Any:
        self._check()
        return await self._db.write(function, *args)

    async def read(self, function: Callable[..., Any], *args: Any) -> Any:
        self._check()
        return await self._db.read(function, *args)

    def _check(self) -> None:
        if self.away:
            raise DatabaseError("the store", "is away")


class Clock:
    def __init__(self) -> None:
        self.now_ms = wall_ms()

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(database: Database) -> Flaky:
    return Flaky(database)


@pytest.fixture
async def control(store: Flaky, clock: Clock) -> AsyncIterator[Control]:
    async with Control(store, clock_ms=clock) as control:  # pyright: ignore[reportArgumentType]
        ticker = control.publisher.lessor._ticker
        assert ticker is not None
        ticker.cancel()
        await asyncio.gather(ticker, return_exceptions=True)
        yield control


async def _pass(control: Control, clock: Clock, seconds: int) -> None:
    for _ in range(seconds):
        clock.now_ms += 1_000
        try:
            await control.publisher.lessor.tick()
        except DatabaseError as error:
            control.publisher.lessor._is_away(error)


async def test_while_the_store_is_away_streams_live_and_no_lease_ends(
    control: Control, store: Flaky, clock: Clock
) -> None:
    await control.apply(Agent("a"))
    async with Watcher(control.target, "s") as watcher, control.stub() as stub:
        await until(lambda: watcher.versions() == {"a": 1})
        endpoint = mesh_pb2.Endpoint(agent_id="a", address="h:1")
        await stub.Register(mesh_pb2.RegisterRequest(endpoint=endpoint))
        await until(lambda: watcher.addresses("a") == ["h:1"])
        store.away = True
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Register(mesh_pb2.RegisterRequest(endpoint=mesh_pb2.Endpoint(agent_id="a", address="h:2")))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        announced = mesh_pb2.Endpoint(agent_id="a", address="h:3")
        await watcher.send(announcement=mesh_pb2.Announcement(endpoints=[announced]))
        await until(lambda: control.publisher.lessor._stale)
        with pytest.raises(DatabaseError):
            await control.publisher.refresh()
        await _pass(control, clock, 120)
        assert [lease.address for lease in control.fleet.leases] == ["h:1"]
        store.away = False
        await _pass(control, clock, 5)
        await until(lambda: watcher.addresses("a") == ["h:1", "h:3"])
        assert watcher.ended is None
        await _pass(control, clock, 15)
        await until(lambda: watcher.addresses("a") == ["h:3"])


async def test_what_changed_while_the_store_could_not_be_read_comes_after(
    control: Control, store: Flaky, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outrider_control.publish.publisher.RETRY_S", 0.01)
    async with Watcher(control.target) as watcher:
        await until(lambda: watcher.updates)
        other = Control(database)
        store.away = True
        await other.apply(Agent("a"))
        with pytest.raises(DatabaseError):
            await control.publisher.refresh()
        assert watcher.versions() == {}
        store.away = False
        await until(lambda: watcher.versions() == {"a": 1})


async def test_a_lease_that_another_ended_comes_back_while_its_sidecar_is_there(control: Control) -> None:
    async with Watcher(control.target, "ingress") as sidecar:
        announcement = mesh_pb2.Announcement(endpoints=[mesh_pb2.Endpoint(agent_id="a", address="h:1")])
        await sidecar.send(announcement=announcement)
        await until(lambda: sidecar.addresses("a") == ["h:1"])
        await control.db.write(leases.remove, [("a", "h:1")])
        await until(lambda: len(sidecar.updates) >= 3)
        await until(lambda: sidecar.addresses("a") == ["h:1"])


async def test_what_is_known_of_sidecars_outlives_the_process(database: Database) -> None:
    async with Control(database, "before") as before, Watcher(before.target, "s", node="n") as watcher:
        await until(lambda: watcher.updates)
        await watcher.send(load=mesh_pb2.LoadReport(spans_dropped=5))
        await until(lambda: before.dropped)
        await before.publisher.remember()
    async with Control(database, "after") as after:
        (record,) = after.fleet.sidecars()
        assert (record.instance_id, record.node, record.control_id) == ("s", "n", "before")
        async with Watcher(after.target, "s", node="n") as watcher:
            await watcher.send(load=mesh_pb2.LoadReport(spans_dropped=6))
            await until(lambda: after.dropped)
            assert after.dropped == [("s", "", 1)]


async def test_a_store_that_does_not_take_what_is_known_is_told_again(control: Control, store: Flaky) -> None:
    async with Watcher(control.target, "s") as watcher:
        await until(lambda: watcher.updates)
        store.away = True
        with pytest.raises(DatabaseError):
            await control.publisher.remember()
        store.away = False
        await control.publisher.remember()
        assert [row.instance_id for row in await control.db.read(sidecars.current, 0)] == ["s"]


async def test_two_control_planes_of_one_store_publish_the_same_versions(database: Database) -> None:
    async with contextlib.AsyncExitStack() as stack:
        one, two = [await stack.enter_async_context(Control(database, name)) for name in ("one", "two")]
        async with one.stub() as stub:
            endpoint = mesh_pb2.Endpoint(agent_id="a", address="h:1")
            await stub.Register(mesh_pb2.RegisterRequest(endpoint=endpoint))
        await one.apply(Agent("a"), Agent("b"))
        await two.apply(Agent("a", timeout_ms=3))
        await two.delete("b")
        late = await stack.enter_async_context(Control(database, "late"))
        for control in (one, two, late):
            await control.publisher.refresh()
        catalogs = [
            {key: (resource.version, resource.wire) for key, resource in control.fleet.catalog.resources.items()}
            for control in (one, two, late)
        ]
        assert catalogs[0] == catalogs[1] == catalogs[2]
        assert len(catalogs[0]) == 2


async def test_agents_whose_newest_policy_cannot_be_enforced_are_named(control: Control, database: Database) -> None:
    for ttl in (1, 2):
        wanted = [agents.Wanted(Agent("odd", optimization=Optimization(cache_ttl=ttl))), agents.Wanted(Agent("even"))]
        await database.write(agents.apply, wanted, "ann", "test", 1_000)
    newest = schema.agent_versions.c.agent_id == "odd", schema.agent_versions.c.version == 2

    def spoil(connection: sa.Connection) -> None:
        connection.execute(
            sa.update(schema.agent_versions).where(*newest).values(document='{"agent_id": "odd", "tls": 7}')
        )

    await database.write(spoil)
    async with Control(database, clock_ms=wall_ms) as other:
        (told,) = other.publisher.unreadable.items()
        assert told[0] == "odd"
        assert told[1].endswith("; version 1 is in force")
        assert other.fleet.agents["odd"].optimization.cache_ttl == 1
        await database.write(agents.apply, [agents.Wanted(Agent("odd"))], "ann", "mended", 2_000)
        await other.publisher.refresh()
        assert other.publisher.unreadable == {}
