"""Active health checks against real health services; the clock is the test's."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from outrider.policy import Agent, EndpointPolicy, HealthCheck, Policy
from outrider_sidecar.core.endpoint import Endpoint
from outrider_sidecar.edge import checks as edge
from outrider_sidecar.edge.checks import Checks, request
from outrider_sidecar.edge.rpc import Rpc
from tests.in_process import InProcess, in_process

UP, DOWN = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
EVERY_S = 5.0
CHECKED = HealthCheck(enabled=True, interval_ms=5_000, timeout_ms=20_000, unhealthy_after=2, healthy_after=2)


class Servicer(health.aio.HealthServicer):  # type: ignore[attr-defined]  # its stubs lack it
    """Counts what it is asked, and hangs on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.hangs = False

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append(request.service)
        if self.hangs:
            await asyncio.Event().wait()
        return await super().Check(request, context)


@contextlib.asynccontextmanager
async def endpoint_with(servicer: Servicer | None) -> AsyncIterator[str]:
    """The address of a server with a health service, or without one."""
    server = grpc.aio.server()
    if servicer is not None:
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


class Bench:
    """A sidecar under a policy, and its checks, moved on by hand."""

    def __init__(self, mesh: InProcess, checks: Checks):
        self.mesh = mesh
        self.checks = checks
        self.rpcs: list[Rpc] = []
        self.at = 1_000.0

    async def round(self, forward_s: float = EVERY_S * 1.1) -> None:
        """Time passes; the checks that are due are made."""
        self.at += forward_s
        self.checks.sweep(self.at)
        async with asyncio.timeout(30):
            while self.checks._tasks:
                await asyncio.sleep(0.001)

    def apply(self, *addresses: str, policy: HealthCheck = CHECKED) -> None:
        agent = Agent("a", tuple(EndpointPolicy(address) for address in addresses), health_check=policy)
        self.mesh.apply(Policy({"a": agent}))

    @property
    def pool(self) -> Any:
        return self.mesh.runtime.agents["a"].pool

    def serving(self) -> list[bool]:
        return [endpoint.serving for endpoint in self.pool.endpoints.values()]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    benches: list[Bench] = []

    def now() -> float:
        return benches[0].at if benches else 1_000.0

    async with in_process(now=now) as mesh:

        def rpc_for(endpoint: Endpoint, agent: Agent) -> Rpc:
            rpc = Rpc(mesh.reactor, endpoint.address, server_name=agent.server_name)
            benches[0].rpcs.append(rpc)
            return rpc

        checks = Checks(mesh.runtime, rpc_for)
        benches.append(Bench(mesh, checks))
        yield benches[0]
        await checks.close()


async def test_an_endpoint_goes_and_returns_after_as_many_results_as_the_policy_says(bench: Bench):
    servicer = Servicer()
    async with endpoint_with(servicer) as one, endpoint_with(Servicer()) as other:
        bench.apply(one, other, policy=replace(CHECKED, service="x"))
        await servicer.set("x", UP)
        await bench.round()  # the first look sets when
        await bench.round()
        assert bench.serving() == [True, True]
        await servicer.set("x", DOWN)
        seen = []
        for _ in range(3):
            await bench.round()
            seen.append(bench.serving()[0])
        assert seen == [True, False, False]
        await servicer.set("x", UP)
        seen = []
        for _ in range(3):
            await bench.round()
            seen.append(bench.serving()[0])
        assert seen == [False, True, True]
        assert set(servicer.asked) == {"x"}
        assert len(servicer.asked) == 7
        # The other knows no service of that name: NOT_FOUND is a failure.
        assert bench.serving()[1] is False
        assert len(bench.rpcs) == 2  # one connection an endpoint, however many checks


async def test_the_balancer_hears_of_it(bench: Bench):
    servicer = Servicer()
    async with endpoint_with(servicer) as one, endpoint_with(None) as other:
        bench.apply(one, other)
        while not all(endpoint.connector.conn for endpoint in bench.pool.endpoints.values()):
            await asyncio.sleep(0.001)
        await servicer.set("", DOWN)
        picks = set()
        for _ in range(3):
            await bench.round()
        for _ in range(50):
            picks.add(bench.pool.balancer.pick(bench.at, b"", []).address)
        assert picks == {other}  # which has no health service, and counts as healthy


