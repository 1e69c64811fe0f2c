"""The cache and single-flight as callers see them: verdicts, what is shared with whom, what is forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from tests.sidecars import Calls, Mesh, Peer, Sidecar, agent, channel_to, eventually, new_key, read_all, trailers

METHODS = ["/test.Agent/Unary", "/test.Agent/Download", "/test.Agent/Upload"]
CACHED = {"cache_enabled": True, "cache_methods": METHODS, "cache_jitter": 0.0}


@pytest.fixture(scope="module")
def sidecar(mesh: Mesh, peer: Peer) -> Sidecar:
    agents = [
        agent("cached", peer, optimization=CACHED),
        agent("tenant", peer, optimization={**CACHED, "cache_scope": "tenant"}),
        agent("claims", peer, optimization={**CACHED, "cache_auth_claims": ["x-role"]}),
        agent("brief", peer, optimization={**CACHED, "cache_ttl": 1, "cache_stale_ratio": 30.0}),
        agent(
            "tiny",
            peer,
            optimization={
                **CACHED,
                "cache_strategy": "lfu",
                "cache_max_bytes": 64 * 1024,
                "cache_max_object_bytes": 16 * 1024,
            },
        ),
        agent("paced", peer, optimization={**CACHED, "cache_replay": "paced"}),
        agent("off", peer),
    ]
    return mesh.sidecar({"default_agent": "cached", "agents": agents})


@pytest.fixture
def channel(sidecar: Sidecar) -> Iterator[grpc.Channel]:
    with channel_to(sidecar.target) as opened:
        yield opened
    sidecar.settled()


def to(channel: grpc.Channel, agent_id: str = "cached", *metadata: tuple[str, str]) -> Calls:
    """Replies are numbered, so that a reply from memory is known by its number."""
    return Calls(channel, [("x-agent-id", agent_id), *metadata])


def ask(calls: Calls, body: bytes | str, **more: Any) -> tuple[str, bytes]:
    """(verdict, reply) of a unary call."""
    call = calls.unary(body.encode() if isinstance(body, str) else body, serial=True, **more)
    return trailers(call).get("x-outrider-cache", ""), call.result()


def test_a_miss_and_then_hits(channel: grpc.Channel, peer: Peer) -> None:
    calls, body = to(channel), new_key()
    verdict, reply = ask(calls, body)
    assert verdict == "miss"
    assert [ask(calls, body) for _ in range(3)] == [("hit", reply)] * 3
    assert ask(calls, body + "?")[0] == "miss"


def test_a_hit_has_its_own_ids(channel: grpc.Channel) -> None:
    calls, body = to(channel), new_key().encode()
    first, second = calls.unary(body), calls.unary(body)
    assert trailers(second)["x-outrider-cache"] == "hit"
    for name in ("x-outrider-call-id", "x-outrider-trace-id"):
        assert trailers(first)[name] != trailers(second)[name]
        assert dict(second.initial_metadata())[name] == trailers(second)[name]


def test_metadata_and_trailers_of_the_reply_are_replayed(channel: grpc.Channel) -> None:
    calls, body = to(channel), new_key().encode()
    plan: dict[str, Any] = {"head": [["x-early", "1"], ["x-early", "2"]], "tail": [["x-late-bin", "AAE="]]}
    for verdict in ("miss", "hit"):
        call = calls.unary(body, **plan)
        assert trailers(call)["x-outrider-cache"] == verdict
        assert [value for name, value in call.initial_metadata() if name == "x-early"] == ["1", "2"]
        assert trailers(call)["x-late-bin"] == b"\x00\x01"


@pytest.mark.parametrize("field", ["x-user-id", "x-tenant-id", "authorization"])
def test_replies_never_cross_identities(channel: grpc.Channel, field: str) -> None:
    body = new_key()
    replies = {ask(to(channel, "cached", (field, who)), body) for who in ("ann", "bob", "cyd")}
    replies.add(ask(to(channel), body))
    assert len(replies) == 4
    assert {verdict for verdict, _ in replies} == {"miss"}
    assert ask(to(channel, "cached", (field, "bob")), body)[0] == "hit"


def test_replies_never_cross_agents(channel: grpc.Channel) -> None:
    body = new_key()
    assert [ask(to(channel, agent_id), body)[0] for agent_id in ("cached", "tenant", "claims")] == ["miss"] * 3


def test_tenant_scope_shares_among_users_of_one_tenant(channel: grpc.Channel) -> None:
    body = new_key()
    verdicts = [
        ask(to(channel, "tenant", ("x-tenant-id", tenant), ("x-user-id", user)), body)[0]
        for tenant, user in (("t1", "ann"), ("t1", "bob"), ("t2", "ann"))
    ]
    assert verdicts == ["miss", "hit", "miss"]


def test_claims_replace_the_credential(channel: grpc.Channel) -> None:
    body = new_key()
    asked = [("tok1", "clerk"), ("tok2", "clerk"), ("tok2", "chief")]
    verdicts = [
        ask(to(channel, "claims", ("authorization", token), ("x-role", role)), body)[0] for token, role in asked
    ]
    assert verdicts == ["miss", "hit", "miss"]


@pytest.mark.parametrize(
    ("wish", "verdicts"),
    [
        ("no-store", ["bypass", "bypass", "miss"]),
        ("no-cache", ["miss", "miss", "hit"]),
        ("max-age=0", ["miss", "miss", "hit"]),
        ("max-age=600", ["miss", "hit", "hit"]),
        ("max-age=rubbish", ["miss", "miss", "hit"]),
    ],
)
def test_cache_control(channel: grpc.Channel, wish: str, verdicts: list[str]) -> None:
    """Two calls that say so, then one that says nothing."""
    calls, body = to(channel), new_key()
    metadata = [("x-cache-control", wish)]
    found = [ask(calls, body, metadata=metadata)[0], ask(calls, body, metadata=metadata)[0], ask(calls, body)[0]]
    assert found == verdicts


def test_methods_not_named_and_agents_without_a_cache_are_left_alone(channel: grpc.Channel) -> None:
    body = new_key().encode()
    for _ in range(2):
        assert "x-outrider-cache" not in trailers(to(channel).unary(body, method="Other"))
        assert "x-outrider-cache" not in trailers(to(channel, "off").unary(body))


@pytest.mark.parametrize("status", [2, 5, 8, 13, 14])
def test_errors_are_never_stored(channel: grpc.Channel, status: int) -> None:
    calls, body = to(channel), new_key()
    failed = calls.unary(body.encode(), status=status, tail=[["grpc-retry-pushback-ms", "-1"]])
    assert failed.code().value[0] == status
    assert trailers(failed)["x-outrider-cache"] == "miss"
    assert ask(calls, body)[0] == "miss"
    assert ask(calls, body)[0] == "hit"


def test_a_stream_broken_off_is_not_stored(channel: grpc.Channel) -> None:
    calls, body = to(channel), new_key().encode()
    messages, call = read_all(calls.start("Download", body, sizes=[5, 5], status=13))
    assert (len(messages), call.code()) == (2, grpc.StatusCode.INTERNAL)
    messages, call = read_all(calls.start("Download", body, sizes=[5, 5]))
    assert (len(messages), trailers(call)["x-outrider-cache"]) == (2, "miss")


@pytest.mark.parametrize("agent_id", ["cached", "paced"])
def test_streams_are_recorded_and_replayed(channel: grpc.Channel, peer: Peer, agent_id: str) -> None:
    calls, body, key = to(channel, agent_id), new_key().encode(), new_key()
    first, call = read_all(calls.start("Download", body, key=key, serial=True, sizes=[0] * 5))
    assert trailers(call)["x-outrider-cache"] == "miss"
    assert len(first) == 5
    again, call = read_all(calls.start("Download", body, key=key, serial=True, sizes=[0] * 5))
    assert (again, trailers(call)["x-outrider-cache"]) == (first, "hit")
    assert len(peer.records(key)) == 1


def test_large_requests_step_aside(channel: grpc.Channel) -> None:
    body = bytes(1_100_000)
    for _ in range(2):
        call = to(channel).unary(body)
        assert call.result() == body
        assert trailers(call)["x-outrider-cache"] == "bypass"


# -- single-flight ---------------------------------------------------------------------------------------------------


def test_one_flight_for_many_callers(channel: grpc.Channel, peer: Peer) -> None:
    calls, body, key = to(channel), new_key().encode(), new_key()
    running = [calls.start("Unary", body, key=key, serial=True, hold=True)]
    peer.record(key)
    running += [calls.start("Unary", body, key=key, serial=True, hold=True) for _ in range(30)]
    joined(calls, 31)
    peer.control("release", key=key)
    assert len({call.result() for call in running}) == 1
    verdicts = [trailers(call)["x-outrider-cache"] for call in running]
    assert sorted(verdicts) == ["coalesced"] * 30 + ["miss"]
    assert len(peer.records(key)) == 1


def joined(calls: Calls, count: int) -> None:
    """Wait until so many calls are in flight: served calls in between show that theirs have been read."""
    eventually(lambda: calls.unary(b"", method="Other").code() is grpc.StatusCode.OK, "a call is served")
    for _ in range(count):
        calls.unary(b"", method="Other").result()


def test_a_cancelled_leader_leaves_the_flight_to_the_others(channel: grpc.Channel, peer: Peer) -> None:
    calls, body, key = to(channel), new_key().encode(), new_key()
    leader = calls.start("Unary", body, key=key, serial=True, hold=True)
    peer.record(key)
    others = [calls.start("Unary", body, key=key, serial=True, hold=True) for _ in range(5)]
    joined(calls, 5)
    leader.cancel()
    joined(calls, 5)
    peer.control("release", key=key)
    assert len({call.result() for call in others}) == 1
    assert [record["outcome"] for record in peer.records(key)] == ["done"]
    assert ask(calls, body)[0] == "hit"


def test_the_last_one_leaving_cancels_the_flight(channel: grpc.Channel, peer: Peer) -> None:
    calls, body, key = to(channel), new_key().encode(), new_key()
    running = [calls.start("Unary", body, key=key, hold=True) for _ in range(4)]
    peer.record(key)
    joined(calls, 4)
    for call in running:
        call.cancel()
    peer.wait_outcome(key, "cancelled")
    assert ask(calls, body)[0] == "miss"


def test_a_late_reader_of_a_stream_gets_it_from_the_start(channel: grpc.Channel, peer: Peer) -> None:
    calls, body, key = to(channel), new_key().encode(), new_key()
    plan: dict[str, Any] = {"key": key, "serial": True, "sizes": [0] * 4, "hold_after": 2}
    first = calls.start("Download", body, **plan)
    begun = [next(first), next(first)]
    late = calls.start("Download", body, **plan)
    assert [next(late), next(late)] == begun
    peer.control("release", key=key)
    rest = list(first)
    assert list(late) == rest
    assert len(rest) == 2
    assert trailers(late)["x-outrider-cache"] == "coalesced"
    assert len(peer.records(key)) == 1


def test_a_short_deadline_of_one_reader_is_not_the_others(channel: grpc.Channel, peer: Peer) -> None:
    calls, body, key = to(channel), new_key().encode(), new_key()
    hasty = calls.start("Unary", body, key=key, serial=True, hold=True, timeout_s=0.4)
    patient = calls.start("Unary", body, key=key, serial=True, hold=True, timeout_s=30)
    assert hasty.exception().code() is grpc.StatusCode.DEADLINE_EXCEEDED
    peer.control("release", key=key)
    assert patient.result()


def test_a_shared_flights_error_goes_to_all(channel: grpc.Channel, peer: Peer) -> None:
    calls, body, key = to(channel), new_key().encode(), new_key()
    running = [calls.start("Unary", body, key=key, hold=True, status=9, message="no") for _ in range(4)]
    peer.record(key)
    joined(calls, 4)
    peer.control("release", key=key)
    assert {(call.exception().code(), call.details()) for call in running} == {
        (grpc.StatusCode.FAILED_PRECONDITION, "no")
    }


# -- what is kept, and for how long ----------------------------------------------------------------------------------


def test_stale_replies_are_served_while_a_fresh_one_is_fetched(channel: grpc.Channel, peer: Peer) -> None:
    calls, body = to(channel, "brief"), new_key()
    _, first = ask(calls, body)
    seen: list[tuple[str, bytes]] = []

    def refreshed() -> bool:
        seen.append(ask(calls, body))
        return seen[-1][1] != first

    eventually(refreshed, "the reply is fetched anew")
    assert seen[-1][0] in ("hit", "stale")
    verdicts = [verdict for verdict, reply in seen if reply == first]
    assert "stale" in verdicts
    assert "miss" not in [verdict for verdict, _ in seen], "nobody waits for the refresh"


def test_purge_by_agent_and_by_tenant(channel: grpc.Channel, sidecar: Sidecar) -> None:
    body, one, two = new_key(), ("x-tenant-id", "acme"), ("x-tenant-id", "other")
    for tenant in (one, two):
        assert [ask(to(channel, "tenant", tenant), body)[0] for _ in range(2)] == ["miss", "hit"]
    assert sidecar.post("/cache/purge", {"tenant": "acme"})[0] == 200
    assert ask(to(channel, "tenant", one), body)[0] == "miss"
    assert ask(to(channel, "tenant", two), body)[0] == "hit"
    assert sidecar.post("/cache/purge", {"agent": "tenant"})[0] == 200
    assert [ask(to(channel, "tenant", tenant), body)[0] for tenant in (one, two)] == ["miss", "miss"]


@pytest.mark.parametrize("scope", [{}, [], {"agnet": "x"}, {"agent": ""}, {"agent": 7}, {"agent": "nobody"}])
def test_a_wrong_purge_is_refused_with_a_reason(sidecar: Sidecar, scope: Any) -> None:
    status, reply = sidecar.post("/cache/purge", scope)
    assert status == 400
    assert reply["error"]


def test_a_purge_beats_a_flight_under_way(channel: grpc.Channel, sidecar: Sidecar, peer: Peer) -> None:
    """A reply asked for before the purge must not be found after it."""
    calls, body, key = to(channel), new_key().encode(), new_key()
    old = calls.start("Unary", body, key=key, serial=True, hold=True)
    peer.record(key)
    assert sidecar.post("/cache/purge", {"all": True})[0] == 200
    peer.control("release", key=key)
    before = old.result()
    verdict, after = ask(calls, body)
    assert verdict == "miss"
    assert after != before


def test_objects_and_the_whole_are_bounded(channel: grpc.Channel, sidecar: Sidecar) -> None:
    calls, large = to(channel, "tiny"), new_key().encode()
    for _ in range(2):
        call = calls.unary(large, size=20_000)
        assert (len(call.result()), trailers(call)["x-outrider-cache"]) == (20_000, "miss")
    for _ in range(40):
        calls.unary(new_key().encode(), size=8_000).result()
    kept = sidecar.metric("outrider_cache_bytes", agent="tiny")
    assert 8_000 < kept <= 64 * 1024
    assert sidecar.metric("outrider_cache_evictions_total", agent="tiny") > 0


def test_lfu_keeps_what_is_asked_often(channel: grpc.Channel) -> None:
    calls, loved = to(channel, "tiny"), new_key()
    ask(calls, loved)
    for _ in range(20):
        assert ask(calls, loved)[0] == "hit"
    for _ in range(30):
        calls.unary(new_key().encode(), size=8_000).result()
    assert ask(calls, loved)[0] == "hit"


def test_the_admin_port_shows_verdicts_and_ghosts(channel: grpc.Channel, sidecar: Sidecar) -> None:
    ask(to(channel), new_key())
    shown = {one["agent_id"]: one for one in sidecar.json("/cache")["agents"]}
    assert "off" not in shown
    cached = shown["cached"]
    assert cached["verdicts"]["miss"] > 0
    assert 0 <= cached["hit_rate"] <= 1
    assert {"half", "same", "double", "quadruple", "lfu"} <= set(cached["ghosts"])


def test_a_reply_too_large_to_keep_is_still_shared(channel: grpc.Channel, sidecar: Sidecar, peer: Peer) -> None:
    """Both readers get all of 8 MB through one flight, at the pace of the slower; little waits in the sidecar."""
    body, key = new_key().encode(), new_key()
    plan: dict[str, Any] = {"key": key, "sizes": [100_000] * 80, "hold_after": 1}
    with channel_to(sidecar.target, options=[("grpc.http2.bdp_probe", 0)]) as second:
        quick, slow = to(channel).start("Download", body, **plan), to(second).start("Download", body, **plan)
        assert len(next(quick)) == len(next(slow)) == 100_000
        peer.control("release", key=key)
        with ThreadPoolExecutor(2) as readers:
            sums = [readers.submit(lambda reader=reader: sum(map(len, reader))) for reader in (quick, slow)]
            held = 0.0
            while not all(one.done() for one in sums):
                held = max(held, sidecar.metric("outrider_held_bytes"))
        assert [one.result() for one in sums] == [79 * 100_000] * 2
        assert held < 4_000_000
        verdicts = [trailers(one)["x-outrider-cache"] for one in (quick, slow)]
        assert sorted(verdicts) == ["coalesced", "miss"]  # on two connections either may come first
    assert len(peer.records(key)) == 1


def test_a_reader_leaving_a_large_shared_reply_frees_the_others(
    channel: grpc.Channel, sidecar: Sidecar, peer: Peer
) -> None:
    body, key = new_key().encode(), new_key()
    plan: dict[str, Any] = {"key": key, "sizes": [100_000] * 80, "hold_after": 1}
    with channel_to(sidecar.target, options=[("grpc.http2.bdp_probe", 0)]) as second:
        reader, idle = to(channel).start("Download", body, **plan), to(second).start("Download", body, **plan)
        assert len(next(reader)) == len(next(idle)) == 100_000
        peer.control("release", key=key)
        assert len(next(reader)) == 100_000
        idle.cancel()
        assert sum(len(one) for one in reader) == 78 * 100_000
