from __future__ import annotations

import asyncio
import sqlite3
import stat
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection

from outrider_control.state import database as database_module
from outrider_control.state import failures, meta, revision
from outrider_control.state.database import Database, DatabaseError
from outrider_control.state.schema import meta as table
from tests.postgres import Postgres


class Refused(Exception):
    pass


def put(connection: Connection, name: str, value: str = "x") -> None:
    meta.put_text(connection, name, value)


def put_and_fail(connection: Connection, name: str) -> None:
    meta.put_text(connection, name, "x")
    revision.bump(connection)
    raise Refused


async def test_what_a_write_returns_is_committed(database: Database) -> None:
    assert await database.write(revision.bump) == 1
    await database.write(put, "a", value="1")
    assert await database.read(revision.current) == 1
    assert await database.read(meta.text, "a") == "1"
    assert await database.read(meta.text, "b") == ""


async def test_a_write_that_fails_leaves_nothing_and_the_next_one_works(database: Database) -> None:
    told: list[int] = []
    database.on_change(told.append)
    with pytest.raises(Refused):
        await database.write(put_and_fail, "a")
    assert await database.read(meta.text, "a") == ""
    await database.write(put, "b")
    assert await database.read(meta.text, "b") == "x"
    await asyncio.sleep(0)
    assert told == []


async def test_a_broken_statement_is_explained_and_the_next_one_works(database: Database) -> None:
    with pytest.raises(DatabaseError) as caught:
        await database.write(lambda connection: connection.execute(sa.text("SELECT * FROM nothing_there")))
    assert caught.value.code == failures.SCHEMA
    assert "lacks a table" in str(caught.value)
    assert await database.write(revision.bump) == 1


async def test_writes_are_in_order(database: Database) -> None:
    seen: list[int] = []

    def note(connection: Connection, number: int) -> int:
        seen.append(number)
        return revision.bump(connection)

    results = await asyncio.gather(*(database.write(note, number) for number in range(50)))
    assert seen == list(range(50))
    assert results == list(range(1, 51))


async def test_listeners_are_called_before_the_writer_goes_on_and_only_for_a_new_revision(database: Database) -> None:
    told: list[int] = []
    remove = database.on_change(told.append)
    await database.write(revision.bump)
    assert told == [1]
    await database.write(put, "a")
    assert told == [1]
    remove()
    remove()
    await database.write(revision.bump)
    assert told == [1]


async def test_a_read_cannot_write(database: Database) -> None:
    with pytest.raises(DatabaseError) as caught:
        await database.read(put, "a")
    assert caught.value.code == failures.READONLY
    assert await database.read(meta.text, "a") == ""
    await database.write(put, "a")


async def test_a_read_sees_one_moment(database: Database) -> None:
    began, written = threading.Event(), threading.Event()

    def look_twice(connection: Connection) -> tuple[int, int]:
        first = revision.current(connection)
        began.set()
        assert written.wait(30)
        return first, revision.current(connection)

    looking = asyncio.ensure_future(database.read(look_twice))
    await asyncio.to_thread(began.wait, 30)
    await database.write(revision.bump)
    written.set()
    assert await looking == (0, 0)
    assert await database.read(revision.current) == 1


async def test_reads_go_on_while_a_write_takes_long(database: Database) -> None:
    release = threading.Event()

    def hold(connection: Connection) -> None:
        revision.bump(connection)
        assert release.wait(30)

    writing = asyncio.ensure_future(database.write(hold))
    try:
        assert await asyncio.gather(*(database.read(revision.current) for _ in range(20))) == [0] * 20
    finally:
        release.set()
    await writing
    assert await database.read(revision.current) == 1


async def test_a_write_nobody_waits_for_any_more_is_not_begun(database: Database) -> None:
    release = threading.Event()
    holding = asyncio.ensure_future(database.write(lambda connection: release.wait(30)))
    waiting = asyncio.ensure_future(database.write(put, "a"))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    release.set()
    await holding
    assert await database.write(meta.text, "a") == ""


