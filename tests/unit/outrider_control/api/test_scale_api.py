"""Scales over gRPC, with the real store and scale loop: what is shown, and what operators change."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf import json_format

from outrider.policy import Scaling
from outrider.v1 import mesh_pb2, operator_pb2, policy_pb2
from outrider_control.loops.scale.types import READY, Instance
from outrider_control.state.database import Database
from tests.operator_server import NOW_MS, REMOTE, Plane, operator_plane, watcher


class Platform:
    """An engine whose instances serve as soon as they are asked for."""

    name = kind = "here"
    chooses = pulls = False

    def __init__(self) -> None:
        self.count = 1
        self.note = ""

    def has(self, agent_id: str) -> bool:
        return agent_id.startswith("tax")

    async def start(self) -> None: ...

    async def instances(self, agent_id: str) -> Sequence[Instance]:
        return [
            Instance(f"{agent_id}-{at}", f"10.0.0.{at}:9001", READY, NOW_MS, self.note)
            for at in range(1, self.count + 1)
        ]

    async def grow(self, agent_id: str, desired: int) -> None:
        self.count = desired

    async def shrink(self, agent_id: str, desired: int, leaving: Sequence[Instance]) -> None:
        self.count = desired

    async def close(self) -> None: ...


@pytest.fixture
def platform() -> Platform:
    return Platform()


@pytest_asyncio.fixture
async def plane(database: Database, tmp_path: Path, platform: Platform) -> AsyncIterator[Plane]:
    async with operator_plane(database, tmp_path, engines={"here": platform}) as running:
        yield running


def agent(agent_id: str = "tax", **scaling: Any) -> policy_pb2.AgentPolicy:
    endpoint = policy_pb2.EndpointPolicy(address="agents.internal:9001", capacity=3)
    return policy_pb2.AgentPolicy(agent_id=agent_id, endpoints=[endpoint], scaling=policy_pb2.ScalingPolicy(**scaling))


def setting(agent_id: str = "tax", reason: str = "test", expected: int | None = None, **scaling: Any) -> Any:
    return operator_pb2.ConfigureAutoScalingRequest(
        agent_id=agent_id, scaling=policy_pb2.ScalingPolicy(**scaling), reason=reason, expected_version=expected
    )


async def scale_of(plane: Plane, agent_id: str = "tax", limit: int = 0) -> operator_pb2.ExplainScaleReply:
    return await plane.call("ExplainScale", operator_pb2.ExplainScaleRequest(agent_id=agent_id, limit=limit))


async def test_all_agents_are_listed_with_what_is_known(plane: Plane) -> None:
    await plane.apply(agent("zoll"), agent("tax", capacity=4, min_instances=1), agent("vat", enabled=False))
    await plane.scale_turn()
    listed = (await plane.call("ListScales", operator_pb2.ListScalesRequest())).scales
    assert [(one.agent_id, one.state, one.engine) for one in listed] == [
        ("tax", "no data", "here"),
        ("vat", "disabled", ""),
        ("zoll", "no engine", ""),
    ]
    assert (listed[0].ready, listed[0].desired, listed[0].HasField("demand")) == (1, 1, False)


async def busy(plane: Plane, calls: int = 20) -> None:
    """One turn in which a sidecar says that so many calls of `tax` run."""
    async with watcher(plane) as sidecar:
        await sidecar.load(mesh_pb2.AgentLoad(agent_id="tax", in_flight=calls, capacity=4))
        while not plane.fleet.loads():
            await plane.call("GetStatus", operator_pb2.GetStatusRequest())
        await plane.scale_turn()


async def test_explain_says_what_was_decided_from_what(plane: Plane, platform: Platform) -> None:
    await plane.apply(agent(capacity=4, target_utilization=0.5, max_instances=20))
    await plane.scale_turn()
    await busy(plane)
    assert platform.count == 10
    platform.note = "warm"
    await plane.scale_turn()
    explained = await scale_of(plane)
    assert (explained.scale.agent_id, explained.scale.desired, explained.scale.ready) == ("tax", 10, 10)
    entry = explained.decisions[0]
    assert (entry.kind, entry.agent_id, entry.author) == ("scale", "tax", "scaler")
    assert entry.reason
    outcome = json_format.MessageToDict(entry.outcome)
    assert (outcome["action"], outcome["from"], outcome["to"], outcome["demand"]) == ("up", 1, 10, 20)
    assert entry.inputs["ready"] == 1
    assert entry.inputs["policy.target_utilization"] == 0.5
    last = explained.last
    assert (last.id, last.kind, last.at_unix_ms) == (0, "scale", plane.now_ms)
    assert json_format.MessageToDict(last.outcome)["action"] == "hold"
    assert last.inputs["ready"] == 10
    assert len(explained.instances) == 10
    first = explained.instances[0]
    assert (first.name, first.address, first.state, first.note) == ("tax-1", "10.0.0.1:9001", "ready", "warm")
    assert first.started_unix_ms == NOW_MS
    assert len((await scale_of(plane, limit=1)).decisions) == 1


async def test_a_reply_is_never_too_large(plane: Plane, platform: Platform) -> None:
    await plane.apply(agent(max_instances=10_000))
    platform.count, platform.note = 5_000, "x" * 2_000
    await plane.scale_turn()
    explained = await scale_of(plane)
    assert len(explained.instances) == 5_000
    assert explained.ByteSize() < 4_000_000
    assert (len(explained.instances[0].note), explained.instances[-1].note) == (2_000, "")


async def test_before_the_first_turn_nothing_is_made_up(plane: Plane) -> None:
    await plane.apply(agent())
    explained = await scale_of(plane)
    assert not explained.HasField("last")
    assert (list(explained.decisions), list(explained.instances)) == ([], [])
    for name in ("demand", "queued", "capacity", "utilization", "confidence"):
        assert not explained.scale.HasField(name)


async def test_configure_changes_what_is_set_and_nothing_else(plane: Plane) -> None:
    policy = agent(min_instances=2, max_instances=6)
    policy.timeout_ms = 77
    await plane.apply(policy)
    made = await plane.call("CreateToken", operator_pb2.CreateTokenRequest(name="ann", role="operator", reason="new"))
    ann = (*REMOTE, ("authorization", f"Bearer {made.token}"))
    plane.now_ms += 5
    record = await plane.call("ConfigureAutoScaling", setting(max_instances=40, enabled=False, reason="spike"), ann)
    assert (record.version.version, record.version.author, record.version.reason) == (2, "ann", "spike")
    assert record.version.at_unix_ms == plane.now_ms
    changed = {(one.path, one.before, one.after) for one in record.version.changes}
    assert changed == {("scaling.max_instances", "6", "40"), ("scaling.enabled", "true", "false")}
    assert (record.policy.scaling.min_instances, record.policy.timeout_ms) == (2, 77)
    assert record.policy.endpoints[0].capacity == 3
    (entry,) = (await plane.call("ListDecisions", operator_pb2.ListDecisionsRequest(kind="apply", limit=1))).decisions
    assert (entry.author, entry.reason, entry.outcome["version"], entry.inputs["version"]) == ("ann", "spike", 2, 1)
    again = await plane.call("ConfigureAutoScaling", setting(max_instances=40))
    assert again.version.version == 2
    await plane.publisher.refresh()
    assert plane.fleet.agents["tax"].scaling.max_instances == 40


async def test_every_field_can_be_configured(plane: Plane) -> None:
    await plane.apply(agent())
    wanted = Scaling(
        2, 30, 0.5, False, "here", 7, 0.9, 0.1, 11, 90, 9, 3.0, 0.2, 5.0, 4.0, 60, 1_000, True, 20, 0.5, 9.0
    )
    record = await plane.call("ConfigureAutoScaling", setting(**dataclasses.asdict(wanted)))
    named = {field.name: value for field, value in record.policy.scaling.ListFields()}
    assert named == dataclasses.asdict(wanted)
    assert not {name for name, value in named.items() if value == getattr(Scaling(), name)}


async def test_a_stale_version_is_refused(plane: Plane) -> None:
    await plane.apply(agent())
    assert (await plane.call("ConfigureAutoScaling", setting(min_instances=2, expected=1))).version.version == 2
    for expected, text in ((1, "is at version 2, the change is based on 1"), (0, "exists already, at version 2")):
        error = await plane.refused("ConfigureAutoScaling", setting(min_instances=3, expected=expected))
        assert error.code() is grpc.StatusCode.ABORTED
        assert text in error.details()
    record = await plane.call("GetAgent", operator_pb2.GetAgentRequest(agent_id="tax"))
    assert (record.version.version, record.policy.scaling.min_instances) == (2, 2)


WRONG = [
    (setting(min_instances=11), "scaling.min_instances", "11 is more than max_instances, which is 10"),
    (setting(max_instances=0), "scaling.max_instances", "0 is not between 1 and 10000"),
    (setting(target_utilization=float("nan")), "scaling.target_utilization", "nan is not a number"),
    (setting(max_usd_per_h=5.0), "scaling.max_usd_per_h", "needs scaling.instance_usd_per_h"),
    (setting(panic_window_s=90), "scaling.panic_window_s", "is more than stable_window_s"),
    (setting(engine="two words"), "scaling.engine", "is not a name"),
    (setting(), "scaling", "says nothing"),
    (setting(min_instances=1, reason=" "), "reason", "say why"),
    (setting("", min_instances=1), "agent_id", "is missing"),
    (setting(min_instances=1, expected=2**64 - 1), "expected_version", "is no version"),
    (setting("x" * 257, min_instances=1), "agent_id", "has 257 characters"),
]


async def test_wrong_requests_name_the_field(plane: Plane) -> None:
    await plane.apply(agent())
    for request, field, text in WRONG:
        error = await plane.refused("ConfigureAutoScaling", request)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, field
        assert error.details().startswith(f"{field}: ")
        assert text in error.details()
    record = await plane.call("GetAgent", operator_pb2.GetAgentRequest(agent_id="tax"))
    assert record.version.version == 1
    error = await plane.refused("ExplainScale", operator_pb2.ExplainScaleRequest(agent_id="tax", limit=101))
    assert error.details() == "limit: 101 is not between 0 and 100"


ABSENT = [
    ("ExplainScale", operator_pb2.ExplainScaleRequest(agent_id="nobody")),
    ("ConfigureAutoScaling", setting("nobody", min_instances=1)),
    ("PauseScaling", operator_pb2.PauseScalingRequest(agent_id="nobody", reason="r")),
    ("ResumeScaling", operator_pb2.ResumeScalingRequest(agent_id="nobody", reason="r")),
]


async def test_what_is_not_there(plane: Plane) -> None:
    for method, request in ABSENT:
        error = await plane.refused(method, request)
        assert error.code() is grpc.StatusCode.NOT_FOUND, method
        assert "nobody" in error.details()


async def test_pause_and_resume(plane: Plane, platform: Platform) -> None:
    await plane.apply(agent(capacity=4, max_instances=20))
    await plane.scale_turn()
    request = operator_pb2.PauseScalingRequest(agent_id="tax", reason="release")
    paused = await plane.call("PauseScaling", request)
    assert (paused.state, paused.paused_by, paused.paused_reason) == ("paused", "loopback", "release")
    await busy(plane)
    assert platform.count == 1
    resumed = await plane.call("ResumeScaling", operator_pb2.ResumeScalingRequest(agent_id="tax", reason="over"))
    assert (resumed.paused_by, resumed.paused_reason) == ("", "")
    await busy(plane)
    assert platform.count > 1
    told = [(one.author, one.reason) for one in (await scale_of(plane)).decisions]
    assert ("loopback", "release") in told
    assert ("loopback", "over") in told


async def test_a_change_needs_the_role_operator_and_a_reason(plane: Plane) -> None:
    await plane.apply(agent())
    made = await plane.call("CreateToken", operator_pb2.CreateTokenRequest(name="eve", role="viewer", reason="look"))
    eve = (*REMOTE, ("authorization", f"Bearer {made.token}"))
    assert (await plane.call("ListScales", operator_pb2.ListScalesRequest(), eve)).scales
    assert await plane.call("ExplainScale", operator_pb2.ExplainScaleRequest(agent_id="tax"), eve)
    for method, request in (
        ("ConfigureAutoScaling", setting(min_instances=1)),
        ("PauseScaling", operator_pb2.PauseScalingRequest(agent_id="tax", reason="r")),
        ("ResumeScaling", operator_pb2.ResumeScalingRequest(agent_id="tax", reason="r")),
    ):
        assert (await plane.refused(method, request, eve)).code() is grpc.StatusCode.PERMISSION_DENIED
        request.reason = ""
        error = await plane.refused(method, request)
        assert error.details().startswith("reason: say why")
