"""Guard and grpc.aio server in one process and loop, as the control plane runs them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from outrider_control.guard.listener import BACKEND_OPTIONS, Guard, guard_reactor
from outrider_control.guard.socket_file import SocketFile
from tests.sidecars import CHANNEL_OPTIONS


class Echo(grpc.GenericRpcHandler):
    """Every stream echoes its messages, until `over`."""

    def __init__(self) -> None:
        self.over = asyncio.Event()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        if handler_call_details.method == "/test/Watch":
            return grpc.stream_stream_rpc_method_handler(self.watch)
        return grpc.unary_unary_rpc_method_handler(self.unary)

    async def unary(self, request: bytes, context: Any) -> bytes:
        return request

    async def watch(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        yield await anext(aiter(requests))
        await self.over.wait()


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[tuple[Guard, Echo, grpc.aio.Channel]]:
    place = SocketFile()
    echo = Echo()
    server = grpc.aio.server(options=BACKEND_OPTIONS)
    server.add_generic_rpc_handlers((echo,))
    server.add_insecure_port(place.address)
    await server.start()
    place.protect()
    assert Path(place.path).stat().st_mode & 0o777 == 0o600
    reactor = guard_reactor(asyncio.get_running_loop())
    guard = Guard(reactor, place.path)
    await guard.open(("127.0.0.1", 0))
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{guard.port}", options=CHANNEL_OPTIONS) as channel:
            yield guard, echo, channel
    finally:
        await guard.close()
        await server.stop(0)
        await reactor.close()
        place.remove()


async def test_what_the_guard_lets_through_the_server_takes() -> None:
    """By default grpcio refuses some metadata at random from 8 KB on."""
    metadata = tuple((f"x-{n}", "v" * 1_000) for n in range(15))
    async with running() as (_, _, channel):
        call = channel.unary_unary("/test/Unary")
        for n in range(30):
            assert await call(b"%d" % n, metadata=metadata, timeout=10) == b"%d" % n


async def test_many_calls_at_once() -> None:
    async with running() as (guard, _, channel):
        call = channel.unary_unary("/test/Unary")
        replies = await asyncio.gather(*[call(b"%d" % n, timeout=20) for n in range(1_000)])
        assert replies == [b"%d" % n for n in range(1_000)]
        assert guard.figures()["streams_taken"] == 1_000


async def test_a_drain_waits_for_watches_to_be_ended() -> None:
    """Their server ends them; a client sees an OK end, not a broken connection."""
    async with running() as (guard, echo, channel):
        watch = channel.stream_stream("/test/Watch")(timeout=20)
        await watch.write(b"hello")
        assert await watch.read() == b"hello"
        draining = asyncio.ensure_future(guard.drain(10.0))
        await asyncio.sleep(0)
        assert not draining.done()
        echo.over.set()
        assert await watch.read() is grpc.aio.EOF
        assert await watch.code() is grpc.StatusCode.OK
        assert await draining is True
