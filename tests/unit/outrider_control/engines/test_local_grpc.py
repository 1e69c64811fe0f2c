"""Agents that are gRPC servers: those that register, those whose health is asked for."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health  # pyright: ignore[reportAttributeAccessIssue] # not in its stubs

from bench.process import ROOT, python_environment
from outrider.address import Address
from outrider.v1 import mesh_pb2, mesh_pb2_grpc
from outrider_control.engines import local_probe
from outrider_control.loops.scale.types import READY, STARTING
from tests.local_engine import MARK, Yard, come_to, states

AGENT = ["{python}", "-m", "bench.agents", "--name", "{name}", "--ports-file", "{ports_file}"]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Mesh(mesh_pb2_grpc.MeshServicer):
    """Remembers what has registered, and takes it away when that ends."""

    def __init__(self, addresses: set[str]):
        self.addresses = addresses
        self.endpoints: list[mesh_pb2.Endpoint] = []

    async def Register(self, request: mesh_pb2.RegisterRequest, context: Any) -> mesh_pb2.RegisterReply:  # noqa: N802
        self.endpoints.append(request.endpoint)
        self.addresses.add(request.endpoint.address)
        return mesh_pb2.RegisterReply(lease_id=request.endpoint.address, ttl_ms=15_000)

    async def Deregister(self, request: mesh_pb2.DeregisterRequest, context: Any) -> mesh_pb2.DeregisterReply:  # noqa: N802
        self.addresses.discard(request.lease_id)
        return mesh_pb2.DeregisterReply()


@asynccontextmanager
async def serving(*add: Any) -> AsyncIterator[int]:
    """A server with these services; its port."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    for register, service in add:
        register(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def test_an_agent_that_registers(yard: Yard) -> None:
    mesh = Mesh(yard.registered)  # pyright: ignore[reportAbstractUsage] # nobody watches, and nothing lives to renew
    async with serving((mesh_pb2_grpc.add_MeshServicer_to_server, mesh)) as port:
        yard.control = f"127.0.0.1:{port}"
        env = {MARK: yard.mark, "PYTHONPATH": python_environment()["PYTHONPATH"]}
        command = [*AGENT, "--control", "{control}", "--concurrency", "{capacity}"]
        tax = {"command": command, "capacity": 5, "cwd": str(ROOT), "env": env}
        engine = yard.engine(tax)
        await engine.start()
        await engine.grow("tax", 1)
        seen = set()
        while states(found := await engine.instances("tax")) != [READY]:
            seen.update(states(found))
            await asyncio.sleep(0.01)
        assert seen == {STARTING}
        assert found[0].address == mesh.endpoints[0].address
        assert (mesh.endpoints[0].agent_id, mesh.endpoints[0].capacity) == ("tax", 5)
        await engine.shrink("tax", 0, found)
        await come_to(engine, lambda found: not found)
        assert yard.registered == set()  # it said good bye
        await engine.close()


async def test_what_a_health_service_says() -> None:
    checks = health.HealthServicer()
    async with serving((health_pb2_grpc.add_HealthServicer_to_server, checks)) as port:
        address = Address("127.0.0.1", port)
        await checks.set("", NOT_SERVING)
        assert await local_probe.serves(address, 5.0) == "it says NOT_SERVING of its health"
        assert await local_probe.answers(address, 5.0) == "it says NOT_SERVING of its health"
        await checks.set("", SERVING)
        assert await local_probe.serves(address, 5.0) == ""
    assert await local_probe.serves(address, 5.0) == "its health check fails: UNAVAILABLE"


async def test_a_server_without_health() -> None:
    async with serving() as port:
        address = Address("127.0.0.1", port)
        assert "does not offer grpc.health.v1" in await local_probe.serves(address, 5.0)
        assert await local_probe.answers(address, 5.0) == ""


@pytest.mark.parametrize("look", [local_probe.serves, local_probe.answers])
async def test_a_server_that_says_nothing(look: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # as a process that was stopped: connections wait for it
        address = Address(*listener.getsockname())
        assert await look(address, 0.1) == "its health check fails: DEADLINE_EXCEEDED"


async def test_connections() -> None:
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        address = Address(*server.sockets[0].getsockname())
        assert await local_probe.connects(address, 5.0) == ""
    assert (await local_probe.connects(address, 5.0)).startswith("no connection: ")
