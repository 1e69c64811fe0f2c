"""The control plane's side of a sidecar: what is held of it, and the link to it, put together.

Imported only where a control plane is configured: a standalone sidecar does without what protobuf costs.
Deliberately not here: how policy is compiled and drained (the composition root gives functions).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from outrider.address import Address
from outrider.policy import Limits
from outrider_sidecar.config import Settings
from outrider_sidecar.core.resource import Key, Resource
from outrider_sidecar.core.runtime import Runtime
from outrider_sidecar.edge.control_plane import ControlPlane
from outrider_sidecar.edge.export import CONTROL, Export
from outrider_sidecar.edge.fleet_rates import FleetRates
from outrider_sidecar.edge.load import loads
from outrider_sidecar.edge.mesh import MeshLink
from outrider_sidecar.edge.mesh_codec import Announced
from outrider_sidecar.edge.parts import node_name
from outrider_sidecar.edge.purges import Purges
from outrider_sidecar.edge.pushed import Pushed
from outrider_sidecar.edge.view import COMPILED
from outrider_sidecar.engines.shares import Shares


class ControlSide:
    """`restore` before the first policy is compiled, `start` once everything listens, then `withdraw` and `close`."""

    def __init__(
        self,
        settings: Settings,
        version: str,
        instance_id: str,
        runtime: Runtime,
        plane: ControlPlane,
        export: Export,
        purges: Purges,
        put_in_force: Callable[[Mapping[Key, Resource]], None],
    ):
        self._settings = settings
        self._facts = {
            "node": node_name(settings.telemetry.resource),
            "instance_id": instance_id,
            "agent_id": settings.ingress.agent_id if settings.ingress is not None else "",
            "version": version,
            "compiled": COMPILED,
        }
        runtime.shares = Shares(runtime.clock())
        self.pushed = Pushed(settings.state_dir, put_in_force, purges.merge)
        self.link = MeshLink(
            runtime.reactor,
            plane,
            self.pushed,
            lambda: {**self._facts, "now_unix_ms": int(time.time() * 1e3)},
            lambda periodic: loads(runtime, periodic),
            lambda: export.dropped(CONTROL),
            runtime.rng,
            rates=FleetRates(runtime.shares, runtime.clock),
        )
        self._address = ""  # of the ingress, as it is announced
        self._capacity = settings.ingress.capacity if settings.ingress is not None else 0
        runtime.woke = self.link.woke

    @property
    def resources(self) -> Mapping[Key, Resource]:
        return self.pushed.resources

    def restore(self) -> None:
        """Hold what the last process held. Blocks."""
        self.pushed.restore()

    def start(self, ingress_port: int, admin_port: int) -> None:
        """Say where we are, and begin to watch."""
        settings = self._settings
        self._facts["admin"] = str(Address(settings.admin.host, admin_port))
        told = settings.ingress
        if told is not None:
            real = told.listen if told.listen.is_unix else Address(told.listen.host, ingress_port)
            self._address = str(told.advertise or real)
            self._say_where()
        self.pushed.start()
        self.link.start()

    def announce(self, limits: Limits) -> None:
        """The ingress's limits are these now: where they bound it, callers' sidecars and the scaler are told."""
        told = self._settings.ingress
        bounded = told is not None and (told.capacity or limits.max_in_flight != Limits().max_in_flight)
        capacity = limits.max_in_flight if bounded and not limits.adaptive else 0
        if capacity != self._capacity:
            self._capacity = capacity
            self._say_where()

    def _say_where(self) -> None:
        told = self._settings.ingress
        if told is not None and self._address:
            self.link.announce((Announced(told.agent_id, self._address, told.labels, self._capacity),))

    async def withdraw(self) -> None:
        """Speak for no endpoint any more: what listens is about to go."""
        self._address = ""
        await self.link.withdraw()

    async def close(self) -> None:
        """End the link and write what is held."""
        await asyncio.gather(self.link.close(), self.pushed.close())
