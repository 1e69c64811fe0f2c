"""The link to the control plane against real grpcio servers: what is said, what is taken, and how it is found again."""

from __future__ import annotations

import random
from pathlib import Path

import grpc
import pytest

from outrider.policy import Agent, EndpointPolicy
from outrider.v1 import mesh_pb2
from outrider_sidecar.edge.load import Load
from outrider_sidecar.edge.mesh_codec import Announced
from outrider_sidecar.engines.overlay import overlay
from tests.mesh_peer import EPOCHS, MESH, POLICY, MeshPeer, endpoints, policy, resource, serving
from tests.mesh_side import FILE, ONE, TWO, acked, side, until


async def test_hello_then_full_then_deltas() -> None:
    peer = MeshPeer()
    peer.put(policy(ONE, 3))
    async with serving(peer) as port, side(port) as link:
        await until(lambda: link.agents == {"file", "one"}, "the full update is in force")
        watch = peer.watches[0]
        assert (watch.hello.node, watch.hello.instance_id, watch.hello.now_unix_ms) == ("n", "i", 5)
        named = ["policy.v1", "endpoints.v1", "epochs.v1", "load.v1", "quotas.v1", "splits.v1"]
        assert list(watch.hello.capabilities) == named
        assert (await acked(watch, 2)).refused == []
        nonce = peer.put(policy(TWO, 4), endpoints("one", 5, {"address": "c:1", "weight": 2}))
        assert (await acked(watch, nonce)).applied_us > 0
        assert link.in_force[-1].agents["one"].endpoints == (EndpointPolicy("a:1"), EndpointPolicy("c:1", 2))
        await acked(watch, peer.remove(POLICY, "two", 6))
        assert link.agents == {"file", "one"}
        assert link.held() == {("policy", "one"): 3, ("endpoints", "one"): 5}
        assert len(link.in_force) == 3  # one step for each update, whatever it holds


async def test_a_bad_resource_is_refused_beside_good_ones_and_mended() -> None:
    peer = MeshPeer()
    async with serving(peer) as port, side(port) as link:
        await until(lambda: peer.live, "watched")
        bad = policy(TWO, 2)
        bad.policy.balancing.strategy = "psychic"
        wrong_name = policy(ONE, 2)
        wrong_name.id.name = "other"
        nonce = peer.put(bad, wrong_name, policy(ONE, 2), endpoints("one", 2, {"address": "nowhere"}))
        ack = await acked(peer.watches[0], nonce)
        reasons = {(one.resource.name, int(one.resource.kind)): one.reason for one in ack.refused}
        assert reasons.keys() == {("two", 1), ("other", 1), ("one", 2)}
        assert reasons["two", 1].startswith("balancing.strategy: 'psychic'")
        assert reasons["other", 1] == "agent_id: 'one' is sent under the name 'other'"
        assert reasons["one", 2].startswith("endpoints[0].address: 'nowhere'")
        assert link.agents == {"file", "one"}
        state = link.link.state()
        assert {one["name"] for one in state["refused"]} == {"two", "other", "one"}
        await acked(peer.watches[0], peer.put(policy(TWO, 3)))
        assert link.agents == {"file", "one", "two"}
        assert {one["name"] for one in link.link.state()["refused"]} == {"other", "one"}
        assert link.pushed.counts == {"applied": 2, "refused": 3}


async def test_an_update_that_cannot_be_put_in_force_leaves_what_was_there() -> None:
    peer = MeshPeer()
    peer.put(policy(ONE, 1))
    async with serving(peer) as port, side(port) as link:
        await until(lambda: "one" in link.agents, "in force")
        link.broken = RuntimeError("a defect")
        ack = await acked(peer.watches[0], peer.put(policy(TWO, 2)))
        assert [one.resource.name for one in ack.refused] == ["two"]
        assert "RuntimeError: a defect" in ack.refused[0].reason
        assert link.agents == {"file", "one"}
        assert link.held() == {("policy", "one"): 1}


async def test_epochs_are_taken_only_when_they_are_on_disk() -> None:
    peer = MeshPeer()
    async with serving(peer) as port, side(port) as link:
        await until(lambda: peer.live, "watched")
        row = mesh_pb2.Epoch(agent_id="one", value=9)
        link.full_disk = True
        nonce = peer.put(resource(EPOCHS, "", 1, epochs=mesh_pb2.Epochs(floor=1, epochs=[row])))
        ack = await acked(peer.watches[0], nonce)
        assert ack.refused[0].reason == "cannot be written to disk: No space left on device"
        assert link.held() == {}
        link.full_disk = False
        nonce = peer.put(resource(EPOCHS, "", 2, epochs=mesh_pb2.Epochs(floor=1, epochs=[row])))
        assert (await acked(peer.watches[0], nonce)).refused == []
        assert link.epochs == [{"floor": 1, "counters": [["one", "", "", 9]]}]
        too_large = mesh_pb2.Epochs(floor=2**63)
        ack = await acked(peer.watches[0], peer.put(resource(EPOCHS, "", 3, epochs=too_large)))
        assert "is no epoch" in ack.refused[0].reason


