"""What is malformed, hostile or too much, at the port of the real program: an error or a count, never a silent loss."""

from __future__ import annotations

import asyncio
import random
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from outrider.v1 import mesh_pb2
from tests.conformance.http2 import wire
from tests.conformance.http2.peer import connected
from tests.conformance.http2.wire import CALM, Wire, data, head, rst
from tests.controls import Control, holds, watching
from tests.integration.control.exports import METRICS, MS, TRACES, request, send, span
from tests.sidecars import Calls, Mesh, Peer, Sidecar, agent, channel_to, eventually
from tests.watchers import Watcher, until

MB = 2**20
HOUR_NS = 3_600 * 10**9
DAY_NS = 24 * HOUR_NS


@pytest.fixture(scope="module")
def control(mesh: Mesh) -> Control:
    return Control(mesh)


@pytest.fixture(scope="module")
def sidecar(mesh: Mesh, control: Control, peer: Peer) -> Sidecar:
    control.apply(agent("one", peer))
    started = mesh.sidecar({"control": [control.target]}, "watching")
    eventually(lambda: holds(started, "one"), "the agent reaches the sidecar")
    return started


@pytest.fixture
def port(control: Control) -> Iterator[grpc.Channel]:
    with channel_to(control.target) as channel:
        yield channel


def intake(control: Control) -> dict[str, int]:
    """What the operator is told of the intake."""
    return {name: int(count) for name, count in control.json("status")["intake"].items()}


def more(control: Control, before: dict[str, int]) -> dict[str, int]:
    """What was counted since `before`."""
    return {name: count - before.get(name, 0) for name, count in intake(control).items() if count != before.get(name)}


def figures(control: Control, agent_id: str) -> dict[str, Any]:
    agents = control.json("overview", "--since", "1h")["agents"]
    return next((one for one in agents if one["agent_id"] == agent_id), {})


def peak_bytes(control: Control) -> int:
    """The most memory the process ever had."""
    text = Path(f"/proc/{control.child.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", text)
    assert found is not None
    return int(found[1]) * 1024


# -- HTTP/2 ------------------------------------------------------------------------------------------------------------

FIELDS: list[tuple[str | bytes, str | bytes]] = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", TRACES),
    (":authority", "mesh"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
]
BAD_PATHS = (b"/\xff\xfe/\x80", b"/outrider.v1.Mesh/\x80", b"/\xed\xa0\x80/\xf0", b"\xff")


def rapid_reset() -> bytes:
    w = Wire()
    first = head(1, w.block(FIELDS), False)
    block = w.block(FIELDS)
    return first + b"".join(head(n, block, False) + rst(n) for n in range(3, 20_003, 2))


def flood(frame: bytes) -> bytes:
    return head(1, Wire().block(FIELDS), False) + frame * 100_000


async def attack(control: Control) -> None:
    """Paths that stop a bare grpcio server for good, then floods, each on a connection of its own."""
    for path in BAD_PATHS:
        async with connected(control.ports["grpc"]) as attacker:
            fields = [(name, path if name == ":path" else value) for name, value in FIELDS]
            attacker.send(head(1, attacker.wire.block(fields), False), data(1, b"\0\0\0\0\0", True))
            seen = await attacker.until(lambda seen: seen.resets or seen.ended)
            assert seen.resets == {1: wire.PROTOCOL}
    for frames in (rapid_reset(), flood(wire.ping()), flood(data(1)), flood(wire.settings())):
        async with connected(control.ports["grpc"]) as attacker:
            attacker.send(frames)
            assert (await attacker.until(lambda _: False)).goaway == CALM


async def test_attacks_cost_the_mesh_nothing(control: Control, sidecar: Sidecar, peer: Peer) -> None:
    """A sidecar watches, calls are made, spans come in, a policy is applied: all meanwhile."""
    before = await asyncio.to_thread(control.requests, "one")
    sessions = sidecar.metric("outrider_control_sessions_total")
    over = threading.Event()

    def call() -> int:
        made = 0
        with channel_to(sidecar.target) as channel:
            calls = Calls(channel, [("x-agent-id", "one")])
            while not over.is_set() or made < 100:
                assert calls.unary(b"%d" % made).result() == b"%d" % made
                made += 1
                over.wait(0.002)
        return made

    calling = asyncio.create_task(asyncio.to_thread(call))
    try:
        await attack(control)
        await asyncio.to_thread(control.apply, agent("amidst", peer))
        await attack(control)
    finally:
        over.set()
    made = await calling
    eventually(lambda: holds(sidecar, "amidst"), "a change made amidst it reaches the sidecar")
    assert sidecar.metric("outrider_control_sessions_total") == sessions, "its watch was never interrupted"
    eventually(lambda: control.requests("one") == before + made, "every call is counted once")
    assert control.child.process.poll() is None


