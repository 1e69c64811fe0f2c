"""Compress and FetchOriginal by the client, through a real sidecar's loop and a real worker process."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from outrider.client import AsyncOutrider
from outrider.policy import Agent, Compression, EndpointPolicy, Policy
from outrider.reply import InvalidRequest, NotFound
from outrider.v1 import agent_pb2 as pb
from outrider_sidecar.edge.compress_service import CompressService
from outrider_sidecar.edge.compress_worker import CompressWorker
from outrider_sidecar.edge.own_services import sidecar_service
from tests.in_process import InProcess, in_process

ROWS = [{"flight": f"HAT{at:03}", "from": "JFK", "to": "SEA", "seats": at, "status": "available"} for at in range(30)]
TABLE = json.dumps(ROWS)
BIG = json.dumps(ROWS * 40)
PARAGRAPHS = "".join([f"<p class='x'>Paragraph {at} of the <b>page</b>.</p>" for at in range(60)])
PAGE = f"<html><body>{PARAGRAPHS}</body></html>"
POLICY = Compression(provider="anthropic", lossy_min_tokens=200)


def conversation(text: str) -> list[pb.Message]:
    result = pb.ToolResult(call_id="1", name="search", parts=[pb.Part(json=text)])
    return [
        pb.Message(role=pb.ROLE_USER, parts=[pb.Part(text="which flight?")]),
        pb.Message(role=pb.ROLE_TOOL, parts=[pb.Part(tool_result=result)]),
    ]


def said(message: pb.Message) -> str:
    part = message.parts[0].tool_result.parts[0]
    return part.text or part.json


@contextlib.asynccontextmanager
async def scene(with_worker: bool = True) -> AsyncIterator[tuple[AsyncOutrider, InProcess]]:
    workers: list[CompressWorker] = []

    def prepare(mesh: InProcess) -> None:
        service = CompressService(mesh.runtime)
        methods = {b"Compress": service.compress, b"FetchOriginal": service.fetch_original}
        mesh.runtime.own = sidecar_service(methods)
        mesh.runtime.node = "here"
        if with_worker:
            mesh.runtime.compressor = CompressWorker(mesh.reactor)
            workers.append(mesh.runtime.compressor)

    policy = Policy({"a": Agent("a", (EndpointPolicy("127.0.0.1:1"),), compression=POLICY)}, "a")
    async with in_process(prepare, policy) as mesh, AsyncOutrider(mesh.target, timeout_s=60) as client:
        try:
            yield client, mesh
        finally:
            for worker in workers:
                await worker.close()


async def test_a_context_in_fewer_tokens() -> None:
    async with scene() as (client, _):
        got = await client.optimize_token_usage(conversation(TABLE))
        assert said(got.messages[1]).startswith("#columns/1")
        assert got.messages[0] == conversation(TABLE)[0]
        (block,) = got.blocks
        assert (block.path, block.compressor, block.reversible) == (
            "messages[1].parts[0].tool_result.parts[0]",
            "columns/1",
            True,
        )
        assert block.tokens_before - block.tokens_after == got.tokens_saved > 0
        assert not got.exact
        assert got.notes == ()


async def test_large_blocks_go_through_the_worker() -> None:
    async with scene() as (client, mesh):
        got = await client.optimize_token_usage(conversation(BIG))
        assert said(got.messages[1]).startswith("#columns/1")
        assert mesh.runtime.compressor.counts["done"] == 1


async def test_without_a_worker_large_blocks_stay_and_it_says_so() -> None:
    async with scene(with_worker=False) as (client, _):
        got = await client.optimize_token_usage(conversation(BIG))
        assert got.messages[1] == conversation(BIG)[1]
        assert got.tokens_saved == 0
        assert "no worker" in got.notes[0]


async def test_a_budget_and_what_went_for_it() -> None:
    context = [
        pb.ContextBlock(parts=[pb.Part(text=f"{relevance} is said. " * 60)], relevance=relevance)
        for relevance in (0.2, 0.9)
    ]
    async with scene() as (client, _):
        got = await client.optimize_token_usage(context=context, token_budget=500)
        assert [round(one.relevance, 1) for one in got.context] == [0.9]
        assert got.tokens_after <= 500 < got.tokens_before
        assert [(one.path, one.compressor) for one in got.blocks] == [("context[0].parts[0]", "dropped")]


async def test_originals_are_fetched_by_their_tenant_alone() -> None:
    async with scene() as (client, _):
        context = [pb.ContextBlock(parts=[pb.Part(text=PAGE)])]
        got = await client.optimize_token_usage(context=context, mode="lossy", tenant_id="one")
        (block,) = got.blocks
        assert not block.reversible
        assert block.handle.endswith("@here")
        assert await client.fetch_original(block.handle, tenant_id="one") == PAGE.encode()
        with pytest.raises(NotFound, match="for this tenant"):
            await client.fetch_original(block.handle, tenant_id="two")
        with pytest.raises(NotFound, match="kept by the sidecar of node 'there'"):
            await client.fetch_original("abc@there")


@pytest.mark.parametrize(
    ("asked", "error", "match"),
    [
        ({"mode": "zip"}, InvalidRequest, "none of off, lossless, lossy"),
        ({"token_budget": -1}, InvalidRequest, "token_budget"),
        ({"agent_id": "nobody"}, NotFound, "no agent 'nobody'"),
    ],
)
async def test_bad_requests(asked: dict[str, Any], error: type[Exception], match: str) -> None:
    async with scene() as (client, _):
        with pytest.raises(error, match=match):
            await client.optimize_token_usage(conversation(TABLE), **asked)


async def test_a_handle_has_to_be_named() -> None:
    async with scene() as (client, _):
        with pytest.raises(InvalidRequest, match="handle"):
            await client.fetch_original("")
