"""Leases of endpoints: who said an address serves an agent, and until when that is believed.

Always holds: an endpoint has one lease, the newest that claimed it; a lease that is renewed in time never ends; leases
never end all at once because this process was away: what is loaded at a start gets its whole time and a grace more,
and a gap between two ticks (a stalled loop, a sleeping machine, a stepped clock, a store away) is added to all. What
is held (the stream of its sidecar is open) does not end.

Deliberately not here: the store and the clock (`publish.lessor`), what sidecars are told (`publish.resources`).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

Key = tuple[str, str]  # agent_id, address

REGISTERED = "registered"
ANNOUNCED = "announced"

DEFAULT_TTL_MS = 15_000
MIN_TTL_MS = 1_000
MAX_TTL_MS = 3_600_000
ANNOUNCED_TTL_MS = 30_000  # of what a stream holds: outlives a change of the control plane it is connected to
STREAM_GRACE_MS = 15_000  # how long an announced endpoint lives on after its stream
START_GRACE_MS = 30_000
UNWRITTEN = 2**63  # the revision of a lease that the store does not have yet
MAX_ENDPOINTS = 100_000
MAX_ENDPOINTS_PER_AGENT = 1_000
MAX_BYTES = 10 * 1024 * 1024  # of all endpoints together: a full update must fit one message


@dataclass(slots=True)
class Lease:
    """One endpoint's lease. `endpoint` is an encoded outrider.v1.Endpoint; `owner` a lease id or an instance id."""

    agent_id: str
    address: str
    owner: str
    source: str
    node: str
    endpoint: bytes
    ttl_ms: int
    expires_ms: int
    stored_ms: int = 0  # until when the store says it lives
    revision: int = 0  # of the store when it was written there; what was read of the store before does not know it
    draining: bool = False  # a lease still, but given no more calls; the store says so, here it is only repeated

    @property
    def key(self) -> Key:
        return self.agent_id, self.address