# -- OTLP --------------------------------------------------------------------------------------------------------------


def refused(channel: grpc.Channel, body: bytes, method: str = TRACES, **call: Any) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        send(channel, body, method, **call)
    return caught.value


def test_malformed_requests_are_refused_and_counted(control: Control, port: grpc.Channel) -> None:
    before = intake(control)
    good = request([span(random.Random("malformed"), "malformed")]).SerializeToString()
    bodies = [good[:-1], b"\x0a", b"\x0a\xff\xff\xff\xff\x0f", b"\xff" * 64, b"\x0a\x05\x12\x03\x12\x7f\x00"]
    for body in bodies:
        for method in (TRACES, METRICS):
            error = refused(port, body, method)
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, (body, error.details())
            assert "not an OTLP export request" in error.details()
    assert more(control, before)["malformed_requests"] == 2 * len(bodies)
    assert not figures(control, "malformed"), "nothing of a malformed request counts"


def test_any_bytes_are_answered(control: Control, port: grpc.Channel) -> None:
    """Mutations of a good request: taken or refused, and the program goes on."""
    rng = random.Random("mutated")
    good = request([span(rng, "mutated", attributes={"note": "x" * 50}) for _ in range(3)]).SerializeToString()
    codes = set()
    for _ in range(400):
        body = bytearray(good)
        for _ in range(rng.randint(1, 6)):
            body[rng.randrange(len(body))] = rng.randrange(256)
        try:
            send(port, bytes(body[: rng.randint(1, len(body))] if rng.random() < 0.3 else body))
            codes.add(grpc.StatusCode.OK)
        except grpc.RpcError as error:
            ended: Any = error
            codes.add(ended.code())
    assert codes == {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}
    assert control.get("/readyz")[0] == 200
    assert "Traceback" not in control.log()


def test_spans_that_cannot_be_are_counted_as_lacking(control: Control, port: grpc.Channel) -> None:
    rng, now_ns = random.Random("odd"), time.time_ns()
    before, dropped = intake(control), control.json("overview")["dropped_spans"]
    answer = send(
        port,
        request(
            [
                span(rng, "odd", now_ns, -5),
                span(rng, "odd", now_ns, -(2**60) / MS),
                span(rng, "odd", 0, 0),
                span(rng, "odd", now_ns, 8 * DAY_NS / MS),
                span(rng, "odd", trace_id=b""),
                span(rng, "odd", span_id=bytes(8)),
                span(rng, "odd", now_ns - 2 * HOUR_NS),  # late
                span(rng, "odd", 1, 1),  # of 1970
                span(rng, "odd", now_ns + 100 * DAY_NS),  # of next season
                span(rng, "odd", 2**63, 1),
                span(rng, "odd"),
            ]
        ),
    )
    assert answer.partial_success.rejected_spans == 6
    assert "an end before the start" in answer.partial_success.error_message
    counted = more(control, before)
    assert {name: counted[name] for name in ("rejected", "late", "skewed")} == {"rejected": 6, "late": 2, "skewed": 2}
    found = figures(control, "odd")
    assert found["requests"] == 3, "the future is now, the past is past"
    assert found["p50_ms"] == pytest.approx(5, rel=0.05), "a duration that is not known is not one of 0"
    eventually(lambda: control.json("overview")["dropped_spans"] == dropped + 8, "what figures lack is said")


def test_huge_and_strange_attributes(control: Control, port: grpc.Channel) -> None:
    rng = random.Random("strange")
    strange = {"x" * 100_000: "y", "note": "z" * MB, "gen_ai.usage.input_tokens": -(2**62), "rpc.method": "\0\n\x1b[2J"}
    send(port, request([span(rng, "strange", attributes=strange), span(rng, "n" * 10_000), span(rng, "")]))
    agents = {one["agent_id"] for one in control.json("overview")["agents"]}
    assert {"strange", "n" * 256} <= agents
    assert figures(control, "strange")["input_tokens"] == 0
    assert "\x1b" not in control.cli("metrics", "--agent", "strange").stdout
    answer = send(port, request([span(rng, "strange", attributes={"note": "z" * 5 * MB}), span(rng, "strange")]))
    assert answer.partial_success.rejected_spans == 1
    assert figures(control, "strange")["requests"] == 2


