"""Fixtures over both stores. A conftest takes them by `from tests.stores import *`.

`database` is an open, empty store, once on SQLite and once on PostgreSQL; `store_url` is its URL where a test opens
(or breaks) it by itself. `postgres` is the server, for tests about PostgreSQL alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from outrider_control.state.database import Database
from tests import postgres as servers

__all__ = ["_migrated_file", "_migrated_name", "database", "postgres", "postgres_url", "sqlite_url", "store_url"]


@pytest.fixture(scope="session")
def postgres() -> Iterator[servers.Postgres]:
    """A server for all tests; databases are the tests' own."""
    binaries = servers.programs()
    if binaries is None:
        pytest.skip("no PostgreSQL here: install it (apt install postgresql)")
    server = servers.Postgres(binaries)
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def _migrated_name(postgres: servers.Postgres) -> str:
    """A database with tables, to be copied."""
    name = postgres.create()
    Database.open(postgres.url(name)).close_now()
    return name


@pytest.fixture(scope="session")
def _migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with tables, to be copied."""
    path = tmp_path_factory.mktemp("store") / "migrated.db"
    Database.open(f"sqlite:///{path}").close_now()
    return path


@pytest.fixture
def postgres_url(postgres: servers.Postgres, _migrated_name: str) -> Iterator[str]:
    """The URL of an empty store on PostgreSQL."""
    name = postgres.create(_migrated_name)
    yield postgres.url(name)
    postgres.drop(name)


@pytest.fixture
def sqlite_url(tmp_path: Path, _migrated_file: Path) -> str:
    """The URL of an empty store in an SQLite file."""
    path = tmp_path / "outrider.db"
    shutil.copyfile(_migrated_file, path)
    return f"sqlite:///{path}"


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty store, of either kind."""
    return request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")


@pytest.fixture
def database(store_url: str) -> Iterator[Database]:
    """An empty store, of either kind, open."""
    opened = Database.open(store_url)
    yield opened
    opened.close_now()
