"""Cache invalidation for the whole mesh: one number per scope that only rises, and a floor under all of them.

Always holds: a bump gives a value larger than every value before, over all control planes of one store (a hybrid
logical clock, Kulkarni et al. 2014: the wall clock's milliseconds, or one more than the largest value). The number of
rows is bounded: past it all go and the floor rises instead, which voids everything once, so that what was erased never
comes back.

Deliberately not here: keys and caches (the sidecar's), the journal's entry (who purges writes it beside).
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Connection

from outrider.policy import PolicyError
from outrider_control.state import revision
from outrider_control.state.rows import replace_rows
from outrider_control.state.schema import epochs as table

MAX_SCOPES = 4_096
_MAX_NAME_CHARS = 1_024
_FLOOR = ("", "", "")

Scope = tuple[str, str, str]  # agent, tenant, tag; an empty one covers all


def bump(connection: Connection, agent_id: str, tenant_id: str, tag: str, now_ms: int) -> int:
    """Void what the scope covers; its new value. PolicyError names a part that is no name."""
    for name, value in (("agent_id", agent_id), ("tenant_id", tenant_id), ("tag", tag)):
        if len(value) > _MAX_NAME_CHARS or "\0" in value:
            raise PolicyError(name, f"is longer than {_MAX_NAME_CHARS} characters, or holds NUL")
    revision.lock(connection)
    largest = connection.execute(sa.select(sa.func.max(table.c.value))).scalar() or 0
    value = max(largest + 1, now_ms)
    at = revision.bump(connection)
    _put(connection, (agent_id, tenant_id, tag), value, at)
    count = connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
    if count > MAX_SCOPES:
        value = _raise_floor(connection, value + 1, at)
    return value


def raise_floor(connection: Connection, now_ms: int) -> int:
    """Void everything, and forget all scopes; the new floor."""
    revision.lock(connection)
    largest = connection.execute(sa.select(sa.func.max(table.c.value))).scalar() or 0
    return _raise_floor(connection, max(largest + 1, now_ms), revision.bump(connection))


def current(connection: Connection) -> tuple[int, list[tuple[str, str, str, int]], int]:
    """The floor, the value of every scope, and the revision of the last change; 0 for what there is not yet."""
    floor, newest = 0, 0
    scopes: list[tuple[str, str, str, int]] = []
    for row in connection.execute(sa.select(table).order_by(table.c.agent_id, table.c.tenant_id, table.c.tag)):
        newest = max(newest, row.revision)
        if (row.agent_id, row.tenant_id, row.tag) == _FLOOR:
            floor = row.value
        else:
            scopes.append((row.agent_id, row.tenant_id, row.tag, row.value))
    return floor, scopes, newest


def _raise_floor(connection: Connection, value: int, at: int) -> int:
    connection.execute(sa.delete(table))
    _put(connection, _FLOOR, value, at)
    return value


def _put(connection: Connection, scope: Scope, value: int, at: int) -> None:
    agent_id, tenant_id, tag = scope
    row = {"agent_id": agent_id, "tenant_id": tenant_id, "tag": tag, "value": value, "revision": at}
    replace_rows(connection, table, [row])
