"""agents list, get, apply, delete, history, rollback, diff, default: what is sent, and what is said."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from hypothesis import HealthCheck, given, settings

from outrider import defaults, policy_message
from outrider.codec import decode_agent, encode_agent
from outrider.policy import Agent
from outrider.v1 import operator_pb2 as pb
from outrider.v1 import policy_pb2
from outrider_control.commands.agent_files import read_agents, record_yaml
from tests import policies
from tests.unit.outrider_control.commands.conftest import Run
from tests.unit.outrider_control.commands.operator_server import Refusal, StandIn

FILE = """
agents:
  - agent_id: tax-eu-001
    version: 4
    endpoints: ["127.0.0.1:9001", {address: "127.0.0.1:9002", weight: 2, labels: {version: v2}}]
    balancing: {strategy: peak_ewma}
    optimization: {cache_enabled: true, cache_ttl: 60, cache_methods: ["/pkg.Svc/Method"]}
    scaling: {min_instances: 12}
  - agent_id: tax-eu-002
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "agents.yaml"
    path.write_text(FILE)
    return path


def applied(*changes: pb.FieldChange, outcome: str = "changed") -> pb.ApplyAgentsReply:
    return pb.ApplyAgentsReply(agents=[pb.Applied(agent_id="tax", outcome=outcome, version=5, changes=changes)])


def record(**sections: object) -> pb.AgentRecord:
    policy = policy_message.message_of({"agent_id": "tax", **sections})
    version = pb.AgentVersion(agent_id="tax", version=7, author="ann", at_unix_ms=1, reason="two\nlines")
    return pb.AgentRecord(policy=policy, version=version)


def test_apply_sends_what_the_file_says_and_no_more(run: Run, stand_in: StandIn, file: Path) -> None:
    change = pb.FieldChange(path="optimization.cache_ttl", before="3600", after="60")
    stand_in.replies["ApplyAgents"] = applied(change)
    ran = run("agents", "apply", "-f", str(file), "--reason", "shorter")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == ["tax: changed version 5", "  optimization.cache_ttl: 3600 -> 60"]
    request = stand_in.requests("ApplyAgents")[0]
    assert (request.reason, request.dry_run) == ("shorter", False)
    first, second = request.agents
    assert (first.expected_version, second.HasField("expected_version")) == (4, False)
    assert second.policy == policy_pb2.AgentPolicy(agent_id="tax-eu-002")
    policy = first.policy
    assert policy.optimization == policy_pb2.OptimizationPolicy(
        cache_enabled=True, cache_ttl=60, cache_methods=policy_pb2.Texts(values=["/pkg.Svc/Method"])
    )
    assert policy.scaling == policy_pb2.ScalingPolicy(min_instances=12)
    assert [one.address for one in policy.endpoints] == ["127.0.0.1:9001", "127.0.0.1:9002"]
    assert dict(policy.endpoints[1].labels) == {"version": "v2"}
    assert not policy.HasField("retry")


def test_apply_dry_run_needs_no_reason(run: Run, stand_in: StandIn, file: Path) -> None:
    stand_in.replies["ApplyAgents"] = applied(pb.FieldChange(path="tls", after="true"), outcome="created")
    ran = run("agents", "apply", "-f", str(file), "--dry-run")
    assert ran.out.splitlines() == [
        "tax: would be created version 5",
        "  tls: + true",
        "dry run: nothing is changed",
    ]
    request = stand_in.requests("ApplyAgents")[0]
    assert request.dry_run
    assert request.reason


def test_apply_json(run: Run, stand_in: StandIn, file: Path) -> None:
    stand_in.replies["ApplyAgents"] = applied(pb.FieldChange(path="tls", before="true"))
    ran = run("agents", "apply", "-f", str(file), "--reason", "r", "--json")
    changes = [{"path": "tls", "before": "true", "after": ""}]
    agent = {"agent_id": "tax", "outcome": "changed", "version": 5, "changes": changes}
    assert ran.data == {"agents": [agent], "dry_run": False}


