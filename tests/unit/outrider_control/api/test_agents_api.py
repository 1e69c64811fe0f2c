"""Agent configurations over gRPC and a real store: apply, read, delete, go back, compare; and every wrong request."""

from __future__ import annotations

from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from outrider.v1 import operator_pb2, policy_pb2
from outrider_control.api import requests
from tests.operator_server import NOW_MS, REMOTE, Plane


def policy(agent_id: str = "tax-eu-001", **fields: Any) -> policy_pb2.AgentPolicy:
    return policy_pb2.AgentPolicy(agent_id=agent_id, **fields)


def ttl(seconds: int) -> policy_pb2.OptimizationPolicy:
    return policy_pb2.OptimizationPolicy(cache_ttl=seconds)


def applying(*policies: policy_pb2.AgentPolicy, reason: str = "test", **more: Any) -> operator_pb2.ApplyAgentsRequest:
    agents = [operator_pb2.AgentConfiguration(policy=one) for one in policies]
    return operator_pb2.ApplyAgentsRequest(agents=agents, reason=reason, **more)


async def get(plane: Plane, agent_id: str = "tax-eu-001", version: int = 0) -> operator_pb2.AgentRecord:
    return await plane.call("GetAgent", operator_pb2.GetAgentRequest(agent_id=agent_id, version=version))


async def test_apply_and_get(plane: Plane) -> None:
    reply = await plane.apply(policy(endpoints=[policy_pb2.EndpointPolicy(address="127.0.0.1:9001")]), reason="new")
    assert [(one.agent_id, one.outcome, one.version) for one in reply.agents] == [("tax-eu-001", "created", 1)]
    record = await get(plane)
    assert record.policy.endpoints[0].address == "127.0.0.1:9001"
    assert record.policy.optimization.cache_ttl == 7_777  # the control plane's own default
    assert record.policy.retry.HasField("max_attempts")
    version = record.version
    assert (version.author, version.reason, version.at_unix_ms, version.deleted) == ("loopback", "new", NOW_MS, False)


async def test_apply_again_changes_nothing(plane: Plane) -> None:
    await plane.apply(policy())
    reply = await plane.apply(policy())
    assert [(one.outcome, one.version) for one in reply.agents] == [("unchanged", 1)]
    reply = await plane.apply(policy(optimization=ttl(5)))
    assert [(one.outcome, one.version) for one in reply.agents] == [("changed", 2)]
    change = reply.agents[0].changes[0]
    assert (change.path, change.before, change.after) == ("optimization.cache_ttl", "7777", "5")


async def test_dry_run_says_and_does_nothing(plane: Plane) -> None:
    reply = await plane.call("ApplyAgents", applying(policy(), reason="", dry_run=True))
    assert [(one.outcome, one.version) for one in reply.agents] == [("created", 1)]
    error = await plane.refused("GetAgent", operator_pb2.GetAgentRequest(agent_id="tax-eu-001"))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert not (await plane.call("ListDecisions", operator_pb2.ListDecisionsRequest())).decisions


async def test_stale_versions_are_refused(plane: Plane) -> None:
    await plane.apply(policy())
    await plane.apply(policy(optimization=ttl(5)))
    for expected, text in ((1, "is at version 2"), (0, "exists already, at version 2")):
        request = applying(policy(optimization=ttl(6)), policy("other"))
        request.agents[0].expected_version = expected
        error = await plane.refused("ApplyAgents", request)
        assert error.code() is grpc.StatusCode.ABORTED
        assert text in error.details()
    request = applying(policy("nobody"))
    request.agents[0].expected_version = 3
    assert "does not exist" in (await plane.refused("ApplyAgents", request)).details()
    listed = await plane.call("ListAgents", operator_pb2.ListAgentsRequest())
    assert [(one.policy.agent_id, one.version.version) for one in listed.agents] == [("tax-eu-001", 2)]


def bad_request(error: Any) -> error_details_pb2.BadRequest:
    trailers = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    found = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(found)
    return found


