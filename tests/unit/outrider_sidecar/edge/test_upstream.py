"""A connector against real sockets: attempts get a connection or a refusal, once, in bounded time."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from outrider_http2.shell import Reactor
from outrider_sidecar.core.endpoint import Endpoint
from outrider_sidecar.edge import upstream
from outrider_sidecar.edge.upstream import Connector, dial, split_address
from tests.in_process import in_process


class Try:
    """What an attempt does of a connector's doing."""

    def __init__(self) -> None:
        self.conn: Any = None
        self.reason = ""
        self.answers = 0

    def open(self, conn: Any) -> None:
        self.answers += 1
        self.conn = conn

    def refused(self, reason: str) -> None:
        self.answers += 1
        self.reason = reason


@contextlib.asynccontextmanager
async def connector_to(address: str, **more: Any) -> AsyncIterator[Any]:
    reactor = Reactor(asyncio.get_running_loop())
    connector = Connector(reactor, Endpoint(address), random.Random(1), lambda: None, **more)
    try:
        yield connector
    finally:
        connector.abort()
        await reactor.close()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


async def nowhere() -> str:
    """An address that refuses."""
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return f"127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("[::1]:80", ("::1", 80)),
        ("dns:host.example:80", ("host.example", 80)),
        ("unix:/run/x.sock", "/run/x.sock"),
    ],
)
def test_addresses(address: str, expected: object) -> None:
    assert split_address(address) == expected


async def test_it_dials_in_the_background_and_gives_what_it_has() -> None:
    async with in_process() as mesh, connector_to(mesh.target) as connector:
        news: list[bool] = []
        connector.begin(lambda: news.append(connector._endpoint.reachable))
        await until(lambda: connector.conn)
        attempt = Try()
        connector.wait(attempt)
        assert (attempt.answers, attempt.conn, connector.connections) == (1, connector.conn, 1)
        assert news == []


async def test_attempts_that_wait_are_served_in_order_once_the_peer_has_spoken() -> None:
    async with in_process() as mesh, connector_to(mesh.target) as connector:
        attempts = [Try() for _ in range(5)]
        for attempt in attempts:
            connector.wait(attempt)
        gone = attempts.pop(2)
        connector.leave(gone)
        connector.leave(gone)
        await until(lambda: all([attempt.conn for attempt in attempts]))
        assert (gone.answers, {attempt.answers for attempt in attempts}) == (0, {1})


async def test_a_refused_connection_refuses_who_waits_and_makes_the_endpoint_unreachable() -> None:
    async with connector_to(await nowhere()) as connector:
        news: list[bool] = []
        connector.begin(lambda: news.append(connector._endpoint.reachable))
        attempt = Try()
        connector.wait(attempt)
        await until(lambda: attempt.answers)
        assert "refused" in attempt.reason
        assert (attempt.answers, news, connector.last_error) == (1, [False], attempt.reason)
        soon = Try()
        connector.wait(soon)
        assert (soon.answers, soon.reason) == (1, attempt.reason)


@pytest.mark.parametrize("waits", ["for a connection", "in the queue"])
async def test_a_call_cuts_a_long_backoff_short(waits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "connect_delay_s", lambda failures, rng: 1_000.0)
    monkeypatch.setattr(upstream, "CALL_DRIVEN_DIAL_S", 0.0)
    async with in_process() as mesh, connector_to(await nowhere()) as connector:
        connector.begin(lambda: None)
        await until(lambda: connector.last_error)
        connector._endpoint.address = mesh.target  # somebody listens there now
        if waits == "in the queue":
            connector.hurry()
            connector.hurry()
        else:
            connector.wait(Try())
        await until(lambda: connector.conn)
        assert connector._endpoint.reachable


async def test_a_silent_peer_costs_an_attempt_the_failfast_time_only() -> None:
    done = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await done.wait()
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with connector_to(address, failfast_s=0.05) as connector:
            attempt = Try()
            connector.wait(attempt)
            await until(lambda: attempt.answers)
            assert attempt.reason == "no connection within 50 ms"
        done.set()


async def test_waiting_attempts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "MAX_WAITING", 3)
    async with in_process() as mesh, connector_to(mesh.target) as connector:
        attempts = [Try() for _ in range(4)]
        for attempt in attempts:
            connector.wait(attempt)
        assert [attempt.answers for attempt in attempts] == [0, 0, 0, 1]
        assert "3 calls already wait" in attempts[3].reason
        await until(lambda: all([attempt.answers for attempt in attempts]))


async def test_a_lost_connection_is_replaced() -> None:
    async with in_process() as mesh, connector_to(mesh.target) as connector:
        connector.begin(lambda: None)
        await until(lambda: connector.conn)
        first = connector.conn
        for shell in list(connector._shells):
            shell.transport.abort()
        await until(lambda: connector.conn not in (None, first))
        assert connector.connections == 1


async def test_a_peer_that_drains_is_replaced() -> None:
    async with in_process() as mesh, connector_to(mesh.target) as connector:
        connector.begin(lambda: None)
        await until(lambda: connector.conn)
        first = connector.conn
        mesh.listener.drain()
        await until(lambda: connector.conn not in (None, first))


async def test_a_connector_that_leaves_refuses_who_waits_and_whoever_comes() -> None:
    async with in_process() as mesh, connector_to(mesh.target) as connector:
        early, late = Try(), Try()
        connector.wait(early)
        connector.drain()
        connector.wait(late)
        assert early.reason == late.reason == "the endpoint is leaving"
        assert (early.answers, late.answers) == (1, 1)
        await until(lambda: connector._dialling is None or connector._dialling.done())
        assert connector.conn is None


async def test_a_connector_that_leaves_lets_its_streams_end() -> None:
    async with in_process() as mesh, connector_to(mesh.target) as connector:
        connector.begin(lambda: None)
        await until(lambda: connector.conn)
        conn = connector.conn
        stream = conn.open_stream(None)
        connector.drain()
        assert not conn.closed
        stream.reset(8)
        await until(lambda: conn.closed)


async def test_a_name_that_is_none_and_a_peer_without_http2_are_errors() -> None:
    reactor = Reactor(asyncio.get_running_loop())
    with pytest.raises(OSError):
        await dial(reactor, "no.such.name.invalid:1", None, "", lambda _: None)
    with pytest.raises(ValueError):
        await dial(reactor, "no port", None, "", lambda _: None)
    await reactor.close()
