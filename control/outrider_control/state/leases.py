"""Leases: endpoints that registered, or that the sidecar beside them announced.

Always holds: an agent's set of endpoints gets a new version (a revision) exactly when an endpoint comes, goes, differs
or begins or ceases to drain; renewals, owners and places alone change no version. Times are only kept here. The mark
of one that drains stays with it however often its process registers again.

Deliberately not here: when a lease ends and who may have which (`core.leases`, `publish`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from outrider_control.core.leases import REGISTERED
from outrider_control.state import revision
from outrider_control.state.rows import replace_rows
from outrider_control.state.schema import endpoint_sets
from outrider_control.state.schema import leases as table

_KEYS_A_QUERY = 400  # SQLite bounds the parameters of a statement

Key = tuple[str, str]  # agent, address


@dataclass(frozen=True, slots=True)
class LeaseRow:
    """One endpoint of one agent, until its lease ends."""

    agent_id: str
    address: str
    owner: str  # a lease id, or the instance id of the sidecar that announced it
    source: str  # registered, announced
    node: str
    endpoint: bytes  # outrider.v1.Endpoint
    ttl_ms: int
    expires_ms: int
    draining: int = 0  # 1: a lease still, but sidecars are not told of it


class EndpointSet(NamedTuple):
    """What one agent has, by address, and the version of it."""

    revision: int
    leases: list[LeaseRow]


def put(connection: Connection, rows: Sequence[LeaseRow], now_ms: int) -> int | None:
    """Add leases, or replace those of the same agent and address; the new revision where an endpoint changed.

    `now_ms` bounds nothing here: a lease that is over already is kept until it is removed.
    """
    last = {(row.agent_id, row.address): row for row in rows}
    if not last:
        return None
    revision.lock(connection)
    there = {(row.agent_id, row.address): row for row in _of_keys(connection, list(last))}
    put_rows = [_with_mark(row, there.get(key)) for key, row in sorted(last.items())]
    changed = {
        row.agent_id
        for row in put_rows
        if (before := there.get((row.agent_id, row.address))) is None
        or (before.endpoint, before.draining) != (row.endpoint, row.draining)
    }
    replace_rows(connection, table, [asdict(row) for row in put_rows])
    return _touch(connection, changed)


def is_same_process(owner: str, source: str, before: str) -> bool:
    """Whether who puts a lease is who had it before: sidecars keep their instance id for as long as they live, while
    who registers gets another lease id each time."""
    return source == REGISTERED or owner == before


def _with_mark(row: LeaseRow, before: LeaseRow | None) -> LeaseRow:
    keeps = before is not None and before.draining and is_same_process(row.owner, row.source, before.owner)
    return replace(row, draining=int(bool(keeps)))


def mark(connection: Connection, agent_id: str, addresses: Sequence[str], draining: bool) -> int:
    """Have endpoints of an agent drain, or serve again; the version of its set as it is then."""
    revision.lock(connection)
    marked = 0
    for at in range(0, len(addresses), _KEYS_A_QUERY):
        some = sa.and_(
            table.c.agent_id == agent_id,
            table.c.address.in_(addresses[at : at + _KEYS_A_QUERY]),
            table.c.draining != int(draining),
        )
        marked += connection.execute(sa.update(table).where(some).values(draining=int(draining))).rowcount
    if marked:
        return _touch(connection, {agent_id}) or 0
    version = sa.select(endpoint_sets.c.revision).where(endpoint_sets.c.agent_id == agent_id)
    return connection.execute(version).scalar() or 0


def renew(connection: Connection, owners: Sequence[str], expires_ms: int) -> int:
    """Have all leases of these owners end at `expires_ms`; how many there are."""
    renewed = 0
    for at in range(0, len(owners), _KEYS_A_QUERY):
        some = table.c.owner.in_(owners[at : at + _KEYS_A_QUERY])
        renewed += connection.execute(sa.update(table).where(some).values(expires_ms=expires_ms)).rowcount
    return renewed


def remove(connection: Connection, keys: Sequence[Key]) -> int | None:
    """Take leases away; the new revision where there were any."""
    revision.lock(connection)
    there = {(row.agent_id, row.address) for row in _of_keys(connection, keys)}
    for some in _portions(sorted(there)):
        connection.execute(sa.delete(table).where(sa.tuple_(table.c.agent_id, table.c.address).in_(some)))
    return _touch(connection, {agent_id for agent_id, _ in there})


def remove_owner(connection: Connection, owner: str) -> int | None:
    """Take all leases of an owner away; the new revision where there were any."""
    revision.lock(connection)
    query = sa.delete(table).where(table.c.owner == owner).returning(table.c.agent_id)
    return _touch(connection, set(connection.execute(query).scalars()))


def current(connection: Connection) -> list[LeaseRow]:
    """All leases, by agent and address."""
    query = sa.select(table).order_by(table.c.agent_id, table.c.address)
    return [LeaseRow(*row) for row in connection.execute(query)]


def changed_since(connection: Connection, since: int) -> dict[str, EndpointSet]:
    """The sets of all agents whose endpoints changed after revision `since`; such a set may be empty now."""
    query = sa.select(endpoint_sets).where(endpoint_sets.c.revision > since).order_by(endpoint_sets.c.agent_id)
    sets = {row.agent_id: EndpointSet(row.revision, []) for row in connection.execute(query)}
    changed = sa.select(endpoint_sets.c.agent_id).where(endpoint_sets.c.revision > since)
    rows = sa.select(table).where(table.c.agent_id.in_(changed)).order_by(table.c.agent_id, table.c.address)
    for row in connection.execute(rows):
        sets[row.agent_id].leases.append(LeaseRow(*row))
    return sets


def versions(connection: Connection) -> dict[str, int]:
    """The version of each agent's set; an agent that never had a lease has none."""
    return {row.agent_id: row.revision for row in connection.execute(sa.select(endpoint_sets))}


def _of_keys(connection: Connection, keys: Sequence[Key]) -> Iterable[LeaseRow]:
    for some in _portions(keys):
        query = sa.select(table).where(sa.tuple_(table.c.agent_id, table.c.address).in_(some))
        yield from [LeaseRow(*row) for row in connection.execute(query)]


def _portions(keys: Sequence[Key]) -> Iterable[Sequence[Key]]:
    return (keys[at : at + _KEYS_A_QUERY] for at in range(0, len(keys), _KEYS_A_QUERY))


def _touch(connection: Connection, agent_ids: set[str]) -> int | None:
    if not agent_ids:
        return None
    at = revision.bump(connection)
    rows = [{"agent_id": agent_id, "revision": at} for agent_id in sorted(agent_ids)]
    replace_rows(connection, endpoint_sets, rows)
    return at
