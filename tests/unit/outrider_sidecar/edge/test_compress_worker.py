"""The process that compresses: started, asked, late, broken, hung, ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from outrider.policy import Compression
from outrider_http2.shell import Reactor
from outrider_sidecar.compress.block import Block
from outrider_sidecar.compress.work import Job
from outrider_sidecar.edge import compress_worker
from outrider_sidecar.edge.compress_worker import CompressWorker

TABLE = json.dumps([{"flight": at, "status": "available"} for at in range(20)])
JOB = Job(Block(TABLE), "", "lossless", Compression(), "", "")
READY = "import sys, time; out = sys.stdout.buffer; out.write(b'\\0\\0\\0\\5ready'); out.flush(); "


@contextlib.asynccontextmanager
async def working(script: str = "") -> AsyncIterator[CompressWorker]:
    reactor = Reactor(asyncio.get_running_loop())
    worker = CompressWorker(reactor, (sys.executable, "-c", script)) if script else CompressWorker(reactor)
    try:
        yield worker
    finally:
        await worker.close()
        await reactor.close()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


def unwanted(made: object) -> None:
    pytest.fail(f"nothing was asked, and it answered {made}")


async def answered(worker: CompressWorker, wait_s: float = 30.0) -> Any:
    """What the worker says of one question, once it takes it."""
    done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    await until(lambda: worker.offer([JOB], done.set_result, wait_s))
    return await done


async def test_a_block_is_compressed_elsewhere() -> None:
    async with working() as worker:
        assert not worker.offer([JOB], unwanted, 1.0)  # it starts
        (made,) = await answered(worker)
        assert made.result is not None
        assert made.tokens_before > made.tokens_after
        assert worker.counts["done"] == 1


async def test_answers_come_in_the_order_of_the_questions() -> None:
    async with working() as worker:
        await answered(worker)
        told: list[int] = []
        for at in range(10):
            assert worker.offer([JOB], lambda made, at=at: told.append(at if made else -1), 30.0)
        await until(lambda: len(told) == 10)
        assert told == list(range(10))


async def test_too_many_questions_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compress_worker, "MAX_WAITING", 3)
    async with working(READY + "time.sleep(600)") as worker:
        worker.start()
        told: list[Any] = []
        await until(lambda: worker.offer([JOB], told.append, 30.0))
        taken = [worker.offer([JOB], told.append, 30.0) for _ in range(4)]
        assert taken == [True, True, False, False]
    assert told == [None] * 3  # at the end they are told


async def test_who_waits_is_told_in_time() -> None:
    async with working(READY + "time.sleep(600)") as worker:
        assert await answered(worker, 0.01) is None
        assert worker.counts["late"] == 1


async def test_a_process_that_ends_is_followed_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compress_worker, "AGAIN_S", 0.01)
    async with working(READY + "sys.stdin.buffer.read(1)") as worker:
        assert await answered(worker) is None
        assert await answered(worker) is None
        assert worker.counts["lost"] == 2


async def test_a_process_that_hangs_is_put_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compress_worker, "HANG_S", 0.2)
    monkeypatch.setattr(compress_worker, "AGAIN_S", 60.0)
    async with working(READY + "time.sleep(600)") as worker:
        assert await answered(worker) is None
        assert worker.counts["lost"] == 1
        assert not worker.offer([JOB], unwanted, 1.0)


@pytest.mark.parametrize(
    "script", ["import nothing_of_this_name", READY + "out.write(b'\\xff' * 4); out.flush(); time.sleep(600)"]
)
async def test_a_process_that_cannot_be_used_costs_nobody_anything(script: str) -> None:
    async with working(script) as worker:
        told: list[Any] = []
        worker.offer([JOB], told.append, 1.0)
        assert worker._task is not None
        await asyncio.wait_for(asyncio.shield(worker._task), 30)
        assert not worker.offer([JOB], told.append, 1.0)
        assert told in ([], [None])
