"""The control planes on this store: each says every few seconds that it is there.

Deliberately not here: who leads (`leadership`).
"""

from __future__ import annotations

from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from outrider_control.state.rows import replace_rows
from outrider_control.state.schema import peers as table


class PeerRow(NamedTuple):
    """One control plane as it was at `seen_ms`."""

    control_id: str
    address: str
    version: str
    seen_ms: int


def put(connection: Connection, peer: PeerRow) -> None:
    """Say that a control plane is there."""
    replace_rows(connection, table, [peer._asdict()])


def current(connection: Connection, since_ms: int = 0) -> list[PeerRow]:
    """Those that said so since then, by id."""
    query = sa.select(table).where(table.c.seen_ms >= since_ms).order_by(table.c.control_id).limit(1_000)
    return [PeerRow(*row) for row in connection.execute(query)]


def remove(connection: Connection, control_id: str) -> None:
    """Say that one goes."""
    connection.execute(sa.delete(table).where(table.c.control_id == control_id))
