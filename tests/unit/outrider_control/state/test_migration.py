from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from outrider_control.state import failures, leases, migration, revision, scales, schema
from outrider_control.state.database import Database, DatabaseError
from tests.postgres import Postgres, programs


def run(database: Database, statement: str) -> None:
    database.write_now(lambda connection: connection.execute(sa.text(statement)))


def test_the_migrated_schema_is_the_one_of_the_tables(database: Database) -> None:
    def differences(connection: Connection) -> list:
        options = {"compare_type": True, "version_table": migration.VERSION_TABLE}
        return compare_metadata(MigrationContext.configure(connection, opts=options), schema.metadata)

    assert database.read_now(differences) == []
    assert database.schema == migration.HEAD


def test_columns_and_keys_are_those_of_the_tables(database: Database) -> None:
    """What Alembic does not compare, or not on both: primary keys, empty columns, defaults."""

    def default(column: Any) -> str | None:
        given = column["default"]
        if given is None or given.startswith("nextval("):
            return None
        return given.partition("::")[0].strip("'")

    def shape(connection: Connection) -> dict[str, tuple]:
        inspector = sa.inspect(connection)
        return {
            name: (
                [(one["name"], one["nullable"], default(one)) for one in inspector.get_columns(name)],
                inspector.get_pk_constraint(name)["constrained_columns"],
            )
            for name in inspector.get_table_names()
            if name != migration.VERSION_TABLE
        }

    wanted = {
        name: (
            [(one.name, bool(one.nullable), getattr(one.server_default, "arg", None)) for one in table.columns],
            [column.name for column in table.primary_key.columns],
        )
        for name, table in schema.metadata.tables.items()
    }
    assert database.read_now(shape) == wanted


def test_the_head_is_the_last_step() -> None:
    config = Config()
    config.set_main_option("script_location", "outrider_control.state:migrations")
    config.set_main_option("path_separator", "os")
    scripts = ScriptDirectory.from_config(config)
    assert scripts.get_heads() == [migration.HEAD]
    numbers = sorted(int(script.revision) for script in scripts.walk_revisions())
    assert numbers == list(range(1, int(migration.HEAD) + 1))


def test_an_empty_database_is_not_migrated_by_who_may_not(tmp_path: Path) -> None:
    path = tmp_path / "empty.db"
    path.touch()
    with pytest.raises(DatabaseError) as caught:
        Database.open(f"sqlite:///{path}", migrate=False)
    assert caught.value.code == failures.SCHEMA
    assert "has no tables yet" in str(caught.value)
    assert path.stat().st_size <= 4096


LATER = (  # than schema 1
    *("scales", "splits", "split_sets", "experiments", "looks", "unit_sums", "unit_counts", "rollouts", "outbox"),
    *("calls", "feedback", "examples", "datasets", "dataset_items"),
)


def _after(steps: int) -> str:
    """A schema that this program does not know."""
    return f"{int(migration.HEAD) + steps:04}"


def test_a_newer_schema_is_refused(store_url: str) -> None:
    database = Database.open(store_url)
    run(database, f"UPDATE {migration.VERSION_TABLE} SET version_num = '{_after(2)}'")
    run(database, "UPDATE meta SET number = 1 WHERE name = 'oldest_program'")
    database.close_now()
    with pytest.raises(DatabaseError) as caught:
        Database.open(store_url)
    assert caught.value.code == failures.SCHEMA
    assert f"has schema {_after(2)}, which is newer than the {migration.HEAD}" in str(caught.value)


def test_one_schema_newer_may_be_used_where_it_says_so(store_url: str) -> None:
    database = Database.open(store_url)
    run(database, f"UPDATE {migration.VERSION_TABLE} SET version_num = '{_after(1)}'")
    run(database, "ALTER TABLE decisions ADD COLUMN mood TEXT NOT NULL DEFAULT ''")
    database.close_now()
    again = Database.open(store_url)
    assert again.schema == _after(1)
    assert again.write_now(revision.bump) == 1
    run(again, f"UPDATE meta SET number = {int(_after(1))} WHERE name = 'oldest_program'")
    again.close_now()
    with pytest.raises(DatabaseError, match=f"has schema {_after(1)}"):
        Database.open(store_url)


def test_a_schema_of_no_number_is_refused(store_url: str) -> None:
    database = Database.open(store_url)
    run(database, f"UPDATE {migration.VERSION_TABLE} SET version_num = 'abc'")
    database.close_now()
    with pytest.raises(DatabaseError, match="has schema abc"):
        Database.open(store_url)


def test_tables_of_another_program_are_left_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'other.db'}"
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE recipes (name TEXT)"))
    engine.dispose()
    with pytest.raises(DatabaseError) as caught:
        Database.open(url)
    assert caught.value.code == failures.FOREIGN
    assert "recipes" in str(caught.value)
    with engine.connect() as connection:
        assert sa.inspect(connection).get_table_names() == ["recipes"]
    engine.dispose()


def test_a_shared_postgresql_database_may_hold_other_tables_but_not_ours(postgres: Postgres) -> None:
    name = postgres.create()
    url = postgres.url(name)
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"), poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE agents (name TEXT)"))
        connection.execute(sa.text("CREATE TABLE recipes (name TEXT)"))
    with pytest.raises(DatabaseError) as caught:
        Database.open(url)
    assert "(agents)" in str(caught.value)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE agents"))
    Database.open(url).close_now()
    engine.dispose()
    postgres.drop(name)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_several_that_start_at_once_migrate_once(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    if kind == "sqlite":
        url = f"sqlite:///{tmp_path / 'new.db'}"
    else:
        server: Postgres = request.getfixturevalue("postgres")
        url = server.url(server.create())
    start = threading.Barrier(4, timeout=30)
    opened: list[Database] = []

    def open_one() -> None:
        start.wait()
        opened.append(Database.open(url))

    threads = [threading.Thread(target=open_one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [database.schema for database in opened] == [migration.HEAD] * 4
    query = sa.text(f"SELECT count(*) FROM {migration.VERSION_TABLE}")
    assert opened[0].read_now(lambda connection: connection.execute(query).scalar()) == 1
    for database in opened:
        database.close_now()


def test_a_store_of_the_first_schema_keeps_what_it_has(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Both databases: rows of schema 1 get the defaults of those after it."""
    urls = [f"sqlite:///{tmp_path / 'first.db'}"]
    if programs() is not None:
        server: Postgres = request.getfixturevalue("postgres")
        urls.append(server.url(server.create()))
    for url in urls:
        database = Database.open(url)
        for table in LATER:
            run(database, f"DROP TABLE {table}")
        run(database, "ALTER TABLE leases DROP COLUMN draining")
        run(database, f"UPDATE {migration.VERSION_TABLE} SET version_num = '0001'")
        run(database, "INSERT INTO leases VALUES ('tax', 'h:1', 'o', 'registered', 'n', 'e', 1, 2)")
        database.close_now()
        again = Database.open(url)
        assert again.schema == migration.HEAD
        assert [(row.address, row.draining) for row in again.read_now(leases.current)] == [("h:1", 0)]
        assert again.read_now(scales.current) == {}
        oldest = sa.select(schema.meta.c.number).where(schema.meta.c.name == migration.OLDEST_PROGRAM)
        assert again.read_now(lambda connection, query=oldest: connection.execute(query).scalar()) == 1
        again.close_now()
