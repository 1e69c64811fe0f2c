"""The shares this sidecar holds of limits that hold over the fleet, and what it was asked for under each.

A limit is named by (agent_id, scope, name, unit); `name` is the user's or tenant's and never leaves: what is reported
is its keyed hash (blake2b), the same in every sidecar of the mesh.

Always holds: a share is granted with a version that grows, and an older one is not taken; a limit nobody has granted
has `new_share`. A limit without demand for IDLE_S is forgotten while there is a control plane to hear of it: it is
new when it is used again. Offline nothing is forgotten, so the last share holds. Everything is bounded; past MAX_HELD
the limit that was used longest ago is forgotten. What is asked for between two reports is told in the next one, of
MAX_USES limits at a time, of the others in the one after.

Deliberately not here: rates and cells (`gcra`), the division (the control plane's), messages (`edge.mesh_codec`).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from outrider.digest import blake2b

IDLE_S: Final = 60.0
MAX_HELD: Final = 20_000
MAX_USES: Final = 4_096  # of one report
MIN_SHARE: Final = 1e-6
MAX_NAME_BYTES: Final = 64  # longer names are kept as a digest
_HASH_BYTES: Final = 16

_Quota = tuple[str, str, str, str]


class Use(NamedTuple):
    """What one report says of one limit; the names of `outrider.v1.QuotaUse`."""

    agent_id: str
    scope: str  # agent, user, tenant
    key: str  # hex; empty for the agent itself
    unit: str  # requests, tokens
    demand_per_s: float
    share: float
    version: int


class Granted(NamedTuple):
    """One share as the control plane grants it."""

    agent_id: str
    scope: str
    key: str
    unit: str
    share: float
    version: int


class Held:
    """One limit as this sidecar holds it.

    `cell` passes it (filters `limit`, which also says what the whole limit is): it is told of every other share.
    """

    __slots__ = (
        "agent_id",
        "burst_s",
        "cell",
        "demand",
        "floor",
        "forgotten",
        "key",
        "name",
        "rate_per_s",
        "scope",
        "share",
        "unit",
        "used_at",
        "version",
    )

    def __init__(self, agent_id: str, scope: str, name: bytes, unit: str, share: float, now: float):
        self.agent_id = agent_id
        self.scope = scope
        self.name = name
        self.unit = unit
        self.share = share
        self.version = 0  # of the grant; 0: none
        self.floor = 0  # of the newest grant there ever was
        self.demand = 0.0  # units asked for since the last report
        self.used_at = now
        self.forgotten = False
        self.key = ""
        self.cell: Any = None
        self.rate_per_s = 0.0
        self.burst_s = 0.0

    def change(self, share: float, now: float) -> None:
        """Pass by another share from now on."""
        self.share = share
        if self.cell is not None and self.cell.held is self:
            self.cell.configure(self.rate_per_s * share, self.burst_s, now)


class Shares:
    """See the module. One a process."""

    __slots__ = ("_by_key", "_helds", "_max_held", "_max_uses", "_reported_at", "_touched", "hash_key", "new_share")

    def __init__(self, now: float, max_held: int = MAX_HELD, max_uses: int = MAX_USES):
        self._max_held = max_held
        self._max_uses = max_uses
        self.new_share = 1.0
        self.hash_key = b""  # empty: no control plane has been heard, and nothing is told
        self._helds: OrderedDict[tuple[str, str, bytes, str], Held] = OrderedDict()
        self._by_key: dict[_Quota, Held] = {}  # those that were reported
        self._touched: OrderedDict[Held, None] = OrderedDict()  # to be told of in the next report
        self._reported_at = now

    def __len__(self) -> int:
        return len(self._helds)

    def hold(self, agent_id: str, scope: str, name: bytes, unit: str, now: float) -> Held:
        """The limit of this name, held from now on if it was not."""
        if len(name) > MAX_NAME_BYTES:
            name = blake2b(name, digest_size=_HASH_BYTES).digest()
        held = self._helds.get((agent_id, scope, name, unit))
        if held is None:
            held = Held(agent_id, scope, name, unit, self.new_share, now)
            self._insert(held, now)
        return held

    def ask(self, held: Held, units: float, now: float) -> None:
        """So many units are asked for, admitted or not; negative: they were not needed after all."""
        if held.forgotten:
            held.forgotten = False
            self._insert(held, now)
        held.demand += units
        self._touched[held] = None

    def _insert(self, held: Held, now: float) -> None:
        if len(self._helds) >= self._max_held:
            self._forget(self._helds.popitem(False)[1], now)
        known = (held.agent_id, held.scope, held.name, held.unit)
        before = self._helds.get(known)
        if before is not None:
            self._forget(before, now)
        self._helds[known] = held

    def _forget(self, held: Held, now: float) -> None:
        held.forgotten = True
        held.change(self.new_share, now)
        held.version = 0
        self._touched.pop(held, None)
        if held.key or held.scope == "agent":
            quota = (held.agent_id, held.scope, held.key, held.unit)
            if self._by_key.get(quota) is held:
                del self._by_key[quota]

    # -- what is told ----------------------------------------------------------------------------------------------

    def uses(self, now: float) -> list[Use]:
        """What the next report says, once a second."""
        elapsed_s = now - self._reported_at
        if not self.hash_key or elapsed_s <= 0.0:
            return []
        self._reported_at = now
        told = []
        for _ in range(min(len(self._touched), self._max_uses)):
            held = self._touched.popitem(False)[0]
            demand, held.demand = held.demand, 0.0
            if demand > 0.0:
                held.used_at = now
                self._helds.move_to_end((held.agent_id, held.scope, held.name, held.unit))
            told.append(self._use(held, max(0.0, demand) / elapsed_s, held.share))
        return told

    def _use(self, held: Held, demand_per_s: float, share: float) -> Use:
        if not held.key and held.scope != "agent":
            held.key = blake2b(held.name, digest_size=_HASH_BYTES, key=self.hash_key[:64]).hexdigest()
        self._by_key[held.agent_id, held.scope, held.key, held.unit] = held
        return Use(held.agent_id, held.scope, held.key, held.unit, demand_per_s, share, held.version)

    def expire(self, now: float) -> None:
        """Forget what was idle for too long; to be called with every report."""
        while self._helds:
            known = next(iter(self._helds))
            held = self._helds[known]
            if held.demand > 0.0:
                self._helds.move_to_end(known)
                held.used_at = now
            if now - held.used_at < IDLE_S:
                break
            del self._helds[known]
            self._forget(held, now)

    def give_back(self) -> list[Use]:
        """The last report of a process that ends: it needs no share of anything any more."""
        granted = [held for held in self._by_key.values() if not held.forgotten]
        return [self._use(held, 0.0, 0.0) for held in granted[: self._max_uses]] if self.hash_key else []

    # -- what is granted -------------------------------------------------------------------------------------------

    def take(self, grants: Iterable[Granted], new_share: float, hash_key: bytes, now: float) -> None:
        """Shares from the control plane, in force at once; what makes no sense is passed over."""
        if hash_key and hash_key != self.hash_key:
            self.hash_key = hash_key
            self._by_key.clear()
            for held in self._helds.values():
                held.key = ""
        if 0.0 < new_share <= 1.0 and new_share != self.new_share:
            self.new_share = new_share
            for held in self._helds.values():
                if not held.version:
                    held.change(new_share, now)
        for grant in grants:
            found = self._by_key.get((grant.agent_id, grant.scope, grant.key, grant.unit))
            if found is not None and math.isfinite(grant.share) and 0.0 < grant.share <= 1.0:
                if grant.version > max(found.version, found.floor):
                    found.version = found.floor = grant.version
                    found.change(max(MIN_SHARE, grant.share), now)
                # The version held is told before anything else: what was taken away may go to others.
                self._touched[found] = None
                self._touched.move_to_end(found, False)
