"""The change counter: one number for the whole store that grows with every change a sidecar should hear of.

Always holds: revisions become visible in their order, on PostgreSQL with several writers too: who raises the counter
holds its row until the commit. So a reader at revision r has seen every change up to r.

Deliberately not here: telling anybody (`database.Database.on_change`).
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Connection

from outrider_control.state.schema import meta

RAISED = "outrider.revision"  # in Connection.info: the revision that this transaction raised the counter to
_NAME = "revision"


def current(connection: Connection) -> int:
    """The newest revision."""
    return connection.execute(sa.select(meta.c.number).where(meta.c.name == _NAME)).scalar_one()


def lock(connection: Connection) -> int:
    """The newest revision, and nobody else raises it before this transaction ends.

    What reads, decides and then writes watched state begins with it; so do all that write several rows, which keeps
    them out of each other's way.
    """
    return connection.execute(sa.select(meta.c.number).where(meta.c.name == _NAME).with_for_update()).scalar_one()


def bump(connection: Connection, by: int = 1) -> int:
    """The next revision."""
    statement = sa.update(meta).where(meta.c.name == _NAME).values(number=meta.c.number + by).returning(meta.c.number)
    raised = connection.execute(statement).scalar_one()
    connection.info[RAISED] = raised
    return raised
