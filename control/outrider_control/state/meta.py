"""Small texts and counters the control plane remembers by name, such as the digest of the agents' file it applied last.

Deliberately not here: the change counter (`revision`) and the default agent (`agents`), which are rows of this table
with rules of their own.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Connection

from outrider_control.state.rows import replace_rows
from outrider_control.state.schema import meta
from outrider_control.state.upsert import upsert

_OWNED = ("revision", "default_agent", "oldest_program")


def text(connection: Connection, name: str) -> str:
    """What is remembered under a name; "" where there is nothing."""
    return connection.execute(sa.select(meta.c.text).where(meta.c.name == name)).scalar() or ""


def ensure_text(connection: Connection, name: str, value: str) -> str:
    """What is remembered under a name; `value` from now on where there was nothing."""
    row = {"name": name, "number": 0, "text": value}
    connection.execute(upsert(connection, meta, ["name"], []), [row])
    return text(connection, name)


def put_text(connection: Connection, name: str, value: str) -> None:
    """Remember a text under a name."""
    if name in _OWNED:
        raise ValueError(f"{name!r} has rules of its own")
    replace_rows(connection, meta, [{"name": name, "number": 0, "text": value}])


def raise_number(connection: Connection, name: str) -> int:
    """The next number of a counter, from 1; nobody else raises it before this transaction ends."""
    if name in _OWNED:
        raise ValueError(f"{name!r} has rules of its own")
    raised = sa.update(meta).where(meta.c.name == name).values(number=meta.c.number + 1).returning(meta.c.number)
    found = connection.execute(raised).scalar()
    if found is None:
        connection.execute(upsert(connection, meta, ["name"], []), [{"name": name, "number": 0, "text": ""}])
        found = connection.execute(raised).scalar_one()
    return found
