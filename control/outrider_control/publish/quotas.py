"""Shares of limits that hold over the fleet: takes what sidecars report, and twice a second sends what has changed.

Always holds: only sidecars that know "quotas.v1" are counted and told; names of users and tenants are not known here,
only their hashes, by a key that one store keeps for the whole mesh. With several control planes on one store each
divides its part of every limit: its sidecars over all that are or were connected lately. A sidecar that comes or goes
is seen by the others within FOREIGN_STALE_MS at most; until then the parts may sum above the whole by one `new_share`
for each that has come.

Deliberately not here: the division (`core.quota`), streams (`streams`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from outrider.policy import Agent
from outrider.v1 import mesh_pb2
from outrider_control.core.quota import REMEMBERED_MS, QuotaKey, Quotas, Share
from outrider_control.publish.fleet import Fleet

CAPABILITY = "quotas.v1"
TICK_S = 0.5
SWEEP_TICKS = 10  # between two looks at all limits
WARM_MS = 5_000  # after the start: sidecars of a predecessor say what they hold before anything is given
KEY_NAME = "quota_key"  # in the table meta
KEY_BYTES = 32
MAX_USES = 4_096  # read of one report
_SLICE = 200  # limits divided in one loop turn

_LOG = logging.getLogger("outrider.control.publish")


class Divider:
    """One per process. `send(instance_id, message)` is False where the stream takes no more now."""

    def __init__(self, fleet: Fleet, clock_ms: Callable[[], int], send: Callable[[str, bytes], bool]):
        self.quotas = Quotas(clock_ms() + WARM_MS)
        self._fleet = fleet
        self._clock_ms = clock_ms
        self._send = send
        self._hash_key = b""
        self._told: dict[str, float] = {}  # new_share, by the instance it was told to
        self._ticks = 0
        self._ticker: asyncio.Task[None] | None = None

    def start(self, hash_key: bytes) -> None:
        self._hash_key = hash_key
        self._ticker = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)

    # Streams.

    def opened(self, hello: mesh_pb2.Hello) -> None:
        """A stream is open, and takes messages."""
        if CAPABILITY in hello.capabilities:
            self.quotas.came(hello.instance_id, self._clock_ms())
            self._told.pop(hello.instance_id, None)
            self._tell_new_share(hello.instance_id, self._new_share())

    def closed(self, instance_id: str) -> None:
        """It has ended, and no other one of the same instance is there."""
        self.quotas.left(instance_id, self._clock_ms())
        self._told.pop(instance_id, None)

    def taken(self, instance_id: str, report: mesh_pb2.LoadReport) -> None:
        """A report came."""
        now_ms = self._clock_ms()
        self.quotas.heard(instance_id, now_ms)
        if instance_id in self._told:
            for use in report.quotas[:MAX_USES]:
                quota = use.quota
                key = QuotaKey(quota.agent_id, quota.scope, quota.key, quota.unit)
                if limit_per_s(self._fleet.agents.get(quota.agent_id), key) > 0.0:
                    self.quotas.report(instance_id, key, use.demand_per_s, use.share, use.version, now_ms)

    # Again and again.

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            try:
                await self.tick()
            except Exception:  # noqa: BLE001 - sidecars go on with the shares they hold
                _LOG.exception("limits cannot be divided; it is tried again in %g s", TICK_S)

    async def tick(self) -> None:
        """Divide what is due, and send what has changed."""
        now_ms = self._clock_ms()
        quotas = self.quotas
        for instance_id in [name for name, seen in quotas.sidecars.items() if seen.is_away(now_ms)]:
            if self._fleet.is_elsewhere(instance_id, now_ms):
                quotas.moved(instance_id)
        new_share = self._new_share()
        for instance_id in list(self._told):
            self._tell_new_share(instance_id, new_share)
        part = min(1.0, new_share * len(quotas.sidecars))
        self._ticks += 1
        keys = quotas.keys() if self._ticks % SWEEP_TICKS == 0 else quotas.due()
        grants: dict[str, list[tuple[QuotaKey, Share]]] = {}
        for at, key in enumerate(keys):
            if at % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
            limit = limit_per_s(self._fleet.agents.get(key.agent_id), key)
            for share in quotas.divide(key, limit, part, now_ms):
                grants.setdefault(share.sidecar, []).append((key, share))
        for instance_id, given in grants.items():
            if instance_id in self._told:
                self._send(instance_id, _message(given, new_share, self._hash_key))

    def _new_share(self) -> float:
        now_ms = self._clock_ms()
        own = self.quotas.remembered(now_ms)
        return 1.0 / max(1, own + self._fleet.elsewhere(self.quotas.sidecars.keys(), now_ms - REMEMBERED_MS))

    def _tell_new_share(self, instance_id: str, new_share: float) -> None:
        if self._told.get(instance_id) != new_share:
            sent = self._send(instance_id, _message((), new_share, self._hash_key))
            self._told[instance_id] = new_share if sent else 0.0


def limit_per_s(agent: Agent | None, key: QuotaKey) -> float:
    """The rate of a limit by the policy in force; 0.0: there is none that holds over the fleet."""
    if agent is None or not agent.rates.fleet_wide:
        return 0.0
    per_min: float = getattr(agent.rates, f"{key.scope}_{key.unit}_per_min", 0.0)
    return per_min / 60.0


def _message(given: list[tuple[QuotaKey, Share]] | tuple[()], new_share: float, hash_key: bytes) -> bytes:
    grants = [
        mesh_pb2.Grant(quota=mesh_pb2.Quota(**key._asdict()), share=share.share, version=share.version)
        for key, share in given
    ]
    said = mesh_pb2.Grants(grants=grants, new_share=new_share, hash_key=hash_key)
    return mesh_pb2.WatchResponse(grants=said).SerializeToString()
