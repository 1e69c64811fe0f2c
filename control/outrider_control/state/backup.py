"""Backups: one file for both databases, made while the control plane runs, restored into either kind.

A backup is gzipped JSON lines: a header (format, schema version, the columns of each table), one line per row, and a
last line with the number of rows and the SHA-256 of all lines before it. Bytes are base64. Columns go by their names,
so that an older backup fits a newer schema; tables that are only of the moment (sidecars, peers) are left out.

Always holds: a backup shows one moment of the store; the file is complete or is not there. A restore checks all of the
file before it touches the store and is one transaction. Because what sidecars hold may be newer than the backup, a
restore starts where nothing was yet: every agent gets a version far past any that was given out since, so does the
revision, and the epochs' floor rises, so that nothing that was erased since comes back.

Deliberately not here: a schedule, other places than files.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import json
import os
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import sqlalchemy as sa
from sqlalchemy import Connection, Table

from outrider_control.core.decision import Decision
from outrider_control.state import engines, epochs, failures, journal, leadership, migration, revision, schema
from outrider_control.state.database import Database, DatabaseError
from outrider_control.state.rows import replace_rows

FORMAT = "outrider-store"
FORMAT_VERSION = 1
_OF_THE_MOMENT = ("sidecars", "peers")
_ROWS_AT_ONCE = 500
_MAX_LINE_BYTES = 256 * 1024 * 1024
_LEVEL = 5  # gzip's: beyond it costs much and saves little
_VERSION_LEAP = 1_000
_REVISION_LEAP = 1_000_000


@dataclass(frozen=True, slots=True)
class Backup:
    """What is in a backup's file."""

    made_ms: int
    schema: str
    rows: Mapping[str, int]  # by table
    size_bytes: int


def backup(url: str, file: str | Path, now_ms: int | None = None) -> Backup:
    """Write the store of a URL to a file, which is replaced; DatabaseError."""
    path = Path(file)
    at = int(time.time() * 1000) if now_ms is None else now_ms
    database = Database.open(url, migrate=False)
    part: Path | None = None
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # its owner's alone
        part = Path(name)
        with os.fdopen(descriptor, "wb") as out:
            rows = database.read_now(_dump, out, database.schema, at)
            out.flush()
            os.fsync(out.fileno())
        part.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        code = failures.FULL if error.errno in (28, 122) else failures.READONLY
        raise DatabaseError(str(path), f"cannot be written: {error.strerror}", code) from None
    finally:
        database.close_now()
        if part is not None:
            part.unlink(missing_ok=True)
    return Backup(at, database.schema, rows, path.stat().st_size)


def restore(url: str, file: str | Path, force: bool = False, now_ms: int | None = None) -> Backup:
    """Fill the store of a URL from a backup; only an empty one, unless `force`: then what is there goes.

    DatabaseError where the file is damaged, the store is not empty, or a control plane runs on it.
    """
    path = Path(file)
    read = check(path)
    database = Database.open(url)
    held = -1
    try:
        if database.dialect == "sqlite":
            held = leadership.lock_file(str(engines.parse(url).database))
        at = int(time.time() * 1000) if now_ms is None else now_ms
        database.write_now(_fill, path, read, database.place, force, at)
    finally:
        if held >= 0:
            os.close(held)
        database.close_now()
    return read


def check(file: str | Path) -> Backup:
    """What is in a backup's file; DatabaseError unless all of it is as it was written."""
    path = Path(file)
    digest, counts = hashlib.sha256(), dict.fromkeys(_tables(), 0)
    header: dict[str, Any] = {}
    last: dict[str, Any] = {}
    for line in _lines(path):
        if last:
            raise _damaged(path, "goes on after its end")
        value = _parse(path, line)
        if not header:
            header = _check_header(path, value)
        elif isinstance(value, dict):
            last = value
            continue
        elif not (isinstance(value, list) and len(value) == 2 and value[0] in header["tables"]):
            raise _damaged(path, "holds a line that is no row")
        else:
            counts[value[0]] = counts.get(value[0], 0) + 1
        digest.update(line)
    if not last:
        raise _damaged(path, "is cut short")
    if last.get("sha256") != digest.hexdigest() or last.get("rows") != sum(counts.values()):
        raise _damaged(path, "is damaged: its checksum does not match")
    return Backup(header["made_ms"], header["schema"], counts, path.stat().st_size)