WRONG = [
        (applying(policy(), policy("b", optimization=ttl(-1))), "agents[1].optimization.cache_ttl"),
        (applying(policy(scaling=policy_pb2.ScalingPolicy(target_utilization=float("nan")))),
         "agents[0].scaling.target_utilization"),
        (applying(policy(balancing=policy_pb2.BalancingPolicy(strategy="best"))), "agents[0].balancing.strategy"),
        (applying(policy(endpoints=[policy_pb2.EndpointPolicy(address="nowhere")])), "agents[0].endpoints[0].address"),
        (applying(policy("")), "agents[0].agent_id"),
        (applying(policy("two words")), "agents[0].agent_id"),
        (applying(policy("a"), policy("b"), policy("a")), "agents[2].agent_id"),
        (operator_pb2.ApplyAgentsRequest(agents=[operator_pb2.AgentConfiguration()], reason="r"),
         "agents[0].agent_id"),
        (applying(policy(), reason=""), "reason"),
        (applying(policy(), reason=" \t"), "reason"),
        (applying(policy(), reason="x" * 1_001), "reason"),
        (applying(policy(), reason="a\x1b[2Jb"), "reason"),
        (applying(), "agents"),
        (applying(*[policy(f"a{at}") for at in range(1_001)]), "agents"),
]  # fmt: skip


async def test_wrong_requests_name_the_field(plane: Plane) -> None:
    for request, field in WRONG:
        error = await plane.refused("ApplyAgents", request)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, field
        assert error.details().startswith(f"{field}: ")
        violation = bad_request(error).field_violations[0]
        assert violation.field == field
        assert violation.description
    assert not (await plane.call("ListAgents", operator_pb2.ListAgentsRequest())).agents


CHANGES = [
    ("DeleteAgents", operator_pb2.DeleteAgentsRequest(agent_ids=["a"])),
    ("RollbackAgent", operator_pb2.RollbackAgentRequest(agent_id="a")),
    ("SetDefaultAgent", operator_pb2.SetDefaultAgentRequest(agent_id="a")),
    ("PurgeCache", operator_pb2.PurgeCacheRequest(everything=True)),
    ("CreateToken", operator_pb2.CreateTokenRequest(name="n", role="viewer")),
    ("RevokeToken", operator_pb2.RevokeTokenRequest(id="x")),
]


async def test_every_change_wants_a_reason(plane: Plane) -> None:
    for method, request in CHANGES:
        error = await plane.refused(method, request)
        assert (error.code(), error.details()[:15]) == (grpc.StatusCode.INVALID_ARGUMENT, "reason: say why"), method


ABSENT = [
    ("GetAgent", operator_pb2.GetAgentRequest(agent_id="a")),
    ("ListVersions", operator_pb2.ListVersionsRequest(agent_id="a")),
    ("DiffAgent", operator_pb2.DiffAgentRequest(agent_id="a")),
    ("RollbackAgent", operator_pb2.RollbackAgentRequest(agent_id="a", reason="r")),
    ("DeleteAgents", operator_pb2.DeleteAgentsRequest(agent_ids=["a"], reason="r")),
    ("SetDefaultAgent", operator_pb2.SetDefaultAgentRequest(agent_id="a", reason="r")),
    ("GetAgentHealth", operator_pb2.GetAgentHealthRequest(agent_id="a")),
    ("GetMetrics", operator_pb2.GetMetricsRequest(agent_id="a")),
    ("RevokeToken", operator_pb2.RevokeTokenRequest(id="ort_nothing", reason="r")),
    ("GetTrace", operator_pb2.GetTraceRequest(trace_id="0" * 32)),
    ("ExplainTrace", operator_pb2.ExplainTraceRequest(trace_id="0" * 16)),
]


async def test_what_is_not_there(plane: Plane) -> None:
    for method, request in ABSENT:
        error = await plane.refused(method, request)
        assert error.code() is grpc.StatusCode.NOT_FOUND, method
        assert error.details()