async def test_nobody_there_and_no_answer_in_time_are_failures(bench: Bench):
    servicer = Servicer()
    servicer.hangs = True
    async with endpoint_with(servicer) as silent:
        bench.apply(silent, "127.0.0.1:1", policy=replace(CHECKED, timeout_ms=50))
        for _ in range(3):
            await bench.round()
        assert servicer.asked == ["", ""]
        assert bench.serving() == [False, False]


async def test_checks_that_are_turned_off_leave_the_endpoint_serving(bench: Bench):
    servicer = Servicer()
    async with endpoint_with(servicer) as one:
        await servicer.set("", DOWN)
        bench.apply(one)
        for _ in range(3):
            await bench.round()
        assert bench.serving() == [False]
        assert len(bench.mesh.reactor.shells) == 2
        bench.apply(one, policy=HealthCheck())
        await bench.round()
        assert bench.serving() == [True]
        while len(bench.mesh.reactor.shells) != 1:  # only the calls' connection is left
            await asyncio.sleep(0.001)
        asked = len(servicer.asked)
        await bench.round()
        assert len(servicer.asked) == asked


async def test_an_endpoint_that_leaves_is_asked_no_more(bench: Bench):
    servicer = Servicer()
    async with endpoint_with(servicer) as one, endpoint_with(Servicer()) as other:
        bench.apply(one, other)
        for _ in range(2):
            await bench.round()
        asked = len(servicer.asked)
        assert asked == 1
        bench.apply(other)
        for _ in range(2):
            await bench.round()
        assert len(servicer.asked) == asked
        assert len(bench.checks._rpcs) == 1
        bench.mesh.apply(Policy())
        await bench.round()
        assert not bench.checks._rpcs
        assert not bench.checks._checkers


async def test_checks_under_way_are_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench.checks, "_room", asyncio.Semaphore(2))
    servicers = [Servicer() for _ in range(5)]
    async with contextlib.AsyncExitStack() as stack:
        addresses = []
        for servicer in servicers:
            servicer.hangs = True
            addresses.append(await stack.enter_async_context(endpoint_with(servicer)))
        bench.apply(*addresses, policy=replace(CHECKED, timeout_ms=100))
        bench.checks.sweep(bench.at)
        bench.at += EVERY_S
        bench.checks.sweep(bench.at)
        while sum(len(servicer.asked) for servicer in servicers) < 2:
            await asyncio.sleep(0.001)
        assert len(bench.checks._rpcs) == 2
        await bench.round(0.0)
        assert [len(servicer.asked) for servicer in servicers] == [1] * 5


async def test_what_breaks_a_check_is_a_failed_check(bench: Bench, caplog: pytest.LogCaptureFixture):
    def broken(endpoint: Endpoint, agent: Agent) -> Rpc:
        raise RuntimeError("no context")

    bench.checks._rpc_for = broken
    bench.apply("127.0.0.1:1")
    for _ in range(3):
        await bench.round()
    assert bench.serving() == [False]
    assert "no context" in caplog.text


async def test_it_runs_by_itself_and_closing_changes_nothing(bench: Bench, caplog: pytest.LogCaptureFixture):
    servicer = Servicer()
    servicer.hangs = True
    async with endpoint_with(servicer) as one:
        bench.apply(one, policy=replace(CHECKED, unhealthy_after=1, interval_ms=1_000))
        bench.checks.start()
        async with asyncio.timeout(20):
            while not servicer.asked:
                bench.at += 0.02
                await asyncio.sleep(0.01)
        with caplog.at_level(logging.INFO):
            await bench.checks.close()
        assert bench.serving() == [True]
        assert caplog.text == ""


def test_the_request_is_a_health_check_request():
    for name in ("", "a", "x" * 300, "süd"):
        assert request(name) == health_pb2.HealthCheckRequest(service=name).SerializeToString()
    assert edge.PATH == "/grpc.health.v1.Health/Check"
