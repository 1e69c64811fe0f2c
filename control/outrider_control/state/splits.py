"""Splits in force, by agent: what sidecars divide traffic by.

Always holds: an agent's set of splits gets a new version (a revision) exactly when one comes, goes or differs, so that
sidecars are told within milliseconds of the commit; who writes does so in the transaction of the decision it follows.

Deliberately not here: why a split is as it is (`loops.experiment`, `loops.rollout`), telling sidecars (`publish`).
"""

from __future__ import annotations

from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from outrider.split import Split
from outrider.split_codec import decode_split, encode_split
from outrider.v1 import policy_pb2
from outrider_control.state import revision
from outrider_control.state.schema import rollouts, split_sets
from outrider_control.state.schema import splits as table
from outrider_control.state.upsert import upsert


class SplitSet(NamedTuple):
    """What one agent has, each an outrider.v1.SplitPolicy, and the version of it. Where two decide on the same of a
    call the later one counts: rollouts' first, oldest first, then experiments', by name."""

    revision: int
    splits: list[bytes]


def put(connection: Connection, split: Split) -> int | None:
    """The split is in force; the new revision, None where it was so already. ValueError: it is another agent's."""
    encoded = encode_split(split).SerializeToString(deterministic=True)
    standing = connection.execute(sa.select(table).where(table.c.name == split.name)).first()
    if standing is not None and standing.agent_id != split.agent_id:
        raise ValueError(f"the split {split.name!r} is of the agent {standing.agent_id!r}")
    if standing is not None and standing.split == encoded:
        return None
    row = {"name": split.name, "agent_id": split.agent_id, "split": encoded}
    connection.execute(upsert(connection, table, ["name"], ["split"]), [row])
    return _changed(connection, split.agent_id)


def remove(connection: Connection, name: str) -> int | None:
    """The split is gone, and units forget what they held of it; the new revision, None where there was none."""
    gone = connection.execute(sa.delete(table).where(table.c.name == name).returning(table.c.agent_id)).scalar()
    return _changed(connection, gone) if gone is not None else None


def get(connection: Connection, name: str) -> Split | None:
    """One split."""
    encoded = connection.execute(sa.select(table.c.split).where(table.c.name == name)).scalar()
    return decode_split(policy_pb2.SplitPolicy.FromString(encoded)) if encoded is not None else None


def of_agent(connection: Connection, agent_id: str) -> tuple[Split, ...]:
    """The splits of one agent, by name."""
    query = sa.select(table.c.split).where(table.c.agent_id == agent_id).order_by(table.c.name)
    return tuple([decode_split(policy_pb2.SplitPolicy.FromString(one)) for one in connection.execute(query).scalars()])


def names(connection: Connection) -> set[str]:
    """Of all splits."""
    return set(connection.execute(sa.select(table.c.name)).scalars())


def version(connection: Connection, agent_id: str) -> int:
    """Of an agent's set; 0: it never had one."""
    return connection.execute(sa.select(split_sets.c.revision).where(split_sets.c.agent_id == agent_id)).scalar() or 0


def changed_since(connection: Connection, since: int) -> dict[str, SplitSet]:
    """The sets that are newer than a revision, by agent; one without splits has become empty."""
    query = sa.select(split_sets).where(split_sets.c.revision > since).order_by(split_sets.c.agent_id)
    found = {row.agent_id: SplitSet(row.revision, []) for row in connection.execute(query)}
    changed = sa.select(split_sets.c.agent_id).where(split_sets.c.revision > since)
    rolled = sa.select(rollouts.c.split, sa.func.max(rollouts.c.created_ms).label("since_ms")).group_by(
        rollouts.c.split
    )
    begun = rolled.subquery()
    query = sa.select(table).outerjoin(begun, begun.c.split == table.c.name).where(table.c.agent_id.in_(changed))
    order = (begun.c.since_ms.is_(None), begun.c.since_ms, table.c.name)
    for row in connection.execute(query.order_by(*order)):
        found[row.agent_id].splits.append(row.split)
    return found


def _changed(connection: Connection, agent_id: str) -> int:
    raised = revision.bump(connection)
    row = {"agent_id": agent_id, "revision": raised}
    connection.execute(upsert(connection, split_sets, ["agent_id"], ["revision"]), [row])
    return raised
