"""Endpoints that die, return, refuse and stall: no call is lost that could be saved, and nothing is left over."""

from __future__ import annotations

import random
import socket
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
    new_key,
    read_all,
    standalone,
)

OFF = {"enabled": False}


@pytest.fixture
def pair(mesh: Mesh) -> Iterator[list[Peer]]:
    peers = [mesh.peer("one"), mesh.peer("two")]
    yield peers
    for peer in peers:
        peer.stop()


def two(mesh: Mesh, peers: list[Peer], **policy: object) -> Sidecar:
    config = {"default_agent": "x", "agents": [agent("x", *peers, **policy)]}
    return mesh.sidecar(config, f"chaos-{new_key()}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_an_endpoint_killed_in_mid_stream(mesh: Mesh, pair: list[Peer]) -> None:
    """Its streams end UNAVAILABLE after what had come; the next calls go to the other one, none fails."""
    sidecar = two(mesh, pair)
    with channel_to(sidecar.target) as channel:
        calls = Calls(channel)
        streams = {}
        while len(streams) < 2:
            stream = calls.start("Download", key=new_key(), serial=True, sizes=[0, 0], hold_after=1)
            name = next(stream).split(b":")[0].decode()
            streams.setdefault(name, stream)
        pair[0].kill()
        messages, broken = read_all(streams["one"])
        assert messages == []
        assert broken.code() is grpc.StatusCode.UNAVAILABLE
        assert pair[0].address in broken.details()
        for _ in range(50):
            assert calls.unary(serial=True).result().startswith(b"two")
        streams["two"].cancel()
        eventually(lambda: sidecar.states("x")[pair[0].address] == "unreachable", "it is seen to be gone")
    sidecar.settled()


def test_unary_calls_survive_an_endpoint_that_dies_under_load(mesh: Mesh, pair: list[Peer]) -> None:
    """A dropped connection is UNAVAILABLE before any head: one try is left and succeeds elsewhere."""
    sidecar = two(mesh, pair, retry={"budget_min_per_s": 1_000.0}, balancing={"strategy": "round_robin"})
    with channel_to(sidecar.target) as channel:
        calls = Calls(channel)
        running = []
        for number in range(300):
            if number == 100:
                pair[1].kill()
            running.append(calls.start("Unary", b"%d" % number))
        assert [call.result() for call in running] == [b"%d" % number for number in range(300)]
    sidecar.settled()


def test_all_down_and_back(mesh: Mesh, pair: list[Peer]) -> None:
    sidecar = two(mesh, pair)
    with channel_to(sidecar.target) as channel:
        calls = Calls(channel)
        assert calls.unary(b"x").result() == b"x"
        for peer in pair:
            peer.kill()
        failed = calls.unary()
        assert failed.code() is grpc.StatusCode.UNAVAILABLE
        eventually(lambda: set(sidecar.states("x").values()) == {"unreachable"}, "both are seen to be gone")
        refused = calls.unary()
        assert refused.code() is grpc.StatusCode.UNAVAILABLE
        assert "'x'" in refused.details(), "the agent is named"
        for peer in pair:
            peer.start()
        eventually(lambda: calls.unary(b"x").code() is grpc.StatusCode.OK, "calls are answered again")
        eventually(lambda: set(sidecar.states("x").values()) == {"ready"}, "both are back")
    sidecar.settled()


def test_an_endpoint_that_is_not_there_yet(mesh: Mesh, pair: list[Peer]) -> None:
    """The sidecar is ready before its agent is, says why calls fail, and serves as soon as it is there."""
    port = free_port()
    sidecar = mesh.sidecar({"default_agent": "late", "agents": [agent("late", f"127.0.0.1:{port}")]}, "early")
    with channel_to(sidecar.target) as channel:
        calls = Calls(channel)
        call = calls.unary()
        assert call.code() is grpc.StatusCode.UNAVAILABLE
        assert str(port) in call.details()
        mesh.peer("late", "--port", str(port))
        eventually(lambda: calls.unary(b"x").code() is grpc.StatusCode.OK, "the agent is there")
    sidecar.settled()


def test_a_graceful_stop_loses_no_call(mesh: Mesh, pair: list[Peer]) -> None:
    """GOAWAY with calls in flight: they end, and what comes later goes elsewhere."""
    sidecar = two(mesh, pair, balancing={"strategy": "round_robin"})
    key = new_key()
    with channel_to(sidecar.target) as channel:
        calls = Calls(channel)
        held = [calls.start("Unary", b"x", key=key, hold=True) for _ in range(10)]
        eventually(lambda: sum(len(peer.records(key)) for peer in pair) == 10, "all are in flight")
        pair[0].control("stop", grace_s=10)
        # Until its GOAWAY is read a grpcio server answers new calls CANCELLED, and no proxy can tell why.
        eventually(lambda: sidecar.states("x")[pair[0].address] == "unreachable", "the GOAWAY is seen")
        later = [calls.start("Unary", b"%d" % number) for number in range(100)]
        assert [call.result() for call in later] == [b"%d" % number for number in range(100)]
        for peer in pair:
            peer.control("release", key=key)
        assert [call.result() for call in held] == [b"x"] * 10
    sidecar.settled()


def test_a_stalled_handshake_does_not_wedge_the_pool(mesh: Mesh, pair: list[Peer]) -> None:
    """An endpoint that accepts and says nothing: calls go to the other one, none waits for ever."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        silent_address = f"127.0.0.1:{silent.getsockname()[1]}"
        config = {
            "default_agent": "x",
            "agents": [agent("x", silent_address, pair[0], balancing={"strategy": "round_robin", "failfast_ms": 200})],
        }
        sidecar = mesh.sidecar(config, "silent")
        with channel_to(sidecar.target) as channel:
            calls = Calls(channel)
            assert [calls.unary(b"x").result() for _ in range(20)] == [b"x"] * 20
        sidecar.settled()
        mesh.children.stop(sidecar.child)


@pytest.mark.parametrize("seed", [1, 2])
def test_any_mixture_leaves_nothing_behind(mesh: Mesh, pair: list[Peer], seed: int) -> None:
    """Calls of all shapes, ended in all ways, some endpoints failing: afterwards nothing is in flight or held."""
    rng = random.Random(seed)
    cached = {"cache_enabled": True, "cache_methods": ["/test.Agent/Unary", "/test.Agent/Download"]}
    hedge = {"enabled": True, "delay_ms": 5, "idempotent_methods": ["/test.Agent/*"]}
    sidecar = two(mesh, pair, optimization=cached, hedge=hedge, retry={"per_try_timeout_ms": 200})
    with channel_to(sidecar.target) as channel:
        calls = Calls(channel)
        running = []
        for number in range(400):
            body = bytes(rng.choice((0, 10, 3_000, 70_000)))
            do: dict[str, Any] = rng.choice(
                ({}, {"hold": True}, {"status": 14}, {"status": 13}, {"size": 100_000}, {"fail_first": 1, "status": 14})
            )
            method = rng.choice(("Unary", "Other", "Download", "Upload", "Chat"))
            if method == "Download":
                do = {**do, "sizes": [1_000] * rng.randrange(5)}
            request = iter([body] * rng.randrange(4)) if method in ("Upload", "Chat") else body
            key, timeout_s = f"{seed}-{number % 20}", rng.choice((0.001, 0.05, 0.3))
            call = calls.start(method, request, key=key, timeout_s=timeout_s, **do)
            running.append((method, call))
            if rng.random() < 0.3:
                rng.choice(running)[1].cancel()
            if number == 200:
                pair[0].control("mode", status=14)
        for method, call in running:
            if method in ("Download", "Chat"):
                read_all(call)
            elif not call.cancelled():
                call.exception()
        pair[0].control("mode")
        sidecar.settled()
        assert sidecar.metric("outrider_agent_in_flight") == 0
        assert {one["pending"] for one in sidecar.agent("x")["endpoints"]} == {0}
        assert all(one["in_flight"] == 0 for one in sidecar.json("/cache")["agents"])
        assert calls.unary(new_key().encode(), method="Other").code() is grpc.StatusCode.OK


def test_held_bytes_are_capped_and_the_longest_stalled_are_cut(mesh: Mesh, pair: list[Peer]) -> None:
    """Streams nobody reads fill the sidecar up to its cap and no further; it lives and serves others."""
    config = {**standalone(pair[0]), "limits": {"held_bytes": 1024 * 1024}}
    sidecar = mesh.sidecar(config, "capped")
    with channel_to(sidecar.target, options=[("grpc.http2.bdp_probe", 0)]) as channel:
        calls = Calls(channel, timeout_s=60)
        stalled = [calls.start("Download", sizes=[1_000_000] * 4) for _ in range(12)]
        for stream in stalled:
            stream.initial_metadata()
        eventually(lambda: sidecar.metric("outrider_streams_cut_total") > 0, "some are cut")
        with channel_to(sidecar.target) as other:
            assert Calls(other).unary(b"x").result() == b"x"
        assert sidecar.metric("outrider_held_bytes") <= 1024 * 1024
        codes = {read_all(stream)[1].code() for stream in stalled}
        assert codes <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert grpc.StatusCode.RESOURCE_EXHAUSTED in codes
    sidecar.settled()


def test_held_requests_are_capped_too(mesh: Mesh, pair: list[Peer]) -> None:
    """Requests kept for a cache key count as held bytes, and are cut like everything else."""
    cached = {"cache_enabled": True, "cache_methods": ["/test.Agent/Upload"]}
    config = {**standalone(pair[0], optimization=cached), "limits": {"held_bytes": 1024 * 1024}}
    sidecar = mesh.sidecar(config, "capped-requests")
    with channel_to(sidecar.target) as channel:
        calls, key = Calls(channel), new_key()
        bodies = [bytes([number]) * 300_000 for number in range(8)]
        running = [calls.start("Upload", iter([body]), key=key, hold=True) for body in bodies]
        eventually(
            lambda: sum(call.done() for call in running) + len(pair[0].records(key)) >= 8,
            "all came through or were cut",
        )
        with channel_to(sidecar.target) as other:
            assert Calls(other).unary(b"x").result() == b"x"
        pair[0].control("release", key=key)
        codes = set()
        for call in running:
            call.exception()
            codes.add(call.code())
        assert codes <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    sidecar.settled()
    assert "Traceback" not in sidecar.log()