def _tables() -> dict[str, Table]:
    return {name: table for name, table in schema.metadata.tables.items() if name not in _OF_THE_MOMENT}


def _dump(connection: Connection, out: BinaryIO, version: str, at_ms: int) -> dict[str, int]:
    tables = _tables()
    digest, counts = hashlib.sha256(), dict.fromkeys(tables, 0)
    # Neither time nor name: the same store gives the same file.
    with gzip.GzipFile(filename="", mode="wb", fileobj=out, compresslevel=_LEVEL, mtime=0) as packed:

        def write(value: Any) -> None:
            line = json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"
            digest.update(line)
            packed.write(line)

        columns = {name: [column.name for column in table.columns] for name, table in tables.items()}
        header = {"format": FORMAT, "version": FORMAT_VERSION, "schema": version, "made_ms": at_ms, "tables": columns}
        write(header)
        for name, table in tables.items():
            query = sa.select(table).order_by(*table.primary_key.columns)
            for row in connection.execution_options(yield_per=_ROWS_AT_ONCE).execute(query):
                write([name, [_packed(value) for value in row]])
                counts[name] += 1
        write({"rows": sum(counts.values()), "sha256": digest.hexdigest()})
    return counts


def _fill(connection: Connection, path: Path, read: Backup, place: str, force: bool, now_ms: int) -> None:
    if connection.dialect.name == "postgresql":
        free = connection.execute(sa.select(sa.func.pg_try_advisory_xact_lock(leadership.LOCK))).scalar_one()
        if not free:
            raise DatabaseError(place, "a control plane runs on it; end all of them first", failures.BUSY)
    revision.lock(connection)
    there = [name for name, table in _tables().items() if name != "meta" and _has_rows(connection, table)]
    if there and not force:
        reason = f"is not empty ({', '.join(there[:5])}); restore into a new one, or use --force to replace it"
        raise DatabaseError(place, reason)
    live_revision = revision.current(connection)
    live_versions = {row.agent_id: row.version for row in connection.execute(sa.select(schema.agents))}
    sets = set(connection.execute(sa.select(schema.endpoint_sets.c.agent_id)).scalars())
    live_splits = set(connection.execute(sa.select(schema.split_sets.c.agent_id)).scalars())
    for table in reversed(schema.metadata.sorted_tables):
        connection.execute(sa.delete(table))
    for name, rows in _portions(path):
        table = schema.metadata.tables.get(name)
        if table is not None:
            connection.execute(sa.insert(table), [_fitting(table, row, connection.dialect.name) for row in rows])
    oldest = {"name": migration.OLDEST_PROGRAM, "number": int(migration.HEAD), "text": ""}
    replace_rows(connection, schema.meta, [oldest])
    _number_on(connection)
    _leap(connection, live_revision, live_versions, sets, live_splits, read, now_ms)


def _leap(
    connection: Connection,
    live_revision: int,
    live: Mapping[str, int],
    sets: set[str],
    live_splits: set[str],
    read: Backup,
    now_ms: int,
) -> None:
    """Start past every number that may have been given out since the backup was made."""
    behind = max(0, live_revision - revision.current(connection))
    at = revision.bump(connection, behind + _REVISION_LEAP)
    documents: dict[str, tuple[int, str]] = dict.fromkeys(live, (0, ""))
    newest = sa.and_(
        schema.agents.c.agent_id == schema.agent_versions.c.agent_id,
        schema.agents.c.version == schema.agent_versions.c.version,
    )
    query = sa.select(schema.agent_versions).select_from(schema.agents.join(schema.agent_versions, newest))
    for row in connection.execute(query):
        documents[row.agent_id] = (row.version, row.document)
    reason = f"restored from the backup of {time.strftime('%Y-%m-%d %H:%M:%SZ', time.gmtime(read.made_ms / 1000))}"
    common = {"author": "restore", "reason": reason, "changes": "[]", "at_ms": now_ms}
    versions, heads = [], []
    for agent_id, (version, document) in documents.items():
        number = max(version, live.get(agent_id, 0)) + _VERSION_LEAP
        versions.append({"agent_id": agent_id, "version": number, "document": document, **common})
        heads.append({"agent_id": agent_id, "version": number, "deleted": int(not document), "revision": at})
    if versions:
        connection.execute(sa.insert(schema.agent_versions), versions)
    replace_rows(connection, schema.agents, heads)
    sets |= set(connection.execute(sa.select(schema.endpoint_sets.c.agent_id)).scalars())
    replace_rows(connection, schema.endpoint_sets, [{"agent_id": one, "revision": at} for one in sorted(sets)])
    divided = set(connection.execute(sa.select(schema.split_sets.c.agent_id)).scalars()) | live_splits
    replace_rows(connection, schema.split_sets, [{"agent_id": one, "revision": at} for one in sorted(divided)])
    default = sa.update(schema.meta).where(schema.meta.c.name == "default_agent").values(number=at)
    connection.execute(default)
    epochs.raise_floor(connection, now_ms)
    inputs, outcome = {"made_ms": read.made_ms, "schema": read.schema}, {"rows": dict(read.rows)}
    journal.append(connection, Decision("restore", "restore", reason, "", inputs, outcome, now_ms))