def test_bombs_and_oversized_requests_are_refused(control: Control, port: grpc.Channel) -> None:
    before = peak_bytes(control)
    bomb = request([span(random.Random("bomb"), "bomb", attributes={"note": "\0" * 60 * MB})]).SerializeToString()
    with ThreadPoolExecutor(4) as pool:
        errors = list(pool.map(lambda _: refused(port, bomb, compression=grpc.Compression.Gzip), range(8)))
    assert {error.code() for error in errors} <= {
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.INVALID_ARGUMENT,
    }
    error = refused(port, bytes(17 * MB))
    assert error.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT)
    assert re.search(r"larger than max|send at most", error.details())
    send(port, request([span(random.Random("after"), "after")]), compression=grpc.Compression.Gzip)
    assert figures(control, "after")["requests"] == 1
    assert peak_bytes(control) - before < 150 * MB


def test_ten_thousand_agents(mesh: Mesh) -> None:
    """More names than are kept apart: calls are counted under (other), memory has a bound, operators are told."""
    crowded = Control(mesh, "crowded", series={"max_agents": 200})
    rng = random.Random("crowded")
    with channel_to(crowded.target) as channel:
        send(channel, request([span(rng, "before")]))
        assert crowded.requests() == 1
        before = peak_bytes(crowded)
        for first in range(0, 10_000, 500):
            names = [f"agent-{number}" for number in range(first, first + 500)]
            answer = send(channel, request([span(rng, name) for name in names for _ in range(2)]))
            assert not answer.partial_success.rejected_spans
    agents = {one["agent_id"]: one for one in crowded.json("overview")["agents"]}
    assert sum(one["requests"] for one in agents.values()) == 20_001, "none is lost"
    assert agents["(other)"]["requests"] == 20_001 - 1 - 2 * 199
    assert len(agents) == 201
    assert peak_bytes(crowded) - before < 60 * MB
    status = crowded.json("status")
    assert int(status["overflowed"]) == agents["(other)"]["requests"]
    assert any("(other)" in warning for warning in status["warnings"])
    assert "(other)" in crowded.cli("doctor").stdout
    crowded.stop()


# -- refusals ----------------------------------------------------------------------------------------------------------


def held(sidecar: Sidecar, agent_id: str) -> int:
    """The version of an agent's policy that is in force in a sidecar."""
    resources = sidecar.json("/config")["control_link"]["held"]
    return next((one["version"] for one in resources if (one["kind"], one["name"]) == ("policy", agent_id)), 0)


def picky(resource: mesh_pb2.Resource) -> str:
    return "timeout_ms: 7777 is not for me" if resource.policy.timeout_ms == 7777 else ""


async def test_a_sidecar_that_refuses(control: Control, sidecar: Sidecar, peer: Peer) -> None:
    """A sidecar of an older release: what it refuses is named everywhere, and everything else goes on."""

    async def cli(*arguments: str) -> Any:
        return await asyncio.to_thread(control.cli, *arguments)

    async def apply(*agents: Any) -> Any:
        return await asyncio.to_thread(control.apply, *agents)

    await apply(agent("disputed", peer), agent("calm", peer))
    async with Watcher(control.target, "old-1", picky, node="old-node", version="0.0.1") as old:
        await until(lambda: {"disputed", "calm"} <= old.versions().keys(), "the state")
        first = old.versions()
        await apply(agent("disputed", peer, timeout_ms=7777), agent("calm", peer, timeout_ms=8888))
        await until(lambda: old.versions()["calm"] > first["calm"], "the sibling is applied")
        assert old.versions()["disputed"] == first["disputed"]
        await until(lambda: held(sidecar, "disputed") == 2, "others apply it")
        listed = (await asyncio.to_thread(control.json, "sidecars"))["sidecars"]
        record = next(one for one in listed if one["instance_id"] == "old-1")
        assert record["refused"] == [
            {"kind": "policy", "name": "disputed", "version": 2, "reason": "timeout_ms: 7777 is not for me"}
        ]
        shown = (await cli("sidecars")).stdout
        assert "old-node refuses policy disputed version 2" in shown.replace("\n", " ")
        health = await cli("health", "disputed")
        assert "old-node refuses what it was sent" in " ".join(health.stdout.split())
        doctor = await cli("doctor")
        assert doctor.returncode == 1
        assert "old-node refuses policy disputed" in " ".join(doctor.stdout.split())
        await apply(agent("disputed", peer, timeout_ms=6666))
        await until(lambda: old.versions()["disputed"] > first["disputed"], "a policy it can enforce")
        listed = (await asyncio.to_thread(control.json, "sidecars"))["sidecars"]
        assert [one["refused"] for one in listed if one["instance_id"] == "old-1"] == [[]]
    assert watching(sidecar)
