"""Reload: on SIGHUP and on a change of the file, whole or not at all, and no call notices."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import grpc
import pytest

from tests.sidecars import Calls, Mesh, Peer, Sidecar, agent, channel_to, eventually, new_key, standalone


@pytest.fixture(scope="module")
def peers(mesh: Mesh) -> list[Peer]:
    return [mesh.peer(name) for name in ("one", "two")]


@pytest.fixture(scope="module")
def shared(mesh: Mesh, peers: list[Peer]) -> Sidecar:
    return mesh.sidecar(standalone(peers[0]))


@pytest.fixture
def sidecar(shared: Sidecar, peers: list[Peer]) -> Sidecar:
    """The one process, with the policy every test begins with."""
    shared.config.update(standalone(peers[0]))
    assert shared.reload() == "applied"
    return shared


@pytest.fixture
def calls(sidecar: Sidecar) -> Iterator[Calls]:
    with channel_to(sidecar.target) as channel:
        yield Calls(channel)
    sidecar.settled()


def test_sighup_applies_new_agents_and_endpoints(sidecar: Sidecar, calls: Calls, peers: list[Peer]) -> None:
    assert calls.unary(serial=True).result().startswith(b"one")
    sidecar.config.update(default_agent="late", agents=[agent("late", peers[1])])
    assert sidecar.reload() == "applied"
    assert calls.unary(serial=True).result().startswith(b"two")
    assert calls.unary(metadata=[("x-agent-id", "solo")]).code() is grpc.StatusCode.NOT_FOUND


def test_a_changed_file_is_noticed_without_a_signal(sidecar: Sidecar, calls: Calls, peers: list[Peer]) -> None:
    sidecar.config.update(agents=[agent("solo", peers[1])])
    sidecar.write()
    eventually(lambda: calls.unary(serial=True).result().startswith(b"two"), "the new file is in force")


def test_a_call_in_flight_outlives_its_endpoint_and_its_agent(
    sidecar: Sidecar, calls: Calls, peers: list[Peer]
) -> None:
    key = new_key()
    call = calls.start("Download", b"", key=key, sizes=[5, 6], hold_after=1)
    assert len(next(call)) == 5
    sidecar.config.update(default_agent="late", agents=[agent("late", peers[1])])
    assert sidecar.reload() == "applied"
    peers[0].control("release", key=key)
    assert [len(message) for message in call] == [6]
    assert call.code() is grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"agents": [{"agent_id": "solo", "endpoints": ["nowhere"]}]}, "agents[0].endpoints[0]"),
        ({"agents": [{"agent_id": "solo", "balancing": {"strategy": "psychic"}}]}, "agents[0].balancing.strategy"),
        ({"default_agent": "gone"}, "default_agent"),
        ({"agnets": []}, "agnets"),
    ],
)
def test_a_wrong_file_is_refused_whole(sidecar: Sidecar, calls: Calls, change: dict[str, object], field: str) -> None:
    before = {**sidecar.config}
    sidecar.config.update(change)
    said = sidecar.reload()
    assert said.startswith("refused")
    assert field in said
    assert calls.unary(serial=True).result().startswith(b"one")
    assert sidecar.get("/readyz")[0] == 200
    sidecar.config.clear()
    sidecar.config.update(before)
    assert sidecar.reload() == "applied"


def test_a_file_that_is_no_yaml_and_one_that_is_gone_are_refused(sidecar: Sidecar, calls: Calls) -> None:
    refused = sidecar.metric("outrider_reloads_total", outcome="refused")
    sidecar.file.write_text("agents: [", encoding="utf-8")
    eventually(lambda: sidecar.metric("outrider_reloads_total", outcome="refused") > refused, "refused")
    refused = sidecar.metric("outrider_reloads_total", outcome="refused")
    sidecar.file.unlink()
    eventually(lambda: sidecar.metric("outrider_reloads_total", outcome="refused") > refused, "refused again")
    assert calls.unary(b"x").result() == b"x"


def test_no_call_is_lost_by_reloads_under_load(sidecar: Sidecar, peers: list[Peer]) -> None:
    """Endpoints come and go, policies change, and every call of four callers is answered."""
    failed: list[str] = []
    done = [0] * 4
    stop = threading.Event()

    def caller(number: int) -> None:
        with channel_to(sidecar.target) as channel:
            calls = Calls(channel)
            while not stop.is_set():
                stream = calls.start("Download", b"", sizes=[100, 100])
                call = calls.unary(b"%d" % done[number])
                if call.code() is not grpc.StatusCode.OK or call.result() != b"%d" % done[number]:
                    failed.append(call.details())
                messages = list(stream)
                if len(messages) != 2:
                    failed.append("a stream was cut")
                done[number] += 1

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    sets = [[peers[0]], [peers[1]], peers]
    for turn in range(12):
        sidecar.config["agents"] = [agent("solo", *sets[turn % 3], timeout_ms=10_000 + turn)]
        assert sidecar.reload() == "applied"
        enough = [count + 3 for count in done]
        eventually(
            lambda enough=enough: all(a >= b for a, b in zip(done, enough, strict=True)) or failed, "calls go on"
        )
    stop.set()
    for thread in threads:
        thread.join()
    assert failed == []
    sidecar.settled()
    assert set(sidecar.states("solo").values()) == {"ready"}


def test_what_needs_a_restart_is_said(sidecar: Sidecar, calls: Calls) -> None:
    sidecar.config["limits"] = {"max_streams": 5}
    try:
        assert sidecar.reload() == "applied"
        assert "limits" in sidecar.log()
        assert calls.unary(b"x").result() == b"x"
    finally:
        del sidecar.config["limits"]


def test_the_cache_survives_a_reload(sidecar: Sidecar, calls: Calls, peers: list[Peer]) -> None:
    cached = {"cache_enabled": True, "cache_methods": ["/test.Agent/Unary"]}
    sidecar.config["agents"] = [agent("solo", peers[0], optimization=cached)]
    sidecar.reload()
    body = new_key().encode()
    first = calls.unary(body, serial=True).result()
    sidecar.config["agents"] = [agent("solo", peers[0], peers[1], optimization={**cached, "cache_ttl": 60})]
    sidecar.reload()
    assert calls.unary(body, serial=True).result() == first
