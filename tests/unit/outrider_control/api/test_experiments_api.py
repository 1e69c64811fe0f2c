"""Experiments over gRPC, with the real store and loop: what is shown, and what operators change."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
import pytest_asyncio

from outrider.v1 import experiment_pb2 as pb
from outrider.v1 import operator_pb2, policy_pb2
from tests.experiments import wanted
from tests.operator_server import REMOTE, Plane
from tests.units import AGENT, call, put


@pytest_asyncio.fixture
async def served(plane: Plane) -> Plane:
    policy = policy_pb2.AgentPolicy(agent_id=AGENT)
    for at, version in enumerate(("v1", "v2")):
        policy.endpoints.add(address=f"127.0.0.1:{9000 + at}", labels={"version": version})
    await plane.apply(policy)
    return plane


def creation(start: bool = True, **fields: Any) -> pb.CreateExperimentRequest:
    return pb.CreateExperimentRequest(spec=wanted(**fields), reason="is b better?", start=start)


def change(reason: str = "because", name: str = "test") -> pb.ChangeExperimentRequest:
    return pb.ChangeExperimentRequest(name=name, reason=reason)


async def test_an_experiment_from_its_draft_to_its_verdict(served: Plane) -> None:
    made = await served.call("CreateExperiment", creation(start=False))
    assert (made.state, made.author) == ("draft", "loopback")
    assert (await served.call("StartExperiment", change())).state == "running"
    assert (await served.call("PauseExperiment", change())).state == "paused"
    assert (await served.call("ResumeExperiment", change())).state == "running"
    more = pb.SetExperimentTrafficRequest(name="test", reason="more", traffic=1.0)
    assert (await served.call("SetExperimentTraffic", more)).traffic == 1.0
    await put(served.db, [call(f"a{at}", "a", failed=at < 100) for at in range(300)])
    await put(served.db, [call(f"b{at}", "b", failed=at < 10) for at in range(300)])
    served.now_ms += 5_000
    await served.experiments.turn()
    found = await served.call("GetExperiment", pb.GetExperimentRequest(name="test"))
    assert (found.state, found.verdict, found.winner, found.units) == ("stopped", "win", "b", 600)
    assert "b is better than a" in found.conclusion
    (one,) = (await served.call("ListExperiments", pb.ListExperimentsRequest(state="stopped"))).experiments
    assert one.verdict == "win"
    assert not (await served.call("ListExperiments", pb.ListExperimentsRequest(state="draft"))).experiments
    journalled = await served.call("ListDecisions", operator_pb2.ListDecisionsRequest(kind="experiment"))
    assert [one.reason for one in journalled.decisions][-1] == "is b better?"


async def test_an_end_by_hand(served: Plane) -> None:
    await served.call("CreateExperiment", creation())
    stop = pb.StopExperimentRequest(name="test", reason="enough", abort=True)
    found = await served.call("StopExperiment", stop)
    assert (found.state, found.verdict, found.reason) == ("stopped", "stopped", "enough")


async def test_a_plan_says_units_days_and_power(served: Plane) -> None:
    plan = pb.PlanExperimentRequest(kind="share", baseline=0.3, minimum_effect=0.03, power=0.9, units_per_day=1_000)
    found = await served.call("PlanExperiment", plan)
    assert 8_000 < found.sample_size < 25_000
    assert found.days == pytest.approx(found.sample_size / 1_000)
    assert found.median_units < found.sample_size
    assert found.power >= 0.89
    fixed = await served.call("PlanExperiment", pb.PlanExperimentRequest(
        kind="mean", baseline=5.0, minimum_effect=0.1, standard_deviation=2.0, method="fixed"))  # fmt: skip
    assert fixed.sample_size == pytest.approx(12_560, rel=0.01)
    assert not fixed.HasField("days")


@pytest.mark.parametrize(
    ("method", "request_", "code", "said"),
    [
        ("CreateExperiment", pb.CreateExperimentRequest(spec=wanted()), "INVALID_ARGUMENT", "reason: say why"),
        ("CreateExperiment", creation(name=""), "INVALID_ARGUMENT", "spec.name: is missing"),
        ("CreateExperiment", creation(metric="nonsense_"), "INVALID_ARGUMENT", ""),
        ("CreateExperiment", creation(hypothesis="x" * 300_000), "INVALID_ARGUMENT", "spec: has 300,"),
        ("CreateExperiment", creation(traffic=-1.0), "INVALID_ARGUMENT", "spec.traffic: -1 is not above 0"),
        ("GetExperiment", pb.GetExperimentRequest(), "INVALID_ARGUMENT", "name: is missing"),
        ("GetExperiment", pb.GetExperimentRequest(name="none"), "NOT_FOUND", "outrider experiment list"),
        ("StartExperiment", change(name="none"), "NOT_FOUND", "'none' is not there"),
        ("ListExperiments", pb.ListExperimentsRequest(state="odd"), "INVALID_ARGUMENT", "state: 'odd' is none of"),
        ("PlanExperiment", pb.PlanExperimentRequest(baseline=2.0), "INVALID_ARGUMENT", "baseline: 2 is no share"),
        ("PlanExperiment", pb.PlanExperimentRequest(baseline=0.3), "INVALID_ARGUMENT", "smallest effect"),
        ("PlanExperiment", pb.PlanExperimentRequest(kind="mean"), "INVALID_ARGUMENT", "standard_deviation: is missing"),
        ("PlanExperiment", pb.PlanExperimentRequest(kind="odd"), "INVALID_ARGUMENT", "kind: 'odd' is neither"),
        ("PlanExperiment", pb.PlanExperimentRequest(method="bandit"), "INVALID_ARGUMENT", "method: 'bandit'"),
    ],
)
async def test_what_is_wrong_is_said(served: Plane, method: str, request_: Any, code: str, said: str) -> None:
    if said:
        error = await served.refused(method, request_)
        assert error.code() is grpc.StatusCode[code]
        assert said in error.details()
    else:  # a name that nobody knows is the score of that name
        assert (await served.call(method, request_)).spec.metric.name == "nonsense_"


async def test_what_cannot_be_done_says_what_can(served: Plane) -> None:
    await served.call("CreateExperiment", creation())
    again = await served.refused("StartExperiment", change())
    assert again.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "experiment 'test': it is running: to start it, it has to be draft" in again.details()
    twice = await served.refused("CreateExperiment", creation())
    assert "exists already" in twice.details()


async def test_viewers_look_and_change_nothing(served: Plane) -> None:
    error = await served.refused("CreateExperiment", creation(), REMOTE)
    assert error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