class Leases:
    """All leases of the mesh, by endpoint and by owner. `interval_ms` is the time between two calls of `tick`."""

    def __init__(
        self,
        interval_ms: int = 1_000,
        max_endpoints: int = MAX_ENDPOINTS,
        max_per_agent: int = MAX_ENDPOINTS_PER_AGENT,
        max_bytes: int = MAX_BYTES,
    ):
        self._interval_ms = interval_ms
        self._max_endpoints = max_endpoints
        self._max_per_agent = max_per_agent
        self._max_bytes = max_bytes
        self._agents: dict[str, dict[str, Lease]] = {}
        self._owners: dict[str, dict[Key, Lease]] = {}
        self._held: set[str] = set()
        self._renewed: set[str] = set()
        self._ends: list[tuple[int, Key]] = []  # a heap; an entry may be older than its lease
        self._ticked_ms = 0
        self._size_bytes = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def get(self, key: Key) -> Lease | None:
        return self._agents.get(key[0], {}).get(key[1])

    def agent_ids(self) -> Iterable[str]:
        return self._agents.keys()

    def of_agent(self, agent_id: str) -> list[Lease]:
        """In the order of their addresses."""
        leases = self._agents.get(agent_id, {})
        return [leases[address] for address in sorted(leases)]

    def of_owner(self, owner: str) -> list[Lease]:
        return list(self._owners.get(owner, {}).values())

    def __iter__(self) -> Iterator[Lease]:
        for leases in self._agents.values():
            yield from leases.values()

    def refusal(self, lease: Lease) -> str:
        """Why there is no room for a lease; empty: there is."""
        standing = self.get(lease.key)
        grows_by = len(lease.endpoint) - (len(standing.endpoint) if standing else 0)
        if grows_by > 0 and self._size_bytes + grows_by > self._max_bytes:
            return f"all registered endpoints together would pass {self._max_bytes:,} bytes"
        if standing is not None:
            return ""
        if self._count >= self._max_endpoints:
            return f"{self._max_endpoints:,} endpoints are registered already, which is the most there may be"
        if len(self._agents.get(lease.agent_id, ())) >= self._max_per_agent:
            return f"agent {lease.agent_id} has {self._max_per_agent:,} endpoints, which is the most it may have"
        return ""

    def put(self, lease: Lease) -> None:
        """Replaces whatever lease the endpoint had."""
        self.drop(lease.key)
        self._agents.setdefault(lease.agent_id, {})[lease.address] = lease
        self._owners.setdefault(lease.owner, {})[lease.key] = lease
        self._count += 1
        self._size_bytes += len(lease.endpoint)
        self._push(lease)

    def _push(self, lease: Lease) -> None:
        if len(self._ends) > 2 * self._count + 64:  # mostly entries that are older than their leases
            self._ends = [(other.expires_ms, other.key) for other in self]
            heapq.heapify(self._ends)
        heapq.heappush(self._ends, (lease.expires_ms, lease.key))

    def drop(self, key: Key) -> Lease | None:
        leases = self._agents.get(key[0])
        lease = leases.pop(key[1], None) if leases is not None else None
        if lease is None:
            return None
        if not leases:
            del self._agents[key[0]]
        owned = self._owners[lease.owner]
        del owned[key]
        if not owned:
            del self._owners[lease.owner]
            self._renewed.discard(lease.owner)
        self._count -= 1
        self._size_bytes -= len(lease.endpoint)
        return lease

    def load(self, leases: Iterable[Lease], now_ms: int) -> None:
        """What the store holds when this process starts: nobody could renew while it was away."""
        for lease in leases:
            lease.stored_ms = lease.expires_ms
            lease.expires_ms = max(lease.expires_ms, now_ms + lease.ttl_ms + START_GRACE_MS)
            self.put(lease)

    def learn(self, agent_id: str, leases: Iterable[Lease], revision: int) -> list[Lease]:
        """One agent's set as the store had it at a revision. Returns what is not in it any more.

        What was written since that revision stays as it is.
        """
        fresh = {lease.address: lease for lease in leases}
        standing = self._agents.get(agent_id, {})
        older = {address for address, lease in standing.items() if lease.revision < revision}
        gone = [standing[address] for address in older - fresh.keys()]
        for lease in gone:
            self.drop(lease.key)
        for address, lease in fresh.items():
            if address in older or address not in standing:
                self.correct(lease)
            else:  # marks are never written here first
                standing[address].draining = lease.draining
        return gone

    def correct(self, lease: Lease) -> None:
        """What the store says of one lease; a renewal that it was not told of yet stays."""
        lease.stored_ms = lease.expires_ms
        standing = self.get(lease.key)
        if standing is not None and standing.owner == lease.owner:
            lease.expires_ms = max(lease.expires_ms, standing.expires_ms)
        self.put(lease)

    def renew(self, owner: str, now_ms: int) -> bool:
        """False: the owner has no lease (any more)."""
        owned = self._owners.get(owner)
        if not owned:
            return False
        for lease in owned.values():
            lease.expires_ms = max(lease.expires_ms, now_ms + lease.ttl_ms)
        self._renewed.add(owner)
        return True

    def hold(self, owner: str) -> None:
        """The owner's stream is open: what it announced does not end."""
        self._held.add(owner)

    def release(self, owner: str, now_ms: int) -> None:
        """The owner's stream has ended: what it announced lives on for a grace."""
        self._held.discard(owner)
        for lease in self._owners.get(owner, {}).values():
            lease.expires_ms = now_ms + STREAM_GRACE_MS
            self._push(lease)
            self._renewed.add(owner)

    def tick(self, now_ms: int) -> int:
        """To be called every interval. Returns by how much all leases were prolonged because it was not."""
        gap_ms = now_ms - self._ticked_ms if self._ticked_ms else 0
        self._ticked_ms = now_ms
        for owner in self._held:
            for lease in self._owners.get(owner, {}).values():
                lease.expires_ms = now_ms + lease.ttl_ms
        if gap_ms <= 2 * self._interval_ms:
            return 0
        self.prolong(gap_ms)
        return gap_ms

    def prolong(self, by_ms: int) -> None:
        for lease in self:
            lease.expires_ms += by_ms

    def renewals(self) -> dict[int, list[str]]:
        """Owners by the time until which the store should say their leases live: those renewed since it was last told,
        and held ones whose time in the store is down to two thirds."""
        owners: dict[int, list[str]] = {}
        for owner in self._renewed | self._held:
            owned = self._owners.get(owner)
            if not owned:
                continue
            told = all(3 * (lease.expires_ms - lease.stored_ms) < lease.ttl_ms for lease in owned.values())
            if owner in self._renewed or not told:
                expires_ms = max(lease.expires_ms for lease in owned.values())
                # Whole seconds: owners that renew within one share a statement.
                owners.setdefault(-(-expires_ms // 1_000) * 1_000, []).append(owner)
        return owners

    def stored(self, renewals: dict[int, list[str]]) -> None:
        """The store took these."""
        for expires_ms, owners in renewals.items():
            for owner in owners:
                owned = self._owners.get(owner)
                if owned is None:
                    continue
                for lease in owned.values():
                    lease.stored_ms = expires_ms
                if max(lease.expires_ms for lease in owned.values()) <= expires_ms:
                    self._renewed.discard(owner)

    def due(self, now_ms: int, at_most: int = 10_000) -> list[Lease]:
        """Leases whose time is over; they stay until they are dropped, and are named again until then."""
        due: dict[Key, Lease] = {}
        while self._ends and self._ends[0][0] <= now_ms and len(due) < at_most:
            _, key = heapq.heappop(self._ends)
            lease = self.get(key)
            if lease is None or key in due:
                continue
            if lease.expires_ms <= now_ms and lease.owner not in self._held:
                due[key] = lease
            else:
                heapq.heappush(self._ends, (max(lease.expires_ms, now_ms + 1), key))
        for key, lease in due.items():
            heapq.heappush(self._ends, (lease.expires_ms, key))
        return list(due.values())
