"""scale list, explain, set, pause, resume: what is sent, and what is said."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from outrider.policy import Scaling
from outrider.tree import field_types
from outrider.v1 import operator_pb2 as pb
from outrider.v1 import policy_pb2
from outrider_control.commands import scale
from tests.unit.outrider_control.commands.conftest import Run
from tests.unit.outrider_control.commands.operator_server import Refusal, StandIn
from tests.unit.outrider_control.commands.test_reads import fits, struct

BUSY = {
    "engine": "local",
    "state": "scaling",
    "desired": 5,
    "ready": 3,
    "starting": 2,
    "draining": 1,
    "demand": 14.0,
    "queued": 4.0,
    "capacity": 4.0,
    "capacity_source": "learnt",
    "utilization": 14 / 12,
    "panic": True,
    "changed_unix_ms": 1,
    "min_instances": 1,
    "max_instances": 20,
    "reason": "14 calls need 5",
}


def record(agent_id: str = "tax", **fields: Any) -> pb.ScaleRecord:
    return pb.ScaleRecord(agent_id=agent_id, **fields)


def taken(number: int = 0, **fields: Any) -> pb.Decision:
    base: dict[str, Any] = {
        "at_unix_ms": 1_000,
        "kind": "scale",
        "agent_id": "tax",
        "author": "scaler",
        "reason": "14 calls need 5",
        "inputs": struct(**{"ready": 3, "samples": [[1, 2]], "policy.engine": "local"}),
        "outcome": struct(**{"action": "up", "from": 3, "to": 5}),
    }
    return pb.Decision(id=number, **(base | fields))


def test_list_is_what_is_done_without_an_action(run: Run, stand_in: StandIn) -> None:
    quiet = record("vat", state="no data", min_instances=0, max_instances=10)
    broken = record("zoll", state="failing", problem="zoll-1 ended at once: no such \x1b[2Jfile", desired=1)
    held = record("held", state="paused", paused_by="ann", paused_reason="release", desired=3, ready=3)
    stand_in.replies["ListScales"] = pb.ListScalesReply(scales=[held, record(**BUSY), quiet, broken])
    ran = run("scale")
    assert (ran.code, ran.err) == (0, "")
    assert fits(ran)
    assert "\x1b" not in ran.out
    words = " ".join(ran.out.split())
    assert "tax scaling 3 +2 -1 5 1 to 20 14 4 117%" in words
    assert "vat no data 0 0 0 to 10 - - - -" in words
    assert "zoll: zoll-1 ended at once: no such \\x1b[2Jfile" in ran.out
    assert "held: paused by ann: release" in ran.out
    assert "tax: demand rises fast" in ran.out
    assert run("scale", "list").out == ran.out


def test_list_on_a_wide_terminal(run: Run, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    stand_in.replies["ListScales"] = pb.ListScalesReply(scales=[record(**BUSY)])
    assert "local 14 calls need 5" in " ".join(run("scale").out.split())


def test_list_as_json(run: Run, stand_in: StandIn) -> None:
    stand_in.replies["ListScales"] = pb.ListScalesReply(scales=[record(**BUSY), record("vat")])
    first, second = run("scale", "--json").data["scales"]
    assert first.keys() == second.keys() == {field.name for field in pb.ScaleRecord.DESCRIPTOR.fields}
    assert (first["demand"], first["panic"], first["ready"]) == (14, True, 3)
    unknown = ("demand", "queued", "capacity", "utilization", "confidence")
    assert [second[name] for name in unknown] == [None] * 5


def test_explain(run: Run, stand_in: StandIn) -> None:
    instances = [
        pb.ScaleInstance(name="tax-1", address="127.0.0.1:9001", state="ready", started_unix_ms=1),
        pb.ScaleInstance(name="tax-2", state="failed", note="KeyError: 'PORT'"),
    ]
    earlier = taken(7, at_unix_ms=500, reason="first calls", outcome=struct(action="up", desired=3))
    stand_in.replies["ExplainScale"] = pb.ExplainScaleReply(
        scale=record(**BUSY), last=taken(), decisions=[taken(8), earlier], instances=instances
    )
    ran = run("scale", "explain", "tax", "--limit", "2")
    assert stand_in.requests("ExplainScale") == [pb.ExplainScaleRequest(agent_id="tax", limit=2)]
    assert ran.out.startswith("tax: scaling by local: 3 +2 -1 ready, 5 wanted, 1 to 20 allowed\n")
    words = " ".join(ran.out.split())
    assert "14 calls, 4 of them waiting; 4 at once per instance (from learnt); utilization 117%" in words
    assert "1970-01-01 00:00:01 14 calls need 5 from ready=3 samples=[[1, 2]] INSTANCE" in words
    assert "up 3 -> 5 scaler 14 calls need 5" in words
    assert "tax-2 failed - - KeyError: 'PORT'" in words
    assert "up 3 scaler first calls" in words
    data = run("scale", "explain", "tax", "--json").data
    assert stand_in.requests("ExplainScale")[1].limit == 10
    assert data.keys() == {"scale", "last", "decisions", "instances"}
    assert data["last"]["inputs"] == {"ready": 3, "samples": [[1, 2]], "policy.engine": "local"}
    assert [one["id"] for one in data["decisions"]] == [8, 7]
    assert data["instances"][1]["note"] == "KeyError: 'PORT'"


def test_explain_what_nothing_is_known_of(run: Run, stand_in: StandIn) -> None:
    stand_in.replies["ExplainScale"] = pb.ExplainScaleReply(scale=record(state="no engine"))
    ran = run("scale", "explain", "tax")
    assert ran.out.startswith("tax: no engine: 0 ready, 0 wanted\n")
    assert "demand is not known" in ran.out
    assert "what one instance can do is not known yet" in ran.out
    assert "no decision was taken" in ran.out
    assert run("scale", "explain", "tax", "--json").data["last"] is None


@pytest.mark.parametrize("arguments", [("explain", "tax"), ("pause", "tax", "--reason", "r")])
def test_an_agent_that_is_not_there(run: Run, stand_in: StandIn, arguments: tuple[str, ...]) -> None:
    refusal = Refusal(grpc.StatusCode.NOT_FOUND, "agent 'tax' is not configured")
    stand_in.replies |= {"ExplainScale": refusal, "PauseScaling": refusal}
    ran = run("scale", *arguments)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == f"outrider scale {arguments[0]}: agent 'tax' is not configured\n"


def changed(*changes: pb.FieldChange) -> pb.AgentRecord:
    return pb.AgentRecord(version=pb.AgentVersion(agent_id="tax", version=5, changes=changes))


def test_set_sends_what_is_named_and_no_more(run: Run, stand_in: StandIn) -> None:
    change = pb.FieldChange(path="scaling.max_instances", before="10", after="40")
    stand_in.replies["ConfigureAutoScaling"] = changed(change)
    ran = run(
        "scale", "set", "tax", "--min", "0", "--max", "40", "--target", "0.75", "--cooldown", "5m",
        "--no-enabled", "--engine", "", "--activation-wait", "20", "--reason", "spike", "--expected", "4",
    )  # fmt: skip
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == ["tax: version 5 is in force", "  scaling.max_instances: 10 -> 40"]
    scaling = policy_pb2.ScalingPolicy(
        min_instances=0,
        max_instances=40,
        target_utilization=0.75,
        cooldown_s=300,
        enabled=False,
        engine="",
        activation_wait_ms=20_000,
    )
    wanted = pb.ConfigureAutoScalingRequest(agent_id="tax", scaling=scaling, reason="spike", expected_version=4)
    assert stand_in.requests("ConfigureAutoScaling") == [wanted]
    data = run("scale", "set", "tax", "--capacity", "8", "--reason", "r", "--json").data
    assert not stand_in.requests("ConfigureAutoScaling")[1].HasField("expected_version")
    assert data["version"]["changes"][0]["path"] == "scaling.max_instances"


def test_every_field_of_the_policy_can_be_set() -> None:
    kinds = field_types(Scaling)
    assert [field for field, *_ in scale._FIELDS if field not in kinds] == []
    assert {field for field, *_ in scale._FIELDS} == set(kinds)
    assert {field for field, _, kind, *_ in scale._FIELDS if kind is bool} == {
        field for field, kind in kinds.items() if kind is bool
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "say what to set: --min"),
        (("--min", "-1"), "--min"),
        (("--min", "few"), "'few' is not a whole number from 0"),
        (("--max", "0"), "'0' is not a whole number from 1"),
        (("--target", "nan"), "'nan' is not a number"),
        (("--cooldown", "soon"), "'soon' is not a duration"),
        (("--cooldown", "1500ms"), "not a number of whole seconds"),
        (("--capacity", "4" * 99), "is not a whole number"),
    ],
)
def test_a_wrong_command_line_asks_nobody(run: Run, stand_in: StandIn, arguments: tuple[str, ...], said: str) -> None:
    ran = run("scale", "set", "tax", *arguments, "--reason", "r")
    assert ran.code == 2
    assert said in ran.err
    assert ran.err.count("\n") == 1
    assert stand_in.asked == []


@pytest.mark.parametrize("action", ["set", "pause", "resume"])
def test_a_change_needs_a_reason(run: Run, stand_in: StandIn, action: str) -> None:
    ran = run("scale", action, "tax", *(("--min", "1") if action == "set" else ()))
    assert ran.code == 2
    assert "--reason" in ran.err
    assert stand_in.asked == []


def test_a_dry_run_shows_what_would_change(run: Run, stand_in: StandIn) -> None:
    policy = policy_pb2.AgentPolicy(agent_id="tax", timeout_ms=5)
    policy.scaling.min_instances = 2
    change = pb.FieldChange(path="scaling.max_instances", before="10", after="40")
    applied = pb.Applied(agent_id="tax", outcome="changed", version=5, changes=[change])
    stand_in.replies |= {
        "GetAgent": pb.AgentRecord(policy=policy, version=pb.AgentVersion(version=4)),
        "ApplyAgents": pb.ApplyAgentsReply(agents=[applied]),
    }
    ran = run("scale", "set", "tax", "--max", "40", "--dry-run")
    assert ran.out.splitlines() == [
        "tax: would be changed version 5",
        "  scaling.max_instances: 10 -> 40",
        "dry run: nothing is changed",
    ]
    (request,) = stand_in.requests("ApplyAgents")
    policy.scaling.max_instances = 40
    assert request.dry_run
    assert request.agents == [pb.AgentConfiguration(policy=policy, expected_version=4)]
    assert stand_in.requests("ConfigureAutoScaling") == []
    wrong = run("scale", "set", "tax", "--max", "1", "--dry-run")
    assert (wrong.code, wrong.out) == (1, "")
    assert wrong.err == "outrider scale set: scaling.min_instances: 2 is more than max_instances, which is 1\n"


def test_a_stale_version_says_what_to_do(run: Run, stand_in: StandIn) -> None:
    stand_in.replies["ConfigureAutoScaling"] = Refusal(grpc.StatusCode.ABORTED, "agent 'tax' is at version 9, not 4")
    ran = run("scale", "set", "tax", "--min", "1", "--expected", "4", "--reason", "r")
    assert ran.code == 1
    assert "outrider agents history tax" in ran.err


def test_pause_and_resume(run: Run, stand_in: StandIn) -> None:
    stand_in.replies |= {
        "PauseScaling": record(state="paused", desired=7, paused_by="ann", paused_reason="release"),
        "ResumeScaling": record(state="scaling", desired=7),
    }
    ran = run("scale", "pause", "tax", "--reason", "release")
    assert stand_in.requests("PauseScaling") == [pb.PauseScalingRequest(agent_id="tax", reason="release")]
    assert ran.out == "tax: the number of instances stays at 7 until `outrider scale resume`\n"
    assert run("scale", "resume", "tax", "--reason", "over").out.startswith("tax: the number of instances is decided")
    assert stand_in.requests("ResumeScaling") == [pb.ResumeScalingRequest(agent_id="tax", reason="over")]
    assert run("scale", "resume", "tax", "--reason", "over", "--json").data["state"] == "scaling"


def test_decisions_of_the_scale_loop(run: Run, stand_in: StandIn) -> None:
    paused = taken(3, author="ann", reason="release", outcome=struct(action="pause", desired=5), inputs=None)
    noted = taken(1, reason="no data", outcome=struct(**{"action": "hold", "from": 4, "to": 4}))
    stand_in.replies["ListDecisions"] = pb.ListDecisionsReply(decisions=[paused, taken(2), noted])
    ran = run("decisions", "--kind", "scale")
    assert stand_in.requests("ListDecisions")[0].kind == "scale"
    assert fits(ran)
    words = " ".join(ran.out.split())
    assert "14 calls need 5 up 3 -> 5" in words
    assert "release pause 5" in words
    assert "no data hold 4" in words
    full = " ".join(run("decisions", "--kind", "scale", "--full").out.split())
    assert "samples=[[1, 2]]" in full
