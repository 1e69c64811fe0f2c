"""What a sidecar gives up while calls wait for its agent, as the agent, the caller, the span and the metrics see it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from outrider.v1 import agent_pb2
from tests.grpc_peer import NATIVE
from tests.sidecars import Calls, Mesh, Peer, Sidecar, agent, channel_to, eventually, new_key, trailers

SETTINGS = {"enabled": True, "enter": 0.01, "leave": 0.005, "enter_ms": 0, "leave_ms": 100, "output_tokens": 64}
ONE_AT_A_TIME = {"limits": {"max_in_flight": 1}, "queue": {"max_waiting": 100}}
CACHED = {"cache_enabled": True, "cache_methods": ["/test.Agent/Other"], "cache_ttl": 1, "cache_stale_ratio": 0.0}


@pytest.fixture(scope="module")
def collector(mesh: Mesh) -> Peer:
    return mesh.peer("collector")


@pytest.fixture(scope="module")
def sidecar(mesh: Mesh, peer: Peer, collector: Peer) -> Sidecar:
    thins = {**SETTINGS, "steps": ["trim_context", "cap_output"]}
    serves = {**SETTINGS, "steps": ["serve_stale"]}
    agents = [
        agent("thin", peer, degradation=thins, **ONE_AT_A_TIME),
        agent("late", peer, degradation=serves, optimization=CACHED, **ONE_AT_A_TIME),
    ]
    config = {"default_agent": "thin", "agents": agents, "telemetry": {"otlp": collector.address}}
    return mesh.sidecar(config, "degrading", OTEL_BSP_SCHEDULE_DELAY="50")


@pytest.fixture
def calls(sidecar: Sidecar) -> Iterator[Calls]:
    with channel_to(sidecar.target) as channel:
        yield Calls(channel)
    sidecar.settled()


@contextlib.contextmanager
def pressed(calls: Calls, sidecar: Sidecar, peer: Peer, agent_id: str, steps: int) -> Iterator[None]:
    """While one call is held and others wait for it, all steps are taken; afterwards none is."""
    key, to = new_key(), (("x-agent-id", agent_id),)
    started = [calls.start("Unary", b"x", key=key, hold=True, metadata=to) for _ in range(6)]

    def level() -> float:
        return sidecar.metric("outrider_degradation_level", agent=agent_id)

    eventually(lambda: level() == steps, "every step is taken")
    try:
        yield
    finally:
        peer.control("release", key=key)
    assert [call.result() for call in started] == [b"x"] * 6
    eventually(lambda: level() == 0, "every step is taken back")


def attributes_of(collector: Peer, call: Any) -> dict[str, Any]:
    """Of the span of an ended call, once it is at the collector."""
    wanted = trailers(call)["x-outrider-call-id"]

    def found() -> list[Any]:
        request = ExportTraceServiceRequest.FromString(collector.exported())
        spans = [span for one in request.resource_spans for scope in one.scope_spans for span in scope.spans]
        return [span for span in spans if span.span_id.hex() == wanted]

    (span,) = eventually(found, f"span {wanted} is exported")
    values: dict[str, Any] = {}
    for one in span.attributes:
        kind = one.value.WhichOneof("value")
        value = getattr(one.value, kind)
        values[one.key] = [item.string_value for item in value.values] if kind == "array_value" else value
    return values


def question() -> agent_pb2.InvokeRequest:
    asked = agent_pb2.InvokeRequest(messages=[agent_pb2.Message(parts=[agent_pb2.Part(text="what is due?")])])
    for name, relevance in (("little", 0.1), ("much", 0.9), ("unrated", None)):
        asked.context.add(block_id=name, parts=[agent_pb2.Part(text=name * 1_000)], relevance=relevance)
    asked.generation.max_output_tokens = 4_000
    return asked


def test_requests_are_thinned_while_calls_wait_and_whole_again_afterwards(
    calls: Calls, sidecar: Sidecar, peer: Peer, collector: Peer
) -> None:
    asked = question()
    key = new_key()
    with pressed(calls, sidecar, peer, "thin", 2):
        metadata = (("x-agent-id", "thin"), ("x-priority", "critical"))
        thinned = calls.start(NATIVE, asked.SerializeToString(), key=key, metadata=metadata)
        eventually(lambda: sidecar.metric("outrider_queue_waiting", lane="critical") == 1, "it waits")
    wanted = question()
    del wanted.context[0]
    wanted.generation.max_output_tokens = 64
    assert agent_pb2.InvokeRequest.FromString(thinned.result()) == wanted  # the peer gives back what it has got
    has = attributes_of(collector, thinned)
    assert has["outrider.degraded"] == ["trim_context", "cap_output"]
    assert has["outrider.lane"] == "critical"
    assert has["outrider.queue_us"] > 0
    for step in ("trim_context", "cap_output"):
        assert sidecar.metric("outrider_degraded_total", agent="thin", step=step) == 1
    assert sidecar.metric("outrider_queue_seconds_count", agent="thin", lane="critical") == 1
    whole = calls.unary(asked.SerializeToString(), NATIVE, metadata=(("x-agent-id", "thin"),))
    assert whole.result() == asked.SerializeToString()
    assert "outrider.degraded" not in attributes_of(collector, whole)


def test_old_replies_are_served_while_calls_wait(calls: Calls, sidecar: Sidecar, peer: Peer, collector: Peer) -> None:
    to, key = (("x-agent-id", "late"),), new_key()

    def ask() -> Any:
        return calls.unary(b"ask", "Other", key=key, metadata=to, serial=True)

    first = ask().result()
    with pressed(calls, sidecar, peer, "late", 1):
        # An answer is fresh for a second; from then on it is served late, without asking the agent.
        late = eventually(lambda: call if trailers(call := ask())["x-outrider-cache"] != "hit" else None, "it is old")
        assert trailers(late)["x-outrider-cache"] == "stale"
        assert late.result() == first
    assert attributes_of(collector, late)["outrider.degraded"] == ["serve_stale"]
    assert len(peer.records(key)) == 1
    again = ask()
    assert trailers(again)["x-outrider-cache"] == "miss"
    assert again.result() != first
