"""Processes on one store: killed in the middle of a write, at work at the same time, leading and gone."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from outrider_control.state import agents, backup, epochs, journal, revision, schema
from outrider_control.state.database import Database, DatabaseError
from outrider_control.state.leadership import Leadership
from tests import store_process
from tests.postgres import Postgres


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def check_whole(database: Database, acknowledged: int) -> None:
    """Every write is there with all it did or not at all, and none that was acknowledged is missing."""
    records = database.read_now(agents.current)
    numbers = {record.version.version for record in records}
    assert len(records) == store_process.AGENTS
    assert len(numbers) == 1
    (number,) = numbers
    assert number >= acknowledged
    assert {record.agent.optimization.cache_ttl for record in records} == {number}
    assert database.read_now(revision.current) == number
    counts = database.read_now(
        lambda connection: [
            connection.execute(sa.select(sa.func.count()).select_from(table)).scalar()
            for table in (schema.agent_versions, schema.decisions)
        ]
    )
    assert counts == [number * store_process.AGENTS] * 2


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_process_killed_in_the_middle_of_a_write_loses_nothing_acknowledged(
    store_url: str, seed: int, processes: list[subprocess.Popen[str]]
) -> None:
    chance = random.Random(seed)
    process = store_process.start("write", store_url)
    processes.append(process)
    assert line(process) == "open"
    acknowledged = 0
    for _ in range(chance.randint(3, 15)):
        acknowledged = int(line(process))
    process.kill()
    rest = process.communicate()[0].split()  # acknowledged before the kill as well
    acknowledged = int(rest[-1]) if rest else acknowledged
    database = Database.open(store_url)
    check_whole(database, acknowledged)
    applied = database.write_now(agents.apply, store_process.policies(1_000_000), "next", "goes on", 1)
    assert {one.outcome for one in applied} == {"changed"}
    database.close_now()


def test_a_server_that_crashes_loses_nothing_acknowledged(
    postgres: Postgres, postgres_url: str, processes: list[subprocess.Popen[str]]
) -> None:
    process = store_process.start("write", postgres_url)
    processes.append(process)
    assert line(process) == "open"
    acknowledged = 0
    for _ in range(8):
        acknowledged = int(line(process))
    postgres.stop(signal.SIGQUIT)
    process.kill()
    process.communicate()
    postgres.start()
    database = Database.open(postgres_url)
    check_whole(database, acknowledged)
    database.close_now()


def test_two_processes_on_postgresql_lose_nothing_of_each_other(
    postgres_url: str, processes: list[subprocess.Popen[str]]
) -> None:
    """Each raises the same numbers: none is lost, and who follows the revision misses nothing."""
    database = Database.open(postgres_url)
    processes += [store_process.start("compete", postgres_url, name) for name in ("one", "two")]
    followed: dict[str, int] = {}
    since = 0
    while any(process.poll() is None for process in processes):
        since = follow(database, followed, since)
    follow(database, followed, since)
    values = [int(text) for process in processes for text in process.communicate()[0].split()[1:]]
    assert [process.returncode for process in processes] == [0, 0]
    assert len(values) == len(set(values)) == 2 * store_process.CHANGES  # no epoch was given out twice
    records = database.read_now(agents.current)
    assert sum(record.agent.optimization.cache_ttl for record in records) == 2 * store_process.CHANGES
    assert {record.agent.agent_id: record.version.version for record in records} == followed
    assert all(record.version.version == record.agent.optimization.cache_ttl for record in records)
    authors = [one.author for one in database.read_now(journal.read, limit=1_000)]
    assert {name: authors.count(name) for name in ("one", "two")} == {
        "one": store_process.CHANGES,
        "two": store_process.CHANGES,
    }
    assert database.read_now(epochs.current)[2] <= database.read_now(revision.current) == 4 * store_process.CHANGES
    database.close_now()


def follow(database: Database, followed: dict[str, int], since: int) -> int:
    records, _, now, _ = database.read_now(agents.changed_since, since)
    for record in records:
        assert record.version.version > followed.get(record.agent.agent_id, 0)
        followed[record.agent.agent_id] = record.version.version
    return now


def test_a_backup_made_while_somebody_writes_is_of_one_moment(
    store_url: str, tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    process = store_process.start("write", store_url)
    processes.append(process)
    assert line(process) == "open"
    acknowledged = int(line(process))
    for number in range(2):
        backup.backup(store_url, tmp_path / f"{number}.gz")
    assert process.poll() is None  # it wrote all the time
    process.kill()
    for number in range(2):
        other = f"sqlite:///{tmp_path / f'{number}.db'}"
        made = backup.restore(other, tmp_path / f"{number}.gz")
        assert made.rows["agent_versions"] == made.rows["decisions"]
        assert made.rows["agent_versions"] % store_process.AGENTS == 0
        assert made.rows["agent_versions"] >= acknowledged * store_process.AGENTS
        database = Database.open(other)
        ttls = {record.agent.optimization.cache_ttl for record in database.read_now(agents.current)}
        assert ttls == {made.rows["agent_versions"] // store_process.AGENTS}
        database.close_now()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_leadership_goes_over_when_the_leader_is_killed_or_stands_still(
    postgres_url: str, processes: list[subprocess.Popen[str]], how: signal.Signals
) -> None:
    process = store_process.start("lead", postgres_url, "0.5")
    processes.append(process)
    assert [await asyncio.to_thread(line, process) for _ in range(2)] == ["open", "leader"]
    heir = Leadership(postgres_url, 0.05)
    led = asyncio.Event()
    heir.on_change(lambda leader: led.set() if leader else None)
    await heir.start()
    assert not heir.leader
    process.send_signal(how)
    try:
        await asyncio.wait_for(led.wait(), 30)
    finally:
        await heir.close()


def test_a_leader_that_is_killed_leaves_an_sqlite_file_free(
    sqlite_url: str, processes: list[subprocess.Popen[str]]
) -> None:
    async def lead() -> None:
        candidate = Leadership(sqlite_url)
        try:
            await candidate.start()
        finally:
            await candidate.close()

    process = store_process.start("lead", sqlite_url)
    processes.append(process)
    assert [line(process) for _ in range(2)] == ["open", "leader"]
    with pytest.raises(DatabaseError, match=f"process {process.pid}"):
        asyncio.run(lead())
    process.kill()
    process.wait()
    asyncio.run(lead())
