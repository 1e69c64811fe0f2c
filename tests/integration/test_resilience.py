"""Failures of endpoints that a caller should not see: retries, hedges, breakers, limits, ejection, health."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from tests.sidecars import (
    Calls,
    Mesh,
    Peer,
    Sidecar,
    agent,
    channel_to,
    eventually,
    health_of,
    new_key,
    read_all,
    standalone,
)

UNAVAILABLE, INTERNAL = 14, 13
OFF = {"enabled": False}
PUSHBACK = "grpc-retry-pushback-ms"


@pytest.fixture(scope="module")
def peer(mesh: Mesh) -> Peer:
    return mesh.peer("one")


@pytest.fixture(scope="module")
def other(mesh: Mesh) -> Peer:
    return mesh.peer("two")


@pytest.fixture(scope="module")
def sidecar(mesh: Mesh, peer: Peer, other: Peer) -> Sidecar:
    retry = {"backoff_ms": 1, "budget_min_per_s": 1000.0}
    methods = ["/test.Agent/Unary"]
    agents = [
        agent("plain", peer, outlier=OFF, retry=retry),
        agent("five", peer, outlier=OFF, retry={**retry, "max_attempts": 5, "statuses": ["UNAVAILABLE", "INTERNAL"]}),
        agent("poor", peer, outlier=OFF, retry={**retry, "budget_min_per_s": 0.0, "budget_ratio": 0.0}),
        agent("per-try", peer, outlier=OFF, retry={**retry, "per_try_timeout_ms": 100}),
        agent("never", peer, outlier=OFF, retry={"max_attempts": 1}),
        agent("small", peer, outlier=OFF, limits={"max_in_flight": 2}, queue={"max_waiting": 0}),
        agent(
            "hedged", peer, other, outlier=OFF, hedge={"enabled": True, "delay_ms": 20, "idempotent_methods": methods}
        ),
        agent("ceiling", peer, max_timeout_ms=250),
        agent("default-timeout", peer, timeout_ms=250),
        agent(
            "breaker",
            peer,
            outlier=OFF,
            retry={"max_attempts": 1},
            balancing={"panic_threshold": 0.0},
            breaker={"enabled": True, "consecutive_failures": 3, "min_open_ms": 300, "max_open_ms": 300, "jitter": 0.0},
        ),
        agent(
            "outlier",
            peer,
            other,
            retry={"max_attempts": 1},
            balancing={"strategy": "round_robin"},
            outlier={"consecutive_failures": 3, "base_ejection_ms": 1_000, "interval_ms": 200},
        ),
    ]
    return mesh.sidecar({"default_agent": "plain", "agents": agents})


@pytest.fixture
def channel(sidecar: Sidecar) -> Iterator[grpc.Channel]:
    with channel_to(sidecar.target) as opened:
        yield opened
    sidecar.settled()


@pytest.fixture
def calm(peer: Peer, other: Peer) -> Iterator[None]:
    """Endpoints behave again after the test."""
    yield
    peer.control("mode")
    other.control("mode")


def to(channel: grpc.Channel, agent_id: str) -> Calls:
    return Calls(channel, [("x-agent-id", agent_id)])


def test_unavailable_is_tried_again_and_says_how_often(channel: grpc.Channel, peer: Peer) -> None:
    key = new_key()
    call = to(channel, "plain").unary(b"x", key=key, fail_first=2, status=UNAVAILABLE)
    assert call.result() == b"x"
    tries = [dict(record["metadata"]).get("grpc-previous-rpc-attempts") for record in peer.records(key)]
    assert tries == [None, "1", "2"]


def test_attempts_are_bounded(channel: grpc.Channel, peer: Peer) -> None:
    key = new_key()
    call = to(channel, "plain").unary(key=key, status=UNAVAILABLE, message="still down")
    assert (call.code(), call.details()) == (grpc.StatusCode.UNAVAILABLE, "still down")
    assert len(peer.records(key)) == 3


def test_only_the_named_statuses_are_tried_again(channel: grpc.Channel, peer: Peer) -> None:
    for agent_id, status, tries in (("plain", INTERNAL, 1), ("five", INTERNAL, 5), ("five", 3, 1)):
        key = new_key()
        assert to(channel, agent_id).unary(key=key, status=status).code().value[0] == status
        assert len(peer.records(key)) == tries


def test_nothing_is_tried_again_once_the_head_is_out(channel: grpc.Channel, peer: Peer) -> None:
    key = new_key()
    call = to(channel, "plain").unary(key=key, head=[["x-early", "1"]], status=UNAVAILABLE)
    assert call.code() is grpc.StatusCode.UNAVAILABLE
    messages, call = read_all(to(channel, "plain").start("Download", key=key + "s", sizes=[3], status=UNAVAILABLE))
    assert (messages, call.code()) == ([bytes(3)], grpc.StatusCode.UNAVAILABLE)
    assert (len(peer.records(key)), len(peer.records(key + "s"))) == (1, 1)


@pytest.mark.parametrize(("pushback", "tries"), [("-1", 1), ("soon", 1), ("1", 3)])
def test_pushback(channel: grpc.Channel, peer: Peer, pushback: str, tries: int) -> None:
    """A negative value or one that is no number means never (gRFC A6)."""
    key = new_key()
    to(channel, "plain").unary(key=key, status=UNAVAILABLE, tail=[[PUSHBACK, pushback]])
    assert len(peer.records(key)) == tries


def test_an_empty_budget_means_no_retry(channel: grpc.Channel, peer: Peer) -> None:
    key = new_key()
    assert to(channel, "poor").unary(key=key, status=UNAVAILABLE).code() is grpc.StatusCode.UNAVAILABLE
    assert len(peer.records(key)) == 1


def test_a_request_too_large_to_keep_is_not_tried_again(channel: grpc.Channel, peer: Peer) -> None:
    key = new_key()
    call = to(channel, "plain").unary(bytes(2_000_000), key=key, fail_first=1, status=UNAVAILABLE)
    assert call.code() is grpc.StatusCode.UNAVAILABLE
    assert len(peer.records(key)) == 1


def test_a_request_of_many_frames_is_replayed_whole(channel: grpc.Channel, peer: Peer) -> None:
    request = bytes(i % 253 for i in range(150_000))
    call = to(channel, "plain").unary(request, key=new_key(), fail_first=1, status=UNAVAILABLE)
    assert call.result() == request


def test_requests_of_a_stream_are_replayed(channel: grpc.Channel, peer: Peer) -> None:
    key = new_key()
    call = to(channel, "plain").start("Upload", iter([bytes(1_000)] * 50), key=key, fail_first=1, status=UNAVAILABLE)
    assert call.result() == b"50000"
    assert len(peer.records(key)) == 2


def test_a_try_has_its_own_time(channel: grpc.Channel, peer: Peer) -> None:
    """The first try hangs; the per-try timeout ends it and the second, which is answered, is the reply."""
    key = new_key()
    call = to(channel, "per-try").start("Unary", b"x", key=key, hold=True)
    eventually(lambda: len(peer.records(key)) == 2, "a second try is made")
    peer.control("release", key=key)
    assert call.result() == b"x"
    assert peer.records(key)[0]["outcome"] == "cancelled"


def test_retries_end_with_the_deadline(channel: grpc.Channel, peer: Peer) -> None:
    key = new_key()
    call = to(channel, "plain").unary(key=key, status=UNAVAILABLE, tail=[[PUSHBACK, "60000"]], timeout_s=2)
    assert call.code() is grpc.StatusCode.UNAVAILABLE
    assert len(peer.records(key)) == 1


@pytest.mark.usefixtures("calm")
def test_a_hedge_answers_for_a_silent_endpoint(channel: grpc.Channel, peer: Peer, other: Peer) -> None:
    peer.control("mode", hold=True)
    calls = to(channel, "hedged")
    keys = [new_key() for _ in range(8)]
    for key in keys:
        assert calls.unary(b"x", key=key).result() == b"x"
    held = [key for key in keys if peer.records(key)]
    assert held, "some calls went to the silent endpoint first"
    for key in held:
        peer.wait_outcome(key, "cancelled")


@pytest.mark.usefixtures("calm")
def test_only_idempotent_methods_are_hedged(channel: grpc.Channel, peer: Peer, other: Peer) -> None:
    peer.control("mode", hold=True)
    other.control("mode", hold=True)
    unary, not_named = new_key(), new_key()
    calls = to(channel, "hedged")
    first = calls.start("Unary", key=unary)
    second = calls.start("Other", key=not_named)
    eventually(lambda: peer.records(unary) and other.records(unary), "the idempotent call is hedged")
    assert len(peer.records(not_named)) + len(other.records(not_named)) <= 1
    first.cancel()
    second.cancel()
    for one in (peer, other):
        one.wait_outcome(unary, "cancelled")


def test_calls_past_the_limit_are_refused_and_places_come_back(channel: grpc.Channel, peer: Peer) -> None:
    calls, key = to(channel, "small"), new_key()
    held = [calls.start("Unary", b"x", key=key, hold=True) for _ in range(2)]
    eventually(lambda: len(peer.records(key)) == 2, "two calls are in flight")
    refused = calls.unary()
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "small" in refused.details()
    assert "max_in_flight" in refused.details()
    held[0].cancel()
    peer.control("release", key=key)
    assert held[1].result() == b"x"
    eventually(lambda: calls.unary(b"y").code() is grpc.StatusCode.OK, "a place is free again")


@pytest.mark.parametrize("agent_id", ["ceiling", "default-timeout"])
def test_timeouts_of_the_policy(channel: grpc.Channel, peer: Peer, agent_id: str) -> None:
    key = new_key()
    timeout_s = 3_000 if agent_id == "ceiling" else None
    call: Any = channel.unary_unary("/test.Agent/Unary").future(
        b"", metadata=(("x-agent-id", agent_id), ("x-key", key), ("x-do", '{"hold": true}')), timeout=timeout_s
    )
    call.exception()
    assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert peer.record(key)["left_s"] <= 0.25
    peer.wait_outcome(key, "cancelled")


def test_a_breaker_opens_and_a_probe_closes_it(channel: grpc.Channel, sidecar: Sidecar, peer: Peer) -> None:
    calls, key = to(channel, "breaker"), new_key()
    for _ in range(3):
        calls.unary(key=key, status=UNAVAILABLE)
    refused = calls.unary(key=key)
    assert refused.code() is grpc.StatusCode.UNAVAILABLE
    assert "breaker" in refused.details()
    assert len(peer.records(key)) == 3, "an open circuit sends nothing"
    eventually(lambda: calls.unary(b"x").code() is grpc.StatusCode.OK, "a probe closes the circuit")
    assert set(sidecar.states("breaker").values()) == {"ready"}


@pytest.mark.usefixtures("calm")
def test_a_failing_endpoint_is_ejected_and_returns(
    channel: grpc.Channel, sidecar: Sidecar, peer: Peer, other: Peer
) -> None:
    calls = to(channel, "outlier")
    peer.control("mode", status=UNAVAILABLE)
    eventually(lambda: calls.unary() and sidecar.states("outlier")[peer.address] == "ejected", "it is ejected")
    assert sidecar.states("outlier")[other.address] == "ready"
    assert calls.unary(b"x").result() == b"x"
    peer.control("mode")
    eventually(lambda: sidecar.states("outlier")[peer.address] == "ready", "it returns")


@pytest.mark.usefixtures("calm")
def test_the_last_endpoint_is_never_ejected(channel: grpc.Channel, sidecar: Sidecar, peer: Peer, other: Peer) -> None:
    calls = to(channel, "outlier")
    for one in (peer, other):
        one.control("mode", status=UNAVAILABLE)
    for _ in range(30):
        calls.unary()
    assert "ready" in sidecar.states("outlier").values()
    peer.control("mode")
    other.control("mode")
    eventually(lambda: set(sidecar.states("outlier").values()) == {"ready"}, "all return")


@pytest.mark.usefixtures("calm")
def test_active_health_checks(mesh: Mesh, peer: Peer, other: Peer) -> None:
    checks = {"enabled": True, "interval_ms": 100, "timeout_ms": 100, "unhealthy_after": 2, "healthy_after": 2}
    balancing = {"strategy": "round_robin", "panic_threshold": 0.4, "slow_start_ms": 0}
    one = agent("checked", peer, other, health_check=checks, balancing=balancing)
    sidecar = mesh.sidecar({"default_agent": "checked", "agents": [one]}, "checks")
    with channel_to(sidecar.target) as channel:
        calls = Calls(channel)
        peer.control("health", serving=False)
        eventually(lambda: sidecar.states("checked")[peer.address] == "unhealthy", "NOT_SERVING is seen")
        assert {calls.unary(serial=True).result()[:3] for _ in range(10)} == {b"two"}
        other.control("health", serving=False)
        eventually(lambda: set(sidecar.states("checked").values()) == {"unhealthy"}, "both are unhealthy")
        assert sidecar.agent("checked")["panic"]
        assert {calls.unary(serial=True).result()[:3] for _ in range(10)} == {b"one", b"two"}, "panic: all are used"
        for peer_ in (peer, other):
            peer_.control("health", serving=True)
        eventually(lambda: set(sidecar.states("checked").values()) == {"ready"}, "both return")
    sidecar.settled()


def test_the_sidecars_own_health_and_reflection(mesh: Mesh, peer: Peer) -> None:
    """Only where no agent is named; with one, the agent's own are asked."""
    sidecar = mesh.sidecar(standalone(peer), "own")
    with channel_to(sidecar.target) as channel:
        assert health_of(channel) == "SERVING"
        peer.control("health", serving=False)
        assert health_of(channel, metadata=[("x-agent-id", "solo")]) == "NOT_SERVING"
        assert health_of(channel) == "SERVING"
        peer.control("health", serving=True)
        with pytest.raises(grpc.RpcError, match="NOT_FOUND"):
            health_of(channel, "no.Such")
