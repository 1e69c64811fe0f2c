"""The listening side against real sockets: limits, drain, addresses."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from outrider.policy import Policy
from outrider_sidecar.core import errors
from outrider_sidecar.edge.listener import Listener
from outrider_sidecar.edge.rpc import Rpc
from tests.in_process import InProcess, in_process


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


async def status_at(mesh: InProcess, address: str) -> int:
    """What a call without an agent is answered there."""
    rpc = Rpc(mesh.reactor, address)
    reply = await rpc.unary("/test.Echo/Unary", b"", 10)
    await rpc.close()
    return reply.status


async def test_a_call_runs_under_the_snapshot_of_its_moment() -> None:
    async with in_process() as mesh:
        assert await status_at(mesh, mesh.target) == errors.NOT_FOUND
        mesh.runtime.local = {b"/test.Echo": lambda call: call.fail(errors.DATA_LOSS, "")}
        mesh.apply(Policy())
        assert await status_at(mesh, mesh.target) == errors.DATA_LOSS
        assert not mesh.runtime.calls


async def test_connections_past_the_limit_are_closed_and_counted() -> None:
    async with in_process() as mesh:
        listener = Listener(mesh.runtime, lambda: mesh.runtime.snapshot, max_connections=2)
        await listener.open(("127.0.0.1", 0))
        sockets = [await asyncio.open_connection("127.0.0.1", listener.port) for _ in range(4)]
        await until(lambda: listener.connections + listener.refused == 4)
        assert (listener.connections, listener.refused) == (2, 2)
        for _, writer in sockets:
            writer.close()
        await until(lambda: listener.connections == 0)
        listener.close()


async def test_a_taken_port_is_an_error() -> None:
    async with in_process() as mesh:
        listener = Listener(mesh.runtime, lambda: mesh.runtime.snapshot)
        with pytest.raises(OSError, match="in use"):
            await listener.open(("127.0.0.1", mesh.listener.port))


async def test_two_listeners_share_a_port_where_both_say_so() -> None:
    async with in_process() as mesh:
        one, two = (Listener(mesh.runtime, lambda: mesh.runtime.snapshot) for _ in range(2))
        await one.open(("127.0.0.1", 0), reuse_port=True)
        await two.open(("127.0.0.1", one.port), reuse_port=True)
        assert two.port == one.port
        one.close()
        assert await status_at(mesh, f"127.0.0.1:{two.port}") == errors.NOT_FOUND
        two.close()


async def test_a_stale_socket_file_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "egress.sock"
    left = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    left.bind(str(path))
    left.close()
    async with in_process() as mesh:
        listener = Listener(mesh.runtime, lambda: mesh.runtime.snapshot)
        await listener.open(str(path))
        assert await status_at(mesh, f"unix:{path}") == errors.NOT_FOUND
        second = Listener(mesh.runtime, lambda: mesh.runtime.snapshot)
        with pytest.raises(OSError, match="in use"):
            await second.open(str(path))
        assert await status_at(mesh, f"unix:{path}") == errors.NOT_FOUND
        listener.close()


async def test_a_live_socket_file_is_taken_over_where_the_newcomer_says_so(tmp_path: Path) -> None:
    path = str(tmp_path / "egress.sock")
    async with in_process() as mesh:
        one, two = (Listener(mesh.runtime, lambda: mesh.runtime.snapshot) for _ in range(2))
        await one.open(path)
        await two.open(path, reuse_port=True)
        assert await status_at(mesh, f"unix:{path}") == errors.NOT_FOUND
        assert (one.connections, two.draining) == (0, False)
        one.close()
        two.close()


async def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    async with in_process() as mesh:
        listener = Listener(mesh.runtime, lambda: mesh.runtime.snapshot)
        with pytest.raises(OSError):
            await listener.open(str(path))
        assert path.read_text() == "mine"


async def test_draining_tells_peers_and_ends_their_connections() -> None:
    async with in_process() as mesh:
        listener = Listener(mesh.runtime, lambda: mesh.runtime.snapshot)
        await listener.open(("127.0.0.1", 0))
        rpc = Rpc(mesh.reactor, f"127.0.0.1:{listener.port}")
        assert (await rpc.unary("/test.Echo/Unary", b"", 10)).status == errors.NOT_FOUND
        listener.stop_listening()
        listener.drain()
        listener.finish_drain()
        await until(lambda: listener.connections == 0)
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", listener.port)
        assert (await rpc.unary("/test.Echo/Unary", b"", 10)).status == errors.UNAVAILABLE
        await rpc.close()
