from __future__ import annotations

import gzip
import hashlib
import json
import stat
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection

from outrider.policy import Agent, Optimization
from outrider_control.core.decision import Decision
from outrider_control.state import agents, backup, epochs, failures, journal, leases, meta, revision, schema, tokens
from outrider_control.state.database import Database, DatabaseError
from outrider_control.state.leadership import Leadership
from outrider_control.state.leases import LeaseRow
from tests.postgres import Postgres

KINDS = ["sqlite", "postgresql"]


@pytest.fixture(params=KINDS)
def other_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store that is not made yet."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'other.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.url(server.create())


def fill(connection: Connection) -> None:
    for ttl in (1, 2, 3):
        wanted = [agents.Wanted(Agent(name, optimization=Optimization(cache_ttl=ttl))) for name in ("tax", "law")]
        agents.apply(connection, wanted, "ann\u2603", 'why "not"\n', ttl * 1_000)
    agents.delete(connection, ["law"], "ann", "gone", 4_000)
    agents.set_default_agent(connection, "tax", "ann", "", 5_000)
    leases.put(connection, [LeaseRow("tax", "10.0.0.1:1", "o", "registered", "n", b"\0\xff\n", 15_000, 20_000)], 0)
    epochs.bump(connection, "tax", "acme", "", 6_000)
    meta.put_text(connection, "agents_file", "abc")
    common = {"span_id": "s", "agent_id": "tax", "start_ms": 1, "duration_us": 1, "failed": 0, "kept": "x"}
    rows = [{"trace_id": f"{number:032x}", "span": bytes([number % 256] * 700), **common} for number in range(1_200)]
    connection.execute(sa.insert(schema.spans), rows)
    connection.execute(sa.insert(schema.deltas), [{"figures": b"1"}, {"figures": b"2"}])
    connection.execute(sa.delete(schema.deltas).where(schema.deltas.c.id == 1))


def contents(connection: Connection) -> dict[str, list[tuple]]:
    return {
        name: [tuple(row) for row in connection.execute(sa.select(table).order_by(*table.primary_key.columns))]
        for name, table in schema.metadata.tables.items()
    }


def written(url: str) -> dict[str, Any]:
    database = Database.open(url)
    database.write_now(fill)
    token, _ = database.write_now(tokens.create, "ci", "viewer", "ann", 7_000)
    before: dict[str, Any] = database.read_now(contents)
    database.close_now()
    return {"token": token, **before}


def test_what_is_restored_is_what_was_there(store_url: str, other_url: str, tmp_path: Path) -> None:
    before = written(store_url)
    file = tmp_path / "backup.gz"
    made = backup.backup(store_url, file, 10_000)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert made == backup.check(file)
    assert made.rows["spans"] == 1_200
    assert before["token"] not in gzip.decompress(file.read_bytes()).decode()
    assert backup.restore(other_url, file, now_ms=20_000) == made

    database = Database.open(other_url, migrate=False)
    after = database.read_now(contents)
    for name in ("leases", "tokens", "spans", "deltas", "batches", "series", "rollups", "named_metrics"):
        assert after[name] == before[name], name
    assert set(before["agent_versions"]) < set(after["agent_versions"])
    assert set(before["decisions"]) < set(after["decisions"])
    assert ("agents_file", 0, "abc") in after["meta"]
    record = database.read_now(agents.get, "tax")
    assert record.agent.optimization.cache_ttl == 3
    assert record.version.reason == "restored from the backup of 1970-01-01 00:00:10Z"
    assert database.read_now(agents.default_agent)[0] == "tax"
    assert database.read_now(tokens.find, before["token"], 30_000) is not None
    database.close_now()


def test_a_restored_store_is_past_all_that_was_given_out_since_the_backup(store_url: str, tmp_path: Path) -> None:
    written(store_url)
    file = tmp_path / "backup.gz"
    backup.backup(store_url, file)
    database = Database.open(store_url)
    for ttl in range(10, 30):
        wanted = [agents.Wanted(Agent(name, optimization=Optimization(cache_ttl=ttl))) for name in ("tax", "new")]
        database.write_now(agents.apply, wanted, "ann", "", 50_000)
    epoch = database.write_now(epochs.bump, "new", "", "", 90_000)
    given_out = database.read_now(revision.current)
    versions = {name: database.read_now(agents.versions, name)[0].version for name in ("tax", "law", "new")}
    database.close_now()

    backup.restore(store_url, file, force=True, now_ms=60_000)
    database = Database.open(store_url)
    records, deleted, now, _ = database.read_now(agents.changed_since, given_out)
    assert [record.agent.agent_id for record in records] == ["tax"]
    assert records[0].version.version > versions["tax"]
    assert dict(deleted).keys() == {"law", "new"}
    assert all(version > versions[name] for name, version in deleted)
    assert now > given_out
    assert database.read_now(leases.changed_since, given_out)["tax"].leases[0].address == "10.0.0.1:1"
    floor, scopes, newest = database.read_now(epochs.current)
    assert floor >= 60_000
    assert (scopes, newest > given_out) == ([], True)
    assert epoch == 90_000
    (decision,) = database.read_now(journal.read, kind="restore")
    assert decision.outcome["rows"]["spans"] == 1_200
    database.write_now(journal.append, Decision("apply", "ann", ""))  # ids go on
    database.close_now()


