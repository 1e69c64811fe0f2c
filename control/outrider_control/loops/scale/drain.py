"""A scale-down's drain: endpoints of those that leave go out of the balancers, their calls end, and then they may go.

Always holds: who leaves is given no more calls before anything is ended; waiting is bounded, by `confirm_ms` for the
sidecars' word and by `drain_ms` for all of it; who leaves can be had back until the engine was told to end it. The
marks are in the store: a control plane that starts, or leads next, finds them and goes on.

It takes steps and never waits: what is not so far yet is so at a later step.

Deliberately not here: ending instances (`instances`), leases (`publish.lessor`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from outrider_control.core.leases import Lease
from outrider_control.loops.scale.observe import Sight
from outrider_control.loops.scale.types import DRAINING, READY, STARTING, Instance
from outrider_control.publish.fleet import Fleet
from outrider_control.publish.lessor import Lessor
from outrider_control.publish.resources import ENDPOINTS, ResourceId

CONFIRM_MS = 5_000
STRAY_MS = 60_000  # how long the mark of an endpoint that no instance serves is left alone

_LOG = logging.getLogger("outrider.control.scale")


def lease_of(instance: Instance, leases: Iterable[Lease]) -> Lease | None:
    """Where an instance is registered; an engine may know the host alone."""
    if not instance.address:
        return None
    host = f"{instance.address}:"
    for lease in leases:
        if lease.address == instance.address or lease.address.startswith(host):
            return lease
    return None


def victims(
    live: Sequence[Instance],
    leases: Sequence[Lease],
    leaving: Mapping[str, object],
    busy: Mapping[str, int],
    count: int,
) -> list[Instance]:
    """Who is to leave: those that are marked already, then those that do not serve, then those with the fewest calls,
    then the youngest."""

    def order(instance: Instance) -> tuple[bool, bool, int, int, str]:
        lease = lease_of(instance, leases)
        serving = instance.state == READY and (lease is not None or not instance.address)
        calls = busy.get(lease.owner, 0) if lease is not None else 0
        return (
            not (lease is not None and lease.draining),
            serving,
            calls,
            -instance.started_ms,
            instance.name,
        )

    return sorted([one for one in live if one.name not in leaving], key=order)[: max(0, count)]


class Drain:
    """Those of one agent that leave, by name."""

    def __init__(self, agent_id: str, fleet: Fleet, lessor: Lessor, now_ms: int, drain_ms: int):
        self.leaving: dict[str, Instance] = {}
        self.asked_ms = 0  # when the engine was told to end them; 0: not yet
        self.began_ms = now_ms
        self._agent_id = agent_id
        self._fleet = fleet
        self._lessor = lessor
        self._drain_ms = drain_ms
        self._version = 0  # of the endpoints that are without them
        self._marked_ms = 0
        self._confirmed_ms = 0

    def add(self, several: Sequence[Instance], now_ms: int) -> None:
        """More of them leave, from the next step on."""
        self.began_ms = now_ms
        self._confirmed_ms = 0
        self.leaving.update({one.name: one for one in several})

    async def readmit(self, count: int) -> int:
        """Gives so many back, those with the longest way to go first; how many. DatabaseError: none of them."""
        back = list(self.leaving.values())[-count:] if count > 0 else []
        leases = self._fleet.leases.of_agent(self._agent_id)
        addresses = [lease.address for one in back if (lease := lease_of(one, leases)) is not None]
        if addresses:
            await self._lessor.mark(self._agent_id, addresses, False)
        for one in back:
            del self.leaving[one.name]
        return len(back)

    async def is_over(self, sight: Sight, now_ms: int) -> bool:
        """One step: marks who is not marked, and says whether they may be ended now. DatabaseError: not yet."""
        await self._mark(now_ms)
        leases = self._leases()
        if not leases:
            return True  # nobody could call them
        if not self._confirmed_ms:
            if not self._is_confirmed() and now_ms - self._marked_ms < CONFIRM_MS:
                return self._is_late(now_ms)
            self._confirmed_ms = now_ms
        if all([sight.is_empty(self._agent_id, lease, self._confirmed_ms) for lease in leases]):
            return True
        return self._is_late(now_ms)

    def keep(self, live: Iterable[Instance]) -> None:
        """Forgets those that are not there any more."""
        names = {one.name: one for one in live}
        self.leaving = {name: names[name] for name in self.leaving if name in names}

    def _leases(self) -> list[Lease]:
        leases = self._fleet.leases.of_agent(self._agent_id)
        return [lease for one in self.leaving.values() if (lease := lease_of(one, leases)) is not None]

    async def _mark(self, now_ms: int) -> None:
        """Again at every step: an instance may have registered since."""
        unmarked = [lease.address for lease in self._leases() if not lease.draining]
        if unmarked or (not self._version and self._leases()):
            addresses = [lease.address for lease in self._leases()]
            version = await self._lessor.mark(self._agent_id, addresses, True)
            if version != self._version:
                self._version = version
                self._marked_ms = now_ms
                self._confirmed_ms = 0

    def _is_confirmed(self) -> bool:
        """Whether every sidecar here has taken the endpoints without them, or refused them for good."""
        key = ResourceId(ENDPOINTS, self._agent_id)
        connected, confirmed, refused = self._fleet.confirmed(ENDPOINTS, self._agent_id, self._version)
        return self._fleet.catalog.version(key) >= self._version and confirmed + refused >= connected

    def _is_late(self, now_ms: int) -> bool:
        if now_ms - self.began_ms < self._drain_ms:
            return False
        names = ", ".join(sorted(self.leaving)[:10])
        _LOG.warning(
            "agent %s: %s still had calls, or not every sidecar has said that there are none, %g s after they were "
            "given no more: they end now",
            self._agent_id,
            names,
            self._drain_ms / 1_000,
        )
        return True


class Strays:
    """Marks of endpoints that nobody drains: they serve again."""

    def __init__(self, agent_id: str, fleet: Fleet, lessor: Lessor):
        self._agent_id = agent_id
        self._fleet = fleet
        self._lessor = lessor
        self._since: dict[str, int] = {}

    async def readmit(self, instances: Sequence[Instance] | None, leaving: Iterable[str], now_ms: int) -> None:
        """`instances` None: nobody drains anything of this agent; else `leaving` names those that are drained."""
        leases = self._fleet.leases.of_agent(self._agent_id)
        marked = {lease.address for lease in leases if lease.draining}
        if not marked:
            self._since.clear()
            return
        back = set(marked)
        if instances is not None:
            drained = set(leaving)
            for one in instances:
                lease = lease_of(one, leases)
                if lease is not None:
                    marked.discard(lease.address)
                    if one.name in drained or one.state not in (STARTING, READY) or one.state == DRAINING:
                        back.discard(lease.address)
            # What is left belongs to no instance: most likely one that has ended, whose lease is about to.
            self._since = {address: self._since.get(address, now_ms) for address in marked}
            back -= {address for address, since_ms in self._since.items() if now_ms - since_ms < STRAY_MS}
        if back:
            await self._lessor.mark(self._agent_id, sorted(back), False)