async def test_waiting_writes_are_bounded(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "_MAX_WAITING", 3)
    release = threading.Event()
    holding = [asyncio.ensure_future(database.write(lambda connection: release.wait(30))) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(DatabaseError) as caught:
        await database.write(revision.bump)
    assert caught.value.code == failures.BUSY
    release.set()
    await asyncio.gather(*holding)
    assert await database.write(revision.bump) == 1


async def test_a_closed_database_says_so(store_url: str) -> None:
    database = Database.open(store_url)
    pending = database.write(revision.bump)
    finished = asyncio.ensure_future(pending)
    await asyncio.sleep(0)
    await database.close()
    assert await finished == 1  # what was asked for before is done
    with pytest.raises(DatabaseError, match="is closed"):
        await database.write(revision.bump)


async def test_what_was_written_is_there_after_opening_again(store_url: str) -> None:
    first = Database.open(store_url)
    await first.write(put, "a", "1")
    await first.close()
    second = Database.open(store_url, migrate=False)
    assert await second.read(meta.text, "a") == "1"
    await second.close()


def test_listeners_of_a_closed_loop_are_passed_over(database: Database) -> None:
    async def listen() -> None:
        database.on_change(lambda _: None)

    asyncio.run(listen())
    assert database.write_now(revision.bump) == 1


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://root:hush@host/db", "'mysql' is no database"),
        ("not a url hush", "cannot be read"),
        ("sqlite://", "has no file"),
        ("sqlite:///:memory:", "has no file"),
        ("sqlite:////nowhere/at/all/outrider.db", "folder '/nowhere/at/all' does not exist"),
        ("postgresql://user:hush@127.0.0.1:1/db", "cannot be reached"),
        ("postgres://127.0.0.1:1/db?user=me&password=hush", "cannot be reached"),
    ],
)
def test_urls_that_cannot_be_used_are_explained_without_their_password(url: str, said: str) -> None:
    with pytest.raises(DatabaseError) as caught:
        Database.open(url)
    assert said in str(caught.value)
    assert "hush" not in str(caught.value)


def test_a_missing_file_is_only_made_by_who_may_migrate(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    with pytest.raises(DatabaseError, match="does not exist"):
        Database.open(f"sqlite:///{path}", migrate=False)
    assert not path.exists()
    Database.open(f"sqlite:///{path}").close_now()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_is_no_database_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("Dear all, " * 500)
    with pytest.raises(DatabaseError) as caught:
        Database.open(f"sqlite:///{path}")
    assert caught.value.code == failures.FOREIGN
    assert path.read_text() == "Dear all, " * 500


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="is a folder"):
        Database.open(f"sqlite:///{tmp_path}")


def test_a_damaged_file_is_explained(sqlite_url: str) -> None:
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(DatabaseError) as caught:
        Database.open(sqlite_url).close_now()
    assert caught.value.code == failures.CORRUPT
    assert "restore the last backup" in str(caught.value)


def test_a_file_held_by_another_program_is_explained(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database.open(sqlite_url)
    monkeypatch.setattr(database_module, "_ATTEMPTS", 1)
    with database._writer.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout = 1")
    other = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseError) as caught:
            database.write_now(revision.bump)
        assert caught.value.code == failures.BUSY
        other.execute("ROLLBACK")
        assert database.write_now(revision.bump) == 1
    finally:
        other.close()
        database.close_now()


def test_commits_on_sqlite_are_on_the_disk_before_they_are_told(sqlite_url: str) -> None:
    database = Database.open(sqlite_url)
    settings = database.write_now(
        lambda connection: [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")
        ]
    )
    database.close_now()
    assert settings == ["wal", 2]


def test_transactions_in_each_others_way_are_run_again(postgres_url: str) -> None:
    """Two writers that take two rows in opposite order: PostgreSQL ends one, and it comes to pass all the same."""
    first, second = Database.open(postgres_url), Database.open(postgres_url)
    both = threading.Barrier(2, timeout=30)
    runs: list[str] = []

    def swap(connection: Connection, one: str, other: str) -> None:
        runs.append(one)
        connection.execute(sa.update(table).where(table.c.name == one).values(number=table.c.number + 1))
        if len(runs) <= 2:
            both.wait()
        connection.execute(sa.update(table).where(table.c.name == other).values(number=table.c.number + 1))

    first.write_now(put, "a")
    first.write_now(put, "b")
    results = [first._submit(True, swap, "a", "b"), second._submit(True, swap, "b", "a")]
    for result in results:
        result.result(60)
    assert len(runs) == 3
    query = sa.select(table.c.number).where(table.c.name.in_(["a", "b"]))
    assert first.read_now(lambda connection: connection.execute(query).scalars().all()) == [2, 2]
    first.close_now()
    second.close_now()


def test_a_lost_connection_is_made_again(postgres: Postgres, postgres_url: str) -> None:
    database = Database.open(postgres_url)
    try:
        assert database.write_now(revision.bump) == 1
        assert database.read_now(revision.current) == 1
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        database.write_now(lambda connection: connection.execute(sa.text(others)))
        assert database.read_now(revision.current) == 1
        database.read_now(lambda connection: None)
        assert database.write_now(revision.bump) == 2
    finally:
        database.close_now()


def test_a_server_that_only_reads_is_explained(postgres_url: str) -> None:
    """As a standby is."""
    database = Database.open(postgres_url)
    setting = "SELECT format('ALTER DATABASE %I SET default_transaction_read_only = on', current_database())"
    statement = database.read_now(lambda connection: connection.execute(sa.text(setting)).scalar_one())
    database.write_now(lambda connection: connection.execute(sa.text(statement)))
    database.close_now()
    database = Database.open(postgres_url)
    assert database.read_now(revision.current) == 0
    with pytest.raises(DatabaseError) as caught:
        database.write_now(revision.bump)
    assert caught.value.code == failures.READONLY
    assert "name the primary" in str(caught.value)
    database.close_now()
