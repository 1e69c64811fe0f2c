"""The caches of all sidecars: what they do, and making what they hold void.

Always holds: a purge is in the store, as an epoch, before anybody hears of it; a sidecar that is away takes it when it
is back, so nothing that was purged is served again.

Deliberately not here: how epochs reach sidecars (`publish`) and what they do there (the sidecar's engines).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sqlalchemy import Connection

from outrider.v1 import mesh_pb2, operator_pb2
from outrider_control.api import requests
from outrider_control.api.auth import current_caller
from outrider_control.api.errors import Invalid
from outrider_control.core.decision import Decision
from outrider_control.core.figures import ELIGIBLE, SERVED
from outrider_control.publish.fleet import Fleet
from outrider_control.publish.publisher import Publisher
from outrider_control.state import epochs, journal, revision
from outrider_control.state.database import Database

CONFIRM_S: Final = 1.0  # how long a purge waits for sidecars to say they have it


class CacheApi:
    """Caches, over the mesh."""

    def __init__(self, db: Database, publisher: Publisher, fleet: Fleet, clock_ms: Callable[[], int]):
        self._db = db
        self._publisher = publisher
        self._fleet = fleet
        self._clock_ms = clock_ms

    async def stats(self, request: operator_pb2.GetCacheStatsRequest) -> operator_pb2.CacheStats:
        """By agent, summed up over the sidecars that report."""
        only = requests.name(request.agent_id, "agent_id")
        loads = self._fleet.loads()
        held: dict[str, operator_pb2.AgentCache] = {}
        for load in loads.values():
            for one in load.agents:
                if one.HasField("cache") and (not only or one.agent_id == only):
                    _add(held.setdefault(one.agent_id, operator_pb2.AgentCache(agent_id=one.agent_id)), one.cache)
        for one in held.values():
            verdicts = one.cache.verdicts
            eligible = sum([verdicts.get(name, 0) for name in ELIGIBLE])
            if eligible:
                one.hit_rate = sum([verdicts.get(name, 0) for name in SERVED]) / eligible
        return operator_pb2.CacheStats(agents=[held[name] for name in sorted(held)], sidecars=len(loads))

    async def purge(self, request: operator_pb2.PurgeCacheRequest) -> operator_pb2.PurgeCacheReply:
        """Make stored replies void everywhere."""
        why = requests.reason(request)
        scope = (
            requests.name(request.agent_id, "agent_id"),
            requests.name(request.tenant_id, "tenant_id"),
            requests.name(request.tag, "tag"),
        )
        if request.everything and any(scope):
            raise Invalid("everything", "goes with no agent_id, tenant_id or tag")
        if not request.everything and not any(scope):
            raise Invalid("agent_id", "name an agent, a tenant or a tag, or say `everything`")
        author, now_ms = current_caller().name, self._clock_ms()
        value, at_revision = await self._db.write(_purge, scope, author, why, now_ms)
        kind = mesh_pb2.RESOURCE_KIND_EPOCHS
        own, confirmed = await self._publisher.confirmed(kind, "", at_revision, CONFIRM_S)
        connected = sum([sidecar.connected for sidecar in self._fleet.sidecars()])
        return operator_pb2.PurgeCacheReply(epoch=value, sidecars=max(own, connected), confirmed=confirmed)


def _add(to: operator_pb2.AgentCache, cache: mesh_pb2.CacheLoad) -> None:
    for verdict, calls in cache.verdicts.items():
        to.cache.verdicts[verdict] += calls
    to.cache.entries += cache.entries
    to.cache.size_bytes += cache.size_bytes
    to.cache.max_bytes += cache.max_bytes
    to.cache.evictions += cache.evictions
    to.sidecars += cache.entries > 0


def _purge(connection: Connection, scope: epochs.Scope, author: str, reason: str, now_ms: int) -> tuple[int, int]:
    """(the new epoch, the revision that has it)."""
    value = epochs.bump(connection, *scope, now_ms)
    agent_id, tenant_id, tag = scope
    inputs = {"agent_id": agent_id, "tenant_id": tenant_id, "tag": tag, "everything": not any(scope)}
    journal.append(connection, Decision("purge", author, reason, agent_id, inputs, {"epoch": value}, now_ms))
    return value, revision.current(connection)
