"""Several control planes on one PostgreSQL: one leads, any serves, sidecars fail over, every call is counted once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from outrider.registration import Registration
from tests.controls import Control, holds, watching
from tests.sidecars import Calls, Mesh, Peer, Sidecar, agent, channel_to, eventually

PUSHED_S = 5.0


@pytest.fixture
def pair(mesh: Mesh, postgres_url: str, request: pytest.FixtureRequest) -> Iterator[tuple[Control, Control]]:
    name = request.node.name.split("[")[0]
    first = Control(mesh, f"{name}-a", database=postgres_url)
    second = Control(mesh, f"{name}-b", database=postgres_url)
    yield first, second
    for control in (first, second):
        if control.child.process.poll() is None:
            control.stop()  # else it holds on to the database


def leads(control: Control) -> bool:
    return bool(control.json("status")["leader"])


def watcher(mesh: Mesh, name: str, *controls: Control) -> Sidecar:
    return mesh.sidecar({"control": [control.target for control in controls]}, name)


def test_one_leads_and_what_is_told_to_one_reaches_the_sidecars_of_both(
    mesh: Mesh, pair: tuple[Control, Control], peer: Peer
) -> None:
    first, second = pair
    assert leads(first)
    assert not leads(second)
    first.apply(agent("one", peer))
    near, far = watcher(mesh, "near", first), watcher(mesh, "far", second)
    for sidecar in (near, far):
        eventually(lambda sidecar=sidecar: holds(sidecar, "one"), "the agent reaches the sidecar")
    second.apply(agent("two", peer))
    for sidecar in (near, far):
        eventually(lambda sidecar=sidecar: holds(sidecar, "two"), "a change at one reaches both", PUSHED_S)
    eventually(lambda: len(first.json("sidecars")["sidecars"]) == 2, "each shows the sidecars of both")
    purged = first.json("cache", "purge", "--agent", "one", "--reason", "erasure")
    assert purged["sidecars"] == 2


def test_an_endpoint_registered_at_one_is_known_to_both_and_outlives_its_control_plane(
    mesh: Mesh, pair: tuple[Control, Control], peer: Peer
) -> None:
    first, second = pair
    first.apply({"agent_id": "one"})
    sidecar = watcher(mesh, "caller", second)
    with Registration([first.target, second.target], "one", peer.address, {"zone": "a"}):
        eventually(lambda: holds(sidecar, "one") and sidecar.states("one"), "the endpoint reaches the sidecar")
        first.kill()
        with channel_to(sidecar.target) as channel:
            calls = Calls(channel, [("x-agent-id", "one")])
            for number in range(50):
                assert calls.unary(b"%d" % number).result() == b"%d" % number
        eventually(lambda: leads(second), "the other one leads")
        listed = second.json("endpoints", "one")["endpoints"]
        assert [one["address"] for one in listed] == [peer.address]
    eventually(lambda: not second.json("endpoints", "one")["endpoints"], "a withdrawn endpoint goes at once")


def test_sidecars_fail_over_and_no_call_is_lost_or_counted_twice(
    mesh: Mesh, pair: tuple[Control, Control], peer: Peer
) -> None:
    first, second = pair
    first.apply(agent("one", peer))
    sidecars = [watcher(mesh, f"moving-{number}", first, second) for number in range(2)]
    for sidecar in sidecars:
        eventually(lambda sidecar=sidecar: holds(sidecar, "one"), "the agent reaches the sidecar")
    with channel_to(sidecars[0].target) as a, channel_to(sidecars[1].target) as b:
        callers = [Calls(channel, [("x-agent-id", "one")]) for channel in (a, b)]
        pending = []
        for number in range(400):
            pending.append(callers[number % 2].start("Unary", b"%d" % number))
            if number == 200:
                first.kill()
        assert [call.code() for call in pending if call.exception() is not None] == []
    for sidecar in sidecars:
        eventually(lambda sidecar=sidecar: watching(sidecar), "the sidecar watches the other one", 5.0)
    second.apply(agent("one", peer, timeout_ms=9_000), agent("late", peer))
    for sidecar in sidecars:
        eventually(lambda sidecar=sidecar: holds(sidecar, "late"), "the other one pushes")
    eventually(lambda: leads(second), "the other one leads")
    eventually(lambda: second.requests("one") >= 400, "every call is counted in the end", 40.0)
    assert second.requests("one") == 400, "none is counted twice"