def _number_on(connection: Connection) -> None:
    """Have PostgreSQL give out ids past those that were put in."""
    if connection.dialect.name != "postgresql":
        return
    for name, table in _tables().items():
        column = table.autoincrement_column
        if column is None or not isinstance(column.type, sa.BigInteger) or len(table.primary_key.columns) > 1:
            continue
        sequence = sa.func.pg_get_serial_sequence(name, column.name)
        largest = sa.select(sa.func.coalesce(sa.func.max(column), 0) + 1).scalar_subquery()
        connection.execute(sa.select(sa.func.setval(sequence, largest, False)))


def _has_rows(connection: Connection, table: Table) -> bool:
    return connection.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).scalar() is not None


def _fitting(table: Table, row: Mapping[str, Any], dialect: str) -> dict[str, Any]:
    """The columns this schema has, as values this database takes."""
    values = {name: value for name, value in row.items() if name in table.columns}
    if dialect == "postgresql":
        values = {name: one.replace("\0", "") if isinstance(one, str) else one for name, one in values.items()}
    return values


def _portions(path: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The rows of a checked file, some of one table at a time."""
    lines = _lines(path)
    columns = json.loads(next(lines))["tables"]
    name, rows = "", []
    for line in lines:
        value = json.loads(line)
        if isinstance(value, dict):
            break
        if rows and (value[0] != name or len(rows) == _ROWS_AT_ONCE):
            yield name, rows
            rows = []
        name = value[0]
        rows.append(dict(zip(columns[name], map(_unpacked, value[1]), strict=True)))
    if rows:
        yield name, rows


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path, "rb") as file:
            while line := file.readline(_MAX_LINE_BYTES):
                if not line.endswith(b"\n"):
                    raise _damaged(path, "is cut short")
                yield line
    except (EOFError, zlib.error):
        raise _damaged(path, "is damaged or cut short") from None
    except gzip.BadGzipFile:
        raise _damaged(path, "is no backup, or damaged") from None
    except OSError as error:
        raise DatabaseError(str(path), f"cannot be read: {error.strerror}", failures.UNREACHABLE) from None


def _check_header(path: Path, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise _damaged(path, "is no backup of a store")
    if value.get("version") != FORMAT_VERSION:
        reason = f"has format {value.get('version')}, and this program reads {FORMAT_VERSION}; use the newer program"
        raise DatabaseError(str(path), reason, failures.SCHEMA)
    if int(value["schema"]) > int(migration.HEAD):
        reason = f"has schema {value['schema']}, and this program knows {migration.HEAD}; use the newer program"
        raise DatabaseError(str(path), reason, failures.SCHEMA)
    return value


def _parse(path: Path, line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        raise _damaged(path, "holds a line that is no JSON") from None


def _packed(value: Any) -> Any:
    return {"b": base64.b64encode(value).decode()} if isinstance(value, bytes | memoryview) else value


def _unpacked(value: Any) -> Any:
    return base64.b64decode(value["b"]) if isinstance(value, dict) else value


def _damaged(path: Path, what: str) -> DatabaseError:
    return DatabaseError(str(path), f"{what}; use another backup", failures.CORRUPT)


def _sync_folder(folder: Path) -> None:
    """Have the new name survive a power cut too, where folders can be synced."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