def test_apply_from_standard_input(run: Run, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in.replies["ApplyAgents"] = applied()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"agent_id: one"), isatty=lambda: False))
    assert run("agents", "apply", "-f", "-", "--reason", "r").code == 0
    assert stand_in.requests("ApplyAgents")[0].agents[0].policy.agent_id == "one"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("agents: [{agent_id: a, optimization: {cache_tll: 5}}]", "agents[0].optimization.cache_tll: is not a field;"),
        ("agent_id: a\noptimization: {cache_ttl: -1}", "F: optimization.cache_ttl: -1 is not between 0 and"),
        ("- agent_id: a\n- agent_id: a", "agents[1].agent_id: 'a' is already agents[0]"),
        ("agents: [{agent_id: a, version: new}]", "agents[0].version: 'new' is not a whole number"),
        ("agents: [{agent_id: a, version: -1}]", "agents[0].version: -1 is no version"),
        ("agents: [{optimization: {}}]", "agents[0].agent_id: is missing"),
        ("agents: [7]", "agents[0]: 7 is not an agent"),
        ("agents: []", "holds no agent"),
        ("", "holds no agent"),
        ("7", "7 is not a list"),
        ("agents: [{agent_id: a}]\ndefault_agent: a", "use outrider agents default AGENT"),
        ("agents: [{agent_id: a}]\nother: 1", "other: is not a field"),
        ("agents: [", "line 2, column 1"),
        ("agent_id: a\nscaling: {min_instances: 5, max_instances: 2}", "scaling.min_instances: 5 is more than"),
    ],
)
def test_a_wrong_file_is_named_with_its_field(
    run: Run, stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    (tmp_path / "F").write_text(text)
    monkeypatch.chdir(tmp_path)
    ran = run("agents", "apply", "-f", "F", "--reason", "r")
    assert ran.code == 1
    assert ran.err.startswith("outrider agents apply: F: ")
    assert said in ran.err
    assert ran.err.count("\n") == 1
    assert stand_in.asked == []


def test_a_file_that_is_not_there(run: Run) -> None:
    ran = run("agents", "apply", "-f", "/nothing/there", "--reason", "r")
    assert (ran.code, ran.err) == (
        1,
        "outrider agents apply: /nothing/there: cannot be read: No such file or directory\n",
    )


def test_a_stale_version_says_what_to_do(run: Run, stand_in: StandIn, file: Path) -> None:
    stand_in.replies["ApplyAgents"] = Refusal(grpc.StatusCode.ABORTED, "agent 'tax-eu-001' is at version 5, not 4")
    ran = run("agents", "apply", "-f", str(file), "--reason", "r")
    assert ran.code == 1
    assert "agent 'tax-eu-001' is at version 5, not 4 (outrider agents get AGENT prints the newest)" in ran.err


def test_the_control_planes_refusal_names_the_files_own_field(run: Run, stand_in: StandIn, tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text("agent_id: a\nscaling: {min_instances: 50}")
    text = "agents[0].scaling.min_instances: 50 is more than max_instances, which is 20"
    stand_in.replies["ApplyAgents"] = Refusal(grpc.StatusCode.INVALID_ARGUMENT, text)
    ran = run("agents", "apply", "-f", str(path), "--reason", "r")
    said = "scaling.min_instances: 50 is more than max_instances, which is 20"
    assert ran.err == f"outrider agents apply: {path}: {said}\n"


def test_what_get_prints_apply_takes(run: Run, stand_in: StandIn, tmp_path: Path) -> None:
    got = record(
        endpoints=["127.0.0.1:9001", {"address": "b:1", "weight": 3}],
        timeout_ms=0,
        server_name="",
        optimization={"cache_enabled": False, "cache_ttl": 60, "cache_methods": [], "streaming": True},
        retry={"max_attempts": 3, "statuses": ["UNAVAILABLE", "INTERNAL"]},
        scaling={"min_instances": 1, "max_instances": 10, "target_utilization": 0.7},
    )
    stand_in.replies |= {"GetAgent": got, "ApplyAgents": applied(outcome="unchanged")}
    out = run("agents", "get", "tax").out
    assert out.splitlines() == [
        "# version 7 by ann, 1970-01-01 00:00:00: two lines",
        "# What is not here has its default; --all shows it.",
        "agent_id: tax",
        "version: 7",
        "endpoints:",
        "- 127.0.0.1:9001",
        "- address: b:1",
        "  weight: 3",
        "retry:",
        "  statuses:",
        "  - UNAVAILABLE",
        "  - INTERNAL",
        "optimization:",
        "  cache_enabled: false",
        "  cache_ttl: 60",
        "scaling:",
        "  min_instances: 1",
        "  max_instances: 10",
    ]
    path = tmp_path / "got.yaml"
    for extra in ([], ["--all"]):
        path.write_text(run("agents", "get", "tax", *extra).out)
        assert run("agents", "apply", "-f", str(path), "--reason", "r").code == 0
    sparse, whole = (request.agents[0] for request in stand_in.requests("ApplyAgents"))
    assert (sparse.expected_version, whole.expected_version) == (7, 7)
    assert whole.policy == got.policy


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(agent=policies.agents())
def test_every_field_of_any_policy_is_printed_and_taken(tmp_path: Path, agent: Agent) -> None:
    version = pb.AgentVersion(agent_id=agent.agent_id, version=7)
    got = pb.AgentRecord(policy=encode_agent(agent), version=version)
    path = tmp_path / "got.yaml"
    for with_defaults in (False, True):
        path.write_text(record_yaml(got, with_defaults))
        (made,) = read_agents(str(path)).configurations()
        assert (decode_agent(made.policy), made.expected_version) == (agent, 7)


def test_defaults_that_an_environment_moves_are_always_printed() -> None:
    moved = {f"{section}.{name}" for section, name, _ in defaults._AGENT_VARIABLES.values()}
    assert moved == policy_message.MOVABLE_DEFAULTS


def test_get_json(run: Run, stand_in: StandIn) -> None:
    stand_in.replies["GetAgent"] = record(optimization={"cache_methods": ["/a.B/C"]})
    data = run("agents", "get", "tax", "--json", "--version", "v7").data
    assert stand_in.requests("GetAgent")[0].version == 7
    assert data["policy"]["optimization"]["cache_methods"] == ["/a.B/C"]
    assert (data["policy"]["tls"], data["version"]["version"]) == (None, 7)
    assert run("agents", "get", "tax", "-o", "json").data == data


def test_list(run: Run, stand_in: StandIn) -> None:
    stand_in.replies["ListAgents"] = pb.ListAgentsReply(
        agents=[record(optimization={"cache_enabled": True, "cache_strategy": "lru", "cache_ttl": 60})],
        default_agent="tax",
    )
    ran = run("agents", "list")
    assert max(map(len, ran.out.splitlines())) <= 80
    assert "tax (default)" in ran.out
    assert "lru 60s" in ran.out
    data = run("agents", "list", "--json").data
    assert data["default_agent"] == "tax"
    assert data["agents"][0].keys() == {"agent_id", "version", "author", "at_unix_ms", "reason", "policy"}


def test_delete(run: Run, stand_in: StandIn) -> None:
    gone = pb.DeleteAgentsReply(agents=[pb.Applied(agent_id="tax", outcome="deleted", version=8)])
    stand_in.replies["DeleteAgents"] = gone
    ran = run("agents", "delete", "tax", "vat", "--reason", "over")
    request = stand_in.requests("DeleteAgents")[0]
    assert (list(request.agent_ids), request.reason) == (["tax", "vat"], "over")
    assert ran.out == "tax: deleted version 8\n"


def test_history(run: Run, stand_in: StandIn) -> None:
    changes = [pb.FieldChange(path=f"f{at}") for at in range(6)]
    versions = [pb.AgentVersion(version=2, deleted=True), pb.AgentVersion(version=1, changes=changes, reason="first")]
    stand_in.replies["ListVersions"] = pb.ListVersionsReply(versions=versions)
    ran = run("agents", "history", "tax", "--limit", "5")
    assert stand_in.requests("ListVersions")[0].limit == 5
    assert "f0, f1, f2, f3 and 2 more" in " ".join(ran.out.split())
    assert "deleted" in ran.out
    assert [one["version"] for one in run("agents", "history", "tax", "--json").data["versions"]] == [2, 1]


def test_diff(run: Run, stand_in: StandIn) -> None:
    change = pb.FieldChange(path="scaling.max_instances", before="10", after="20")
    stand_in.replies["DiffAgent"] = pb.DiffAgentReply(from_version=1, to_version=3, changes=[change])
    ran = run("agents", "diff", "tax", "--from", "1", "--to", "v3")
    assert stand_in.requests("DiffAgent")[0] == pb.DiffAgentRequest(agent_id="tax", from_version=1, to_version=3)
    assert ran.out.splitlines() == ["tax: version 1 -> 3", "  scaling.max_instances: 10 -> 20"]
    assert run("agents", "diff", "tax", "--json").data["to_version"] == 3


def test_rollback(run: Run, stand_in: StandIn) -> None:
    stand_in.replies["RollbackAgent"] = record()
    ran = run("agents", "rollback", "tax", "--to", "3", "--expected", "6", "--reason", "bad")
    wanted = pb.RollbackAgentRequest(agent_id="tax", version=3, reason="bad", expected_version=6)
    assert stand_in.requests("RollbackAgent") == [wanted]
    assert ran.out == "tax: version 7 is in force\n"
    run("agents", "rollback", "tax", "--reason", "bad")
    assert not stand_in.requests("RollbackAgent")[1].HasField("expected_version")


def test_rollback_of_what_somebody_changed(run: Run, stand_in: StandIn) -> None:
    stand_in.replies["RollbackAgent"] = Refusal(grpc.StatusCode.ABORTED, "agent 'tax' is at version 9, not 6")
    ran = run("agents", "rollback", "tax", "--expected", "6", "--reason", "bad")
    assert ran.code == 1
    assert "outrider agents history tax" in ran.err


def test_default(run: Run, stand_in: StandIn) -> None:
    stand_in.replies |= {"SetDefaultAgent": pb.SetDefaultAgentReply(), "ListAgents": pb.ListAgentsReply()}
    assert run("agents", "default").out == "none: as each sidecar's file says\n"
    assert run("agents", "default", "tax", "--reason", "r").out == "tax\n"
    assert run("agents", "default", "--none", "--reason", "r", "--json").data == {"default_agent": ""}
    assert [request.agent_id for request in stand_in.requests("SetDefaultAgent")] == ["tax", ""]
    assert run("agents", "default", "tax", "--none", "--reason", "r").code == 2
