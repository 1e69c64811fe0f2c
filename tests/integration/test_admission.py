"""Admission at both hops of real processes: permits, slots, lanes, parked calls, and the load an ingress tells of."""

from __future__ import annotations

import base64
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import TrailersReceived

from outrider_sidecar.engines.orca import decode_load_report
from tests.sidecars import WAIT_S, Calls, Mesh, Peer, Sidecar, agent, channel_to, code_of, eventually, new_key, trailers

REPORT = "endpoint-load-metrics-bin"


def held(calls: Calls, key: str, count: int, **more: Any) -> list[Any]:
    return [calls.start("Unary", b"x", key=key, hold=True, **more) for _ in range(count)]


def running(peer: Peer, key: str) -> int:
    return sum(record["outcome"] == "running" for record in peer.records(key))


@pytest.fixture(scope="module")
def ingress(mesh: Mesh, peer: Peer) -> Sidecar:
    beside = {"listen": "127.0.0.1:0", "agent_id": "guarded", "target": peer.address, "capacity": 2}
    queue = {"max_waiting": 3, "max_wait_ms": 20_000}
    return mesh.sidecar({"ingress": beside, "agents": [agent("guarded", peer, queue=queue)]}, "ingress")


@pytest.fixture
def inward(ingress: Sidecar) -> Iterator[grpc.Channel]:
    with channel_to(f"127.0.0.1:{ingress.ports['ingress']}") as channel:
        yield channel


def test_an_ingress_lets_through_what_its_agent_can_do_and_the_rest_waits(inward: grpc.Channel, peer: Peer) -> None:
    calls, key = Calls(inward), new_key()
    started = held(calls, key, 5)
    eventually(lambda: running(peer, key) == 2, "two calls run")
    refused = calls.unary()
    assert code_of(refused) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.details() == "agent 'guarded' has 3 calls waiting, its limit (queue.max_waiting)"
    assert int(trailers(refused)["grpc-retry-pushback-ms"]) >= 100
    peer.control("release", key=key)
    assert [call.result() for call in started] == [b"x"] * 5


def raw_trailers(port: int) -> dict[str, str]:
    """Trailers of one unary call, all of them: grpcio keeps load reports for itself."""
    conn = H2Connection(H2Configuration(header_encoding="utf-8"))
    conn.initiate_connection()
    path = "/test.Agent/Unary"
    head = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "x", "te": "trailers"}
    conn.send_headers(1, [*head.items(), ("content-type", "application/grpc")])
    conn.send_data(1, b"\0\0\0\0\1y", end_stream=True)
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as link:
        link.sendall(conn.data_to_send())
        while data := link.recv(65_536):
            for event in conn.receive_data(data):
                if isinstance(event, TrailersReceived):
                    return {str(name): str(value) for name, value in event.headers}
            link.sendall(conn.data_to_send())
    raise AssertionError("the connection ended without trailers")


def test_an_ingress_tells_its_load_with_every_reply(inward: grpc.Channel, ingress: Sidecar, peer: Peer) -> None:
    calls, key = Calls(inward), new_key()
    (started,) = held(calls, key, 1)
    eventually(lambda: running(peer, key) == 1, "a call runs")

    def utilization() -> float:
        report = decode_load_report(base64.b64decode(raw_trailers(ingress.ports["ingress"])[REPORT] + "=="))
        assert report is not None
        return report.application_utilization

    eventually(lambda: utilization() == 1.0, "the report counts the call that runs, and its own")
    peer.control("release", key=key)
    assert started.result() == b"x"
    assert ingress.metric("outrider_limit", agent="guarded", hop="ingress") == 2


