"""SQLAlchemy engines for the two databases, set up so that both behave alike.

Always holds: a commit is on the disk when it is told (SQLite `synchronous=FULL`, PostgreSQL `synchronous_commit` at
least on); on SQLite a writing transaction takes the write lock at its begin; on PostgreSQL a transaction that stands
still is ended by the server, so that a stopped process holds up no other; reading engines cannot write and see one
moment per transaction on both.

Deliberately not here: threads and retries (`database`), tables (`schema`, `migration`).
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, event, exc

from outrider_control.state import failures
from outrider_control.state.failures import DatabaseError

_BUSY_MS = 10_000
_CONNECT_S = 5
_SQLITE_SETTINGS = (
    f"PRAGMA busy_timeout = {_BUSY_MS}",
    "PRAGMA synchronous = FULL",
    "PRAGMA cache_size = -8000",  # KiB
    "PRAGMA temp_store = MEMORY",
    "PRAGMA journal_size_limit = 67108864",  # a long read lets the log grow; it need not stay that large
)
_POSTGRESQL_SETTINGS = (
    "SET TimeZone = 'UTC'; SET lock_timeout = '10s'; SET idle_in_transaction_session_timeout = '30s';"
    "SET client_min_messages = 'warning';"
    # Whatever the server's default is; a stricter one stays.
    "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
)
# Notice a dead server within about 20 s, where the system's own default is hours.
_KEEPALIVE = {
    "connect_timeout": _CONNECT_S,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 20_000,
}


def parse(url: str) -> sa.URL:
    """`sqlite:///relative.db`, `sqlite:////absolute.db` or `postgresql://...`; DatabaseError for anything else."""
    advice = "name sqlite:///FILE or postgresql://USER@HOST/NAME in `database`"
    try:
        parsed = sa.make_url(url)
    except (exc.ArgumentError, ValueError):
        raise DatabaseError("", f"the database's URL cannot be read; {advice}") from None  # it may hold a password
    kind = parsed.get_backend_name()
    if kind == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise DatabaseError("", f"the database's URL has no file; {advice}")
        return parsed
    if kind in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    raise DatabaseError("", f"{kind!r} is no database this program knows; {advice}")


def check_file(url: sa.URL, create: bool) -> None:
    """That an SQLite file can be one; made for its owner alone where it is not there yet."""
    path = Path(str(url.database))
    if not path.parent.is_dir():
        reason = f"the folder {str(path.parent)!r} does not exist; create it or name another file in `database`"
        raise DatabaseError(str(path), reason, failures.UNREACHABLE)
    if path.is_dir():
        raise DatabaseError(str(path), "is a folder; name a file in `database`", failures.UNREACHABLE)
    if not path.exists() and not create:
        raise DatabaseError(str(path), "does not exist; check `database`", failures.UNREACHABLE)
    try:
        # Hashes of tokens are in it: nobody else's to read.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        code = failures.FULL if error.errno in (28, 122) else failures.READONLY
        raise DatabaseError(str(path), f"cannot be opened for writing: {error.strerror}", code) from None


def create(url: sa.URL, read_only: bool, connections: int) -> Engine:
    """An engine of at most so many connections; nothing is connected yet."""
    if url.get_backend_name() == "sqlite":
        return _sqlite(url, read_only, connections)
    engine = sa.create_engine(
        url,
        poolclass=sa.QueuePool,
        pool_size=connections,
        max_overflow=0,
        hide_parameters=True,  # values are somebody's data: not in messages
        isolation_level="REPEATABLE READ" if read_only else "READ COMMITTED",
        connect_args=_KEEPALIVE,
    )

    @event.listens_for(engine, "connect")
    def set_up(connection: Any, _: Any) -> None:
        connection.autocommit = True
        connection.execute(_POSTGRESQL_SETTINGS)
        connection.autocommit = False
        if read_only:
            connection.read_only = True  # False would ask a standby for what it cannot do, before the statement is seen

    return engine


def _sqlite(url: sa.URL, read_only: bool, connections: int) -> Engine:
    engine = sa.create_engine(
        url,
        poolclass=sa.QueuePool,
        pool_size=connections,
        max_overflow=0,
        hide_parameters=True,
        connect_args={"check_same_thread": False, "timeout": _BUSY_MS / 1000},
    )
    begin = "BEGIN" if read_only else "BEGIN IMMEDIATE"

    @event.listens_for(engine, "connect")
    def set_up(connection: sqlite3.Connection, _: Any) -> None:
        connection.isolation_level = None  # transactions are begun below, not by the driver's guess
        for setting in _SQLITE_SETTINGS:
            connection.execute(setting).close()
        if read_only:
            connection.execute("PRAGMA query_only = ON").close()
        else:
            _write_ahead(connection, str(url.database))

    @event.listens_for(engine, "begin")
    def start(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _write_ahead(connection: sqlite3.Connection, file: str) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        reason = "its file system has no shared memory for a write-ahead log; put the file on a local disk"
        raise DatabaseError(file, reason, failures.UNREACHABLE)


def lone(url: sa.URL, answer_ms: int) -> Engine:
    """PostgreSQL without a pool and without transactions, for what holds a lock as long as it is connected.

    A server that does not answer within `answer_ms` is taken for dead. It ends a connection on which nothing is asked
    for three times as long: a process that is stopped, but not gone, holds nothing up either.
    """
    bounds = {**_KEEPALIVE, "tcp_user_timeout": answer_ms, "keepalives_idle": 1, "keepalives_interval": 1}
    engine = sa.create_engine(url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT", connect_args=bounds)

    @event.listens_for(engine, "connect")
    def set_up(connection: Any, _: Any) -> None:
        connection.autocommit = True
        connection.execute(f"SET statement_timeout = {answer_ms}")
        idle = "SELECT set_config(name, %s, false) FROM pg_settings WHERE name = 'idle_session_timeout'"  # since 14
        connection.execute(idle, [str(answer_ms * 3)])

    return engine
