"""The control plane's mesh service on a real grpc.aio server, and a sidecar's end of its Watch as a grpcio client."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

import grpc
import grpc.aio

from outrider.policy import Agent
from outrider.v1 import mesh_pb2, mesh_pb2_grpc
from outrider_control.publish.fleet import Fleet
from outrider_control.publish.mesh_service import MeshService
from outrider_control.publish.publisher import Publisher
from outrider_control.state import agents
from outrider_control.state.database import Database

WAIT_S = 10.0


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


async def until(condition: Callable[[], Any], what: str = "the condition") -> None:
    """Waits for something that happens by itself, with a bound."""
    try:
        async with asyncio.timeout(WAIT_S):
            while not condition():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"{what} did not come about within {WAIT_S} s") from None


class Control:
    """One control plane: everything of `publish` over a store, on a port of its own."""

    def __init__(self, db: Database, control_id: str = "control-1", clock_ms: Callable[[], int] = wall_ms):
        self.db = db
        self.dropped: list[tuple[str, str, int]] = []
        self.fleet = Fleet(control_id, clock_ms, lambda *dropped: self.dropped.append(dropped))
        self.publisher = Publisher(db, self.fleet, clock_ms, "9.9")
        self.target = ""
        self._clock_ms = clock_ms

    async def start(self, port: int = 0) -> None:
        await self.publisher.start()
        self._server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        MeshService(self.publisher).add_to(self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.target = f"127.0.0.1:{self.port}"
        await self._server.start()

    async def stop(self) -> None:
        await self.publisher.close()
        await self._server.stop(1.0)

    async def apply(self, *wanted: Agent) -> list[agents.Applied]:
        rows = [agents.Wanted(agent, None) for agent in wanted]
        return await self.db.write(agents.apply, rows, "ada", "a test", self._clock_ms())

    async def delete(self, *agent_ids: str) -> list[agents.Applied]:
        return await self.db.write(agents.delete, list(agent_ids), "ada", "a test", self._clock_ms())

    @contextlib.asynccontextmanager
    async def stub(self) -> AsyncIterator[Any]:
        async with grpc.aio.insecure_channel(self.target) as channel:
            yield mesh_pb2_grpc.MeshStub(channel)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()


class Watcher:
    """A sidecar that watches; may be entered again, and then says what it holds.

    `refuse(resource)` gives the reason why one is refused, or nothing; with `acks` false it never answers.
    """

    def __init__(
        self,
        target: str,
        instance_id: str = "i-1",
        refuse: Callable[[mesh_pb2.Resource], str] = lambda _: "",
        acks: bool = True,
        **hello: Any,
    ):
        self.target = target
        self.held: dict[tuple[int, str], mesh_pb2.Resource] = {}
        self.updates: list[mesh_pb2.Update] = []
        self.grants: list[mesh_pb2.Grants] = []
        self.welcome: mesh_pb2.Welcome | None = None
        self.ended: grpc.aio.AioRpcError | None = None
        self._writing = asyncio.Lock()
        self._refuse = refuse
        self._acks = acks
        self._hello = {"instance_id": instance_id, "node": "n", "now_unix_ms": wall_ms(), **hello}

    async def __aenter__(self) -> Self:
        self._channel = grpc.aio.insecure_channel(self.target)
        self.call: Any = mesh_pb2_grpc.MeshStub(self._channel).Watch()
        self._reader = asyncio.get_running_loop().create_task(self._read())
        await self.send(hello=mesh_pb2.Hello(held=[each.id for each in self.held.values()], **self._hello))
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.call.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        await self._channel.close()

    async def send(self, **message: Any) -> None:
        async with self._writing:  # grpcio takes one message at a time
            await self.call.write(mesh_pb2.WatchRequest(**message))

    def versions(self, kind: int = mesh_pb2.RESOURCE_KIND_POLICY) -> dict[str, int]:
        return {name: resource.id.version for (of, name), resource in self.held.items() if of == kind}

    def addresses(self, agent_id: str) -> list[str]:
        resource = self.held.get((mesh_pb2.RESOURCE_KIND_ENDPOINTS, agent_id))
        return [endpoint.address for endpoint in resource.endpoints.endpoints] if resource else []

    async def _read(self) -> None:
        try:
            while (response := await self.call.read()) is not grpc.aio.EOF:
                if response.HasField("welcome"):
                    self.welcome = response.welcome
                elif response.HasField("grants"):
                    self.grants.append(response.grants)
                else:
                    await self._take(response.update)
        except grpc.aio.AioRpcError as error:
            self.ended = error
            return
        if not self.call.cancelled():
            self.ended = grpc.aio.AioRpcError(
                await self.call.code(),
                await self.call.initial_metadata(),
                await self.call.trailing_metadata(),
                await self.call.details(),
            )

    async def _take(self, update: mesh_pb2.Update) -> None:
        ack = mesh_pb2.Ack(nonce=update.nonce)
        named = {(each.kind, each.name) for each in update.current}
        for resource in update.resources:
            key = resource.id.kind, resource.id.name
            named.add(key)
            reason = self._refuse(resource)
            if reason:
                ack.refused.append(mesh_pb2.Refusal(resource=resource.id, reason=reason))
            else:
                self.held[key] = resource
        for gone in update.removed:
            self.held.pop((gone.kind, gone.name), None)
        if update.full:
            self.held = {key: resource for key, resource in self.held.items() if key in named}
        self.updates.append(update)
        if self._acks:
            await self.send(ack=ack)
