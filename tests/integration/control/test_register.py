"""Instances that say where they are: by `outrider.registration`, by the ingress sidecar beside them; and agents that
have no sidecar at all, whose calls are told by their own OpenTelemetry SDK.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode

from outrider.registration import AsyncRegistration, Registration
from tests.controls import Control, holds, watching
from tests.sidecars import Calls, Mesh, Peer, Sidecar, agent, channel_to, code_of, eventually

FOR_LONG_MS = 3_600_000
TTL_MS = 1_000


@pytest.fixture(scope="module")
def control(mesh: Mesh) -> Control:
    return Control(mesh)


@pytest.fixture(scope="module")
def caller(mesh: Mesh, control: Control, peer: Peer) -> Sidecar:
    control.apply(agent("declared", peer))
    started = mesh.sidecar({"control": [control.target]}, "caller")
    eventually(lambda: holds(started, "declared"), "the policy reaches the sidecar")
    return started


@pytest.fixture(scope="module")
def two(mesh: Mesh) -> Peer:
    return mesh.peer("two")


def addresses(control: Control, agent_id: str) -> set[str]:
    return {one["address"] for one in control.json("endpoints", agent_id)["endpoints"]}


def knows(sidecar: Sidecar, agent_id: str, *wanted: str) -> bool:
    """Whether these are the endpoints a sidecar has of an agent."""
    return holds(sidecar, agent_id) and sidecar.states(agent_id).keys() == set(wanted)


def passes(time_ms: float, looks: Callable[[], Any] = lambda: None) -> None:
    """Real time passes, as leases of other processes count it; `looks` all the while."""
    until = time.monotonic() + time_ms / 1_000
    eventually(lambda: looks() or time.monotonic() > until, "time passes")


class Load:
    """Calls made one after the other, each of which must succeed."""

    def __init__(self, sidecar: Sidecar, agent_id: str):
        self._sidecar = sidecar
        self._agent_id = agent_id
        self._over = threading.Event()
        self.made = 0
        self.failed: list[grpc.StatusCode] = []

    def run(self) -> None:
        with channel_to(self._sidecar.target) as channel:
            calls = Calls(channel, [("x-agent-id", self._agent_id)])
            while not self._over.is_set():
                call = calls.unary(b"%d" % self.made)
                self.made += 1
                if code_of(call) is not grpc.StatusCode.OK:
                    self.failed.append(code_of(call))
                self._over.wait(0.002)

    def more(self, count: int = 20) -> None:
        wanted = self.made + count
        eventually(lambda: self.made >= wanted, f"{count} calls more are made")

    @contextmanager
    def going(self) -> Iterator[Load]:
        """Calls are made before, in and after the block."""
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(self.run)
            try:
                self.more()
                yield self
                self.more()
            finally:
                self._over.set()
            running.result()
        assert self.failed == []


@contextmanager
def in_a_loop(registration: AsyncRegistration) -> Iterator[None]:
    """Registered from an event loop, which another thread runs."""
    with asyncio.Runner() as runner, ThreadPoolExecutor(1) as pool:
        ended = asyncio.Event()

        async def hold() -> None:
            async with registration:
                await ended.wait()

        holding = pool.submit(runner.run, hold())
        try:
            yield
        finally:
            runner.get_loop().call_soon_threadsafe(ended.set)
            holding.result()


def test_registered_endpoints_outlive_the_control_plane(mesh: Mesh, peer: Peer, two: Peer) -> None:
    """It is killed, is away for longer than a lease, and comes back: no endpoint goes, no call fails."""
    control = Control(mesh, "killed")
    control.apply({"agent_id": "leased"})
    caller = mesh.sidecar({"control": [control.target]}, "calls-killed")
    both = {peer.address, two.address}
    blocking = Registration(control.target, "leased", peer.address, {"zone": peer.name}, 8, ttl_ms=TTL_MS)
    waiting = AsyncRegistration(control.target, "leased", two.address, {"zone": two.name}, 8, ttl_ms=TTL_MS)
    with blocking, in_a_loop(waiting):
        eventually(lambda: knows(caller, "leased", *both), "the endpoints reach the sidecar")
        listed = control.json("endpoints", "leased")["endpoints"]
        assert {(one["address"], one["labels"]["zone"], one["capacity"]) for one in listed} == {
            (one.address, one.name, 8) for one in (peer, two)
        }
        seen: set[frozenset[str]] = set()
        with Load(caller, "leased").going() as load:
            control.kill()
            passes(1.5 * TTL_MS)
            control.start()
            eventually(lambda: watching(caller), "the sidecar is back on its watch")
            passes(2 * TTL_MS, lambda: seen.add(frozenset(caller.states("leased"))))
            load.more()
            assert addresses(control, "leased") == both
        assert seen == {frozenset(both)}, "they never vanish"
        assert blocking.registered
        assert waiting.registered
    eventually(lambda: knows(caller, "leased"), "who stops takes its endpoint away at once")
    assert addresses(control, "leased") == set()
    assert control.stop() == 0


def test_an_instance_that_dies_loses_its_lease(control: Control, caller: Sidecar, peer: Peer, two: Peer) -> None:
    control.apply({"agent_id": "mortal"})
    with Registration(control.target, "mortal", peer.address, ttl_ms=FOR_LONG_MS):
        gone = Registration(control.target, "mortal", two.address, ttl_ms=1_000)
        gone.start()
        eventually(lambda: knows(caller, "mortal", peer.address, two.address), "both reach the sidecar")
        with Load(caller, "mortal").going():
            gone._course.goodbyes = list  # type: ignore[method-assign]  # it dies without a word
            gone.stop()
            eventually(lambda: knows(caller, "mortal", peer.address), "what is not renewed goes")
        assert addresses(control, "mortal") == {peer.address}


def ingress(mesh: Mesh, control: Control, agent_id: str, peer: Peer, name: str) -> Sidecar:
    beside = {"listen": "127.0.0.1:0", "agent_id": agent_id, "target": peer.address, "labels": {"zone": name}}
    return mesh.sidecar({"control": [control.target], "ingress": beside}, name)


def test_ingress_sidecars_announce_their_agents_and_leave_without_a_failed_call(
    mesh: Mesh, control: Control, caller: Sidecar, peer: Peer, two: Peer
) -> None:
    control.apply({"agent_id": "beside"})
    stays = ingress(mesh, control, "beside", peer, "stays")
    leaves = ingress(mesh, control, "beside", two, "leaves")
    at = {one.name: f"127.0.0.1:{one.ports['ingress']}" for one in (stays, leaves)}
    eventually(lambda: knows(caller, "beside", *at.values()), "the announced addresses reach the others")
    listed = control.json("endpoints", "beside")["endpoints"]
    assert {(one["address"], one["labels"]["zone"]) for one in listed} == {(at[name], name) for name in at}
    loads = [Load(caller, "beside") for _ in range(2)]
    with loads[0].going(), loads[1].going():
        leaves.terminate()
        eventually(lambda: knows(caller, "beside", at["stays"]), "it withdraws before it goes")
        assert leaves.wait_exit() == 0
        for load in loads:
            load.more(50)
    made = sum(load.made for load in loads)
    assert made >= 100
    eventually(lambda: control.requests("beside") >= made, "every call is counted", 30.0)
    assert control.requests("beside") == made, "of two hops one counts"
    assert sum(len(one.records()) for one in (peer, two)) >= made
    again = ingress(mesh, control, "beside", two, "leaves")
    new = f"127.0.0.1:{again.ports['ingress']}"
    eventually(lambda: knows(caller, "beside", at["stays"], new), "a new one is announced")
    again.child.process.kill()
    eventually(lambda: knows(caller, "beside", at["stays"]), "what is gone without a word is taken away", 30.0)


def test_announced_endpoints_outlive_a_restart(mesh: Mesh, peer: Peer) -> None:
    control = Control(mesh, "restarted")
    control.apply({"agent_id": "beside"})
    caller = mesh.sidecar({"control": [control.target]}, "calls-restarted")
    beside = ingress(mesh, control, "beside", peer, "beside")
    at = f"127.0.0.1:{beside.ports['ingress']}"
    eventually(lambda: knows(caller, "beside", at), "the announced address reaches the other")
    with Load(caller, "beside").going() as load:
        for _ in range(2):
            control.kill()
            control.start()
            eventually(lambda: watching(caller) and watching(beside), "both are back")
            load.more()
            assert knows(caller, "beside", at)
    eventually(lambda: control.requests("beside") >= load.made, "every call is counted", 30.0)
    assert control.requests("beside") == load.made


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_an_agent_without_a_sidecar_counts_by_its_own_spans(control: Control, compression: grpc.Compression) -> None:
    agent_id = f"plain-{compression.name.lower()}"
    provider = TracerProvider(resource=Resource({"service.name": agent_id}), shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=control.target, insecure=True, compression=compression)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("an.app")
    usage = {"gen_ai.usage.input_tokens": 100, "gen_ai.usage.output_tokens": 10, "gen_ai.request.model": "simulated"}
    for number in range(300):
        attributes = {"rpc.method": "tax.v1.Tax/Ask", "note": "x" * 200}
        with tracer.start_as_current_span("Ask", kind=SpanKind.SERVER, attributes=attributes) as served:
            with tracer.start_as_current_span("chat", kind=SpanKind.CLIENT, attributes=usage):
                pass
            if number % 3 == 0:
                served.set_status(Status(StatusCode.ERROR, "broken"))
    provider.shutdown()
    found = next(one for one in control.json("overview")["agents"] if one["agent_id"] == agent_id)
    assert (found["requests"], found["errors"]) == (300, 100)
    assert found["success_rate"] == pytest.approx(2 / 3)
    assert (found["input_tokens"], found["output_tokens"]) == (30_000, 3_000)
    assert found["cost_usd"] == pytest.approx(30_000 * 3e-6 + 3_000 * 15e-6)
    shown = control.json("metrics", "--agent", agent_id, "--by", "method")
    assert [split["requests"] for split in shown["splits"] if split["requests"]] == [300]
