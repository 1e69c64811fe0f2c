"""What goes wrong with a database, in words: what is wrong, where, and what to do.

Always holds: no message holds a password; `code` is one of a few words that programs may act on.

Deliberately not here: retrying (`database`), errors of those who ask for what does not exist (the modules beside).
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc

FULL = "full"
UNREACHABLE = "unreachable"
READONLY = "readonly"
CORRUPT = "corrupt"
FOREIGN = "foreign"  # the file or the tables are another program's
SCHEMA = "schema"
BUSY = "busy"
CONFLICT = "conflict"  # two transactions in each other's way: the same one may be run again
OTHER = "other"

_SQLITE: tuple[tuple[str, str, str], ...] = (  # (begin of the error's name, code, what is wrong and what to do)
    ("SQLITE_FULL", FULL, "the disk is full; nothing of this change is kept. Free space: the store goes on by itself"),
    ("SQLITE_READONLY", READONLY, "cannot be written; give the control plane's user write access to file and folder"),
    ("SQLITE_CORRUPT", CORRUPT, "is damaged; move it away and restore the last backup (outrider store restore)"),
    ("SQLITE_NOTADB", FOREIGN, "is not an SQLite file; name another file in `database`"),
    ("SQLITE_BUSY", BUSY, "is held by another process; end what else writes to this file"),
    ("SQLITE_LOCKED", BUSY, "is held by another process; end what else writes to this file"),
    ("SQLITE_CANTOPEN", UNREACHABLE, "cannot be opened; check that the folder exists and may be written"),
    ("SQLITE_PERM", READONLY, "cannot be written; give the control plane's user write access to file and folder"),
    ("SQLITE_IOERR", FULL, "cannot be written to its disk; check the disk's space, its quota and its health"),
)
_POSTGRESQL: tuple[tuple[str, str, str], ...] = (  # (begin of the SQLSTATE, code, what is wrong and what to do)
    (
        "53100",
        FULL,
        "the server's disk is full; nothing of this change is kept. Free space: the store goes on by itself",
    ),
    ("533", UNREACHABLE, "has no connection left; raise max_connections or end other clients"),
    ("28", UNREACHABLE, "refuses the user or the password; check the `database` URL and pg_hba.conf"),
    ("3D000", UNREACHABLE, "has no database of that name; create it (createdb) or name another one in `database`"),
    ("57", UNREACHABLE, "is shutting down, starting or ended the connection; it is tried again with the next call"),
    ("08", UNREACHABLE, "lost the connection; it is tried again with the next call"),
    ("25P0", UNREACHABLE, "ended a transaction that stood still; it is tried again with the next call"),
    ("25006", READONLY, "is read-only (a standby?); name the primary in `database`"),
    ("42501", READONLY, "does not let this user do that; grant it the rights on the schema"),
    ("40", CONFLICT, "two changes were in each other's way; try again"),
    ("55P03", BUSY, "another transaction holds what is needed; end what else writes to this database"),
    ("42P01", SCHEMA, "lacks a table; let the control plane migrate it, or restore a backup"),
    ("42703", SCHEMA, "lacks a column; let the control plane migrate it, or restore a backup"),
    ("XX", CORRUPT, "reports damaged data; see the server's log"),
)


class DatabaseError(Exception):
    """The store cannot do what it is asked: `str()` says what is wrong, where, and what to do."""

    def __init__(self, where: str, reason: str, code: str = OTHER):
        super().__init__(f"{where}: {reason}" if where else reason)
        self.where = where
        self.reason = reason
        self.code = code


def place(url: sa.URL) -> str:
    """A database's name for people: never with its password."""
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    shown = url.difference_update_query(["password", "sslpassword"])
    return shown.set(drivername="postgresql").render_as_string(hide_password=True)


def explain(error: exc.DBAPIError, url: sa.URL) -> DatabaseError:
    """An error of a database's driver, for people."""
    where = place(url)
    original = error.orig
    if url.get_backend_name() == "sqlite":
        name = str(getattr(original, "sqlite_errorname", ""))
        code, reason = _look_up(name, _SQLITE)
        if code == OTHER and "no such table" in str(original):
            code, reason = SCHEMA, "lacks a table; let the control plane migrate it, or restore a backup"
        detail = name
    else:
        state = str(getattr(original, "sqlstate", None) or "")
        code, reason = _look_up(state, _POSTGRESQL)
        if not state and (error.connection_invalidated or isinstance(error, exc.OperationalError)):
            code, reason = UNREACHABLE, "cannot be reached; check that PostgreSQL runs and the address in `database`"
        detail = state
    said = _one_line(original)
    return DatabaseError(where, f"{reason} ({said}{', ' if said and detail else ''}{detail})", code)


def _look_up(name: str, table: tuple[tuple[str, str, str], ...]) -> tuple[str, str]:
    for begin, code, reason in table:
        if name.startswith(begin):
            return code, reason
    return OTHER, "refuses a statement"


def _one_line(original: Any) -> str:
    """The driver's own words, without the statement's values: they may be somebody's data."""
    lines = str(original).strip().splitlines()
    return lines[0][:200] if lines else ""
