"""Whole rows, put in place of those of the same primary key. Statements that replace less are `upsert`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Table

from outrider_control.state.upsert import upsert


def replace_rows(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    """Put rows that have every column; those of the same primary key are replaced."""
    if rows:
        key = [column.name for column in table.primary_key.columns]
        rest = [column.name for column in table.columns if column.name not in key]
        connection.execute(upsert(connection, table, key, rest), rows)
