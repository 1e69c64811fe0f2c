"""Endpoints, sidecars, health, caches and tokens over gRPC, with sidecars on real watch streams."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from outrider.v1 import mesh_pb2, operator_pb2, policy_pb2
from outrider_control.api import fleet_api
from tests.operator_server import LOOPBACK, NOW_MS, REMOTE, Plane, sample, watcher


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait until what a stream brought has been taken in."""
    async with asyncio.timeout(10):
        while not await holds():
            await asyncio.sleep(0.005)


def policy(agent_id: str, *addresses: str) -> policy_pb2.AgentPolicy:
    endpoints = [policy_pb2.EndpointPolicy(address=address) for address in addresses]
    return policy_pb2.AgentPolicy(agent_id=agent_id, endpoints=endpoints)


async def sidecars(plane: Plane) -> list[operator_pb2.SidecarRecord]:
    return list((await plane.call("ListSidecars", operator_pb2.ListSidecarsRequest())).sidecars)


async def test_endpoints_declared_registered_and_announced(plane: Plane) -> None:
    await plane.apply(policy("a", "127.0.0.1:9001"), policy("b", "127.0.0.1:9009"))
    register = mesh_pb2.RegisterRequest(endpoint=mesh_pb2.Endpoint(agent_id="a", address="127.0.0.1:9003", capacity=4))
    call: Any = plane.channel.unary_unary(
        "/outrider.v1.Mesh/Register",
        request_serializer=mesh_pb2.RegisterRequest.SerializeToString,
        response_deserializer=mesh_pb2.RegisterReply.FromString,
    )
    await call(register, metadata=LOOPBACK)
    async with watcher(plane, agent_id="a") as sidecar:
        await sidecar.announce(mesh_pb2.Endpoint(agent_id="a", address="127.0.0.1:9002", ingress=True))

        async def listed() -> list[tuple[str, str, str]]:
            reply = await plane.call("ListEndpoints", operator_pb2.ListEndpointsRequest(agent_id="a"))
            return [(one.endpoint.address, one.source, one.node) for one in reply.endpoints]

        wanted = [
            ("127.0.0.1:9001", "declared", ""),
            ("127.0.0.1:9002", "announced", "node-of-sidecar-1"),
            ("127.0.0.1:9003", "registered", ""),
        ]

        async def known() -> bool:
            return await listed() == wanted

        await eventually(known)
        await plane.publisher.refresh()
        assert await listed() == wanted
        everything = await plane.call("ListEndpoints", operator_pb2.ListEndpointsRequest())
        assert [one.endpoint.agent_id for one in everything.endpoints] == ["a", "a", "a", "b"]
        assert everything.endpoints[0].expires_unix_ms == 0
        assert everything.endpoints[2].expires_unix_ms > NOW_MS


async def test_sidecars_come_go_refuse_and_report(plane: Plane) -> None:
    await plane.apply(policy("a", "127.0.0.1:9001"))
    async with watcher(plane, agent_id="a", version="9", now_unix_ms=NOW_MS + 700) as sidecar:
        await plane.apply(policy("a", "127.0.0.1:9002"))
        await sidecar.take(refuse={"a": "endpoints: no"})
        await sidecar.load(mesh_pb2.AgentLoad(agent_id="a", in_flight=3, capacity=4))

        async def reported() -> bool:
            return (await sidecars(plane))[0].load.agents[:1] != []

        await eventually(reported)
        (record,) = await sidecars(plane)
        assert (record.instance_id, record.connected, record.version) == ("sidecar-1", True, "9")
        assert [(one.resource.version, one.reason) for one in record.refused] == [(2, "endpoints: no")]
        assert record.clock_offset_ms == 700
        assert record.load.agents[0].in_flight == 3
        health = await plane.call("GetAgentHealth", operator_pb2.GetAgentHealthRequest(agent_id="a"))
        assert health.state == "degraded"
        assert "sidecar node-of-sidecar-1 refuses what it was sent" in health.reasons[0].text
        assert "version 2: endpoints: no" in health.reasons[0].text

    async def gone() -> bool:
        return not (await sidecars(plane))[0].connected

    await eventually(gone)


