"""What the lessor does to the store, each one transaction.

Always holds: an endpoint goes only if its lease is still the one that is meant, by owner or by time: another control
plane may have given it to somebody else a moment ago. A lease that ends by its time is in the journal.

Deliberately not here: the tables' own functions (`state.leases`), when to do what (`lessor`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy import Connection

from outrider_control.core.decision import Decision
from outrider_control.core.leases import Key, Lease
from outrider_control.state import journal, leases, revision, schema
from outrider_control.state.leases import LeaseRow

MAX_LISTED = 20  # addresses in one entry of the journal
_KEYS_AT_ONCE = 400  # SQLite takes a limited number of values in one statement


def to_row(lease: Lease) -> LeaseRow:
    return LeaseRow(
        agent_id=lease.agent_id,
        address=lease.address,
        owner=lease.owner,
        source=lease.source,
        node=lease.node,
        endpoint=lease.endpoint,
        ttl_ms=lease.ttl_ms,
        expires_ms=lease.expires_ms,
        draining=int(lease.draining),
    )


def to_lease(row: LeaseRow) -> Lease:
    lease = Lease(row.agent_id, row.address, row.owner, row.source, row.node, row.endpoint, row.ttl_ms, row.expires_ms)
    lease.draining = bool(row.draining)
    return lease


def change(connection: Connection, puts: Sequence[LeaseRow], removals: Mapping[Key, str], now_ms: int) -> int:
    """Puts leases, and removes those that still belong to the owner that is named. Returns the store's revision."""
    newest = revision.lock(connection)
    if removals:
        standing = {(row.agent_id, row.address): row for row in _rows(connection, removals, held=True)}
        keys = [key for key, owner in removals.items() if key in standing and standing[key].owner == owner]
        if keys:
            newest = leases.remove(connection, keys) or newest
    if puts:
        newest = leases.put(connection, puts, now_ms) or newest
    return newest


def renew(connection: Connection, renewals: Mapping[int, Sequence[str]]) -> None:
    for expires_ms, owners in renewals.items():
        leases.renew(connection, owners, expires_ms)


def owned(connection: Connection, owners: Sequence[str]) -> list[LeaseRow]:
    """The leases of these owners: they may be known to another control plane and not to this one."""
    rows: list[LeaseRow] = []
    for at in range(0, len(owners), _KEYS_AT_ONCE):
        some = schema.leases.c.owner.in_(owners[at : at + _KEYS_AT_ONCE])
        rows.extend([LeaseRow(*row) for row in connection.execute(sa.select(schema.leases).where(some))])
    return rows


def living(connection: Connection, keys: Sequence[Key], now_ms: int) -> list[LeaseRow]:
    """Of these leases those whose time in the store is not over."""
    return [row for row in _rows(connection, keys) if row.expires_ms > now_ms]


def expire(connection: Connection, keys: Sequence[Key], now_ms: int) -> list[LeaseRow]:
    """Removes those whose time in the store is over, and returns them."""
    revision.lock(connection)
    # Held until the commit: a renewal at another control plane comes before or after, never in between.
    gone = [row for row in _rows(connection, keys, held=True) if row.expires_ms <= now_ms]
    if gone:
        leases.remove(connection, [(row.agent_id, row.address) for row in gone])
    by_agent: dict[str, list[LeaseRow]] = {}
    for row in gone:
        by_agent.setdefault(row.agent_id, []).append(row)
    journal.append_all(connection, [_decision(agent_id, ended, now_ms) for agent_id, ended in by_agent.items()])
    return gone


def _decision(agent_id: str, ended: Sequence[LeaseRow], now_ms: int) -> Decision:
    """One entry for all leases of an agent that end together; lease ids are secrets and not in it."""
    listed = [
        {"address": row.address, "source": row.source, "node": row.node, "expires_ms": row.expires_ms}
        for row in ended[:MAX_LISTED]
    ]
    reason = "its lease was not renewed in time" if len(ended) == 1 else "their leases were not renewed in time"
    return Decision("lease", "lessor", reason, agent_id, {"endpoints": listed}, {"removed": len(ended)}, now_ms)


def _rows(connection: Connection, keys: Iterable[Key], held: bool = False) -> list[LeaseRow]:
    table = schema.leases
    wanted = list(keys)
    rows: list[LeaseRow] = []
    for at in range(0, len(wanted), _KEYS_AT_ONCE):
        some = wanted[at : at + _KEYS_AT_ONCE]
        statement = sa.select(table).where(sa.tuple_(table.c.agent_id, table.c.address).in_(some))
        if held:
            statement = statement.with_for_update()
        rows.extend([LeaseRow(*row) for row in connection.execute(statement)])
    return rows