async def test_the_pushed_default_agent_and_unknown_kinds() -> None:
    peer = MeshPeer()
    async with serving(peer) as port, side(port) as link:
        await until(lambda: peer.live, "watched")
        mesh = resource(MESH, "", 1, mesh=mesh_pb2.MeshPolicy(default_agent="one"))
        later = resource(0, "x", 1)
        nonce = peer.put(mesh, policy(ONE, 1), later)
        assert (await acked(peer.watches[0], nonce)).refused == []
        assert link.in_force[-1].default_agent == "one"
        await acked(peer.watches[0], peer.remove(MESH, "", 2))
        assert link.in_force[-1].default_agent == "file"


async def test_what_is_held_outlives_the_stream_and_is_not_sent_again() -> None:
    peer = MeshPeer()
    peer.put(policy(ONE, 1))
    async with serving(peer) as port, side(port) as link:
        await until(lambda: "one" in link.agents, "in force")
        peer.live[0].out.put_nowait(None)
        await until(lambda: not peer.live, "the stream has ended")
        assert link.agents == {"file", "one"}
        await until(lambda: len(peer.watches) == 2 and peer.live, "back on its watch")
        assert [(one.name, one.version) for one in peer.watches[1].hello.held] == [("one", 1)]
        await acked(peer.watches[1], peer.nonce)
        assert len(link.in_force) == 1  # nothing changed, so nothing was compiled
        assert link.link.sessions == 2


@pytest.mark.parametrize("seed", range(4))
async def test_any_order_of_changes_drops_and_refusals_ends_at_the_newest_valid_state(seed: int) -> None:
    """Two control planes of one store; streams are dropped in between, some versions are bad."""
    rng = random.Random(seed)
    peers = [MeshPeer("one", 60_000), MeshPeer("two", 60_000)]
    good: dict[str, int] = {}  # the model: name -> the newest valid version
    async with serving(peers[0]) as first, serving(peers[1]) as second, side(first, second) as link:
        for version in range(1, 41):
            name = rng.choice("abcd")
            step = rng.choice(("put", "put", "bad", "remove", "drop", "pause"))
            if step == "drop":
                for watch in [one for peer in peers for one in peer.live]:
                    watch.out.put_nowait(None)
            elif step == "pause":
                await until(lambda: _quiet(peers), "everything is answered")
            elif step == "remove":
                good.pop(name, None)
                for peer in peers:
                    peer.remove(POLICY, name, version)
            else:
                one = policy(Agent(name, timeout_ms=version), version)
                if step == "bad":
                    await until(lambda: _quiet(peers), "the good one before it is held")
                    one.policy.retry.max_attempts = 0
                else:
                    good[name] = version
                for peer in peers:
                    peer.put(one)
        wanted = {("policy", name): version for name, version in good.items()}
        await until(lambda: link.held() == wanted, f"the newest valid state: {wanted}, not {link.held()}")
        assert {name: agent.timeout_ms for name, agent in link.in_force[-1].agents.items() if name in good} == good


def _quiet(peers: list[MeshPeer]) -> bool:
    """Whether there is a stream, and every update that was sent on it has been answered."""
    live = [watch for peer in peers for watch in peer.live]
    return bool(live) and all(
        watch.out.empty() and watch.all("ack") and watch.all("ack")[-1].nonce == watch.newest for watch in live
    )


async def test_the_next_address_is_tried_at_once() -> None:
    one, two = MeshPeer("one"), MeshPeer("two")
    for peer in (one, two):
        peer.put(policy(ONE, 1))
    async with serving(one) as first, serving(two) as second, side(first, second) as link:
        await until(lambda: one.live, "connected")
        assert link.plane.current == 0
        one.refuse = (grpc.StatusCode.UNAVAILABLE, "leaving")
        one.live[0].out.put_nowait(None)
        await until(lambda: two.live, "failed over")
        assert link.plane.current == 1
        assert link.link.state()["instance_id"] == "two"


