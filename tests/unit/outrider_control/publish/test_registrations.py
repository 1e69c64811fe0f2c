"""Registrations, renewals and announcements over real sockets and both stores."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from outrider.policy import Agent, EndpointPolicy
from outrider.v1 import mesh_pb2
from outrider_control.core import leases as rules
from outrider_control.state import journal, leases
from outrider_control.state.database import Database
from tests.watchers import Control, Watcher, until, wall_ms


class Clock:
    """Time as the test wants it."""

    def __init__(self) -> None:
        self.now_ms = wall_ms()

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def control(database: Database, clock: Clock) -> AsyncIterator[Control]:
    async with Control(database, clock_ms=clock) as control:
        await _by_hand(control)
        yield control


async def _by_hand(control: Control) -> None:
    """The lessor ticks only when the test says so."""
    ticker = control.publisher.lessor._ticker
    assert ticker is not None
    ticker.cancel()
    await asyncio.gather(ticker, return_exceptions=True)


async def _pass(control: Control, clock: Clock, seconds: int) -> None:
    for _ in range(seconds):
        clock.now_ms += 1_000
        await control.publisher.lessor.tick()


async def _register(control: Control, address: str, agent_id: str = "a", **more: Any) -> mesh_pb2.RegisterReply:
    async with control.stub() as stub:
        return await stub.Register(
            mesh_pb2.RegisterRequest(endpoint=mesh_pb2.Endpoint(agent_id=agent_id, address=address), **more)
        )


async def test_what_registers_is_told_to_sidecars_and_goes_when_it_says_so(control: Control) -> None:
    async with Watcher(control.target) as watcher, control.stub() as stub:
        first = await _register(control, "10.0.0.2:1")
        await _register(control, "10.0.0.1:1")
        assert first.ttl_ms == 15_000
        await until(lambda: watcher.addresses("a") == ["10.0.0.1:1", "10.0.0.2:1"])
        reply = await stub.Renew(mesh_pb2.RenewRequest(lease_ids=[first.lease_id, "never heard of"]))
        assert list(reply.unknown) == ["never heard of"]
        await stub.Deregister(mesh_pb2.DeregisterRequest(lease_id=first.lease_id))
        await until(lambda: watcher.addresses("a") == ["10.0.0.1:1"])
        await stub.Deregister(mesh_pb2.DeregisterRequest(lease_id=first.lease_id))
        reply = await stub.Renew(mesh_pb2.RenewRequest(lease_ids=[first.lease_id]))
        assert list(reply.unknown) == [first.lease_id]


async def test_the_same_endpoint_again_replaces_the_lease(control: Control) -> None:
    async with Watcher(control.target) as watcher, control.stub() as stub:
        first = await _register(control, "h:1")
        await until(lambda: watcher.addresses("a") == ["h:1"])
        second = await _register(control, "h:1", ttl_ms=5_000)
        assert (second.ttl_ms, second.lease_id != first.lease_id) == (5_000, True)
        reply = await stub.Renew(mesh_pb2.RenewRequest(lease_ids=[first.lease_id, second.lease_id]))
        assert list(reply.unknown) == [first.lease_id]
        await stub.Deregister(mesh_pb2.DeregisterRequest(lease_id=first.lease_id))
        await control.publisher.refresh()
        assert watcher.addresses("a") == ["h:1"]


async def test_a_lease_that_is_not_renewed_ends_and_is_journalled(control: Control, clock: Clock) -> None:
    async with Watcher(control.target) as watcher, control.stub() as stub:
        kept = await _register(control, "kept:1")
        await _register(control, "lost:1")
        for _ in range(6):
            await _pass(control, clock, 5)
            await stub.Renew(mesh_pb2.RenewRequest(lease_ids=[kept.lease_id]))
        await until(lambda: watcher.addresses("a") == ["kept:1"])
        (entry,) = await control.db.read(journal.read, "a", "lease")
        assert [each["address"] for each in entry.inputs["endpoints"]] == ["lost:1"]
        assert kept.lease_id not in str(entry)
        (row,) = await control.db.read(leases.current)
        assert row.address == "kept:1"


@pytest.mark.parametrize(
    ("endpoint", "ttl_ms", "field"),
    [
        (mesh_pb2.Endpoint(agent_id="a", address="no port"), 0, "endpoint.address"),
        (mesh_pb2.Endpoint(agent_id="a", address="h:0"), 0, "endpoint.address"),
        (mesh_pb2.Endpoint(agent_id="", address="h:1"), 0, "endpoint.agent_id"),
        (mesh_pb2.Endpoint(agent_id="a b", address="h:1"), 0, "endpoint.agent_id"),
        (mesh_pb2.Endpoint(agent_id="a", address="h:1", weight=-1), 0, "endpoint.weight"),
        (mesh_pb2.Endpoint(agent_id="a", address="h:1", capacity=-1), 0, "endpoint.capacity"),
        (mesh_pb2.Endpoint(agent_id="a", address="h:1", labels={"no good": "x"}), 0, "endpoint.labels"),
        (
            mesh_pb2.Endpoint(agent_id="a", address="h:1", labels={f"l{at}": "v" * 100 for at in range(60)}),
            0,
            "endpoint.labels",
        ),
        (mesh_pb2.Endpoint(agent_id="a", address="h:1"), 10, "ttl_ms"),
        (mesh_pb2.Endpoint(agent_id="a", address="h:1"), 3_600_001, "ttl_ms"),
    ],
)
async def test_what_is_wrong_is_named(control: Control, endpoint: mesh_pb2.Endpoint, ttl_ms: int, field: str) -> None:
    async with control.stub() as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Register(mesh_pb2.RegisterRequest(endpoint=endpoint, ttl_ms=ttl_ms))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert str(caught.value.details()).startswith(field)
    assert len(control.fleet.leases) == 0


async def test_there_are_no_more_endpoints_than_there_may_be(control: Control) -> None:
    control.fleet.leases._max_per_agent = 5
    registered = await asyncio.gather(
        *[_register(control, f"h:{port}") for port in range(1, 9)], return_exceptions=True
    )
    refused = [error for error in registered if isinstance(error, grpc.aio.AioRpcError)]
    assert [error.code() for error in refused] == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 3
    assert "agent a has 5 endpoints" in str(refused[0].details())
    assert len(control.fleet.leases) == 5
    async with control.stub() as stub:
        with pytest.raises(grpc.aio.AioRpcError, match="lease_ids"):
            await stub.Renew(mesh_pb2.RenewRequest(lease_ids=["x"] * 1_001))


async def test_many_registrations_share_transactions(control: Control) -> None:
    before = await control.db.read(leases.versions)
    await asyncio.gather(*[_register(control, f"h:{port}", f"agent-{port % 10}") for port in range(1, 201)])
    assert before == {}
    rows = await control.db.read(leases.current)
    assert len(rows) == len(control.fleet.leases) == 200


async def test_what_a_sidecar_announces_lives_with_its_stream_and_a_grace(control: Control, clock: Clock) -> None:
    async with Watcher(control.target, "other") as other:
        async with Watcher(control.target, "ingress", node="node-7") as sidecar:
            endpoints = [
                mesh_pb2.Endpoint(agent_id="a", address="h:7601", ingress=True, capacity=8),
                mesh_pb2.Endpoint(agent_id="a", address="not an address"),
            ]
            await sidecar.send(announcement=mesh_pb2.Announcement(endpoints=endpoints))
            await until(lambda: other.addresses("a") == ["h:7601"])
            (record,) = control.fleet.endpoints("a")
            assert (record.source, record.node, record.endpoint.ingress) == ("announced", "node-7", True)
            await _pass(control, clock, 120)
            assert other.addresses("a") == ["h:7601"]
        await until(lambda: control.fleet.connected == 1)
        await _pass(control, clock, rules.STREAM_GRACE_MS // 1_000 - 1)
        assert len(control.fleet.leases) == 1
        async with Watcher(control.target, "ingress", node="node-7") as sidecar:
            await sidecar.send(announcement=mesh_pb2.Announcement(endpoints=endpoints))
            await until(lambda: "ingress" in control.fleet.leases._held)
            await _pass(control, clock, 60)
            assert other.addresses("a") == ["h:7601"]
            assert len(other.updates) <= 2, "a reconnect flaps nothing"
        await until(lambda: control.fleet.connected == 1)
        await _pass(control, clock, 20)
        await until(lambda: other.addresses("a") == [])


async def test_an_empty_announcement_withdraws_at_once(control: Control) -> None:
    async with Watcher(control.target, "ingress") as sidecar:
        endpoint = mesh_pb2.Endpoint(agent_id="a", address="h:7601")
        moved = mesh_pb2.Endpoint(agent_id="a", address="h:7602")
        await sidecar.send(announcement=mesh_pb2.Announcement(endpoints=[endpoint]))
        await until(lambda: sidecar.addresses("a") == ["h:7601"])
        await sidecar.send(announcement=mesh_pb2.Announcement(endpoints=[moved]))
        await until(lambda: sidecar.addresses("a") == ["h:7602"])
        await sidecar.send(announcement=mesh_pb2.Announcement())
        await until(lambda: sidecar.addresses("a") == [])
        assert await control.db.read(leases.current) == []


async def test_a_new_process_takes_the_address_over_from_one_that_drains(control: Control) -> None:
    announcement = mesh_pb2.Announcement(endpoints=[mesh_pb2.Endpoint(agent_id="a", address="h:7601")])
    async with Watcher(control.target, "old") as old, Watcher(control.target, "new") as new:
        await old.send(announcement=announcement)
        await until(lambda: new.addresses("a") == ["h:7601"])
        await new.send(announcement=announcement)
        await until(lambda: control.fleet.leases.of_owner("new"))
        await old.send(announcement=mesh_pb2.Announcement())
        await until(lambda: control.publisher.lessor._writer is None)
        await control.publisher.refresh()
        assert new.addresses("a") == ["h:7601"]
        assert [row.owner for row in await control.db.read(leases.current)] == ["new"]


async def test_a_restart_ends_nothing_and_leases_stay_valid(database: Database, clock: Clock) -> None:
    async with Control(database, "before", clock) as before:
        replies = [await _register(before, f"h:{port}") for port in range(1, 6)]
    clock.now_ms += 3_600_000
    async with Control(database, "after", clock) as after, Watcher(after.target) as watcher, after.stub() as stub:
        await _by_hand(after)
        await until(lambda: len(watcher.addresses("a")) == 5)
        await _pass(after, clock, 40)
        reply = await stub.Renew(mesh_pb2.RenewRequest(lease_ids=[each.lease_id for each in replies[:2]]))
        assert list(reply.unknown) == []
        assert len(watcher.addresses("a")) == 5
        await _pass(after, clock, 10)
        await until(lambda: watcher.addresses("a") == ["h:1", "h:2"])


async def test_a_lease_given_by_one_control_plane_is_renewed_at_another(database: Database, clock: Clock) -> None:
    async with Control(database, "one", clock) as one, Control(database, "two", clock) as two:
        await _by_hand(one)
        await _by_hand(two)
        reply = await _register(one, "h:1")
        async with two.stub() as stub:
            for _ in range(8):
                await asyncio.gather(_pass(one, clock, 5))
                await two.publisher.lessor.tick()
                assert not (await stub.Renew(mesh_pb2.RenewRequest(lease_ids=[reply.lease_id]))).unknown
                await two.publisher.lessor.tick()
            assert [lease.address for lease in one.fleet.leases] == ["h:1"]
            await stub.Deregister(mesh_pb2.DeregisterRequest(lease_id=reply.lease_id))
        await until(lambda: len(one.fleet.leases) == 0)


async def test_endpoints_are_declared_registered_or_announced(control: Control) -> None:
    await control.apply(Agent("a", endpoints=(EndpointPolicy("h:1", 3), EndpointPolicy("h:2"))), Agent("b"))
    await _register(control, "h:2")
    await _register(control, "h:3", "unknown")
    async with Watcher(control.target, "ingress", node="n") as sidecar:
        await sidecar.send(
            announcement=mesh_pb2.Announcement(endpoints=[mesh_pb2.Endpoint(agent_id="b", address="h:4")])
        )
        await sidecar.send(
            load=mesh_pb2.LoadReport(agents=[mesh_pb2.AgentLoad(agent_id="b", ingress=True, in_flight=0)])
        )
        await until(
            lambda: len(control.fleet.agents) == 2 and control.fleet.leases.of_agent("b") and control.fleet.loads()
        )
        found = control.fleet.endpoints()
        assert [(each.endpoint.address, each.source) for each in found] == [
            ("h:1", "declared"),
            ("h:2", "registered"),
            ("h:4", "announced"),
            ("h:3", "registered"),
        ]
        assert [each.HasField("in_flight") for each in found] == [False, False, True, False]
        assert [each.expires_unix_ms > 0 for each in found] == [False, True, True, True]
        assert [each.endpoint.address for each in control.fleet.endpoints("a")] == ["h:1", "h:2"]
        assert control.fleet.endpoints("nobody") == []
