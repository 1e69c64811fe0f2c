"""A sidecar's link to the control plane without the rest of the sidecar, for tests of its parts.

Deliberately not here: the other end (`tests.mesh_peer`).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from outrider.address import parse_address
from outrider.policy import Agent, EndpointPolicy, Policy
from outrider.v1 import mesh_pb2
from outrider_http2.shell import Reactor
from outrider_sidecar import config
from outrider_sidecar.core.resource import KIND_NAMES, Key, Resource
from outrider_sidecar.edge.control_plane import ControlPlane
from outrider_sidecar.edge.fleet_rates import FleetRates
from outrider_sidecar.edge.load import Load
from outrider_sidecar.edge.mesh import MeshLink
from outrider_sidecar.edge.pushed import Pushed
from outrider_sidecar.engines.overlay import overlay
from outrider_sidecar.engines.shares import Shares
from tests.mesh_peer import Watch

ONE = Agent("one", (EndpointPolicy("a:1"),))
TWO = Agent("two", (EndpointPolicy("b:1"),))
FILE = Policy({"file": Agent("file")}, "file")


async def until(condition: Callable[[], Any], what: str) -> Any:
    """The first true value of `condition()`, polled on this loop."""
    async with asyncio.timeout(20):
        while not (value := condition()):
            await asyncio.sleep(0.002)
    assert value, what
    return value


class Side:
    """A sidecar's link without the rest of the sidecar."""

    def __init__(self, ports: list[int], directory: Path | None = None, **settings: Any):
        addresses = tuple(parse_address(f"127.0.0.1:{port}") for port in ports)
        self.reactor = Reactor(asyncio.get_running_loop())
        self.in_force: list[Policy] = []
        self.epochs: list[Any] = []
        self.broken: Exception | None = None  # what putting a policy in force meets
        self.full_disk = False
        self.loads: list[Load] = []
        self.asked: list[bool] = []
        self.pushed = Pushed(directory, self._put_in_force, self._merge)
        self.plane = ControlPlane(config.Settings(control=addresses, **settings), lambda _: lambda: None)
        self.rates = FleetRates(Shares(self.reactor.loop.time()), self.reactor.loop.time)
        self.link = MeshLink(
            self.reactor,
            self.plane,
            self.pushed,
            lambda: {"node": "n", "instance_id": "i", "now_unix_ms": 5},
            self._load,
            lambda: 7,
            random.Random(1),
            lambda: 12.5,
            self.rates,
        )

    def _put_in_force(self, held: Mapping[Key, Resource]) -> None:
        found = overlay(FILE, held)
        if self.broken is not None and "two" in found.agents:
            raise self.broken
        self.in_force.append(found)

    def _merge(self, exported: Any) -> None:
        if self.full_disk:
            raise OSError(28, "No space left on device")
        self.epochs.append(exported)

    def _load(self, periodic: bool) -> list[Load]:
        self.asked.append(periodic)
        return self.loads

    @property
    def agents(self) -> set[str]:
        return set(self.in_force[-1].agents) if self.in_force else set()

    def held(self) -> dict[tuple[str, str], int]:
        return {(KIND_NAMES[kind], name): one.version for (kind, name), one in self.pushed.resources.items()}

    async def close(self) -> None:
        await self.link.close()
        await self.pushed.close()
        await self.reactor.close()


@contextlib.asynccontextmanager
async def side(*ports: int, directory: Path | None = None, **settings: Any) -> AsyncIterator[Side]:
    made = Side(list(ports), directory, **settings)
    made.pushed.restore()
    made.pushed.start()
    made.link.start()
    try:
        yield made
    finally:
        await made.close()


async def acked(watch: Watch, nonce: int) -> mesh_pb2.Ack:
    def find() -> Any:
        return next((ack for ack in watch.all("ack") if ack.nonce == nonce), None)

    return await until(find, f"ack {nonce}")
