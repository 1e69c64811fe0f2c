"""A disk that is full: said clearly, nothing half done, and the store goes on when there is space again."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from psycopg import sql
from sqlalchemy import Connection

from outrider_control.core.decision import Decision
from outrider_control.state import backup, failures, journal, revision, schema
from outrider_control.state.database import Database, DatabaseError
from tests.postgres import Postgres

MAX_WRITES = 2_000
SIZE_BYTES = 50_000  # of a write


def put(connection: Connection, number: int) -> None:
    """Something large, and something small that must go with it."""
    values = {"trace_id": f"{number:032x}", "span_id": "s", "agent_id": "a", "start_ms": 0, "duration_us": 0}
    connection.execute(sa.insert(schema.spans).values(failed=0, kept="x", span=os.urandom(SIZE_BYTES), **values))
    journal.append(connection, Decision("fill", "test", "", at_ms=number))
    revision.bump(connection)


def fill(database: Database) -> tuple[int, DatabaseError]:
    """Writes until one is refused: how many were taken, and what was said."""
    for number in range(MAX_WRITES):
        try:
            database.write_now(put, number)
        except DatabaseError as error:
            return number, error
    raise AssertionError("the disk does not get full")


def counts(connection: Connection) -> list[int]:
    tables = (schema.spans, schema.decisions)
    found = [connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one() for table in tables]
    return [*found, revision.current(connection)]


def check_whole(database: Database, taken: int) -> None:
    assert database.read_now(counts) == [taken] * 3  # reads go on, and nothing is half done


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    mounted = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_under_sqlite(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(8 * 2**20))
    database = Database.open(f"sqlite:///{small_disk / 'outrider.db'}")
    taken, error = fill(database)
    assert error.code == failures.FULL
    assert "disk is full" in str(error)
    assert str(small_disk / "outrider.db") in str(error)
    check_whole(database, taken)
    with pytest.raises(DatabaseError):
        database.write_now(put, taken)
    ballast.unlink()
    database.write_now(put, taken)
    check_whole(database, taken + 1)
    database.close_now()
    again = Database.open(f"sqlite:///{small_disk / 'outrider.db'}")
    check_whole(again, taken + 1)
    again.close_now()


def test_a_full_disk_under_postgresql(postgres: Postgres, small_disk: Path) -> None:
    owner = postgres.folder.stat()
    os.chown(small_disk, owner.st_uid, owner.st_gid)
    # PostgreSQL reaches it by its own user: the folders above are this test's alone.
    link = postgres.folder / "small"
    subprocess.run(["mount", "--bind", str(small_disk), str(_folder(link, owner))], check=True)
    with psycopg.connect(host=str(postgres.folder), user="outrider", dbname="postgres", autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE TABLESPACE small LOCATION {}").format(str(link)))
        admin.execute("CREATE DATABASE full_disk TEMPLATE template0 TABLESPACE small")
        database = Database.open(postgres.url("full_disk"))
        database.read_now(revision.current)  # its tables are there
        admin.execute("CHECKPOINT")  # else whoever reads may have to write a page of theirs to make room for another
        try:
            ballast = small_disk / "ballast"
            ballast.write_bytes(bytes(2 * 2**20))
            taken, error = fill(database)
            assert error.code == failures.FULL
            assert "disk is full" in str(error)
            check_whole(database, taken)
            with pytest.raises(DatabaseError):
                database.write_now(put, taken)
            ballast.unlink()
            database.write_now(put, taken)
            check_whole(database, taken + 1)
        finally:
            database.close_now()
            admin.execute("DROP DATABASE IF EXISTS full_disk WITH (FORCE)")
            admin.execute("DROP TABLESPACE small")
            subprocess.run(["umount", str(link)], check=True)


def _folder(path: Path, owner: os.stat_result) -> Path:
    path.mkdir()
    os.chown(path, owner.st_uid, owner.st_gid)
    return path


def test_a_bound_on_the_size_of_files_under_sqlite(sqlite_url: str) -> None:
    """What a quota or `ulimit -f` does: another error of the system's than a full disk."""
    database = Database.open(sqlite_url)
    database.write_now(revision.current)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * 2**20, before[1]))
    try:
        taken, error = fill(database)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.code == failures.FULL
    check_whole(database, taken)
    database.write_now(put, taken)
    check_whole(database, taken + 1)
    database.close_now()


def test_a_backup_that_does_not_fit_leaves_the_one_before(small_disk: Path, sqlite_url: str) -> None:
    database = Database.open(sqlite_url)
    database.write_now(put, 0)
    file = small_disk / "backup.gz"
    made = backup.backup(sqlite_url, file)
    for number in range(1, 20):
        database.write_now(put, number)
    database.close_now()
    room = shutil.disk_usage(small_disk).free
    (small_disk / "ballast").write_bytes(bytes(room - 4096 * 20))
    with pytest.raises(DatabaseError) as caught:
        backup.backup(sqlite_url, file)
    assert caught.value.code == failures.FULL
    assert backup.check(file) == made
    assert sorted(path.name for path in small_disk.iterdir()) == ["backup.gz", "ballast"]
