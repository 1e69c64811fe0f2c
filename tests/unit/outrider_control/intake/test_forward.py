"""Forwarding to a collector that is there, away, slow or refusing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from outrider_control.intake import forward as module
from outrider_control.intake.forward import PATHS, Forward

Refusals = list[tuple[grpc.StatusCode, tuple[tuple[str, str], ...]]]


class Collector:
    """Takes bytes; refuses as long as it is told to."""

    def __init__(self, refusals: Refusals | None = None, port: int = 0):
        self.requests: list[tuple[str, bytes]] = []
        self.metadata: list[dict[str, Any]] = []
        self.refusals = refusals or []
        self.gate = asyncio.Event()
        self.gate.set()
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        for path in PATHS.values():
            _, service, method = path.split("/")
            handler = grpc.unary_unary_rpc_method_handler(self._taker(path))
            self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        self.port = self.server.add_insecure_port(f"127.0.0.1:{port}")

    def _taker(self, path: str) -> Callable[..., Any]:
        async def take(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            await self.gate.wait()
            if self.refusals:
                code, trailers = self.refusals.pop(0)
                await context.abort(code, "not now", trailers)
            self.metadata.append(dict(context.invocation_metadata() or ()))
            self.requests.append((path, request))
            return b""

        return take

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Collector]:
        await self.server.start()
        yield self
        self.gate.set()
        await self.server.stop(0)


def forwarding(port: int, **more: str) -> Forward:
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}", **more}
    found, notes = Forward.from_environment(environ, (), random.Random(1))
    assert found is not None
    assert not notes
    found.start()
    return found


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not done():
            await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BACKOFF_S", (0.01, 0.05))


async def test_bytes_go_on_as_they_came():
    async with Collector().open() as collector:
        forward = forwarding(collector.port, OTEL_EXPORTER_OTLP_HEADERS="api-key=secret")
        forward.traces(b"\xff any bytes")
        forward.metrics(b"others")
        await forward.close()
        assert sorted(collector.requests) == sorted(
            [(PATHS["traces"], b"\xff any bytes"), (PATHS["metrics"], b"others")]
        )
        assert all(metadata["api-key"] == "secret" for metadata in collector.metadata)
        assert (forward.counts["traces_sent"], forward.counts["metrics_sent"]) == (1, 1)
        assert forward.to == f"127.0.0.1:{collector.port}"
        assert "secret" not in forward.to


async def test_nothing_without_a_collector():
    assert Forward.from_environment({}, (), random.Random(1)) == (None, ())


async def test_a_collector_that_comes_back_gets_everything_in_order():
    async with Collector([(grpc.StatusCode.UNAVAILABLE, ())] * 3).open() as collector:
        forward = forwarding(collector.port)
        for number in range(5):
            forward.traces(b"%d" % number)
        await until(lambda: forward.counts["traces_sent"] == 5)
        assert [request for _, request in collector.requests] == [b"0", b"1", b"2", b"3", b"4"]
        assert forward.counts["traces_retries"] == 3
        assert forward.warnings == []
        await forward.close()


async def test_pushback_is_waited_for():
    pushback = (("grpc-retry-pushback-ms", "300"),)
    async with Collector([(grpc.StatusCode.RESOURCE_EXHAUSTED, pushback)]).open() as collector:
        forward = forwarding(collector.port)
        begin = asyncio.get_running_loop().time()
        forward.traces(b"x")
        await until(lambda: forward.counts["traces_sent"] == 1)
        assert asyncio.get_running_loop().time() - begin >= 0.3
        await forward.close()


async def test_what_is_refused_for_good_is_dropped_and_counted():
    async with Collector([(grpc.StatusCode.INVALID_ARGUMENT, ())]).open() as collector:
        forward = forwarding(collector.port)
        forward.traces(b"bad")
        forward.traces(b"good")
        await until(lambda: forward.counts["traces_sent"] == 1)
        assert forward.counts["traces_dropped_refused"] == 1
        assert [request for _, request in collector.requests] == [b"good"]
        await forward.close()


async def test_a_full_queue_drops_with_a_count_and_never_waits():
    async with Collector().open() as collector:
        collector.gate.clear()
        environ = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"http://127.0.0.1:{collector.port}"}
        found, _ = Forward.from_environment(environ, (), random.Random(1))
        assert found is not None
        forward = Forward({"traces": found._queues["traces"].to}, random.Random(1), max_bytes=1_000)
        forward.start()
        for _ in range(30):
            forward.traces(bytes(100))
        forward.metrics(b"nobody asked for them")
        assert forward.counts["traces_dropped_full"] == 20
        collector.gate.set()
        await until(lambda: forward.counts["traces_sent"] == 10)
        await forward.close()


async def test_what_is_tried_for_too_long_is_dropped(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "TRIES_S", 0.0)
    async with Collector([(grpc.StatusCode.UNAVAILABLE, ())]).open() as collector:
        forward = forwarding(collector.port)
        forward.traces(b"old")
        forward.traces(b"new")
        await until(lambda: forward.counts["traces_sent"] == 1)
        assert forward.counts["traces_dropped_late"] == 1
        await forward.close()


async def test_a_collector_that_is_down_shows_and_does_not_hold_up_the_end():
    gone = Collector()
    async with gone.open():
        pass
    forward = forwarding(gone.port)
    forward.traces(b"x")
    await until(lambda: bool(forward.warnings))
    assert f"127.0.0.1:{gone.port}" in forward.warnings[0]
    assert "check the collector" in forward.warnings[0]
    await forward.close(timeout_s=0.05)
    assert forward.counts["traces_dropped_late"] == 1
