"""The native Agent API by our client, through a sidecar, to simulated agents: usage, caching, fan-out, tags."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from outrider.client import AsyncOutrider, Outrider
from outrider.reply import NotFound
from outrider.v1 import agent_pb2
from tests.sidecars import Calls, Mesh, Peer, Sidecar, agent, channel_to, eventually, new_key

CACHED = {"cache_enabled": True}


@pytest.fixture(scope="module")
def collector(mesh: Mesh) -> Peer:
    return mesh.peer("collector")


@pytest.fixture(scope="module")
def sidecar(mesh: Mesh, collector: Peer) -> Sidecar:
    quick = ("--speed", "20", "--sigma", "0")
    one, two = (
        f"127.0.0.1:{mesh.module(name, 'bench.agents', '--name', name, *quick)[1]['port']}" for name in ("one", "two")
    )
    agents = [
        agent("plain", one),
        agent("cached", one, optimization=CACHED),
        agent("sampled", one, optimization={**CACHED, "cache_sampled": True}),
        agent("whole", one, optimization={"streaming": False}),
        agent("second", two),
    ]
    config = {"default_agent": "plain", "agents": agents, "telemetry": {"otlp": collector.address}}
    return mesh.sidecar(config, OTEL_BSP_SCHEDULE_DELAY="50")


@pytest.fixture
def client(sidecar: Sidecar) -> Iterator[Outrider]:
    with Outrider(sidecar.target) as opened:
        yield opened
    sidecar.settled()


def question(text: str, agent_id: str = "", **more: Any) -> agent_pb2.InvokeRequest:
    message = agent_pb2.Message(role=agent_pb2.ROLE_USER, parts=[agent_pb2.Part(text=text)])
    return agent_pb2.InvokeRequest(agent_id=agent_id, messages=[message], **more)


def test_invoke(client: Outrider) -> None:
    reply = client.invoke(question("what is due?"))
    assert reply.text
    assert reply.message.finish_reason == agent_pb2.FINISH_REASON_STOP
    assert reply.message.usage.output_tokens > 0
    assert reply.info.call_id
    assert reply.info.endpoint


def test_invoke_stream(client: Outrider) -> None:
    with client.invoke_stream(question("tell me more")) as stream:
        chunks = list(stream)
    assert len(chunks) > 2
    assert stream.finish is not None
    assert stream.finish.usage.output_tokens > 0
    assert stream.info.call_id


def test_the_agent_is_named_by_message_or_metadata(client: Outrider) -> None:
    assert client.invoke(question("x", "second")).message.attributes["instance"] == "two"
    assert client.invoke(question("x", "plain")).message.attributes["instance"] == "one"


def test_an_agent_named_in_the_message_alone_is_found(sidecar: Sidecar) -> None:
    """A caller without our client: no x-agent-id, only the message's field."""
    with channel_to(sidecar.target) as channel:
        body = question("x", "second").SerializeToString()
        reply = Calls(channel).unary(body, method="/outrider.v1.Agent/Invoke").result()
        assert agent_pb2.InvokeReply.FromString(reply).attributes["instance"] == "two"
        wrong = Calls(channel).unary(question("x", "ghost").SerializeToString(), method="/outrider.v1.Agent/Invoke")
        assert wrong.code().name == "NOT_FOUND"
        assert "ghost" in wrong.details()


def test_an_unknown_agent_is_a_typed_error(client: Outrider) -> None:
    with pytest.raises(NotFound) as failed:
        client.invoke(question("x", "ghost"))
    assert "ghost" in failed.value.details


def test_replies_are_cached_by_what_decides_them(client: Outrider) -> None:
    """A request id and a session do not change the answer; another text, tenant or temperature does."""
    text = new_key()
    assert client.invoke(question(text, "cached")).info.cache == "miss"
    same = client.invoke(question(text, "cached", request_id="another", session_id="s"))
    assert same.info.cache == "hit"
    assert client.invoke(question(text + "?", "cached")).info.cache == "miss"
    assert client.invoke(question(text, "cached", tenant_id="acme")).info.cache == "miss"
    assert client.invoke(question(text, "cached", user_id="ann")).info.cache == "miss"


def test_sampled_replies_need_leave(client: Outrider) -> None:
    generation = agent_pb2.Generation(temperature=0.9)
    for agent_id, verdicts in (("cached", ["bypass", "bypass"]), ("sampled", ["miss", "hit"])):
        text = new_key()
        found = [client.invoke(question(text, agent_id, generation=generation)).info.cache for _ in range(2)]
        assert found == verdicts


