"""INSERT ... ON CONFLICT for both databases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite


def upsert(
    connection: Connection,
    table: Table,
    key: Sequence[str],
    replaced: Sequence[str],
    where: Callable[[Any], sa.ColumnElement[bool]] | None = None,
) -> sa.Insert:
    """Inserts rows; where the key is there, `replaced` columns are taken over, if `where(new row)`.

    Nothing to replace: rows that are there stay as they are.
    """
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table)
    if not replaced:
        return statement.on_conflict_do_nothing(index_elements=list(key))
    values = {name: statement.excluded[name] for name in replaced}
    condition = where(statement.excluded) if where is not None else None
    return statement.on_conflict_do_update(index_elements=list(key), set_=values, where=condition)