async def test_health_of_an_agent(plane: Plane) -> None:
    await plane.apply(policy("a", "127.0.0.1:9001"))
    request = operator_pb2.GetAgentHealthRequest(agent_id="a")
    assert (await plane.call("GetAgentHealth", request)).state == "unknown"
    await plane.take_in([sample("a") for _ in range(30)])
    health = await plane.call("GetAgentHealth", request)
    assert (health.state, health.endpoints, health.figures.requests) == ("healthy", 1, 30)
    await plane.take_in([sample("a", status="UNAVAILABLE", failed=True) for _ in range(60)])
    health = await plane.call("GetAgentHealth", request)
    assert health.state == "unhealthy"
    assert health.reasons[0].text.startswith("60 of 90 calls failed (66.7%), mostly UNAVAILABLE: ")


async def test_too_many_endpoints_for_one_reply(plane: Plane, monkeypatch: Any) -> None:
    monkeypatch.setattr(fleet_api, "MAX_ENDPOINTS", 1)
    await plane.apply(policy("a", "127.0.0.1:9001", "127.0.0.1:9002"))
    error = await plane.refused("ListEndpoints", operator_pb2.ListEndpointsRequest())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details().startswith("agent_id: there are 2 endpoints")


def cache_load(agent_id: str, hits: int, misses: int, entries: int) -> mesh_pb2.AgentLoad:
    cache = mesh_pb2.CacheLoad(verdicts={"hit": hits, "miss": misses, "bypass": 7}, entries=entries, size_bytes=10)
    return mesh_pb2.AgentLoad(agent_id=agent_id, cache=cache)


async def test_cache_stats_over_sidecars(plane: Plane) -> None:
    request = operator_pb2.GetCacheStatsRequest()
    assert await plane.call("GetCacheStats", request) == operator_pb2.CacheStats()
    async with watcher(plane, "s1") as one, watcher(plane, "s2") as two:
        await one.load(cache_load("b", 3, 1, 2), cache_load("a", 0, 0, 0))
        await two.load(cache_load("b", 1, 3, 5))

        async def reported() -> bool:
            return (await plane.call("GetCacheStats", request)).sidecars == 2

        await eventually(reported)
        stats = await plane.call("GetCacheStats", request)
        a, b = stats.agents
        assert (a.agent_id, a.sidecars, a.HasField("hit_rate")) == ("a", 0, False)
        assert (b.agent_id, b.sidecars, b.hit_rate, b.cache.entries, b.cache.size_bytes) == ("b", 2, 0.5, 7, 20)
        assert b.cache.verdicts == {"hit": 4, "miss": 4, "bypass": 14}
        only = await plane.call("GetCacheStats", operator_pb2.GetCacheStatsRequest(agent_id="a"))
        assert [agent.agent_id for agent in only.agents] == ["a"]


async def test_a_purge_reaches_sidecars_and_is_confirmed(plane: Plane) -> None:
    async with watcher(plane, "s1") as one, watcher(plane, "s2") as two:
        request = operator_pb2.PurgeCacheRequest(agent_id="a", tenant_id="t", tag="law", reason="wrong law")
        purging = asyncio.create_task(plane.call("PurgeCache", request))
        await asyncio.gather(one.take(), two.take())
        reply = await purging
        assert (reply.sidecars, reply.confirmed) == (2, 2)
        assert reply.epoch >= NOW_MS
        for sidecar in (one, two):
            (epoch,) = sidecar.epochs.epochs
            assert (epoch.agent_id, epoch.tenant_id, epoch.tag, epoch.value) == ("a", "t", "law", reply.epoch)