BOUNDS = [
    ("GetAgent", operator_pb2.GetAgentRequest(), "agent_id"),
    ("GetAgent", operator_pb2.GetAgentRequest(agent_id="x" * 257), "agent_id"),
    ("GetAgent", operator_pb2.GetAgentRequest(agent_id="a", version=2**64 - 1), "version"),
    ("ListVersions", operator_pb2.ListVersionsRequest(agent_id="a", limit=-1), "limit"),
    ("ListVersions", operator_pb2.ListVersionsRequest(agent_id="a", limit=1_001), "limit"),
    ("DeleteAgents", operator_pb2.DeleteAgentsRequest(reason="r"), "agent_ids"),
    ("DeleteAgents", operator_pb2.DeleteAgentsRequest(reason="r", agent_ids=["a", ""]), "agent_ids[1]"),
    ("ListDecisions", operator_pb2.ListDecisionsRequest(since_ms=-1), "since_ms"),
    ("ListDecisions", operator_pb2.ListDecisionsRequest(kind="\x00"), "kind"),
    ("GetOverview", operator_pb2.GetOverviewRequest(since_ms=2**62), "since_ms"),
    ("GetMetrics", operator_pb2.GetMetricsRequest(window="5m"), "window"),
    ("GetMetrics", operator_pb2.GetMetricsRequest(window="10s", since_ms=86_400_000), "window"),
    ("GetMetrics", operator_pb2.GetMetricsRequest(by="colour"), "by"),
    ("ListTraces", operator_pb2.ListTracesRequest(min_ms=-5), "min_ms"),
    ("GetTrace", operator_pb2.GetTraceRequest(trace_id="xyz"), "trace_id"),
    ("PurgeCache", operator_pb2.PurgeCacheRequest(reason="r"), "agent_id"),
    ("PurgeCache", operator_pb2.PurgeCacheRequest(reason="r", everything=True, tag="t"), "everything"),
    ("CreateToken", operator_pb2.CreateTokenRequest(reason="r", name="n", role="root"), "role"),
    ("CreateToken", operator_pb2.CreateTokenRequest(reason="r", role="admin"), "name"),
    ("CreateToken", operator_pb2.CreateTokenRequest(reason="r", name="n", role="admin", ttl_ms=1), "ttl_ms"),
]


async def test_bounds_of_requests(plane: Plane) -> None:
    for method, request, field in BOUNDS:
        error = await plane.refused(method, request)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, (method, field)
        assert error.details().startswith(f"{field}: ")


async def test_history_rollback_and_diff(plane: Plane) -> None:
    for seconds in (1, 2, 3):
        await plane.apply(policy(optimization=ttl(seconds)), reason=f"ttl {seconds}")
    listed = await plane.call("ListVersions", operator_pb2.ListVersionsRequest(agent_id="tax-eu-001", limit=2))
    assert [(one.version, one.reason) for one in listed.versions] == [(3, "ttl 3"), (2, "ttl 2")]

    record = await plane.call("RollbackAgent", operator_pb2.RollbackAgentRequest(agent_id="tax-eu-001", reason="oops"))
    assert (record.version.version, record.policy.optimization.cache_ttl) == (4, 2)
    back = operator_pb2.RollbackAgentRequest(agent_id="tax-eu-001", version=1, reason="further", expected_version=3)
    assert (await plane.refused("RollbackAgent", back)).code() is grpc.StatusCode.ABORTED
    back.expected_version = 4
    assert (await plane.call("RollbackAgent", back)).policy.optimization.cache_ttl == 1
    assert (await get(plane, version=3)).policy.optimization.cache_ttl == 3

    async def diff(first: int, last: int) -> tuple[int, int, list[tuple[str, str, str]]]:
        request = operator_pb2.DiffAgentRequest(agent_id="tax-eu-001", from_version=first, to_version=last)
        reply = await plane.call("DiffAgent", request)
        changes = [(one.path, one.before, one.after) for one in reply.changes]
        return reply.from_version, reply.to_version, changes

    assert await diff(0, 0) == (4, 5, [("optimization.cache_ttl", "2", "1")])
    assert await diff(1, 3) == (1, 3, [("optimization.cache_ttl", "1", "3")])
    first, last, changes = await diff(0, 1)
    assert (first, last) == (0, 1)
    assert ("optimization.cache_ttl", "", "1") in changes
    beyond = operator_pb2.DiffAgentRequest(agent_id="tax-eu-001", to_version=9)
    assert (await plane.refused("DiffAgent", beyond)).code() is grpc.StatusCode.NOT_FOUND


