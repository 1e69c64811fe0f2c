"""What control planes say of the sidecars they serve: for each other, and for after a restart.

Always holds: one row per sidecar, the one that was heard last; a control plane that hears of a sidecar late does not
overwrite what another one knows since.

Deliberately not here: the sidecars of this process (`publish.fleet`), how long rows are kept (`retention`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from outrider_control.state.schema import sidecars as table
from outrider_control.state.upsert import upsert

_MAX_READ = 100_000


class SidecarRow(NamedTuple):
    """One sidecar as a control plane knew it at `seen_ms`."""

    instance_id: str
    control_id: str
    connected: bool
    seen_ms: int
    record: bytes  # outrider.v1.SidecarRecord


def put(connection: Connection, rows: Iterable[tuple[str, str, bool, int, bytes]]) -> None:
    """Keep what is newer than what is kept. Rows are as `SidecarRow`."""
    given = [SidecarRow(*row) for row in rows]
    if not given:
        return
    # Two control planes write in the same order: neither waits for a row while it holds one the other wants.
    values = [{**row._asdict(), "connected": int(row.connected)} for row in sorted(given)]
    replaced = ["control_id", "connected", "seen_ms", "record"]
    newer = upsert(connection, table, ["instance_id"], replaced, lambda row: row.seen_ms >= table.c.seen_ms)
    connection.execute(newer, values)


def current(connection: Connection, since_ms: int = 0) -> list[SidecarRow]:
    """Those heard since then, the last heard first."""
    query = sa.select(table).where(table.c.seen_ms >= since_ms).order_by(table.c.seen_ms.desc(), table.c.instance_id)
    return [
        SidecarRow(row.instance_id, row.control_id, bool(row.connected), row.seen_ms, row.record)
        for row in connection.execute(query.limit(_MAX_READ))
    ]