async def test_who_is_refused_says_why_and_goes_on_trying(caplog: pytest.LogCaptureFixture) -> None:
    peer = MeshPeer()
    peer.refuse = (grpc.StatusCode.UNAUTHENTICATED, "no such token")
    async with serving(peer) as port, side(port, control_token="secret") as link:
        await until(lambda: link.link.last_error, "refused")
        assert "UNAUTHENTICATED: no such token" in link.link.last_error
        peer.refuse = None
        await until(lambda: peer.live, "let in")
        assert peer.watches[0].metadata["authorization"] == "Bearer secret"
        assert "secret" not in caplog.text + str(link.link.state())


async def test_a_token_file_is_read_at_every_dial(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    peer = MeshPeer()
    async with serving(peer) as port, side(port, control_token_file=file, control_token="environment") as link:
        await until(lambda: peer.live, "watched")
        file.write_text("second")
        peer.live[0].out.put_nowait(None)
        await until(lambda: len(peer.watches) == 2, "back")
        assert [watch.metadata["authorization"] for watch in peer.watches] == ["Bearer first", "Bearer second"]
        file.write_text("two words")
        assert link.plane.fields() == ((b"authorization", b"Bearer environment"),)


async def test_reports_come_at_the_interval_and_at_once_for_an_idle_agent() -> None:
    peer = MeshPeer(load_interval_ms=60_000)
    async with serving(peer) as port, side(port) as link:
        await until(lambda: peer.live and peer.watches[0].all("load"), "the first report")
        assert link.asked == [True]
        link.loads = [Load("one", False, 1, 2, 4_096, 3, None), Load("one", True, 1, 0, 8, 1, None)]
        link.link.woke()
        await until(lambda: len(peer.watches[0].all("load")) == 2, "the second one")
        assert link.asked == [True, False]
        report = peer.watches[0].all("load")[1]
        assert (report.now_unix_ms, report.spans_dropped) == (12_500, 7)
        assert [(one.agent_id, one.ingress, one.in_flight, one.shed, one.capacity) for one in report.agents] == [
            ("one", False, 1, 2, 4_096),
            ("one", True, 1, 0, 8),
        ]


async def test_an_announcement_is_said_on_every_stream_and_withdrawn() -> None:
    peer = MeshPeer()
    async with serving(peer) as port, side(port) as link:
        link.link.announce([Announced("one", "10.0.0.1:7601", {"zone": "a"}, 8)])
        await until(lambda: peer.live and peer.watches[0].all("announcement"), "announced")
        peer.live[0].out.put_nowait(None)
        await until(lambda: len(peer.watches) == 2 and peer.watches[1].all("announcement"), "again")
        (row,) = peer.watches[1].all("announcement")[0].endpoints
        assert (row.agent_id, row.address, dict(row.labels), row.capacity, row.ingress) == (
            ("one", "10.0.0.1:7601", {"zone": "a"}, 8, True)
        )
        await link.link.withdraw()
        last = await until(lambda: peer.watches[1].all("announcement")[1:], "withdrawn")
        assert list(last[0].endpoints) == []


async def test_a_start_without_the_control_plane_holds_what_was_held(tmp_path: Path) -> None:
    peer = MeshPeer()
    peer.put(policy(ONE, 4), resource(EPOCHS, "", 2, epochs=mesh_pb2.Epochs(floor=7)))
    async with serving(peer) as port, side(port, directory=tmp_path) as link:
        await until(lambda: "one" in link.agents, "in force")
    async with side(1, directory=tmp_path) as late:
        assert late.held() == {("policy", "one"): 4, ("epochs", ""): 2}
        assert late.epochs == [{"floor": 7, "counters": []}]
        assert late.pushed.informed
        assert overlay(FILE, late.pushed.resources).agents["one"] == ONE


@pytest.mark.parametrize("data", [b"", b"OUTRPOLI", b"something else" * 9])
async def test_a_file_that_cannot_be_read_is_reported_and_passed_over(
    data: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "policy.snapshot").write_bytes(data)
    async with side(1, directory=tmp_path) as link:
        assert link.held() == {}
        assert not link.pushed.informed
        assert "policy.snapshot is not used" in caplog.text


async def test_the_link_as_metrics() -> None:
    peer = MeshPeer()
    peer.put(policy(ONE, 1))
    async with serving(peer) as port, side(port) as link:
        await until(lambda: "one" in link.agents and peer.watches[0].all("load"), "in force")
        found = {family.name: dict(family.samples) for family in link.link.families()}
        assert found["outrider_control_connected"] == {(f"127.0.0.1:{port}",): 1.0}
        assert found["outrider_control_sessions"] == {(): 1}
        assert found["outrider_control_resources"] == {("applied",): 1.0, ("refused",): 0.0}
        assert found["outrider_control_updates"] == {(): 1}
        assert found["outrider_control_load_reports"][()] >= 1