def test_a_stream_is_replayed_with_its_finish(client: Outrider) -> None:
    text, seen = new_key(), []
    for verdict in ("miss", "hit"):
        with client.invoke_stream(question(text, "cached")) as stream:
            seen.append([chunk.SerializeToString(deterministic=True) for chunk in stream])
        assert stream.info.cache == verdict
        assert stream.finish is not None
    assert seen[0] == seen[1]


def test_a_refused_or_cut_reply_is_not_stored(client: Outrider) -> None:
    """A reply cut by max_output_tokens may be incomplete: whatever the agent says, STOP alone is kept."""
    text = new_key()
    generation = agent_pb2.Generation(max_output_tokens=3)
    first = client.invoke(question(text, "cached", generation=generation))
    second = client.invoke(question(text, "cached", generation=generation))
    complete = first.message.finish_reason == agent_pb2.FINISH_REASON_STOP
    assert (second.info.cache == "hit") == complete


def test_purge_by_tag(client: Outrider, sidecar: Sidecar) -> None:
    """A context block's tags name what an answer rests on; purging one forgets the answers that rest on it."""
    text, tag = new_key(), f"doc-{new_key()}"
    block = agent_pb2.ContextBlock(block_id="b", parts=[agent_pb2.Part(text="law")], tags=[tag])
    tagged = question(text, "cached", context=[block])
    bare = question(text, "cached")
    assert [client.invoke(one).info.cache for one in (tagged, bare, tagged, bare)] == ["miss", "miss", "hit", "hit"]
    assert sidecar.post("/cache/purge", {"tag": tag})[0] == 200
    assert [client.invoke(one).info.cache for one in (tagged, bare)] == ["miss", "hit"]


def test_streaming_false_answers_as_one_chunk(client: Outrider) -> None:
    with client.invoke_stream(question("be brief", "whole")) as stream:
        chunks = list(stream)
    assert len([chunk for chunk in chunks if not chunk.HasField("finish") or chunk.text]) <= 1
    assert stream.finish is not None
    with client.invoke_stream(question("be brief", "plain")) as stream:
        several = list(stream)
    assert "".join(chunk.text for chunk in chunks) == "".join(chunk.text for chunk in several)


def test_usage_reaches_span_and_metrics(client: Outrider, sidecar: Sidecar, collector: Peer) -> None:
    from tests.integration.test_telemetry import attributes, exported

    asked = question(new_key(), "cached", session_id="talk-1", generation=agent_pb2.Generation(model="big"))
    reply = client.invoke(asked)
    span = eventually(
        lambda: [one for one in exported(collector) if one.span_id.hex() == reply.info.call_id], "the span is exported"
    )[0]
    has = attributes(span)
    usage = reply.message.usage
    assert has["gen_ai.usage.output_tokens"] == usage.output_tokens
    assert has["gen_ai.usage.input_tokens"] == usage.input_tokens
    assert has["gen_ai.response.model"] == reply.message.model == "simulated"
    assert has["gen_ai.request.model"] == "big"
    assert has["gen_ai.response.finish_reasons"] == ["stop"]
    assert has["gen_ai.conversation.id"] == "talk-1"
    assert sidecar.metric("outrider_tokens_total", agent="cached", kind="output") >= usage.output_tokens


def test_usage_is_read_also_where_nothing_is_cached(client: Outrider, sidecar: Sidecar) -> None:
    before = sidecar.metric("outrider_tokens_total", agent="second", kind="output")
    reply = client.invoke(question("count", "second"))
    with client.invoke_stream(question("count", "second")) as stream:
        list(stream)
    assert stream.finish is not None
    sidecar.settled()
    spent = reply.message.usage.output_tokens + stream.finish.usage.output_tokens
    assert sidecar.metric("outrider_tokens_total", agent="second", kind="output") == before + spent


def test_invoke_many(client: Outrider) -> None:
    texts = [f"part {number}" for number in range(12)]
    replies = list(client.invoke_many([question(text) for text in texts]))
    assert len(replies) == 12


async def test_the_asyncio_client(sidecar: Sidecar) -> None:
    async with AsyncOutrider(sidecar.target) as client:
        replies = await asyncio.gather(*(client.invoke(question(f"{number}")) for number in range(10)))
        assert all(reply.text for reply in replies)
        async with client.invoke_stream(question("stream")) as stream:
            chunks = [chunk async for chunk in stream]
        assert len(chunks) > 2
