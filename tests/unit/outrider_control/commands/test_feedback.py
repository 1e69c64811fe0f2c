"""feedback send, list, satisfaction: what is sent, what is shown, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from outrider.v1 import experiment_pb2 as pb
from outrider.v1 import feedback_pb2
from tests.unit.outrider_control.commands.conftest import Run
from tests.unit.outrider_control.commands.experiment_records import HOUR_MS
from tests.unit.outrider_control.commands.operator_server import StandIn
from tests.unit.outrider_control.commands.test_experiment import words

TAKEN = feedback_pb2.CollectFeedbackReply(outcomes=[feedback_pb2.FeedbackOutcome(feedback_id="f1", outcome="taken")])


def test_send_says_what_of_which_call(run: Run, stand_in: StandIn) -> None:
    stand_in.replies["CollectFeedback"] = TAKEN
    ran = run(
        "feedback", "send", "--call", "0" * 16, "--rating", "4.5", "--correction", "42", "--complaint", "slow",
        "--label", "tone", "--score", "accuracy=1", "--author", "ann", "--id", "f1", "--question", "q", "--answer", "a",
    )  # fmt: skip
    assert (ran.code, ran.err) == (0, "")
    (sent,) = stand_in.requests("CollectFeedback")[0].feedback
    assert (sent.call_id, sent.rating, sent.correction, sent.complaint) == ("0" * 16, 4.5, "42", "slow")
    assert (list(sent.labels), dict(sent.scores), sent.author) == (["tone"], {"accuracy": 1.0}, "ann")
    assert (sent.feedback_id, sent.input, sent.output) == ("f1", "q", "a")
    assert "f1 taken" in words(ran.out)


def test_a_file_goes_in_portions(run: Run, stand_in: StandIn, tmp_path: Path) -> None:
    file = tmp_path / "f.jsonl"
    lines = [json.dumps({"call_id": f"{at:016x}", "rating": at % 6}) for at in range(1_500)]
    file.write_text("\n".join(lines) + "\n\n")
    stand_in.replies["CollectFeedback"] = lambda request: feedback_pb2.CollectFeedbackReply(
        outcomes=[feedback_pb2.FeedbackOutcome(outcome="taken") for _ in request.feedback]
    )
    ran = run("feedback", "send", "-f", str(file), "--json")
    assert len(ran.data["outcomes"]) == 1_500
    assert [len(one.feedback) for one in stand_in.requests("CollectFeedback")] == [1_000, 500]


def test_what_is_refused_fails_the_command(run: Run, stand_in: StandIn) -> None:
    refused = feedback_pb2.FeedbackOutcome(outcome="refused", reason="rating: 6 is not 0 to 5")
    stand_in.replies["CollectFeedback"] = feedback_pb2.CollectFeedbackReply(outcomes=[refused])
    ran = run("feedback", "send", "--trace", "0" * 32, "--rating", "6")
    assert ran.code == 1
    assert "rating: 6 is not 0 to 5" in words(ran.out)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--rating", "4"), "--call ID or --trace ID"),
        (("--call", "0" * 16, "--score", "accuracy"), "NAME=X"),
        (("--call", "0" * 16, "--score", "accuracy=nan"), "--score"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_sent(
    run: Run, stand_in: StandIn, arguments: tuple[str, ...], said: str
) -> None:
    ran = run("feedback", "send", *arguments)
    assert ran.code == 2
    assert said in ran.err
    assert stand_in.asked == []


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "holds no feedback"), ("{", "line 1: is no JSON"), ('{"call_id": "0"}\n{"raiting": 3}', "line 2")],
)
def test_a_file_that_is_wrong_is_sent_in_no_part(
    run: Run, stand_in: StandIn, tmp_path: Path, content: str, said: str
) -> None:
    file = tmp_path / "f.jsonl"
    file.write_text(content)
    ran = run("feedback", "send", "-f", str(file))
    assert ran.code == 2
    assert said in ran.err
    assert stand_in.asked == []


def test_the_list(run: Run, stand_in: StandIn) -> None:
    records = [
        pb.FeedbackRecord(
            agent_id="tax", call_id="c1", joined=True, rating=4.0, variant="x=B", complaint="slow \x1b[2J", author="ann"
        ),
        pb.FeedbackRecord(correction="a" * 200, labels=["tone"], scores={"accuracy": 1.0}),
    ]
    stand_in.replies["ListFeedback"] = pb.ListFeedbackReply(feedback=records)
    ran = run("feedback", "list", "--agent", "tax", "--unknown", "--since", "1h")
    assert ran.code == 0
    assert "\x1b" not in ran.out
    assert "not known yet" in words(ran.out)
    (sent,) = stand_in.requests("ListFeedback")
    assert (sent.agent_id, sent.unknown_only, sent.since_ms) == ("tax", True, HOUR_MS)
    stand_in.replies["ListFeedback"] = pb.ListFeedbackReply()
    assert "outrider feedback send" in run("feedback", "list").out


def test_satisfaction(run: Run, stand_in: StandIn) -> None:
    rows = [
        pb.Satisfaction(agent_id="tax", variant="x=B", ratings=10, mean=4.25, complaints=1),
        pb.Satisfaction(agent_id="tax", ratings=0, complaints=2),
    ]
    stand_in.replies["GetSatisfaction"] = pb.GetSatisfactionReply(rows=rows)
    told = words(run("feedback", "satisfaction").out)
    assert "tax x=B 10 4.25 1" in told
    assert "tax all 0 - 2" in told
    stand_in.replies["GetSatisfaction"] = pb.GetSatisfactionReply()
    assert "nobody rated" in run("feedback", "satisfaction").out
