"""The whole of it: control plane, sidecars, agents and the operator's CLI as separate processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.controls import Control, holds, watching
from tests.sidecars import Calls, Mesh, Peer, Sidecar, agent, channel_to, code_of, eventually, new_key


@pytest.fixture(scope="module")
def control(mesh: Mesh) -> Control:
    return Control(mesh)


@pytest.fixture(scope="module")
def sidecar(mesh: Mesh, control: Control, peer: Peer) -> Sidecar:
    control.apply(agent("one", peer))
    return mesh.sidecar({"control": [control.target], "state_dir": "state"}, "watching")


@pytest.fixture
def calls(sidecar: Sidecar) -> Iterator[Calls]:
    with channel_to(sidecar.target) as channel:
        yield Calls(channel, [("x-agent-id", "one")])


def test_policy_comes_from_the_control_plane(control: Control, sidecar: Sidecar, peer: Peer, calls: Calls) -> None:
    eventually(lambda: holds(sidecar, "one"), "the agent reaches the sidecar")
    assert calls.unary(b"hello").result() == b"hello"
    control.apply(agent("one", peer, timeout_ms=20_000), agent("two", peer))
    eventually(lambda: holds(sidecar, "two"), "a new agent reaches the sidecar")
    done = control.cli("agents", "delete", "two", "--reason", "no longer wanted")
    assert done.returncode == 0, done.stderr
    eventually(lambda: not holds(sidecar, "two"), "a deleted agent leaves the sidecar")
    assert calls.unary(b"again").result() == b"again"


def test_figures_are_those_of_the_calls(control: Control, sidecar: Sidecar, peer: Peer) -> None:
    control.apply(agent("counted", peer))
    eventually(lambda: holds(sidecar, "counted"), "the agent reaches the sidecar")
    with channel_to(sidecar.target) as channel:
        calls = Calls(channel, [("x-agent-id", "counted")])
        for number in range(40):
            calls.unary(b"x" * number)
        calls.unary(b"", status=3, key=new_key())
        calls.unary(b"", status=13, key=new_key())
    eventually(lambda: control.requests("counted") == 42, "all calls are counted")
    figures = next(a for a in control.json("overview")["agents"] if a["agent_id"] == "counted")
    assert figures["errors"] == 1, "INVALID_ARGUMENT is the caller's business, INTERNAL is a failure"
    assert figures["statuses"] == {"INVALID_ARGUMENT": 1, "INTERNAL": 1}
    assert 0 < figures["p50_ms"] <= figures["p95_ms"] <= figures["p99_ms"]
    assert figures["success_rate"] == pytest.approx(41 / 42)
    assert figures["cost_usd"] is None, "nothing was priced"
    assert figures["hit_rate"] is None, "nothing could have been a hit"
    metrics = control.json("metrics", "--agent", "counted", "--window", "10s", "--since", "1h")
    assert metrics["requests"] == 42
    assert sum(point["requests"] for point in metrics["series"]) == 42


def test_a_failed_call_is_kept_and_explained(control: Control, sidecar: Sidecar, calls: Calls) -> None:
    call = calls.unary(b"", status=13, message="broken", key=new_key())
    trace_id = dict(call.initial_metadata() or call.trailing_metadata())["x-outrider-trace-id"]
    shown = eventually(
        lambda: (done := control.cli("traces", "show", trace_id, "--json")).returncode == 0 and done.stdout,
        "the trace is kept",
    )
    assert any(span["status"] == "INTERNAL" for span in json.loads(shown)["spans"])
    explained = control.json("explain", trace_id)
    assert [one["agent_id"] for one in explained["calls"]] == ["one"]
    assert {"identify", "attempt", "end"} <= {step["what"] for step in explained["calls"][0]["steps"]}


def test_a_purge_reaches_every_sidecar(control: Control, mesh: Mesh, sidecar: Sidecar, peer: Peer) -> None:
    cached = {"cache_enabled": True, "cache_methods": ["/test.Agent/Unary"]}
    control.apply(agent("cached", peer, optimization=cached))
    eventually(lambda: holds(sidecar, "cached"), "the agent reaches the sidecar")
    with channel_to(sidecar.target) as channel:
        cached_calls = Calls(channel, [("x-agent-id", "cached")])
        verdicts = [dict(cached_calls.unary(b"the same").trailing_metadata())["x-outrider-cache"] for _ in range(2)]
        assert verdicts == ["miss", "hit"]
        purged = control.json("cache", "purge", "--agent", "cached", "--reason", "erasure request")
        assert purged["confirmed"] == purged["sidecars"] >= 1
        after = dict(cached_calls.unary(b"the same").trailing_metadata())["x-outrider-cache"]
        assert after == "miss"


def test_operators_see_sidecars_endpoints_and_decisions(control: Control, sidecar: Sidecar, peer: Peer) -> None:
    sidecars = control.json("sidecars")["sidecars"]
    assert [one["connected"] for one in sidecars] == [True]
    eventually(lambda: control.json("sidecars")["sidecars"][0]["behind"] == 0, "the sidecar is up to date")
    endpoints = control.json("endpoints", "one")["endpoints"]
    assert [(one["address"], one["source"]) for one in endpoints] == [(peer.address, "declared")]
    control.apply(agent("short-lived", peer))
    assert control.cli("agents", "delete", "short-lived", "--reason", "over").returncode == 0
    kinds = {one["kind"] for one in control.json("decisions", "--agent", "short-lived")["decisions"]}
    assert kinds == {"apply", "delete"}
    history = control.json("agents", "history", "one")["versions"]
    assert [one["version"] for one in history] == sorted((one["version"] for one in history), reverse=True)


def test_a_stale_version_is_refused(control: Control, peer: Peer) -> None:
    control.apply(agent("versioned", peer))
    control.apply(agent("versioned", peer, timeout_ms=5))
    stale = control.cli(
        *("agents", "apply", "-f", "-", "--reason", "late"),
        stdin=json.dumps({"agents": [{**agent("versioned", peer), "version": 1}]}),
    )
    assert stale.returncode == 1
    assert "versioned" in stale.stderr
    assert control.json("agents", "get", "versioned")["version"]["version"] == 2
    rolled = control.json("agents", "rollback", "versioned", "--to", "1", "--reason", "as it was")
    assert rolled["version"]["version"] == 3


def test_an_old_policy_serves_when_the_control_plane_is_away(mesh: Mesh, peer: Peer) -> None:
    control = Control(mesh, "leaving")
    control.apply(agent("one", peer))
    sidecar = mesh.sidecar({"control": [control.target], "state_dir": "state"}, "left")
    eventually(lambda: holds(sidecar, "one"), "the agent reaches the sidecar")
    control.kill()
    sidecar.terminate()
    assert sidecar.wait_exit() == 0
    sidecar.start()
    with channel_to(sidecar.target) as channel:
        assert Calls(channel, [("x-agent-id", "one")]).unary(b"alone").result() == b"alone"
    assert not watching(sidecar)
    control.start()
    eventually(lambda: watching(sidecar), "the sidecar is back on its watch", 5.0)


def test_no_call_fails_and_none_is_counted_twice_when_the_control_plane_is_killed(mesh: Mesh, peer: Peer) -> None:
    control = Control(mesh, "killed")
    control.apply(agent("one", peer))
    sidecars = [mesh.sidecar({"control": [control.target]}, f"loaded-{number}") for number in range(3)]
    for sidecar in sidecars:
        eventually(lambda sidecar=sidecar: holds(sidecar, "one"), "the agent reaches the sidecar")
    made = 0
    for round_number in range(3):
        with (
            channel_to(sidecars[0].target) as a,
            channel_to(sidecars[1].target) as b,
            channel_to(sidecars[2].target) as c,
        ):
            pending = []
            for number in range(300):
                who = Calls((a, b, c)[number % 3], [("x-agent-id", "one")])
                pending.append(who.start("Unary", b"%d" % number))
                if number == 150:
                    control.kill()
            assert [code_of(call) for call in pending if call.exception() is not None] == []
            made += len(pending)
        control.start()
        for sidecar in sidecars:
            eventually(lambda sidecar=sidecar: watching(sidecar), f"back on its watch, round {round_number}", 5.0)
    eventually(lambda: control.requests("one") >= made, "every call is counted in the end", 40.0)
    assert control.requests("one") == made, "none is counted twice"


def test_wrong_settings_end_the_program_with_2(mesh: Mesh, tmp_path: Path) -> None:
    control = Control.__new__(Control)
    control.__dict__.update(_mesh=mesh, name="wrong", folder=tmp_path, file=tmp_path / "c.yaml", _environment=None)
    control.config = {"grpc": "127.0.0.1:0", "database": "sqlite:///no/such/folder/x.db", "http": "127.0.0.1:0"}
    assert control.launch().process.wait(30) == 2
    assert "no/such/folder" in control.log()
    control.config = {"grcp": "127.0.0.1:0"}
    assert control.launch().process.wait(30) == 2
    assert "did you mean 'grpc'?" in control.log()