def test_only_an_empty_store_is_filled_without_force(store_url: str, tmp_path: Path) -> None:
    before = written(store_url)
    file = tmp_path / "backup.gz"
    backup.backup(store_url, file)
    with pytest.raises(DatabaseError, match="is not empty"):
        backup.restore(store_url, file)
    database = Database.open(store_url)
    assert database.read_now(contents)["agents"] == before["agents"]
    database.close_now()


async def test_a_store_with_a_control_plane_is_not_replaced(store_url: str, tmp_path: Path) -> None:
    written(store_url)
    file = tmp_path / "backup.gz"
    leadership = Leadership(store_url)
    await leadership.start()
    backup.backup(store_url, file)  # while it runs
    with pytest.raises(DatabaseError, match="control plane"):
        backup.restore(store_url, file, force=True)
    await leadership.close()
    backup.restore(store_url, file, force=True)


@pytest.mark.parametrize("at", [10, 100, 2_000, -200, -9, -1])
def test_a_damaged_file_touches_nothing(sqlite_url: str, tmp_path: Path, at: int) -> None:
    before = written(sqlite_url)
    file = tmp_path / "backup.gz"
    backup.backup(sqlite_url, file)
    content = bytearray(file.read_bytes())
    content[at] ^= 0x55
    (tmp_path / "flipped.gz").write_bytes(content)
    (tmp_path / "cut.gz").write_bytes(content[:at])
    for name in ("flipped.gz", "cut.gz"):
        with pytest.raises(DatabaseError) as caught:
            backup.restore(sqlite_url, tmp_path / name, force=True)
        assert caught.value.code == failures.CORRUPT
    database = Database.open(sqlite_url)
    assert {"token": before["token"], **database.read_now(contents)} == before
    database.close_now()


def rewritten(file: Path, change: Any) -> None:
    lines = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
    change(lines)
    file.write_bytes(gzip.compress(b"".join(json.dumps(line).encode() + b"\n" for line in lines)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: lines.pop(3), "checksum"),
        (lambda lines: lines.pop(), "cut short"),
        (lambda lines: lines.append(lines[1]), "goes on after its end"),
        (lambda lines: lines.insert(1, ["nothing", []]), "no row"),
        (lambda lines: lines[0].update(format="other"), "no backup"),
        (lambda lines: lines[0].update(version=2), "format 2"),
        (lambda lines: lines[0].update(schema="0009"), "schema 0009"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(sqlite_url: str, tmp_path: Path, change: Any, said: str) -> None:
    written(sqlite_url)
    file = tmp_path / "backup.gz"
    backup.backup(sqlite_url, file)
    rewritten(file, change)
    with pytest.raises(DatabaseError, match=said):
        backup.check(file)


def test_files_that_cannot_be_read_or_written_are_explained(sqlite_url: str, tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="cannot be written: No such file"):
        backup.backup(sqlite_url, tmp_path / "nowhere" / "backup.gz")
    with pytest.raises(DatabaseError, match="cannot be read: No such file"):
        backup.restore(sqlite_url, tmp_path / "backup.gz")
    (tmp_path / "letter.txt").write_text("Dear all")
    with pytest.raises(DatabaseError, match="is no backup"):
        backup.check(tmp_path / "letter.txt")
    (tmp_path / "empty").touch()
    with pytest.raises(DatabaseError, match="cut short"):
        backup.check(tmp_path / "empty")


def test_a_backup_of_an_older_schema_fits(sqlite_url: str, other_url: str, tmp_path: Path) -> None:
    """Its tables lack columns that have a default now; it has one that is gone."""
    written(sqlite_url)
    file = tmp_path / "backup.gz"
    backup.backup(sqlite_url, file)

    def as_older(lines: list) -> None:
        at = lines[0]["tables"]["agents"].index("deleted")
        lines[0]["tables"]["agents"][at] = "colour"
        lines[0]["tables"]["weather"] = ["day"]
        lines.insert(-1, ["weather", [1]])

    rewritten(file, as_older)
    lines = gzip.decompress(file.read_bytes()).splitlines(keepends=True)
    last = {"rows": len(lines) - 2, "sha256": hashlib.sha256(b"".join(lines[:-1])).hexdigest()}
    file.write_bytes(gzip.compress(b"".join([*lines[:-1], json.dumps(last).encode() + b"\n"])))
    backup.restore(other_url, file)
    database = Database.open(other_url)
    assert database.read_now(agents.get, "tax").agent.optimization.cache_ttl == 3
    database.close_now()
