"""Gives out leases and keeps the store in step with them.

Always holds: the store is changed by one task, several changes in one transaction, and a lease counts once the store
has it; renewals are written at most once a second; what a sidecar announces is written again until the store has it,
however long the store is away; nothing ends because the store was away.

Deliberately not here: the rules of leases (`core.leases`), what sidecars are told (`publisher`).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterable, Sequence

from outrider.policy import PolicyError
from outrider.policy_parse import agent_from_mapping
from outrider.v1 import mesh_pb2
from outrider_control.core.leases import (
    ANNOUNCED,
    ANNOUNCED_TTL_MS,
    DEFAULT_TTL_MS,
    MAX_TTL_MS,
    MIN_TTL_MS,
    REGISTERED,
    UNWRITTEN,
    Key,
    Lease,
    Leases,
)
from outrider_control.publish import lease_changes
from outrider_control.state import leases
from outrider_control.state.database import Database, DatabaseError
from outrider_control.state.leases import is_same_process

INTERVAL_MS = 1_000
MAX_WAITING = 10_000  # registrations that wait for the store
MAX_ANNOUNCED = 256  # endpoints one sidecar may speak for
MAX_ENDPOINT_BYTES = 4_096
_MAX_CAPACITY = 1_000_000
_PUTS_AT_ONCE = 1_000
_SHARED_SLACK_MS = 3_000  # on a shared store another control plane may write a renewal up to this late

_LOG = logging.getLogger("outrider.control.leases")


class Full(Exception):
    """There is no room for one more lease: why."""


class Lessor:
    """All leases of this process. `new_id` makes lease ids that cannot be guessed."""

    def __init__(
        self,
        db: Database,
        leases: Leases,
        clock_ms: Callable[[], int],
        new_id: Callable[[], str] = lambda: secrets.token_hex(16),
    ):
        self._db = db
        self._leases = leases
        self._clock_ms = clock_ms
        self._new_id = new_id
        self._slack_ms = _SHARED_SLACK_MS if db.dialect == "postgresql" else 0
        self._waiting: list[tuple[Lease, asyncio.Future[None]]] = []
        self._removals: dict[Key, str] = {}
        self._announced: dict[str, dict[Key, Lease]] = {}  # by owner: what its open stream last said
        self._stale: set[str] = set()  # owners whose announcement the store may not have
        self._writer: asyncio.Task[None] | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._away_since_ms = 0  # when the store was first away; 0: it is there

    def start(self) -> None:
        self._ticker = asyncio.get_running_loop().create_task(self._tick_forever())

    async def close(self) -> None:
        tasks = [task for task in (self._ticker, self._writer) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _, waiter in self._waiting:
            waiter.cancel()

    # What instances ask.

    async def register(self, endpoint: mesh_pb2.Endpoint, ttl_ms: int) -> Lease:
        """The lease, when the store has it. PolicyError, Full or DatabaseError where there is none."""
        if ttl_ms and not MIN_TTL_MS <= ttl_ms <= MAX_TTL_MS:
            raise PolicyError("ttl_ms", f"{ttl_ms} is neither 0 nor between {MIN_TTL_MS} and {MAX_TTL_MS}")
        if len(self._waiting) >= MAX_WAITING:
            raise Full(f"{MAX_WAITING:,} registrations wait for the store already")
        lease = self._lease(endpoint, self._new_id(), REGISTERED, "", ttl_ms or DEFAULT_TTL_MS)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((lease, waiter))
        self._wake()
        await waiter
        return lease

    def renew(self, owners: Iterable[str]) -> list[str]:
        """Those that have no lease here."""
        now_ms = self._clock_ms()
        return [owner for owner in owners if not self._leases.renew(owner, now_ms)]

    async def look_up(self, owners: Sequence[str]) -> None:
        """Learns leases of these owners that the store has and this process does not."""
        for row in await self._db.read(lease_changes.owned, owners):
            self._leases.correct(lease_changes.to_lease(row))

    async def deregister(self, owner: str) -> None:
        """Takes the lease's endpoint away at once; nothing where there is none."""
        removals = {lease.key: owner for lease in self._leases.of_owner(owner) if lease.source == REGISTERED}
        if removals:
            await self._db.write(lease_changes.change, (), removals, self._clock_ms())
            for key in removals:
                self._leases.drop(key)

    async def mark(self, agent_id: str, addresses: Sequence[str], draining: bool) -> int:
        """Has endpoints of an agent drain (leases still, but sidecars are not told of them) or serve again. Returns the
        version of the agent's endpoints that says so. The mark lives in the store, as long as the lease."""
        return await self._db.write(leases.mark, agent_id, addresses, draining)

    # What streams say.

    def announce(self, owner: str, node: str, endpoints: Iterable[mesh_pb2.Endpoint]) -> None:
        """All that the owner's stream speaks for now."""
        wanted: dict[Key, Lease] = {}
        for endpoint in endpoints:
            if len(wanted) >= MAX_ANNOUNCED:
                _LOG.warning("sidecar %s announces more than %d endpoints: the rest is left out", owner, MAX_ANNOUNCED)
                break
            try:
                lease = self._lease(endpoint, owner, ANNOUNCED, node, ANNOUNCED_TTL_MS)
            except PolicyError as error:
                _LOG.warning("sidecar %s announces what cannot be called: %s", owner, error)
                continue
            wanted[lease.key] = lease
        self._announced[owner] = wanted
        self._leases.hold(owner)
        self._stale.add(owner)
        self._wake()

    def released(self, owner: str) -> None:
        """The owner's stream has ended."""
        self._announced.pop(owner, None)
        self._leases.release(owner, self._clock_ms())

    def lost(self, gone: Iterable[Lease]) -> None:
        """The store does not have these any more; what an open stream speaks for comes back."""
        for lease in gone:
            if lease.key in self._announced.get(lease.owner, ()):
                self._stale.add(lease.owner)
                self._wake()

    def _lease(self, endpoint: mesh_pb2.Endpoint, owner: str, source: str, node: str, ttl_ms: int) -> Lease:
        """PolicyError names the field that is wrong."""
        plain = {"address": endpoint.address, "weight": endpoint.weight or 1, "labels": dict(endpoint.labels)}
        try:
            agent_from_mapping({"agent_id": endpoint.agent_id, "endpoints": [plain]}, "endpoint")
        except PolicyError as error:
            raise PolicyError(error.path.replace("endpoints[0].", ""), error.reason) from None
        if not 0 <= endpoint.capacity <= _MAX_CAPACITY:
            raise PolicyError("endpoint.capacity", f"{endpoint.capacity} is not between 0 and {_MAX_CAPACITY}")
        encoded = mesh_pb2.Endpoint(
            agent_id=endpoint.agent_id,
            address=endpoint.address,
            weight=endpoint.weight or 1,
            labels=endpoint.labels,
            capacity=endpoint.capacity,
            ingress=endpoint.ingress,
        ).SerializeToString(deterministic=True)
        if len(encoded) > MAX_ENDPOINT_BYTES:
            raise PolicyError("endpoint.labels", f"make the endpoint larger than {MAX_ENDPOINT_BYTES} bytes")
        expires_ms = self._clock_ms() + ttl_ms
        return Lease(endpoint.agent_id, endpoint.address, owner, source, node, encoded, ttl_ms, expires_ms)

    # Writing.

    def _wake(self) -> None:
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        """Everything that waits, a transaction at a time; what fails of announcements stays for the next tick."""
        try:
            while self._waiting or self._stale:
                if not await self._write_some():
                    return
        finally:
            self._writer = None

    async def _write_some(self) -> bool:
        """False: the store is away."""
        owners = list(self._stale)[:_PUTS_AT_ONCE]
        waiting, self._waiting = self._waiting[:_PUTS_AT_ONCE], self._waiting[_PUTS_AT_ONCE:]
        self._stale.difference_update(owners)
        puts, removals, before = self._take([lease for lease, _ in waiting], waiting, owners)
        revision = 0
        try:
            if puts or removals:
                rows = [lease_changes.to_row(lease) for lease in puts]
                revision = await self._db.write(lease_changes.change, rows, removals, self._clock_ms())
        except DatabaseError as error:
            self._undo(puts, before)
            self._stale.update(owner for owner in owners if owner in self._announced)
            for _, waiter in waiting:
                if not waiter.done():
                    waiter.set_exception(DatabaseError("", str(error)))
            self._is_away(error)
            return False
        self._is_back()
        for lease in puts:
            lease.revision = revision
            lease.stored_ms = lease.expires_ms
        for key, owner in removals.items():
            standing = self._leases.get(key)
            if standing is not None and standing.owner == owner:
                self._leases.drop(key)
        for _, waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)
        return True

    def _take(
        self, registered: list[Lease], waiting: list[tuple[Lease, asyncio.Future[None]]], owners: list[str]
    ) -> tuple[list[Lease], dict[Key, str], list[Lease | None]]:
        """What to put and what to remove, and what stood where something is put. Refuses what there is no room for."""
        puts: dict[Key, Lease] = {}
        before: dict[Key, Lease | None] = {}
        removals: dict[Key, str] = {}
        waiters = {id(lease): waiter for lease, waiter in waiting}
        announced: list[Lease] = []
        for owner in owners:
            wanted = self._announced.get(owner, {})
            standing = {lease.key: lease for lease in self._leases.of_owner(owner)}
            removals.update({key: owner for key in standing if key not in wanted})
            announced.extend(
                [
                    lease
                    for key, lease in wanted.items()
                    if key not in standing or standing[key].endpoint != lease.endpoint
                ]
            )
        for lease in (*registered, *announced):
            reason = self._leases.refusal(lease)
            if reason:
                waiter = waiters.get(id(lease))
                if waiter is None:
                    _LOG.warning("endpoint %s of sidecar %s is left out: %s", lease.address, lease.owner, reason)
                elif not waiter.done():
                    waiter.set_exception(Full(reason))
                continue
            standing = self._leases.get(lease.key)
            before.setdefault(lease.key, standing)
            if standing is not None and is_same_process(lease.owner, lease.source, standing.owner):
                lease.draining = standing.draining  # as the store keeps it
            lease.expires_ms = self._clock_ms() + lease.ttl_ms
            lease.revision = UNWRITTEN
            self._leases.put(lease)
            puts[lease.key] = lease
        return list(puts.values()), removals, [before[key] for key in puts]

    def _undo(self, puts: list[Lease], before: list[Lease | None]) -> None:
        for lease, standing in zip(puts, before, strict=True):
            if self._leases.get(lease.key) is lease:
                self._leases.drop(lease.key)
                if standing is not None:
                    self._leases.put(standing)

    # Time.

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_MS / 1_000)
            try:
                await self.tick()
            except DatabaseError as error:
                self._is_away(error)
            except Exception:  # noqa: BLE001 - without ticks no lease would ever end
                _LOG.exception("leases: a tick failed")

    async def tick(self) -> None:
        """Writes renewals and ends what is over. To be called every INTERVAL_MS."""
        if self._away_since_ms:
            await self._db.write(lease_changes.renew, {})  # before anything ends: whether the store is back
            self._is_back()
        now_ms = self._clock_ms()
        stalled_ms = self._leases.tick(now_ms)
        if stalled_ms:
            _LOG.warning("leases: nothing ran for %d ms; every lease lives that much longer", stalled_ms)
        renewals = self._leases.renewals()
        if renewals:
            await self._db.write(lease_changes.renew, renewals)
            self._is_back()
            self._leases.stored(renewals)
        due = self._leases.due(now_ms - self._slack_ms)
        if due:
            await self._end(due, now_ms - self._slack_ms)
        if self._stale or self._waiting:
            self._wake()

    async def _end(self, due: list[Lease], now_ms: int) -> None:
        """Ends those that the store holds for over as well; another control plane may have renewed the others."""
        for row in await self._db.read(lease_changes.living, [lease.key for lease in due], now_ms):
            self._leases.correct(lease_changes.to_lease(row))
        over = [lease for lease in due if (standing := self._leases.get(lease.key)) and standing.expires_ms <= now_ms]
        if not over:
            return
        for row in await self._db.write(lease_changes.expire, [lease.key for lease in over], now_ms):
            _LOG.warning("endpoint %s of agent %s is gone: its lease was not renewed", row.address, row.agent_id)
        for lease in over:
            standing = self._leases.get(lease.key)
            if standing is not None and standing.expires_ms <= now_ms:
                self._leases.drop(lease.key)

    def _is_away(self, error: DatabaseError) -> None:
        if not self._away_since_ms:
            self._away_since_ms = self._clock_ms()
            _LOG.warning("leases: the store is away, no lease ends meanwhile: %s", error)

    def _is_back(self) -> None:
        if self._away_since_ms:
            self._leases.prolong(self._clock_ms() - self._away_since_ms)
            self._away_since_ms = 0
            _LOG.warning("leases: the store is back")
