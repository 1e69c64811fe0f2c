"""Routing to agents, and picking among their endpoints: every strategy, subsets, load reports, sessions."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from outrider.policy import STRATEGIES
from tests.sidecars import Calls, Mesh, Peer, Sidecar, agent, channel_to, eventually, new_key

OFF = {"enabled": False}


@pytest.fixture(scope="module")
def peers(mesh: Mesh) -> dict[str, Peer]:
    return {name: mesh.peer(name) for name in ("a", "b", "c")}


@pytest.fixture(scope="module")
def sidecar(mesh: Mesh, peers: dict[str, Peer]) -> Sidecar:
    three = list(peers.values())
    labelled = [
        {"address": one.address, "labels": {"version": "v2" if one.name == "c" else "v1", "zone": one.name}}
        for one in three
    ]
    weighted = [{"address": one.address, "weight": weight} for one, weight in zip(three, (1, 2, 5), strict=True)]
    agents = [agent(strategy, *three, balancing={"strategy": strategy, "slow_start_ms": 0}) for strategy in STRATEGIES]
    agents += [
        agent("v1", *labelled, balancing={"strategy": "round_robin", "subset": {"version": "v1"}}),
        agent("v3", *labelled, balancing={"subset": {"version": "v3"}}),
        agent("weights", *weighted, balancing={"strategy": "weighted_round_robin", "slow_start_ms": 0}),
        agent("sessions", *three, balancing={"strategy": "ring_hash", "slow_start_ms": 0, "load_factor": 10}),
        agent("users", *three, balancing={"strategy": "ring_hash", "hash_on": "x-user-id", "slow_start_ms": 0}),
        agent("empty"),
    ]
    return mesh.sidecar({"default_agent": "round_robin", "agents": agents})


@pytest.fixture
def channel(sidecar: Sidecar) -> Iterator[grpc.Channel]:
    with channel_to(sidecar.target) as opened:
        yield opened
    sidecar.settled()


@pytest.fixture
def calm(peers: dict[str, Peer]) -> Iterator[None]:
    """Endpoints behave again after the test."""
    yield
    for peer in peers.values():
        peer.control("mode")


def to(channel: grpc.Channel, agent_id: str) -> Calls:
    return Calls(channel, [("x-agent-id", agent_id)])


def spread(calls: Calls, count: int, **more: Any) -> Counter[str]:
    """Endpoint name -> calls, of `count` calls one after the other."""
    return Counter(calls.unary(serial=True, **more).result().split(b":")[0].decode() for _ in range(count))


# -- which agent -----------------------------------------------------------------------------------------------------


def test_an_unknown_agent_is_not_found_and_named(channel: grpc.Channel) -> None:
    call = to(channel, "nobody").unary()
    assert call.code() is grpc.StatusCode.NOT_FOUND
    assert "nobody" in call.details()


def test_without_a_name_the_default_agent_answers(channel: grpc.Channel) -> None:
    call = Calls(channel).unary(b"x")
    assert call.result() == b"x"


@pytest.mark.parametrize("authority", ["weights", "weights:443"])
def test_the_authority_names_an_agent(sidecar: Sidecar, authority: str) -> None:
    before = {one["address"]: one["calls"] for one in sidecar.agent("weights")["endpoints"]}
    with channel_to(sidecar.target, options=[("grpc.default_authority", authority)]) as opened:
        Calls(opened).unary().result()
    after = {one["address"]: one["calls"] for one in sidecar.agent("weights")["endpoints"]}
    assert sum(after.values()) == sum(before.values()) + 1


def test_metadata_beats_the_authority(sidecar: Sidecar) -> None:
    with channel_to(sidecar.target, options=[("grpc.default_authority", "empty")]) as opened:
        assert to(opened, "v1").unary(b"x").result() == b"x"


def test_an_authority_that_names_no_agent_means_the_default_agent(sidecar: Sidecar) -> None:
    with channel_to(sidecar.target, options=[("grpc.default_authority", "api.example.com")]) as opened:
        assert Calls(opened).unary(b"x").result() == b"x"


def test_no_default_agent_is_not_found(mesh: Mesh, peers: dict[str, Peer]) -> None:
    alone = mesh.sidecar({"agents": [agent("one", peers["a"])]}, "no-default")
    with channel_to(alone.target) as opened:
        assert Calls(opened).unary().code() is grpc.StatusCode.NOT_FOUND
        assert to(opened, "one").unary(b"x").result() == b"x"


@pytest.mark.parametrize("agent_id", ["empty", "v3"])
def test_no_endpoint_is_unavailable_and_names_the_agent(channel: grpc.Channel, agent_id: str) -> None:
    call = to(channel, agent_id).unary()
    assert call.code() is grpc.StatusCode.UNAVAILABLE
    assert agent_id in call.details()


# -- which endpoint --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [one for one in STRATEGIES if one != "ring_hash"])
def test_every_strategy_reaches_every_endpoint(channel: grpc.Channel, strategy: str) -> None:
    assert set(spread(to(channel, strategy), 60)) == {"a", "b", "c"}


def test_ring_hash_reaches_every_endpoint_over_many_sessions(channel: grpc.Channel) -> None:
    calls = to(channel, "ring_hash")
    found = {calls.unary(serial=True, metadata=[("x-session-id", f"s{number}")]).result()[:1] for number in range(60)}
    assert found == {b"a", b"b", b"c"}


def test_round_robin_is_even(channel: grpc.Channel) -> None:
    counts = spread(to(channel, "round_robin"), 30)
    assert set(counts.values()) == {10}


def test_static_weights(channel: grpc.Channel) -> None:
    assert spread(to(channel, "weights"), 80) == {"a": 10, "b": 20, "c": 50}


def test_a_subset_is_kept_to(channel: grpc.Channel) -> None:
    assert set(spread(to(channel, "v1"), 20)) == {"a", "b"}


def test_the_endpoint_is_named_in_the_trailers(channel: grpc.Channel, peers: dict[str, Peer]) -> None:
    call = to(channel, "round_robin").unary(serial=True)
    name = call.result().split(b":")[0].decode()
    assert dict(call.trailing_metadata())["x-outrider-endpoint"] == peers[name].address


@pytest.mark.parametrize(("agent_id", "field"), [("sessions", "x-session-id"), ("users", "x-user-id")])
def test_ring_hash_is_sticky(channel: grpc.Channel, agent_id: str, field: str) -> None:
    calls = to(channel, agent_id)
    homes = {}
    for number in range(12):
        found = spread(calls, 5, metadata=[(field, f"s{number}")])
        assert len(found) == 1, f"session {number} went to {found}"
        homes[number] = next(iter(found))
    assert len(set(homes.values())) > 1


@pytest.mark.usefixtures("calm")
@pytest.mark.parametrize("strategy", ["peak_ewma", "least_request"])
def test_a_slow_endpoint_is_avoided(channel: grpc.Channel, peers: dict[str, Peer], strategy: str) -> None:
    """Calls held at one endpoint keep it loaded; what comes meanwhile goes mostly elsewhere."""
    peers["b"].control("forget")
    keys = [new_key() for _ in range(60)]
    peers["b"].control("mode", hold=True)
    calls = to(channel, strategy)
    running = []
    for key in keys:
        call = calls.start("Unary", b"", key=key)
        eventually(lambda call=call, key=key: call.done() or peers["b"].records(key), "the call arrives")
        running.append(call)
    stuck = len(peers["b"].records())
    for key in keys:
        peers["b"].control("release", key=key)
    assert [call.result() for call in running] == [b""] * 60
    assert stuck <= 6, f"{stuck} of 60 calls went to the endpoint that answers nothing"


@pytest.mark.usefixtures("calm")
def test_load_reports_move_weighted_round_robin(mesh: Mesh, peers: dict[str, Peer]) -> None:
    """ORCA per-call reports: `c` says ten times the capacity of the others (gRFC A58)."""
    policy = {"strategy": "weighted_round_robin", "slow_start_ms": 0}
    fresh = mesh.sidecar({"default_agent": "x", "agents": [agent("x", *peers.values(), balancing=policy)]}, "orca")
    for name, peer in peers.items():
        peer.control("mode", tail=[["endpoint-load-metrics-bin", load_report(1000.0 if name == "c" else 100.0)]])
    with channel_to(fresh.target) as opened:
        calls = Calls(opened)

        def moved() -> bool:
            counts = spread(calls, 60)
            return counts["c"] > 35

        eventually(moved, "most calls go to the endpoint with most capacity", wait_s=25)


def load_report(calls_per_s: float) -> str:
    """OrcaLoadReport{cpu_utilization: 0.5, rps_fractional: ...}, base64."""
    import struct

    report = b"\x09" + struct.pack("<d", 0.5) + b"\x31" + struct.pack("<d", calls_per_s)
    return base64.b64encode(report).decode()
