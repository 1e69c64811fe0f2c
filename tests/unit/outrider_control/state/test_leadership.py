from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import pytest
import sqlalchemy as sa

from outrider_control.state import failures
from outrider_control.state.database import Database, DatabaseError
from outrider_control.state.leadership import Leadership
from tests.postgres import Postgres

OFTEN_S = 0.02


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


async def test_one_control_plane_per_sqlite_file(sqlite_url: str) -> None:
    first, second = Leadership(sqlite_url), Leadership(sqlite_url)
    told: list[bool] = []
    first.on_change(told.append)
    await first.start()
    assert first.leader
    with pytest.raises(DatabaseError) as caught:
        await second.start()
    assert caught.value.code == failures.BUSY
    assert f"another control plane (process {os.getpid()}) runs on this file" in str(caught.value)
    assert not second.leader
    await second.close()
    await first.close()
    assert told == [True, False]
    await second.start()
    assert second.leader
    await second.close()


async def test_the_file_may_be_read_while_a_control_plane_leads(sqlite_url: str) -> None:
    leadership = Leadership(sqlite_url)
    await leadership.start()
    Database.open(sqlite_url, migrate=False).close_now()
    await leadership.close()


async def test_a_folder_that_cannot_be_written_is_explained(sqlite_url: str) -> None:
    leadership = Leadership("sqlite:////proc/outrider.db")
    with pytest.raises(DatabaseError, match="cannot be made"):
        await leadership.start()
    await leadership.close()


async def test_one_leads_and_another_takes_over_when_it_ends(postgres_url: str) -> None:
    first, second = Leadership(postgres_url, OFTEN_S), Leadership(postgres_url, OFTEN_S)
    await first.start()
    await second.start()
    assert (first.leader, second.leader) == (True, False)
    await first.close()
    assert not first.leader
    await until(lambda: second.leader)
    await first.start()
    assert not first.leader
    await second.close()
    await until(lambda: first.leader)
    await first.close()


async def test_databases_of_one_server_have_a_leader_each(postgres: Postgres, postgres_url: str) -> None:
    name = postgres.create()
    first, second = Leadership(postgres_url, OFTEN_S), Leadership(postgres.url(name), OFTEN_S)
    await first.start()
    await second.start()
    assert first.leader
    assert second.leader
    await first.close()
    await second.close()
    postgres.drop(name)


async def test_who_loses_its_connection_leads_no_more_and_tries_again(postgres_url: str) -> None:
    leadership = Leadership(postgres_url, OFTEN_S)
    told: list[bool] = []
    leadership.on_change(told.append)
    await leadership.start()
    database = Database.open(postgres_url)
    others = sa.text(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
    )
    assert await database.write(lambda connection: connection.execute(others).scalar()) == 1
    await until(lambda: told == [True, False, True])
    await database.close()
    await leadership.close()


async def test_a_server_that_is_away_has_no_leader_until_it_is_back(postgres: Postgres, postgres_url: str) -> None:
    leadership = Leadership(postgres_url, OFTEN_S)
    await leadership.start()
    assert leadership.leader
    await asyncio.to_thread(postgres.stop)
    await until(lambda: not leadership.leader)
    await asyncio.to_thread(postgres.start)
    await until(lambda: leadership.leader)
    await leadership.close()


async def test_a_server_that_does_not_answer_has_no_leader(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    leadership = Leadership(postgres_url, OFTEN_S, answer_s=0.2)
    await leadership.start()
    assert leadership.leader
    silent: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    with monkeypatch.context() as patch:
        patch.setattr(leadership._lock, "ask", lambda: silent)
        await until(lambda: not leadership.leader)
    silent.cancel()
    await until(lambda: leadership.leader)
    await leadership.close()


async def test_an_end_that_comes_together_with_an_answer_is_an_end(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    leadership = Leadership(postgres_url)
    answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    monkeypatch.setattr(leadership._lock, "ask", lambda: answer)
    asking = asyncio.create_task(leadership._tick())
    await asyncio.sleep(0)
    answer.set_result(True)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await leadership.close()
