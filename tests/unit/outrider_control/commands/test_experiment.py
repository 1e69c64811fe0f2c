"""experiment create, start, status, stop, traffic, plan, simulate: what is sent, what is shown, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from outrider.v1 import experiment_pb2 as pb
from tests.unit.outrider_control.commands.conftest import Run
from tests.unit.outrider_control.commands.experiment_records import looks, running, spec
from tests.unit.outrider_control.commands.operator_server import StandIn
from tests.unit.outrider_control.commands.test_reads import fits

CREATE = (
    *("create", "shorter", "--agent", "tax", "--variant", "control@50%", "--variant", "v2:version=v2,model=m2@50%"),
    *("--metric", "error_rate", "--guardrail", "latency_quantile:0.95:+50", "--sample-size", "20000"),
    *("--reason", "cheaper?"),
)


def words(text: str) -> str:
    return " ".join(text.split())


def test_create_sends_what_the_command_line_says(run: Run, stand_in: StandIn) -> None:
    stand_in.replies["CreateExperiment"] = running(state="draft")
    ran = run(
        "experiment", *CREATE, "--start", "--override", "me=v2", "--history", "--no-stop-for-win", "--layer", "l",
        "--rollout-step", "5%:60s", "--rollout-step", "100%", "--rollout-analysis", "error_rate<=0.02",
    )  # fmt: skip
    assert (ran.code, ran.err) == (0, "")
    (sent,) = stand_in.requests("CreateExperiment")
    assert (sent.reason, sent.start) == ("cheaper?", True)
    assert [(one.name, one.share, dict(one.labels), one.model) for one in sent.spec.variants] == [
        ("control", 0.5, {}, ""),
        ("v2", 0.5, {"version": "v2"}, "m2"),
    ]
    assert (sent.spec.metric.name, sent.spec.sample_size, sent.spec.layer) == ("error_rate", 20_000, "l")
    assert (sent.spec.guardrails[0].metric.quantile, sent.spec.guardrails[0].margin) == (0.95, 50.0)
    assert (dict(sent.spec.overrides), sent.spec.history) == ({"me": "v2"}, True)
    assert [one.weight for one in sent.spec.rollout.steps] == [0.05, 1.0]
    assert sent.spec.rollout.analyses[0].max == 0.02


def test_a_file_and_options_go_together_and_options_win(run: Run, stand_in: StandIn, tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    file.write_text(
        "name: shorter\nagent_id: tax\nmetric: rating\nsample_size: 100\n"
        "variants: [{name: a, share: 0.5}, {name: b, share: 0.5, prompt_version: p2}]\n"
    )
    stand_in.replies["CreateExperiment"] = running(state="draft")
    ran = run("experiment", "create", "-f", str(file), "--sample-size", "200", "--reason", "why not")
    assert ran.code == 0, ran.err
    (sent,) = stand_in.requests("CreateExperiment")
    assert (sent.spec.name, sent.spec.metric.name, sent.spec.sample_size) == ("shorter", "rating", 200)
    assert sent.spec.variants[1].prompt_version == "p2"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("create", "x", "--variant", "a", "--reason", "r"), "--agent is missing"),
        (("create", "--agent", "tax", "--reason", "r"), "NAME is missing"),
        ((*CREATE, "--guardrail", "error_rate"), "error_rate"),
        ((*CREATE, "--override", "me"), "is not UNIT=VARIANT"),
        (("create", "x", "--agent", "tax", "--variant", "a:temperature=hot", "--reason", "r"), "temperature"),
        (("create", "x", "--agent", "tax", "--direction", "up", "--reason", "r"), "needs --metric"),
        (("simulate",), "--p-a and --p-b"),
        (("simulate", "--p-a", "0.3", "--p-b", "0.3", "--mean-a", "1", "--mean-b", "1", "--sd", "1"), "--p-a and"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_sent(
    run: Run, stand_in: StandIn, arguments: tuple[str, ...], said: str
) -> None:
    ran = run("experiment", *arguments)
    assert ran.code == 2
    assert said in ran.err
    assert stand_in.asked == []


@pytest.mark.parametrize("arguments", [("create", "x", "--alpha", "nan"), ("traffic", "x", "200%"), ("pause",)])
def test_what_is_no_figure_is_refused_by_the_parser(run: Run, stand_in: StandIn, arguments: tuple[str, ...]) -> None:
    ran = run("experiment", *arguments, "--reason", "r")
    assert ran.code == 2
    assert ran.err.endswith(f"see outrider experiment {arguments[0]} --help\n")
    assert stand_in.asked == []


def test_changes_need_a_reason(run: Run, stand_in: StandIn) -> None:
    ran = run("experiment", "stop", "shorter", "--reason", " ")
    assert ran.code == 2
    assert "reason" in ran.err
    assert stand_in.asked == []


@pytest.mark.parametrize(
    ("action", "method", "more", "fields"),
    [
        ("start", "StartExperiment", (), {}),
        ("pause", "PauseExperiment", (), {}),
        ("resume", "ResumeExperiment", (), {}),
        ("stop", "StopExperiment", ("--winner", "v2"), {"winner": "v2", "abort": False}),
        ("stop", "StopExperiment", ("--abort",), {"winner": "", "abort": True}),
        ("traffic", "SetExperimentTraffic", ("75%",), {"traffic": 0.75}),
    ],
)
def test_changes(
    run: Run, stand_in: StandIn, action: str, method: str, more: tuple[str, ...], fields: dict[str, object]
) -> None:
    stand_in.replies[method] = running()
    ran = run("experiment", action, "shorter", *more, "--reason", "because")
    assert ran.code == 0, ran.err
    (sent,) = stand_in.requests(method)
    assert (sent.name, sent.reason) == ("shorter", "because")
    assert {name: getattr(sent, name) for name in fields} == fields


def test_status_says_what_may_be_concluded_and_shows_how_it_came(run: Run, stand_in: StandIn) -> None:
    stand_in.replies["GetExperiment"] = running()
    ran = run("experiment", "status", "shorter")
    assert (ran.code, ran.err) == (0, "")
    assert fits(ran)
    told = words(ran.out)
    assert "shorter: running" in told
    assert "v2 fails less often than control, by 1.2 to 4.8 percentage points" in told
    assert "50.0% of the traffic, 100 looks, intervals hold at every look" in told
    assert "v2 against control: -3" in told
    assert "interval" in told
    assert "p 4.0e-04: better" in told
    assert "SRM: units come as they were to be divided" in told
    assert "10000 units of 20000" in told
    assert [row for row in ran.out.splitlines() if row.split()[:2] == ["latency_quantile:0.95", "v2"]]
    course = [line for line in ran.out.splitlines() if "●" in line or "│" in line]
    assert len(course) > 2  # its effect in its interval, look by look
    assert "100 units" in told
    assert "3000 units" in told
    data = run("experiment", "status", "shorter", "--json").data
    assert data["comparisons"][0]["effect"] == -0.03
    assert data["srm"]["p_value"] == 0.43


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (running(state="draft", started_unix_ms=0, units=0), "not started: outrider experiment start shorter"),
        (running(hidden=True, comparisons=[], spec=spec(method="fixed")), "fixed horizon: values and effects are"),
        (running(srm=pb.SrmResult(p_value=1e-9, bayes_factor=5e6, mismatch=True)), "no verdict until that is"),
        (running(units=0), "no units yet"),
        (running(state="stopped", verdict="win", winner="v2", stopped_unix_ms=9, rollout="out"), "verdict win for v2"),
        (running(state="stopped", rollout="out", stopped_unix_ms=9), "its rollout: outrider rollout status out"),
        (running(problem="its agent is gone"), "its agent is gone"),
        (running(spec=spec(method="bandit")), "shares move to what does better"),
        (running(course=looks(1)), "v2 against control"),
    ],
)
def test_status_of_odd_ones(run: Run, stand_in: StandIn, record: pb.ExperimentRecord, said: str) -> None:
    stand_in.replies["GetExperiment"] = record
    ran = run("experiment", "status", "shorter")
    assert ran.code == 0
    assert said in words(ran.out)
    assert fits(ran)


def test_status_is_watched_until_it_is_over(run: Run, stand_in: StandIn) -> None:
    records = iter([running(), running(), running(state="stopped", verdict="win", winner="v2", stopped_unix_ms=9)])
    stand_in.replies["GetExperiment"] = lambda _: next(records)
    ran = run("experiment", "status", "shorter", "--watch", "--interval", "1ms")
    assert ran.code == 0
    assert len(stand_in.requests("GetExperiment")) == 3
    assert "verdict win for v2" in words(ran.out)


def test_the_list(run: Run, stand_in: StandIn) -> None:
    stand_in.replies["ListExperiments"] = pb.ListExperimentsReply(experiments=[running(), running(problem="broken")])
    ran = run("experiment", "list", "--agent", "tax", "--state", "running")
    assert ran.code == 0
    assert "shorter: broken" in ran.out
    (sent,) = stand_in.requests("ListExperiments")
    assert (sent.agent_id, sent.state) == ("tax", "running")
    stand_in.replies["ListExperiments"] = pb.ListExperimentsReply()
    assert "outrider experiment create" in run("experiment").out
    assert run("experiment", "list", "--json").data == {"experiments": []}


def test_a_plan_says_units_power_and_days(run: Run, stand_in: StandIn) -> None:
    stand_in.replies["PlanExperiment"] = pb.PlanExperimentReply(
        sample_size=15_000, power=0.9, median_units=6_000, days=3.0
    )
    ran = run("experiment", "plan", "--baseline", "0.3", "--minimum-effect", "0.03", "--units-per-day", "5000")
    assert words(ran.out) == (
        "15000 units in all variants: 90.0% power half of such experiments are over by 6000 units that takes 3.0 days"
    )


def test_simulate_plays_the_code_that_decides(run_alone: Run) -> None:
    base = ("simulate", "--units", "2000", "--looks", "20", "--runs", "40", "--seed", "3")
    same = run_alone("experiment", *base, "--p-a", ".3", "--p-b", ".3", "--json").data
    assert same["runs"] == 40
    assert same["reject_rate"] <= 0.15
    other = run_alone("experiment", *base, "--p-a", ".1", "--p-b", ".4", "--json").data
    assert other["reject_rate"] == 1.0
    assert other["median_units"] < 2_000
    assert run_alone("experiment", *base, "--p-a", ".1", "--p-b", ".4", "--json").data == other
    means = ("--mean-a", "100", "--mean-b", "100", "--sd", "130", "--cluster", "3")
    assert run_alone("experiment", *base, *means, "--json").data["reject_rate"] <= 0.15
    told = run_alone("experiment", *base, "--p-a", ".3", "--p-b", ".3").out
    assert "false positives" in told
