"""Brings a database's schema to the version this program knows, or says why it cannot be used.

Always holds: nothing is changed in a database that is another program's; several processes that start at once migrate
it once; the migration and its version are one transaction.

Versions are numbers from 1; a database's own stands in `outrider_schema`. A database one version newer may be used as
it is where its migration says so: it leaves the oldest schema version whose programs still work with it in `meta`,
row "oldest_program". Anything newer is refused. So two releases can run on one database while one replaces the other.

Deliberately not here: the steps (`migrations`), the tables of today (`schema`).
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Connection

from outrider_control.state import failures, schema
from outrider_control.state.failures import DatabaseError

HEAD = "0005"
VERSION_TABLE = "outrider_schema"
OLDEST_PROGRAM = "oldest_program"
_LOCK = 0x6F75747269646572  # "outrider": of pg_advisory_xact_lock


def usable(connection: Connection, url: sa.URL) -> str:
    """The version of a schema that can be used as it is, "" where a migration is due; DatabaseError for any other.

    Changes nothing: a busy store can be opened without waiting for its writer.
    """
    where = failures.place(url)
    found = version(connection)
    if found is None:
        _check_empty(connection, where)
        return ""
    if not found.isdecimal() or int(found) > int(HEAD):
        _check_compatible(connection, found, where)
        return found
    return found if found == HEAD else ""


def bring_up(connection: Connection, url: sa.URL) -> str:
    """The version of the schema once it can be used: migrates what is older; DatabaseError as `usable`."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    found = usable(connection, url)  # another process may have been faster
    if not found:
        _upgrade(connection)
    return found or HEAD


def refusal(connection: Connection, url: sa.URL) -> DatabaseError:
    """Why a schema that needs a migration cannot be used by who may not migrate."""
    found = version(connection)
    reason = "has no tables yet" if found is None else f"has schema {found}, and this program needs {HEAD}"
    reason += "; start outrider-control once: it migrates"
    return DatabaseError(failures.place(url), reason, failures.SCHEMA)


def version(connection: Connection) -> str | None:
    """The version of the schema; None where there is none."""
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()


def _check_empty(connection: Connection, where: str) -> None:
    there = set(sa.inspect(connection).get_table_names())
    if connection.dialect.name == "postgresql":  # a database may be shared; our names may not be taken
        there &= set(schema.metadata.tables)
    if there:
        names = ", ".join(sorted(there)[:5])
        reason = f"holds tables of another program ({names}); name an empty database in `database`"
        raise DatabaseError(where, reason, failures.FOREIGN)


def _check_compatible(connection: Connection, found: str, where: str) -> None:
    if found.isdecimal() and int(found) == int(HEAD) + 1:
        query = sa.select(schema.meta.c.number).where(schema.meta.c.name == OLDEST_PROGRAM)
        oldest = connection.execute(query).scalar()
        if oldest is not None and oldest <= int(HEAD):
            return
    reason = f"has schema {found}, which is newer than the {HEAD} of this program; run the newer outrider-control"
    raise DatabaseError(where, f"{reason}, or restore a backup made before the upgrade", failures.SCHEMA)


def _upgrade(connection: Connection) -> None:
    # Only here: a database that is up to date needs no Alembic.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "outrider_control.state:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
