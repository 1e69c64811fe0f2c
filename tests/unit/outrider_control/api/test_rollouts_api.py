"""Rollouts over gRPC, with the real store and rollout loop: what is shown, and what operators change."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
import pytest_asyncio

from outrider.v1 import experiment_pb2 as pb
from outrider.v1 import operator_pb2, policy_pb2
from outrider_control.state import rollouts
from tests.operator_server import REMOTE, Plane
from tests.rollouts import AGENT, errors, variant, wanted


@pytest_asyncio.fixture
async def served(plane: Plane) -> Plane:
    policy = policy_pb2.AgentPolicy(agent_id=AGENT)
    for at, version in enumerate(("v1", "v2")):
        policy.endpoints.add(address=f"127.0.0.1:{9000 + at}", labels={"version": version})
    await plane.apply(policy)
    return plane


async def turn(plane: Plane) -> None:
    plane.now_ms += 1_000
    await plane.rollouts.turn()


def creation(*steps: str, **fields: Any) -> pb.CreateRolloutRequest:
    return pb.CreateRolloutRequest(spec=wanted(*steps, **fields), reason="v2 is ready")


def change(reason: str = "because", name: str = "out", full: bool = False) -> pb.ChangeRolloutRequest:
    return pb.ChangeRolloutRequest(name=name, reason=reason, full=full)


async def test_a_rollout_from_its_beginning_to_its_end(served: Plane) -> None:
    made = await served.call("CreateRollout", creation("0.1", "0.5:confirm", analyses=[errors(interval_s=1)]))
    assert (made.phase, made.author, made.spec.candidate.name) == ("initializing", "loopback", "candidate")
    await turn(served)
    for units in (100, 200):
        served.tally.say(variant("candidate", units, 2), variant("stable", 900))
        await turn(served)
    found = await served.call("GetRollout", pb.GetRolloutRequest(name="out"))
    assert (found.phase, found.step, found.weight) == ("waiting_promotion", 1, 0.5)
    assert (found.candidate_units, found.stable_units) == (200, 900)
    assert (found.analyses[0].metric, found.analyses[0].state, found.analyses[0].value) == (
        "error_rate", "successful", 0.0,
    )  # fmt: skip
    assert (await served.call("PauseRollout", change())).phase == "paused"
    assert (await served.call("ResumeRollout", change())).phase == "waiting_promotion"
    assert (await served.call("PromoteRollout", change())).phase == "promoting"
    await turn(served)
    (one,) = (await served.call("ListRollouts", pb.ListRolloutsRequest(agent_id=AGENT))).rollouts
    assert (one.phase, one.weight) == ("succeeded", 1.0)
    assert (await served.call("AbortRollout", change("complaints"))).reason == "complaints"
    journalled = await served.call("ListDecisions", operator_pb2.ListDecisionsRequest(kind="rollout"))
    assert journalled.decisions[0].reason == "complaints"
    assert (await served.call("ListRollouts", pb.ListRolloutsRequest(agent_id="other"))).rollouts == []


async def test_promote_full_goes_to_the_end(served: Plane) -> None:
    await served.call("CreateRollout", creation("0.1:1000", "0.5"))
    found = await served.call("PromoteRollout", change(full=True))
    assert (found.phase, found.weight) == ("promoting", 1.0)


@pytest.mark.parametrize(
    ("method", "request_", "code", "said"),
    [
        ("CreateRollout", pb.CreateRolloutRequest(spec=wanted("1")), "INVALID_ARGUMENT", "reason: say why"),
        ("CreateRollout", pb.CreateRolloutRequest(reason="x"), "INVALID_ARGUMENT", "spec.name: is missing"),
        ("CreateRollout", creation(), "INVALID_ARGUMENT", "spec.steps: is empty"),
        ("CreateRollout", creation("2"), "INVALID_ARGUMENT", "spec.steps[0].weight: 2 is not between 0 and 1"),
        ("CreateRollout", creation("1", unit="x" * 300_000), "INVALID_ARGUMENT", "spec: has 300,"),
        ("GetRollout", pb.GetRolloutRequest(), "INVALID_ARGUMENT", "name: is missing"),
        ("GetRollout", pb.GetRolloutRequest(name="none"), "NOT_FOUND", "outrider rollout list"),
        ("AbortRollout", change(name="none"), "NOT_FOUND", "rollout 'none' is not there"),
        ("AbortRollout", change(reason=" "), "INVALID_ARGUMENT", "reason: say why"),
        ("PauseRollout", change(full=True), "INVALID_ARGUMENT", "full: goes with promoting alone"),
        ("ResumeRollout", change(), "FAILED_PRECONDITION", "rollout 'out': it is not paused"),
        ("CreateRollout", creation("1"), "FAILED_PRECONDITION", "rollout 'out' exists already"),
        ("CreateRollout", creation("1", name="two"), "FAILED_PRECONDITION", "rollout 'out' of 'agent' is under way"),
    ],
)
async def test_what_is_wrong_is_said(served: Plane, method: str, request_: Any, code: str, said: str) -> None:
    await served.call("CreateRollout", creation("0.1:1000"))
    error = await served.refused(method, request_)
    assert error.code() == grpc.StatusCode[code]
    assert said in error.details()
    assert len(await served.db.read(rollouts.newest)) == 1


async def test_an_agent_that_is_not_there(plane: Plane) -> None:
    error = await plane.refused("CreateRollout", creation("1"))
    assert error.code() == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("role", ["viewer", "sidecar"])
async def test_who_may_not(served: Plane, role: str) -> None:
    token = await served.call("CreateToken", operator_pb2.CreateTokenRequest(name="t", role=role, reason="a test"))
    metadata = (*REMOTE, ("authorization", f"Bearer {token.token}"))
    error = await served.refused("CreateRollout", creation("1"), metadata)
    assert error.code() == grpc.StatusCode.PERMISSION_DENIED
    if role == "viewer":
        assert (await served.call("ListRollouts", pb.ListRolloutsRequest(), metadata)).rollouts == []
