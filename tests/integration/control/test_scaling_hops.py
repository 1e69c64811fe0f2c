"""Instances that refuse what is over their capacity, each behind an ingress, under calls of two callers' sidecars."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.agents.behaviour import reply_words
from outrider.v1 import agent_pb2, agent_pb2_grpc
from tests.controls import holds
from tests.fleets import Fleet
from tests.sidecars import Mesh, Sidecar, channel_to, eventually

CAPACITY, INSTANCES = 2, 2
AT_ONCE, LATER = 200, 20  # calls, of both callers
TOKENS, CAPPED = 40, 4  # of a reply
LANES = ("low", "normal", "high", "critical")
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "100"}  # spans are counted at once
KNOBS = {"first-token-ms": 40, "sigma": 0.2, "tokens-per-s": 1_000, "reply-tokens": TOKENS}


@pytest.fixture(scope="module")
def fleet(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder: Path = tmp_path_factory.mktemp("fleet")
    command = [sys.executable, "-m", "bench.spike.instance", "--name={name}", "--agent={agent_id}", "--port={port}"]
    command += ["--control={control}", "--concurrency={capacity}", "--refuses=1"]
    command += [f"--{name}={value}" for name, value in KNOBS.items()]
    with Fleet(mesh, folder, tax={"command": command, "capacity": CAPACITY, "env": SOON}) as started:
        yield started


def request(number: int) -> agent_pb2.InvokeRequest:
    message = agent_pb2.Message(role=agent_pb2.ROLE_USER, parts=[agent_pb2.Part(text=f"Question {number}")])
    return agent_pb2.InvokeRequest(agent_id="tax", messages=[message])


def level(sidecar: Sidecar) -> float:
    return sidecar.metric("outrider_degradation_level", agent="tax")


def test_no_call_fails_while_a_queue_has_room_at_one_hop_or_the_other(mesh: Mesh, fleet: Fleet) -> None:
    thins = {"enabled": True, "steps": ["cap_output"], "enter": 0.05, "enter_ms": 0, "leave": 0.01, "leave_ms": 100}
    policy = {
        "queue": {"max_waiting": AT_ONCE, "max_wait_ms": 60_000, "codel_target_ms": 0},
        "degradation": {**thins, "output_tokens": CAPPED},
    }
    fleet.apply("tax", policy, min_instances=INSTANCES, max_instances=INSTANCES)
    callers = [mesh.sidecar({"control": [fleet.control.target]}, f"caller-{number}", **SOON) for number in range(2)]
    fleet.come_to("tax", INSTANCES)

    def knows_all(sidecar: Sidecar) -> bool:
        return holds(sidecar, "tax") and len(sidecar.agent("tax")["endpoints"]) == INSTANCES

    for sidecar in callers:
        eventually(lambda sidecar=sidecar: knows_all(sidecar), "every instance reaches the callers' sidecars")
    with channel_to(callers[0].target) as a, channel_to(callers[1].target) as b:
        stubs = [agent_pb2_grpc.AgentStub(channel) for channel in (a, b)]
        started: list[Any] = []

        def start(count: int) -> None:
            for number in range(len(started), len(started) + count):
                metadata = (("x-agent-id", "tax"), ("x-priority", LANES[number // 2 % len(LANES)]))
                started.append(stubs[number % 2].Invoke.future(request(number), metadata=metadata, timeout=60))

        start(AT_ONCE)
        for sidecar in callers:
            eventually(lambda sidecar=sidecar: level(sidecar) == 1, "what waits is too much")
        start(LATER)
        failed = [f"{call.code()}: {call.details()}" for call in started if call.exception() is not None]
        assert failed == []
        lengths = []
        for number, call in enumerate(started):
            words = call.result().parts[0].text.split()
            assert words == list(reply_words(request(number), len(words)))
            lengths.append(len(words))
    assert set(lengths) == {TOKENS, CAPPED}
    assert (lengths[0], CAPPED in lengths[AT_ONCE:]) == (TOKENS, True), "shorter replies are for who finds many waiting"
    for sidecar in callers:
        assert sidecar.metric("outrider_shed_total", agent="tax") == 0
        eventually(lambda sidecar=sidecar: level(sidecar) == 0, "replies are whole again when nobody waits")
        sidecar.settled()
    # A call is counted at the ingress alone; there it is seen whether an agent was given more than it can do.
    eventually(lambda: fleet.control.requests("tax") >= AT_ONCE + LATER, "every call is counted", 30)
    (figures,) = [one for one in fleet.control.json("overview", "--since", "1h")["agents"] if one["agent_id"] == "tax"]
    assert (figures["requests"], figures["errors"], figures["statuses"]) == (AT_ONCE + LATER, 0, {})
