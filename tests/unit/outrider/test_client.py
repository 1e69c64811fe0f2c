"""The blocking and the asyncio client against a real server: content, identity, what the mesh says, and errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import grpc
import grpc.aio
import pytest

from outrider import reply as replies
from outrider.client import AsyncOutrider, Outrider
from outrider.reply import CallInfo, OutriderError
from outrider.v1 import agent_pb2
from tests.unit.outrider.agent_server import Agent, ServerThread, serving

EXPECTED = CallInfo(call_id="c1", trace_id="t1", cache="miss", endpoint="127.0.0.1:9001", tokens_saved=12, metadata=())
STATUSES = [
    ("UNAVAILABLE", replies.Unavailable),
    ("DEADLINE_EXCEEDED", replies.DeadlineExceeded),
    ("CANCELLED", replies.Cancelled),
    ("NOT_FOUND", replies.NotFound),
    ("RESOURCE_EXHAUSTED", replies.Overloaded),
    ("INVALID_ARGUMENT", replies.InvalidRequest),
    ("UNAUTHENTICATED", replies.NotPermitted),
    ("INTERNAL", OutriderError),
]


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


def without_metadata(info: CallInfo) -> CallInfo:
    return CallInfo(info.call_id, info.trace_id, info.cache, info.variant, info.endpoint, info.tokens_saved)


def test_invoke(server: ServerThread) -> None:
    with Outrider(server.target) as client:
        reply = client.invoke("hello")
    assert reply.text == "hello"
    assert without_metadata(reply.info) == EXPECTED
    assert ("x-outrider-call-id", "c1") in reply.info.metadata
    assert server.agent.requests[0].messages[0].role == agent_pb2.ROLE_USER


async def test_async_invoke(agent: Agent, target: str) -> None:
    async with AsyncOutrider(target) as client:
        reply = await client.invoke("hello")
    assert reply.text == "hello"
    assert without_metadata(reply.info) == EXPECTED


def test_identity_is_in_the_message_and_in_metadata(server: ServerThread) -> None:
    given = agent_pb2.InvokeRequest(user_id="request's")
    given.messages.add(role=agent_pb2.ROLE_USER).parts.add(text="hi")
    before = given.SerializeToString()
    with Outrider(
        server.target,
        agent_id="tax",
        session_id="s",
        user_id="client's",
        tenant_id="t",
        priority=agent_pb2.PRIORITY_LOW,
        metadata=[("x-extra", "1")],
    ) as client:
        client.invoke(given, cache_control="no-store", metadata=[("x-more", "2")])
    assert given.SerializeToString() == before
    (request,), (metadata,) = server.agent.requests, server.agent.metadata
    assert (request.agent_id, request.session_id, request.user_id, request.tenant_id) == ("tax", "s", "request's", "t")
    assert request.priority == agent_pb2.PRIORITY_LOW
    expected = {
        "x-agent-id": "tax",
        "x-session-id": "s",
        "x-user-id": "request's",
        "x-tenant-id": "t",
        "x-priority": "low",
        "x-cache-control": "no-store",
        "x-extra": "1",
        "x-more": "2",
    }
    assert expected.items() <= metadata.items()


def test_nothing_said_sends_nothing(server: ServerThread) -> None:
    with Outrider(server.target) as client:
        client.invoke("hi")
    assert not [name for name in server.agent.metadata[0] if name.startswith("x-")]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"user_id": "jürgen"}, "user_id: 'jürgen'"), ({"session_id": "a\nb"}, "session_id"), ({"priority": 99}, "99")],
)
def test_what_metadata_cannot_carry_is_refused_here(server: ServerThread, fields: dict, reason: str) -> None:
    with Outrider(server.target) as client, pytest.raises(replies.InvalidRequest, match=reason):
        client.invoke(agent_pb2.InvokeRequest(**fields))
    assert server.agent.requests == []


@pytest.mark.parametrize(("status", "kind"), STATUSES)
def test_errors(server: ServerThread, status: str, kind: type[OutriderError]) -> None:
    server.agent.trailers = (("x-outrider-cache", "bypass"), ("grpc-retry-pushback-ms", "250"))
    with Outrider(server.target) as client, pytest.raises(OutriderError) as caught:
        client.invoke(f"fail {status}")
    assert type(caught.value) is kind
    assert caught.value.code is grpc.StatusCode[status]
    assert str(caught.value) == f"{status}: as asked"
    info = caught.value.info
    assert (info.call_id, info.cache, info.retry_pushback_ms) == ("c1", "bypass", 250)


@pytest.mark.parametrize(("status", "kind"), STATUSES)
async def test_async_errors(target: str, status: str, kind: type[OutriderError]) -> None:
    async with AsyncOutrider(target) as client:
        with pytest.raises(OutriderError) as caught:
            await client.invoke(f"fail {status}")
        assert (type(caught.value), caught.value.info.call_id) == (kind, "c1")
        with pytest.raises(OutriderError) as caught:
            async with client.invoke_stream(f"fail {status}") as stream:
                assert [chunk async for chunk in stream] == []
        assert (type(caught.value), stream.info.cache) == (kind, "miss")


def test_nobody_there() -> None:
    with Outrider("127.0.0.1:1") as client, pytest.raises(replies.Unavailable):
        client.invoke("hi")


def test_timeout(server: ServerThread) -> None:
    with Outrider(server.target, timeout_s=0.05) as client:
        with pytest.raises(replies.DeadlineExceeded):
            client.invoke("hang")
        assert client.invoke("hi", timeout_s=60).text == "hi"
    server.agent.wait_for_open(0)


def test_stream(server: ServerThread) -> None:
    with Outrider(server.target) as client, client.invoke_stream("one two") as stream:
        assert [chunk.text for chunk in stream] == ["one", "two", ""]
        assert stream.finish is not None
        assert stream.finish.reason == agent_pb2.FINISH_REASON_STOP
        assert without_metadata(stream.info) == EXPECTED


async def test_async_stream(target: str) -> None:
    async with AsyncOutrider(target) as client, client.invoke_stream("one two") as stream:
        assert [chunk.text async for chunk in stream] == ["one", "two", ""]
        assert without_metadata(stream.info) == EXPECTED


def test_stream_without_finish_is_incomplete(server: ServerThread) -> None:
    with Outrider(server.target) as client, client.invoke_stream("cut") as stream:
        chunks = iter(stream)
        assert next(chunks).text == "cut"
        with pytest.raises(replies.IncompleteReply):
            next(chunks)
        assert stream.info.call_id == "c1"


async def test_async_stream_without_finish_is_incomplete(target: str) -> None:
    async with AsyncOutrider(target) as client, client.invoke_stream("cut") as stream:
        with pytest.raises(replies.IncompleteReply):
            assert [chunk.text async for chunk in stream] == ["cut"]


def test_failed_stream(server: ServerThread) -> None:
    with (
        Outrider(server.target) as client,
        client.invoke_stream("fail ABORTED") as stream,
        pytest.raises(OutriderError, match="ABORTED: as asked"),
    ):
        list(stream)
    assert stream.info.call_id == "c1"


def test_leaving_a_stream_cancels_it(server: ServerThread) -> None:
    with Outrider(server.target) as client:
        with client.invoke_stream("endless") as stream:
            assert next(iter(stream)).text == "more"
        assert client.invoke("next").text == "next"


async def test_leaving_an_async_stream_cancels_it(agent: Agent, target: str) -> None:
    async with AsyncOutrider(target) as client:
        async with client.invoke_stream("endless") as stream:
            async for chunk in stream:
                assert chunk.text == "more"
                break
        assert (await client.invoke("next")).text == "next"


async def test_cancelling_the_task_cancels_the_call(agent: Agent, target: str) -> None:
    async with AsyncOutrider(target) as client:
        task = asyncio.create_task(client.invoke("hang"))
        await asyncio.to_thread(agent.wait_for_open, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(agent.wait_for_open, 0)
    assert agent.cancelled == 1


def test_variant_is_echoed_within_its_session(server: ServerThread) -> None:
    server.agent.trailers = (("x-outrider-variant", "prompt-b"),)
    with Outrider(server.target, session_id="s1") as client:
        client.invoke("first")
        client.invoke("second")
        list(client.invoke_stream("third"))
        client.invoke("given", metadata=[("x-outrider-variant", "prompt-a")])
        client.invoke(agent_pb2.InvokeRequest(session_id="s2", messages=server.agent.requests[0].messages))
    sent = [metadata.get("x-outrider-variant") for metadata in server.agent.metadata]
    assert sent == [None, "prompt-b", "prompt-b", "prompt-a", None]
