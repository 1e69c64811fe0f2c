"""What the store has that is newer than a revision: everything sidecars are told is made of this.

Always holds: it is read in one transaction, so that it is one moment of the store.

Deliberately not here: what becomes of it (`publisher`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from outrider_control.core.leases import Lease
from outrider_control.publish.lease_changes import to_lease
from outrider_control.state import agents, epochs, leases, schema, splits
from outrider_control.state.splits import SplitSet


class EpochTable(NamedTuple):
    """All epochs; `rows` are (agent, tenant, tag, value)."""

    floor: int
    rows: Sequence[tuple[str, str, str, int]]
    version: int


class EndpointSet(NamedTuple):
    """All registered endpoints of one agent, by address, those that drain among them."""

    leases: list[Lease]
    version: int


class News(NamedTuple):
    """Everything that changed after the revision that was asked about; `revision` is the store's now."""

    agents: Sequence[agents.AgentRecord]
    deleted: Sequence[tuple[str, int]]
    endpoints: Mapping[str, EndpointSet]
    splits: Mapping[str, SplitSet]
    epochs: EpochTable | None
    default_agent: tuple[str, int]
    revision: int
    unreadable: Mapping[str, str]  # agents whose newest policy cannot be enforced, and what is instead

    def leases(self) -> list[Lease]:
        return [lease for endpoint_set in self.endpoints.values() for lease in endpoint_set.leases]


def since(connection: Connection, revision: int) -> News:
    """`revision` 0: everything."""
    records, deleted, now, unreadable = agents.changed_since(connection, revision)
    endpoints = {
        agent_id: EndpointSet([to_lease(row) for row in found.leases], found.revision)
        for agent_id, found in leases.changed_since(connection, revision).items()
    }
    newest = connection.execute(sa.select(sa.func.max(schema.epochs.c.revision))).scalar() or 0
    table = EpochTable(*epochs.current(connection)) if newest > revision else None
    divided = splits.changed_since(connection, revision)
    return News(records, deleted, endpoints, divided, table, agents.default_agent(connection), now, unreadable)
