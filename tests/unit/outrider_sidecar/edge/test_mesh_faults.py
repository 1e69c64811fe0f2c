"""A control plane that falls silent, talks nonsense or says too much: the link ends, and is made anew."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Self

import grpc
import pytest

from outrider.v1 import mesh_pb2
from outrider_sidecar.edge import mesh as edge
from tests.mesh_peer import MeshPeer, policy, serving
from tests.mesh_side import ONE, side, until


async def test_a_message_over_the_bound_ends_the_stream_and_not_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "MAX_MESSAGE_BYTES", 10_000)
    peer = MeshPeer()
    async with serving(peer) as port, side(port) as link:
        await until(lambda: peer.live, "watched")
        peer.send(mesh_pb2.WatchResponse(welcome=mesh_pb2.Welcome(version="v" * 20_000)))
        await until(lambda: len(peer.watches) == 2, "found again")
        await until(lambda: link.link.connected_to, "connected")


class Relay:
    """Bytes to and from a server, until it falls silent: nothing is closed, nothing comes any more."""

    def __init__(self, port: int):
        self._port = port
        self._writers: list[asyncio.StreamWriter] = []
        self.accepted = 0
        self.silent = False

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        theirs, ours = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += [writer, ours]
        await asyncio.gather(self._pump(reader, ours), self._pump(theirs, writer), return_exceptions=True)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            if not self.silent:
                writer.write(data)
        writer.close()


async def test_a_control_plane_that_falls_silent_is_found_by_ping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "PING_INTERVAL_S", 0.1)
    monkeypatch.setattr(edge, "PING_TIMEOUT_S", 0.1)
    peer = MeshPeer(load_interval_ms=60_000)
    peer.put(policy(ONE, 1))
    async with serving(peer) as port, Relay(port) as relay, side(relay.port) as link:
        await until(lambda: "one" in link.agents, "in force")
        relay.silent = True
        await until(lambda: relay.accepted > 1, "another connection is made")
        relay.silent = False
        await until(lambda: link.link.connected_to and len(peer.watches) > 1, "back on its watch")
        assert link.agents == {"file", "one"}


class Raw:
    """A server of one method that answers with bytes of its own choosing, framed by nobody."""

    def __init__(self, *chunks: bytes, stays: bool = True):
        self._chunks = chunks
        self._stays = stays

    def service(self, details: Any) -> Any:
        async def talk(requests: Any, context: Any) -> AsyncIterator[bytes]:
            for chunk in self._chunks:
                yield chunk
            if self._stays:
                await asyncio.Event().wait()

        return grpc.stream_stream_rpc_method_handler(talk)


@pytest.mark.parametrize("message", [b"\xff\xff\xff", b"\x0a\x05ab"])
async def test_a_message_that_cannot_be_read_is_said_and_tried_again(message: bytes) -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Raw(message),))  # pyright: ignore[reportArgumentType]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with side(port) as link:
            await until(lambda: link.link.last_error, "said")
            assert "no WatchResponse" in link.link.last_error
            assert not link.link.connected_to
    finally:
        await server.stop(0)


async def test_control_planes_that_greet_and_hang_up_are_not_asked_in_turns_without_a_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[int] = []
    monkeypatch.setattr(edge, "control_delay_s", lambda rounds, rng: pauses.append(rounds) or 0.001)
    servers, ports = [], []
    for _ in range(2):
        server = grpc.aio.server()
        welcome = mesh_pb2.WatchResponse(welcome=mesh_pb2.Welcome(instance_id="brief")).SerializeToString()
        server.add_generic_rpc_handlers((Raw(welcome, stays=False),))  # pyright: ignore[reportArgumentType]
        ports.append(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        servers.append(server)
    try:
        async with side(*ports) as link:
            await until(lambda: len(pauses) >= 3, "a pause after each round")
            assert pauses[:3] == [1, 2, 3]
            assert link.link.sessions <= 2 * (len(pauses) + 1)
    finally:
        await asyncio.gather(*[server.stop(0) for server in servers])
