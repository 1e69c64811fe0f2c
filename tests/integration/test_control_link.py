"""A real sidecar and a stand-in for the control plane, each a process: what happens to the latter costs no call."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from tests.mesh_peer import CONTROL
from tests.sidecars import WAIT_S, Calls, Mesh, Peer, Sidecar, agent, channel_to, code_of, eventually


class Plane:
    """A `tests.mesh_peer` process."""

    def __init__(self, mesh: Mesh, name: str = "plane", port: int = 0):
        self._mesh = mesh
        self.name = name
        self.port = port
        self._stored: dict[str, Any] = {}  # what it holds after a restart
        self.start()

    def start(self) -> None:
        """Start it, on the port it had before if there was one, with what it held."""
        arguments = ["--name", self.name, "--port", str(self.port)]
        if self._stored:
            arguments += ["--initial", json.dumps(self._stored)]
        self.child, ports = self._mesh.module(self.name, "tests.mesh_peer", *arguments)
        self.port = ports["port"]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def control(self, op: str, **asked: Any) -> Any:
        with channel_to(self.address) as channel:
            return json.loads(channel.unary_unary(CONTROL)(json.dumps({"op": op, **asked}).encode(), timeout=WAIT_S))

    def put(self, *agents: dict[str, Any], version: int, registered: dict[str, list[str]] | None = None) -> None:
        self._stored = {"agents": list(agents), "version": version, "registered": registered}
        self.control("put", **self._stored)

    def said(self, field: str) -> list[dict[str, Any]]:
        """What sidecars said of one kind, on all streams, in order."""
        watches = self.control("seen")["watches"]
        return [said[field] for watch in watches for said in watch["said"] if field in said]

    def kill(self) -> None:
        self.child.process.kill()
        self.child.process.wait(WAIT_S)


@pytest.fixture(scope="module")
def two(mesh: Mesh) -> Peer:
    return mesh.peer("two")


@pytest.fixture
def plane(mesh: Mesh) -> Iterator[Plane]:
    started = Plane(mesh)
    yield started
    mesh.children.stop(started.child)


def sidecar_of(mesh: Mesh, name: str, *planes: Plane, **config: Any) -> Sidecar:
    return mesh.sidecar({"control": [one.address for one in planes], "state_dir": "state", **config}, name)


def calls_to(sidecar: Sidecar, agent_id: str, channel: grpc.Channel) -> Calls:
    return Calls(channel, metadata=[("x-agent-id", agent_id)])


def link(sidecar: Sidecar) -> dict[str, Any]:
    return sidecar.json("/config")["control_link"]


def test_pushed_policy_stands_over_the_file_and_goes_again(mesh: Mesh, plane: Plane, peer: Peer, two: Peer) -> None:
    sidecar = sidecar_of(mesh, "over", plane, agents=[agent("solo", peer)])
    with channel_to(sidecar.target) as channel:
        calls = calls_to(sidecar, "solo", channel)
        assert calls.unary(serial=True).result().startswith(b"one")
        plane.put(agent("solo", two), agent("pushed"), version=2, registered={"pushed": [peer.address]})
        eventually(lambda: calls.unary(serial=True).result().startswith(b"two"), "the pushed policy is in force")
        assert calls_to(sidecar, "pushed", channel).unary(b"x").result() == b"x"
        sidecar.config["agents"] = [agent("solo", peer, timeout_ms=9_000), agent("late", peer)]
        assert sidecar.reload() == "applied"
        assert calls.unary(serial=True).result().startswith(b"two")
        assert calls_to(sidecar, "late", channel).unary(b"y").result() == b"y"
        held = {(one["kind"], one["name"]): one["version"] for one in link(sidecar)["held"]}
        assert held == {("policy", "solo"): 2, ("policy", "pushed"): 2, ("endpoints", "pushed"): 2}
        assert sidecar.metric("outrider_control_connected", address=plane.address) == 1
    sidecar.terminate()
    assert sidecar.wait_exit() == 0


def test_a_bad_resource_beside_a_good_one(mesh: Mesh, plane: Plane, peer: Peer) -> None:
    sidecar = sidecar_of(mesh, "bad", plane)
    plane.put(agent("good", peer), version=1, registered={"good": ["nowhere"]})
    eventually(lambda: link(sidecar)["refused"], "a resource is refused")
    (refused,) = link(sidecar)["refused"]
    assert (refused["kind"], refused["name"]) == ("endpoints", "good")
    assert "endpoints[0].address: 'nowhere'" in refused["reason"]
    acks = eventually(lambda: [one for one in plane.said("ack") if "refused" in one], "the refusal is said")
    assert acks[0]["refused"][0]["reason"] == refused["reason"]
    with channel_to(sidecar.target) as channel:
        assert calls_to(sidecar, "good", channel).unary(b"x").result() == b"x"
    sidecar.terminate()
    assert sidecar.wait_exit() == 0


def test_not_ready_until_an_agent_is_known(mesh: Mesh, peer: Peer) -> None:
    plane = Plane(mesh, "late")
    plane.kill()
    folder = mesh.children.directory / "unready"
    folder.mkdir()
    file = folder / "sidecar.yaml"
    ports = folder / "ports.json"
    settings = {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "ports_file": str(ports), "control": [plane.address]}
    file.write_text(json.dumps(settings))
    child = mesh.program("unready", file)
    found = mesh.children.ports(child, ports)

    def ready() -> tuple[int, bytes]:
        import http.client

        http_link = http.client.HTTPConnection("127.0.0.1", found["admin"], timeout=WAIT_S)
        try:
            http_link.request("GET", "/readyz")
            reply = http_link.getresponse()
            return reply.status, reply.read()
        finally:
            http_link.close()

    status, body = ready()
    assert status == 503
    assert b"waiting for the control plane" in body
    plane.start()
    eventually(lambda: ready()[0] == 200, "an empty full update is an answer")
    mesh.children.stop(child)
    mesh.children.stop(plane.child)


def test_a_start_while_the_control_plane_is_away(mesh: Mesh, plane: Plane, peer: Peer) -> None:
    sidecar = sidecar_of(mesh, "restart", plane, agents=[agent("solo", "127.0.0.1:1")])
    plane.put(agent("solo", peer), version=1)
    file = sidecar.folder / "state" / "policy.snapshot"
    eventually(lambda: link(sidecar)["held"] and file.exists() and file.stat().st_size > 100, "held and on disk")
    sidecar.child.process.kill()
    sidecar.child.process.wait(WAIT_S)
    plane.kill()
    sidecar.start()
    with channel_to(sidecar.target) as channel:
        assert calls_to(sidecar, "solo", channel).unary(b"x").result() == b"x"
        assert link(sidecar)["connected_to"] is None
        plane.start()
        eventually(lambda: link(sidecar)["connected_to"], "found again")
    sidecar.terminate()
    assert sidecar.wait_exit() == 0


def test_a_control_plane_killed_under_load_costs_no_call_and_its_spans_go_to_the_next(mesh: Mesh, peer: Peer) -> None:
    one, other = Plane(mesh, "first"), Plane(mesh, "second")
    for each in (one, other):
        each.put(agent("solo", peer), version=1)
    sidecar = sidecar_of(mesh, "killed", one, other)
    eventually(lambda: link(sidecar)["connected_to"] == one.address and link(sidecar)["held"], "watched")
    failed: list[Any] = []
    done = [0, 0]
    stop = threading.Event()

    def caller(number: int) -> None:
        with channel_to(sidecar.target) as channel:
            calls = calls_to(sidecar, "solo", channel)
            while not stop.is_set():
                call = calls.unary(b"x")
                done[number] += 1
                if code_of(call) is not grpc.StatusCode.OK:
                    failed.append(call.details())

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: min(done) > 50, "calls are made")
        one.kill()
        eventually(lambda: link(sidecar)["connected_to"] == other.address, "failed over", wait_s=5)
        since = len(other.control("seen")["spans"])
        eventually(lambda: len(other.control("seen")["spans"]) > since, "spans follow the watch")
        other.kill()
        eventually(lambda: link(sidecar)["connected_to"] is None, "alone")
        so_far = min(done)
        eventually(lambda: min(done) > so_far + 50, "calls go on")
        one.start()
        eventually(lambda: link(sidecar)["connected_to"] == one.address, "back on its watch", wait_s=5)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failed == []
    sidecar.settled()
    sidecar.terminate()
    assert sidecar.wait_exit() == 0
    mesh.children.stop(one.child)


def test_an_ingress_announces_itself_and_counts_the_calls_it_serves(mesh: Mesh, plane: Plane, peer: Peer) -> None:
    ingress = {
        "listen": "127.0.0.1:0",
        "agent_id": "solo",
        "target": peer.address,
        "capacity": 8,
        "labels": {"zone": "a"},
    }
    server = sidecar_of(mesh, "server", plane, ingress=ingress)
    (said,) = eventually(lambda: plane.said("announcement"), "announced")
    address = f"127.0.0.1:{server.ports['ingress']}"
    row = {"agentId": "solo", "address": address, "weight": "1", "labels": {"zone": "a"}, "capacity": "8"}
    assert said["endpoints"] == [{**row, "ingress": True}]
    client = sidecar_of(mesh, "client", plane)
    plane.put(agent("solo"), version=1, registered={"solo": [address]})
    eventually(lambda: link(client)["held"], "the client's sidecar knows it")
    with channel_to(client.target) as channel:
        calls = calls_to(client, "solo", channel)
        assert calls.unary(b"x", metadata=[("x-tenant-id", "acme")]).result() == b"x"
    served = {"agentId": "solo", "ingress": True, "capacity": "8", "calls": "1"}
    eventually(lambda: any(served in load.get("agents", ()) for load in plane.said("load")), "the load is told")
    for sidecar in (client, server):  # spans are flushed, the endpoint is withdrawn
        sidecar.terminate()
        assert sidecar.wait_exit() == 0
    spans = plane.control("seen")["spans"]
    assert len({span["trace_id"] for span in spans}) == 1
    hops = sorted(span["attributes"].get("outrider.hop", "") for span in spans)
    assert hops == ["", "ingress"]
    assert {span["attributes"]["outrider.tenant"] for span in spans} == {"acme"}
    assert plane.said("announcement")[-1] == {}