def test_urgent_calls_go_first_and_a_cancelled_one_leaves_its_place(mesh: Mesh, peer: Peer) -> None:
    solo = agent("solo", peer, limits={"max_in_flight": 1})
    sidecar = mesh.sidecar({"default_agent": "solo", "agents": [solo]}, "lanes")
    with channel_to(sidecar.target) as channel:
        calls, key, later = Calls(channel), new_key(), new_key()
        (first,) = held(calls, key, 1)
        eventually(lambda: running(peer, key) == 1, "a call runs")
        low = calls.start("Unary", b"low", key=later, metadata=(("x-priority", "low"),))
        gone = calls.start("Unary", b"gone", key=later, metadata=(("x-priority", "high"),))
        eventually(lambda: sidecar.metric("outrider_queue_waiting", agent="solo") == 2, "two calls wait")
        urgent = calls.start("Unary", b"urgent", key=later, metadata=(("x-priority", "critical"),))
        eventually(lambda: sidecar.metric("outrider_queue_waiting", lane="critical") == 1, "an urgent call waits")
        gone.cancel()
        eventually(lambda: sidecar.metric("outrider_queue_waiting", lane="high") == 0, "its place is free")
        peer.control("release", key=key)
        assert (first.result(), urgent.result(), low.result()) == (b"x", b"urgent", b"low")
        order = [dict(record["metadata"])["x-priority"] for record in peer.records(later)]
        assert order == ["critical", "low"]
    sidecar.settled()


def test_an_endpoint_with_a_capacity_is_never_given_more_at_once(mesh: Mesh, peer: Peer) -> None:
    solo = {"agent_id": "solo", "endpoints": [{"address": peer.address, "capacity": 3}]}
    sidecar = mesh.sidecar({"default_agent": "solo", "agents": [solo]}, "slots")
    with channel_to(sidecar.target) as channel:
        calls, key = Calls(channel), new_key()
        started = held(calls, key, 8)
        eventually(lambda: sidecar.metric("outrider_queue_waiting", agent="solo") == 5, "five calls wait")
        assert running(peer, key) == 3
        sidecar.config["agents"][0]["endpoints"][0]["capacity"] = 5
        assert sidecar.reload() == "applied"
        eventually(lambda: running(peer, key) == 5, "five calls run")
        peer.control("release", key=key)
        assert [call.result() for call in started] == [b"x"] * 8
    sidecar.settled()


def test_a_sidecar_that_ends_gives_no_permit_of_a_call_it_ends_to_one_that_waits(mesh: Mesh, peer: Peer) -> None:
    solo = agent("solo", peer, limits={"max_in_flight": 2})
    sidecar = mesh.sidecar({"default_agent": "solo", "agents": [solo], "drain_grace_s": 0.3}, "leaving")
    with channel_to(sidecar.target) as channel:
        calls, key = Calls(channel), new_key()
        started = held(calls, key, 12)
        eventually(lambda: sidecar.metric("outrider_queue_waiting", agent="solo") == 10, "ten calls wait")
        sidecar.terminate()
        assert {code_of(call) for call in started} == {grpc.StatusCode.UNAVAILABLE}
    assert sidecar.wait_exit() == 0
    assert len(peer.records(key)) == 2


def test_calls_of_an_agent_at_zero_wait_for_its_first_instance(mesh: Mesh, peer: Peer) -> None:
    parked = {"agent_id": "solo", "scaling": {"min_instances": 0, "activation_wait_ms": 20_000}}
    sidecar = mesh.sidecar({"default_agent": "solo", "agents": [parked]}, "zero")
    with channel_to(sidecar.target) as channel:
        calls = Calls(channel)
        started = [calls.start("Unary", b"x") for _ in range(4)]
        eventually(lambda: sidecar.metric("outrider_queue_waiting", agent="solo") == 4, "four calls wait")
        sidecar.config["agents"] = [{**parked, "endpoints": [peer.address]}]
        assert sidecar.reload() == "applied"
        assert [call.result() for call in started] == [b"x"] * 4
    sidecar.settled()


def test_an_ingress_serves_an_agent_on_a_unix_socket(mesh: Mesh, tmp_path: Path) -> None:
    behind = mesh.peer("socket", "--unix", f"unix:{tmp_path}/agent.sock")
    beside = {"listen": "127.0.0.1:0", "agent_id": "local", "target": f"unix:{tmp_path}/agent.sock", "capacity": 1}
    sidecar = mesh.sidecar({"ingress": beside}, "unix")
    with channel_to(f"127.0.0.1:{sidecar.ports['ingress']}") as channel:
        key = new_key()
        assert Calls(channel).unary(b"through", key=key).result() == b"through"
        assert behind.record(key)["peer"].startswith("unix:")