async def test_delete_and_what_is_left_of_it(plane: Plane) -> None:
    await plane.apply(policy("a", optimization=ttl(1)), policy("b"))
    unknown = operator_pb2.DeleteAgentsRequest(agent_ids=["a", "zz"], reason="r")
    assert (await plane.refused("DeleteAgents", unknown)).code() is grpc.StatusCode.NOT_FOUND
    request = operator_pb2.DeleteAgentsRequest(agent_ids=["a"], reason="gone", dry_run=True)
    assert (await plane.call("DeleteAgents", request)).agents[0].outcome == "deleted"
    assert (await get(plane, "a")).version.version == 1
    request.dry_run = False
    reply = await plane.call("DeleteAgents", request)
    assert [(one.agent_id, one.outcome, one.version) for one in reply.agents] == [("a", "deleted", 2)]
    listed = await plane.call("ListAgents", operator_pb2.ListAgentsRequest())
    assert [one.policy.agent_id for one in listed.agents] == ["b"]
    versions = await plane.call("ListVersions", operator_pb2.ListVersionsRequest(agent_id="a"))
    assert [(one.version, one.deleted) for one in versions.versions] == [(2, True), (1, False)]
    diff = await plane.call("DiffAgent", operator_pb2.DiffAgentRequest(agent_id="a"))
    assert ("optimization.cache_ttl", "1", "") in [(one.path, one.before, one.after) for one in diff.changes]
    assert (await plane.apply(policy("a"))).agents[0].version == 3


async def test_the_default_agent(plane: Plane) -> None:
    await plane.apply(policy("a"))
    await plane.call("SetDefaultAgent", operator_pb2.SetDefaultAgentRequest(agent_id="a", reason="r"))
    assert (await plane.call("ListAgents", operator_pb2.ListAgentsRequest())).default_agent == "a"
    error = await plane.refused("DeleteAgents", operator_pb2.DeleteAgentsRequest(agent_ids=["a"], reason="r"))
    assert error.details().startswith("agent_ids[0]: ")
    await plane.call("SetDefaultAgent", operator_pb2.SetDefaultAgentRequest(reason="r"))
    assert (await plane.call("ListAgents", operator_pb2.ListAgentsRequest())).default_agent == ""


async def test_every_change_is_in_the_journal_with_its_author(plane: Plane) -> None:
    made = await plane.call("CreateToken", operator_pb2.CreateTokenRequest(name="ann", role="operator", reason="new"))
    ann = (*REMOTE, ("authorization", f"Bearer {made.token}"))
    await plane.call("ApplyAgents", applying(policy("a", optimization=ttl(1))), ann)
    await plane.call("ApplyAgents", applying(policy("a", optimization=ttl(2))), ann)
    await plane.call("RollbackAgent", operator_pb2.RollbackAgentRequest(agent_id="a", reason="back"), ann)
    await plane.call("SetDefaultAgent", operator_pb2.SetDefaultAgentRequest(agent_id="a", reason="default"), ann)
    await plane.call("PurgeCache", operator_pb2.PurgeCacheRequest(agent_id="a", reason="wrong law"), ann)
    listed = await plane.call("ListDecisions", operator_pb2.ListDecisionsRequest(), ann)
    told = [(one.kind, one.agent_id, one.author, one.reason) for one in listed.decisions]
    assert told == [
        ("purge", "a", "ann", "wrong law"),
        ("default_agent", "a", "ann", "default"),
        ("rollback", "a", "ann", "back"),
        ("apply", "a", "ann", "test"),
        ("apply", "a", "ann", "test"),
        ("token", "", "loopback", "new"),
    ]
    assert made.token not in str(listed)
    applied = listed.decisions[3]
    assert applied.outcome["version"] == 2
    filtered = await plane.call("ListDecisions", operator_pb2.ListDecisionsRequest(kind="apply", agent_id="a", limit=1))
    assert [one.id for one in filtered.decisions] == [applied.id]
    plane.now_ms += 10_000
    assert not (await plane.call("ListDecisions", operator_pb2.ListDecisionsRequest(since_ms=5_000))).decisions


async def test_a_thousand_agents_at_once(plane: Plane) -> None:
    reply = await plane.apply(*[policy(f"agent-{at:04}") for at in range(requests.MAX_AGENTS)])
    assert [one.outcome for one in reply.agents] == ["created"] * 1_000
    listed = await plane.call("ListAgents", operator_pb2.ListAgentsRequest())
    assert [one.policy.agent_id for one in listed.agents] == [f"agent-{at:04}" for at in range(1_000)]
