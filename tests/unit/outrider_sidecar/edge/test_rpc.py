"""The sidecar's own calls against a real grpcio server: every failure is a status."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from outrider_http2.shell import Reactor
from outrider_sidecar.core import errors
from outrider_sidecar.edge import rpc as edge
from outrider_sidecar.edge.rpc import Rpc

METHODS = ("Echo", "Fail", "Details", "Hang", "Large", "Metadata")


class Agent(grpc.GenericRpcHandler):
    """Behaves as its methods are called."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.seen: dict[str, Any] = {}

    def service(self, handler_call_details: Any) -> Any:
        name = handler_call_details.method.rpartition("/")[2]
        if name not in METHODS:
            return None
        self.seen = dict(handler_call_details.invocation_metadata)
        return grpc.unary_unary_rpc_method_handler(getattr(self, name.lower()))

    async def echo(self, request: bytes, context: Any) -> bytes:
        self.seen["left_s"] = context.time_remaining()
        return request

    async def fail(self, request: bytes, context: Any) -> bytes:
        return await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not yet: ä")

    async def details(self, request: bytes, context: Any) -> bytes:
        context.set_trailing_metadata((("grpc-status-details-bin", b"\0\1"), ("grpc-retry-pushback-ms", "250")))
        return await context.abort(grpc.StatusCode.UNAVAILABLE, "later")

    async def hang(self, request: bytes, context: Any) -> bytes:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return b""

    async def large(self, request: bytes, context: Any) -> bytes:
        return bytes(edge.MAX_REPLY_BYTES)

    async def metadata(self, request: bytes, context: Any) -> bytes:
        return b""


@contextlib.asynccontextmanager
async def served(agent: Agent, **more: Any) -> AsyncIterator[Rpc]:
    server = grpc.aio.server(options=[("grpc.max_send_message_length", -1)])
    server.add_generic_rpc_handlers((agent,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    reactor = Reactor(asyncio.get_running_loop())
    rpc = Rpc(reactor, f"127.0.0.1:{port}", **more)
    try:
        yield rpc
    finally:
        await rpc.close()
        await reactor.close()
        await server.stop(None)


@pytest.mark.parametrize("message", [b"", b"x", bytes(300_000)])
async def test_a_reply_comes_back_whole(message: bytes) -> None:
    agent = Agent()
    async with served(agent) as rpc:
        reply = await rpc.unary("/test.Agent/Echo", message, 10)
        assert (reply.status, reply.message) == (errors.OK, message)
        assert 8 < agent.seen["left_s"] <= 10


async def test_failures_are_statuses_with_their_text_details_and_pushback() -> None:
    async with served(Agent()) as rpc:
        assert (await rpc.unary("/test.Agent/Fail", b"", 10)).status == errors.FAILED_PRECONDITION
        reply = await rpc.unary("/test.Agent/Details", b"", 10)
        assert (reply.status, reply.text, reply.details) == (errors.UNAVAILABLE, "later", b"\0\1")
        assert reply.pushback_ms == 250
        assert (await rpc.unary("/test.Agent/Nothing", b"", 10)).status == errors.UNIMPLEMENTED


async def test_the_timeout_cancels_the_call_at_the_agent_and_the_connection_lives() -> None:
    agent = Agent()
    async with served(agent) as rpc:
        reply = await rpc.unary("/test.Agent/Hang", b"", 0.05)
        assert (reply.status, reply.text) == (errors.DEADLINE_EXCEEDED, "no answer within 0.05 s")
        async with asyncio.timeout(20):
            await agent.cancelled.wait()
        assert (await rpc.unary("/test.Agent/Echo", b"1", 10)).message == b"1"


async def test_a_reply_past_the_bound_is_not_kept() -> None:
    async with served(Agent()) as rpc:
        reply = await rpc.unary("/test.Agent/Large", b"", 20)
        assert (reply.status, reply.text) == (errors.RESOURCE_EXHAUSTED, "the reply is over 4 MB")


async def test_fields_go_with_every_call() -> None:
    agent = Agent()
    async with served(agent, fields=((b"authorization", b"Bearer x"),)) as rpc:
        await rpc.unary("/test.Agent/Metadata", b"", 10)
        assert agent.seen["authorization"] == "Bearer x"


async def test_fields_that_can_change_are_asked_for_again_when_forgotten() -> None:
    agent = Agent()
    tokens = [b"first"]
    async with served(agent, fields=lambda: ((b"authorization", tokens[-1]),)) as rpc:
        await rpc.unary("/test.Agent/Metadata", b"", 10)
        assert not rpc.forget_fields()
        await rpc.unary("/test.Agent/Metadata", b"", 10)
        tokens.append(b"second")
        await rpc.unary("/test.Agent/Metadata", b"", 10)
        assert agent.seen["authorization"] == "first"
        assert rpc.forget_fields()
        await rpc.unary("/test.Agent/Metadata", b"", 10)
        assert agent.seen["authorization"] == "second"


async def test_many_calls_share_one_connection() -> None:
    async with served(Agent()) as rpc:
        replies = await asyncio.gather(*[rpc.unary("/test.Agent/Echo", b"%d" % n, 20) for n in range(50)])
        assert [reply.message for reply in replies] == [b"%d" % n for n in range(50)]
        assert len(rpc._reactor.shells) == 1


@pytest.mark.parametrize("address", ["127.0.0.1:1", "unix:/nowhere/at.all", "no.such.name.invalid:1"])
async def test_nobody_there_is_unavailable(address: str) -> None:
    reactor = Reactor(asyncio.get_running_loop())
    rpc = Rpc(reactor, address)
    reply = await rpc.unary("/test.Agent/Echo", b"", 10)
    assert reply.status in (errors.UNAVAILABLE, errors.DEADLINE_EXCEEDED)
    assert address in reply.text or reply.status == errors.DEADLINE_EXCEEDED
    await rpc.close()


async def test_a_peer_that_hangs_up_or_says_nothing_is_a_status() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        reactor = Reactor(asyncio.get_running_loop())
        rpc = Rpc(reactor, f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        for _ in range(2):
            assert (await rpc.unary("/test.Agent/Echo", b"", 10)).status == errors.UNAVAILABLE
        await rpc.close()
        await reactor.close()
