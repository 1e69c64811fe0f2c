"""examples list, review, dataset: what is sent, what is shown, files that are whole or not there."""

from __future__ import annotations

import hashlib
from pathlib import Path

import grpc
import pytest

from outrider.v1 import experiment_pb2 as pb
from tests.unit.outrider_control.commands.conftest import Run
from tests.unit.outrider_control.commands.operator_server import Refusal, StandIn
from tests.unit.outrider_control.commands.test_experiment import words

EXAMPLE = pb.Example(id=7, agent_id="tax", input="rate?", correction="20 %", state="candidate", count=2)
LINES = '{"input": "a"}\n{"input": "b"}\n'
DATASET = pb.Dataset(
    agent_id="tax", version=3, counts={"train": 2}, digest=hashlib.sha256(LINES.encode()).hexdigest(), reason="r"
)


def test_the_list(run: Run, stand_in: StandIn) -> None:
    stand_in.replies["ListExamples"] = pb.ListExamplesReply(examples=[EXAMPLE], counts={"candidate": 1, "approved": 4})
    ran = run("examples", "list", "--agent", "tax", "--state", "candidate")
    assert ran.code == 0
    assert "7 tax candidate 2 rate? 20 %" in words(ran.out)
    assert "1 candidate, 4 approved, 0 rejected" in words(ran.out)
    assert run("examples", "list", "--json").data["counts"] == {"candidate": 1, "approved": 4, "rejected": 0}


def test_one_is_reviewed_without_a_terminal(run: Run, stand_in: StandIn) -> None:
    stand_in.replies["ReviewExample"] = pb.Example(id=7, agent_id="tax", state="approved")
    ran = run(
        "examples", "review", "--id", "7", "--verdict", "approve", "--correction", "20 %", "--reason", "checked"
    )  # fmt: skip
    assert (ran.code, words(ran.out)) == (0, "example 7 of tax is approved")
    (sent,) = stand_in.requests("ReviewExample")
    assert (sent.id, sent.verdict, sent.reason, sent.correction) == (7, "approve", "checked", "20 %")
    assert not sent.HasField("input")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--id", "7"), "needs --verdict"),
        (("--id", "7", "--verdict", "reject", "--correction", "x"), "what is rejected is not edited"),
        (("--verdict", "approve"), "go with --id"),
        ((), "without a terminal"),
    ],
)
def test_a_review_that_is_incomplete_is_not_sent(
    run: Run, stand_in: StandIn, arguments: tuple[str, ...], said: str
) -> None:
    ran = run("examples", "review", *arguments, "--reason", "r")
    assert ran.code == 2
    assert said in ran.err
    assert stand_in.asked == []


def test_a_dataset_is_frozen_and_listed(run: Run, stand_in: StandIn) -> None:
    stand_in.replies["CreateDataset"] = DATASET
    ran = run("examples", "dataset", "create", "tax", "--train", "0.8", "--holdout", "0.2", "--reason", "first")
    assert "tax: version 3 is frozen" in ran.out
    (sent,) = stand_in.requests("CreateDataset")
    assert (sent.train, sent.validation, sent.holdout, sent.reason) == (0.8, 0.0, 0.2, "first")
    stand_in.replies["ListDatasets"] = pb.ListDatasetsReply(datasets=[DATASET])
    assert "tax" in run("examples", "datasets").out


def test_an_export_is_what_was_frozen_or_no_file(run: Run, stand_in: StandIn, tmp_path: Path) -> None:
    first, second = LINES.splitlines(keepends=True)
    chunks = [pb.DatasetChunk(dataset=DATASET, jsonl=first), pb.DatasetChunk(jsonl=second)]
    stand_in.replies["ExportDataset"] = lambda _: chunks
    file = tmp_path / "d.jsonl"
    assert run("examples", "dataset", "export", "tax", "-o", str(file)).code == 0
    assert file.read_text() == LINES
    assert run("examples", "dataset", "export", "tax").out == LINES
    other = tmp_path / "other.jsonl"
    for broken in (
        [chunks[0]],  # lines are missing: the digest says so
        [chunks[0], Refusal(grpc.StatusCode.INTERNAL, "the store broke")],
    ):
        stand_in.replies["ExportDataset"] = lambda _, broken=broken: broken
        assert run("examples", "dataset", "export", "tax", "-o", str(other)).code == 1
        assert not other.exists()
    assert [one.name for one in tmp_path.iterdir()] == ["d.jsonl"]