async def test_a_purge_of_all_and_a_sidecar_that_is_silent(plane: Plane) -> None:
    async with watcher(plane, "s1") as one, watcher(plane, "silent"):
        purge = operator_pb2.PurgeCacheRequest(everything=True, reason="r")
        purging = asyncio.create_task(plane.call("PurgeCache", purge))
        await one.take()
        reply = await purging
        assert (reply.sidecars, reply.confirmed) == (2, 1)
        assert (one.epochs.floor, len(one.epochs.epochs)) == (reply.epoch, 0)
        again = asyncio.create_task(plane.call("PurgeCache", purge))
        await one.take()
        assert (await again).epoch > reply.epoch


async def test_tokens_let_in_expire_and_are_revoked(plane: Plane) -> None:
    def making(name: str, role: str, **more: Any) -> operator_pb2.CreateTokenRequest:
        return operator_pb2.CreateTokenRequest(name=name, role=role, reason="r", **more)

    def bearer(token: str) -> tuple[tuple[str, str], ...]:
        return (*REMOTE, ("authorization", f"Bearer {token}"))

    who = operator_pb2.WhoAmIRequest()
    viewer = await plane.call("CreateToken", making("ann", "viewer"))
    plane.now_ms += 1
    brief = await plane.call("CreateToken", making("bob", "admin", ttl_ms=60_000))
    assert brief.record.expires_unix_ms == NOW_MS + 60_001
    assert await plane.call("WhoAmI", who, bearer(viewer.token)) == operator_pb2.Identity(name="ann", role="viewer")
    listed = await plane.call("ListTokens", operator_pb2.ListTokensRequest(), bearer(brief.token))
    assert [one.name for one in listed.tokens] == ["ann", "bob"]
    assert viewer.token not in str(listed)
    assert viewer.token.startswith(viewer.record.id)

    plane.now_ms += 60_000
    error = await plane.refused("WhoAmI", who, bearer(brief.token))
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    await plane.call("WhoAmI", who, bearer(viewer.token))
    await plane.call("RevokeToken", operator_pb2.RevokeTokenRequest(id=viewer.record.id, reason="left"))
    error = await plane.refused("WhoAmI", who, bearer(viewer.token))
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert viewer.token not in error.details()
    journal = await plane.call("ListDecisions", operator_pb2.ListDecisionsRequest(kind="token"))
    assert [one.reason for one in journal.decisions] == ["left", "r", "r"]
    assert viewer.token[12:] not in str(journal)


async def test_status_and_reflection(plane: Plane) -> None:
    status = await plane.call("GetStatus", operator_pb2.GetStatusRequest())
    assert (status.instance_id, status.store) == ("control-1", plane.db.dialect)
    channel: Any = plane.channel
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    stream = stub.ServerReflectionInfo(metadata=LOOPBACK)
    await stream.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    reply = await stream.read()
    served = {service.name for service in reply.list_services_response.service}
    assert {"outrider.v1.Operator", "outrider.v1.Mesh", "grpc.health.v1.Health"} <= served
    await stream.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol="outrider.v1.Operator"))
    assert (await stream.read()).file_descriptor_response.file_descriptor_proto
    await stream.done_writing()
    assert await stream.code() is grpc.StatusCode.OK


async def test_a_store_that_is_gone_is_unavailable(plane: Plane) -> None:
    await asyncio.to_thread(plane.db.close_now)
    error = await plane.refused("ListAgents", operator_pb2.ListAgentsRequest())
    assert (error.code(), "is closed" in error.details()) == (grpc.StatusCode.UNAVAILABLE, True)


async def test_what_nobody_foresaw_tells_nothing(plane: Plane, monkeypatch: Any, caplog: Any) -> None:
    def fails(_agent_id: str = "") -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(plane.fleet, "endpoints", fails)
    error = await plane.refused("ListEndpoints", operator_pb2.ListEndpointsRequest())
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in error.details()
    assert "ZeroDivisionError" in caplog.text
