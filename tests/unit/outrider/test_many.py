"""Fan-outs against a real server: order, deadline, budget and cancellation, in both forms."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from outrider.client import AsyncOutrider, Outrider
from outrider.fanout import Budget
from outrider.many import Outcome
from outrider.reply import BudgetExhausted, Cancelled, DeadlineExceeded, NotFound, OutriderError
from tests.unit.outrider.agent_server import Agent, ServerThread, serving

WORDS = [f"word {at}" for at in range(12)]


@pytest.fixture
def server() -> Iterator[ServerThread]:
    with ServerThread() as thread:
        yield thread


@pytest.fixture
def agent() -> Agent:
    return Agent()


@pytest.fixture
async def target(agent: Agent) -> AsyncIterator[str]:
    async with serving(agent) as served:
        yield served


def kinds(outcomes: list[Outcome]) -> list[type[OutriderError] | None]:
    return [type(outcome.error) if outcome.error else None for outcome in outcomes]


def test_in_order(server: ServerThread) -> None:
    with Outrider(server.target) as client:
        outcomes = client.invoke_many(WORDS, budget=Budget(max_in_flight=3)).results()
    assert [outcome.index for outcome in outcomes] == list(range(12))
    assert [outcome.unwrap().text for outcome in outcomes] == WORDS
    assert server.agent.most_open <= 3


async def test_async_in_order(agent: Agent, target: str) -> None:
    async with AsyncOutrider(target) as client:
        outcomes = await client.invoke_many(WORDS, budget=Budget(max_in_flight=3)).results()
    assert [outcome.unwrap().text for outcome in outcomes] == WORDS
    assert agent.most_open <= 3


def test_as_they_come(server: ServerThread) -> None:
    with Outrider(server.target) as client, client.invoke_many(["wait", "a"], in_order=False) as many:
        outcomes = iter(many)
        assert next(outcomes).index == 1
        server.release()
        assert next(outcomes).index == 0


async def test_async_as_they_come(agent: Agent, target: str) -> None:
    async with AsyncOutrider(target) as client, client.invoke_many(["wait", "a"], in_order=False) as many:
        order = []
        async for outcome in many:
            order.append(outcome.index)
            agent.release.set()
    assert order == [1, 0]


def test_nothing_to_do(server: ServerThread) -> None:
    with Outrider(server.target) as client:
        assert client.invoke_many([]).results() == []


def test_one_deadline(server: ServerThread) -> None:
    with Outrider(server.target) as client:
        many = client.invoke_many(["a", "hang", "hang", "b"], timeout_s=0.3, budget=Budget(max_in_flight=2))
        assert kinds(many.results()) == [None, DeadlineExceeded, DeadlineExceeded, DeadlineExceeded]
    assert len(server.agent.requests) == 3


async def test_async_one_deadline(agent: Agent, target: str) -> None:
    async with AsyncOutrider(target) as client:
        many = client.invoke_many(["a", "hang", "hang", "b"], timeout_s=0.3, budget=Budget(max_in_flight=2))
        assert kinds(await many.results()) == [None, DeadlineExceeded, DeadlineExceeded, DeadlineExceeded]
    assert len(agent.requests) == 3


FAILING = ["hang", "fail NOT_FOUND", "fail NOT_FOUND", "never"]
FAILED = [BudgetExhausted, NotFound, NotFound, BudgetExhausted]


def test_too_many_failures_cancel_the_rest(server: ServerThread) -> None:
    with Outrider(server.target) as client:
        outcomes = client.invoke_many(FAILING, budget=Budget(max_in_flight=2, max_failures=1)).results()
        assert kinds(outcomes) == FAILED
        assert "2 calls failed; at most 1 may" in str(outcomes[0].error)
        server.agent.wait_for_open(0)
    with pytest.raises(BudgetExhausted):
        outcomes[3].unwrap()
    assert len(server.agent.requests) == 3


async def test_async_too_many_failures_cancel_the_rest(agent: Agent, target: str) -> None:
    async with AsyncOutrider(target) as client:
        many = client.invoke_many(FAILING, budget=Budget(max_in_flight=2, max_failures=1))
        assert kinds(await many.results()) == FAILED
        await asyncio.to_thread(agent.wait_for_open, 0)
    assert len(agent.requests) == 3


def test_tokens_are_counted_but_for_cache_hits(server: ServerThread) -> None:
    budget = Budget(max_in_flight=1, max_tokens=10)  # the server says 5 a call
    with Outrider(server.target) as client:
        assert kinds(client.invoke_many(WORDS[:4], budget=budget).results()) == [None, None, *[BudgetExhausted] * 2]
        server.agent.trailers = (("x-outrider-cache", "hit"),)
        assert kinds(client.invoke_many(WORDS[:4], budget=budget).results()) == [None] * 4


def test_leaving_cancels_everything(server: ServerThread) -> None:
    with Outrider(server.target) as client:
        with client.invoke_many(["a", *["hang"] * 9], budget=Budget(max_in_flight=4)) as many:
            outcomes = iter(many)
            assert next(outcomes).unwrap().text == "a"
            server.agent.wait_for_open(4)
        server.agent.wait_for_open(0)
        assert kinds(list(outcomes)) == [Cancelled] * 9
    assert len(server.agent.requests) == 5


async def test_leaving_async_cancels_everything(agent: Agent, target: str) -> None:
    async with AsyncOutrider(target) as client:
        async with client.invoke_many(["a", *["hang"] * 9], budget=Budget(max_in_flight=4)) as many:
            async for outcome in many:
                assert outcome.unwrap().text == "a"
                await asyncio.to_thread(agent.wait_for_open, 4)
                break
        await asyncio.to_thread(agent.wait_for_open, 0)
    assert len(agent.requests) == 5


async def test_cancelling_the_task_cancels_everything(agent: Agent, target: str) -> None:
    async with AsyncOutrider(target) as client:
        task = asyncio.create_task(client.invoke_many(["hang"] * 3).results())
        await asyncio.to_thread(agent.wait_for_open, 3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(agent.wait_for_open, 0)


def test_closed_client_gives_outcomes_and_does_not_hang(server: ServerThread) -> None:
    client = Outrider(server.target)
    client.close()
    outcomes = client.invoke_many(WORDS).results()
    assert len(outcomes) == 12
    assert all(outcome.error is not None for outcome in outcomes)
