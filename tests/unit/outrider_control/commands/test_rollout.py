"""rollout create, status, promote, pause, resume, abort: what is sent, what is shown, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from outrider.v1 import experiment_pb2 as pb
from tests.unit.outrider_control.commands.conftest import Run
from tests.unit.outrider_control.commands.experiment_records import rollout
from tests.unit.outrider_control.commands.operator_server import StandIn
from tests.unit.outrider_control.commands.test_experiment import words
from tests.unit.outrider_control.commands.test_reads import fits

CREATE = (
    *("create", "out", "--agent", "tax", "--candidate", "version=v2", "--stable", "version=v1"),
    *("--step", "5%:60s", "--step", "25%:5m:confirm", "--step", "100%", "--analysis", "error_rate<=0.02"),
    *("--reason", "v2 is ready"),
)


def test_create_sends_what_the_command_line_says(run: Run, stand_in: StandIn) -> None:
    stand_in.replies["CreateRollout"] = rollout()
    ran = run("rollout", *CREATE, "--webhook", "http://127.0.0.1:9/x", "--idle", "1h", "--progress-deadline", "10m")
    assert (ran.code, ran.err) == (0, "")
    (sent,) = stand_in.requests("CreateRollout")
    assert (sent.reason, dict(sent.spec.candidate.labels)) == ("v2 is ready", {"version": "v2"})
    assert [(one.weight, one.pause_s, one.confirm) for one in sent.spec.steps] == [
        (0.05, 60, False),
        (0.25, 300, True),
        (1.0, 0, False),
    ]
    assert (sent.spec.analyses[0].max, sent.spec.webhooks[0]) == (0.02, "http://127.0.0.1:9/x")
    assert (sent.spec.idle_s, sent.spec.progress_deadline_s) == (3_600, 600)


def test_from_a_file(run: Run, stand_in: StandIn, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("name: out\nagent_id: tax\ncandidate: version=v2\nsteps: ['10%:10s', '100%']\n")
    stand_in.replies["CreateRollout"] = rollout()
    assert run("rollout", "create", "-f", str(file), "--reason", "go").code == 0
    (sent,) = stand_in.requests("CreateRollout")
    assert [one.weight for one in sent.spec.steps] == [0.1, 1.0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("create", "out", "--candidate", "version=v2", "--reason", "r"), "--agent is missing"),
        (("create", "--agent", "tax", "--reason", "r"), "NAME is missing"),
        (("create", "out", "--agent", "tax", "--step", "half", "--reason", "r"), "half"),
        (("create", "out", "--agent", "tax", "--analysis", "error_rate=1", "--reason", "r"), "error_rate=1"),
        (("abort", "out", "--reason", ""), "reason"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_sent(
    run: Run, stand_in: StandIn, arguments: tuple[str, ...], said: str
) -> None:
    ran = run("rollout", *arguments)
    assert ran.code == 2
    assert said in ran.err
    assert stand_in.asked == []


@pytest.mark.parametrize(
    ("action", "method", "more"),
    [
        ("promote", "PromoteRollout", ("--full",)),
        ("pause", "PauseRollout", ()),
        ("resume", "ResumeRollout", ()),
        ("abort", "AbortRollout", ()),
    ],
)
def test_changes(run: Run, stand_in: StandIn, action: str, method: str, more: tuple[str, ...]) -> None:
    stand_in.replies[method] = rollout()
    assert run("rollout", action, "out", *more, "--reason", "because").code == 0
    (sent,) = stand_in.requests(method)
    assert (sent.name, sent.reason) == ("out", "because")
    assert method != "PromoteRollout" or sent.full


def test_status_says_where_it_stands_and_why(run: Run, stand_in: StandIn) -> None:
    stand_in.replies["GetRollout"] = rollout()
    ran = run("rollout", "status", "out")
    assert (ran.code, ran.err) == (0, "")
    assert fits(ran)
    told = words(ran.out)
    assert "out: progressing" in told
    assert "step 2 measures" in told
    assert "25%" in told
    assert "50 of 51" in told
    assert "1200" in told
    assert "error_rate" in told
    assert run("rollout", "status", "out", "--json").data["phase"] == "progressing"


def test_the_list_and_watching(run: Run, stand_in: StandIn) -> None:
    stand_in.replies["ListRollouts"] = pb.ListRolloutsReply(rollouts=[rollout(problem="no endpoint has version=v2")])
    assert "out: no endpoint has version=v2" in run("rollout").out
    stand_in.replies["ListRollouts"] = pb.ListRolloutsReply()
    assert "outrider rollout create" in run("rollout", "list").out
    records = iter([rollout(), rollout(phase="succeeded", weight=1.0, ended_unix_ms=9)])
    stand_in.replies["GetRollout"] = lambda _: next(records)
    ran = run("rollout", "status", "out", "--watch", "--interval", "1ms")
    assert "succeeded" in ran.out
    assert len(stand_in.requests("GetRollout")) == 2
