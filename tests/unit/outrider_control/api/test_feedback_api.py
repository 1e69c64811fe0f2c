"""Feedback, examples and datasets over gRPC, with the real store: what is taken, joined, learnt and refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import grpc
import pytest

from outrider.v1 import experiment_pb2 as pb
from outrider.v1 import feedback_pb2, operator_pb2
from outrider_control.core.call_record import CallRecord
from outrider_control.intake.joining import Joining
from outrider_control.state import call_index
from tests.operator_server import LOOPBACK, NOW_MS, REMOTE, Plane, sample

ONE = CallRecord(b"\x01" * 8, b"\x01" * 16, NOW_MS - 1_000, 0, "tax", "exp=A", "t1", "exp=" + "a" * 32)
TWO = CallRecord(b"\x02" * 8, b"\x02" * 16, NOW_MS - 900, 0, "tax", "exp=B", "t1", "exp=" + "b" * 32)


def said(call: CallRecord = ONE, **fields: Any) -> feedback_pb2.Feedback:
    wanted: dict[str, Any] = {"call_id": call.call_id.hex()} | fields
    return feedback_pb2.Feedback(**wanted)


async def collect(plane: Plane, *items: feedback_pb2.Feedback) -> list[tuple[str, str]]:
    reply = await plane.call("CollectFeedback", feedback_pb2.CollectFeedbackRequest(feedback=items))
    return [(one.outcome, one.reason) for one in reply.outcomes]


async def join(plane: Plane, min_batch: int = 1) -> None:
    """A turn of the leader's."""
    await Joining(plane.db, plane.clock_ms, plane._marked, max_calls=1_000, learning=True, min_batch=min_batch).turn()


async def satisfaction(plane: Plane) -> dict[tuple[str, str], tuple[int, float | None, int]]:
    """(ratings, their mean, complaints) by agent and variant."""
    reply = await plane.call("GetSatisfaction", pb.GetSatisfactionRequest(agent_id="tax"))
    return {
        (one.agent_id, one.variant): (one.ratings, one.mean if one.HasField("mean") else None, one.complaints)
        for one in reply.rows
    }


async def test_by_call_or_by_trace_and_once(plane: Plane) -> None:
    await plane.db.write(call_index.add, [ONE, TWO])
    by_trace = feedback_pb2.Feedback(trace_id=TWO.trace_id.hex(), rating=1.0, complaint="wrong year")
    assert await collect(plane, said(rating=5.0, feedback_id="f1"), by_trace) == [("taken", ""), ("taken", "")]
    assert await collect(plane, said(rating=2.0, feedback_id="f1"), by_trace) == [("duplicate", ""), ("duplicate", "")]
    found = await satisfaction(plane)
    assert found["tax", "exp=A"] == (1, 5.0, 0)
    assert found["tax", "exp=B"] == (1, 1.0, 1)
    (second, first) = (await plane.call("ListFeedback", pb.ListFeedbackRequest(agent_id="tax"))).feedback
    assert {first.rating, second.rating} == {1.0, 5.0}
    assert TWO.trace_id.hex() in plane.marked  # what people complain of can be looked at later


async def test_what_is_wrong_is_refused_by_itself_and_says_where(plane: Plane) -> None:
    await plane.db.write(call_index.add, [ONE])
    outcomes = await collect(
        plane,
        said(rating=float("nan")),
        said(rating=6.0),
        said(scores={"accuracy": float("nan")}),
        said(),
        feedback_pb2.Feedback(rating=3.0),
        said(call_id="zz", rating=3.0),
        said(rating=3.0),
    )
    assert [outcome for outcome, _ in outcomes] == ["refused"] * 6 + ["taken"]
    wanted = (
        *("rating: nan is not", "rating: 6 is not", "scores: 'accuracy' is nan", "rating: nothing is said"),
        *("call_id: neither a call nor a trace", "call_id: 'zz' is not 16 hex digits", ""),
    )
    for (_, reason), beginning in zip(outcomes, wanted, strict=True):
        assert reason.startswith(beginning)
    assert (await satisfaction(plane))["tax", "exp=A"] == (1, 3.0, 0)


@pytest.mark.parametrize("count", [0, 1_001])
async def test_too_little_or_too_much_at_once(plane: Plane, count: int) -> None:
    request = feedback_pb2.CollectFeedbackRequest(feedback=[said(rating=1.0)] * count)
    error = await plane.refused("CollectFeedback", request)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "1 to 1,000" in error.details()


async def test_what_is_said_of_an_unknown_call_is_kept_marked_and_joined_when_it_comes(plane: Plane) -> None:
    assert await collect(plane, said(rating=4.0)) == [("unknown_call", "")]
    unknown = pb.ListFeedbackRequest(unknown_only=True)
    (one,) = (await plane.call("ListFeedback", unknown)).feedback
    assert one.rating == 4.0
    assert await satisfaction(plane) == {}
    await plane.db.write(call_index.add, [ONE])
    await join(plane)
    assert not (await plane.call("ListFeedback", unknown)).feedback
    assert (await satisfaction(plane))["tax", "exp=A"] == (1, 4.0, 0)


async def test_figures_say_how_content_callers_were_by_agent_and_variant(plane: Plane) -> None:
    await plane.db.write(call_index.add, [ONE, TWO])
    await plane.take_in([sample("tax", variant="exp=A"), sample("tax", variant="exp=B"), sample("other")])
    before = await plane.call("GetMetrics", operator_pb2.GetMetricsRequest(agent_id="tax", by="variant"))
    assert not before.figures.HasField("satisfaction")  # absent, never 0
    at_ms = NOW_MS - 1_000  # in the window of the calls
    ratings = [said(rating=rating, at_unix_ms=at_ms) for rating in (5.0, 4.0)]
    await collect(plane, *ratings, said(TWO, rating=0.0, at_unix_ms=at_ms))
    metrics = await plane.call("GetMetrics", operator_pb2.GetMetricsRequest(agent_id="tax", by="variant"))
    assert metrics.figures.satisfaction == 3.0
    assert {one.name: one.figures.satisfaction for one in metrics.splits} == {"exp=A": 4.5, "exp=B": 0.0}
    assert [one.figures.satisfaction for one in metrics.series if one.figures.HasField("satisfaction")] == [3.0]
    overview = await plane.call("GetOverview", operator_pb2.GetOverviewRequest())
    by_agent = {one.agent_id: one.figures for one in overview.agents}
    assert by_agent["tax"].satisfaction == overview.total.satisfaction == 3.0
    assert not by_agent["other"].HasField("satisfaction")


async def learnt(plane: Plane, count: int = 4) -> Sequence[pb.Example]:
    """Candidates of corrections and complaints, one of them said twice."""
    await plane.db.write(call_index.add, [ONE, TWO])
    items = [
        said(feedback_id=f"f{at}", input=f"question {at}", output="wrong", correction=f"answer {at}")
        for at in range(count - 1)
    ]
    items.append(said(TWO, feedback_id="again", input="question 0", output="wrong", correction="answer 0"))
    items.append(said(feedback_id="bad", input="question x", output="no", complaint="rude"))
    assert {outcome for outcome, _ in await collect(plane, *items)} == {"taken"}
    await join(plane)
    return (await plane.call("ListExamples", pb.ListExamplesRequest(agent_id="tax"))).examples


async def test_corrections_and_complaints_become_candidates_without_doubles(plane: Plane) -> None:
    found = {one.input: one for one in await learnt(plane)}
    assert set(found) == {"question 0", "question 1", "question 2", "question x"}
    assert (found["question 0"].count, found["question 1"].count) == (2, 1)
    assert set(found["question 0"].trace_ids) == {ONE.trace_id.hex(), TWO.trace_id.hex()}
    assert found["question x"].complaint == "rude"
    assert {one.state for one in found.values()} == {"candidate"}


async def export(plane: Plane, **fields: Any) -> tuple[pb.Dataset, list[dict[str, Any]]]:
    request = pb.ExportDatasetRequest(agent_id="tax", **fields)
    chunks = [chunk async for chunk in plane.stub.ExportDataset(request, metadata=LOOPBACK, timeout=20)]
    jsonl = "".join([chunk.jsonl for chunk in chunks])
    if not request.part:
        assert hashlib.sha256(jsonl.encode()).hexdigest() == chunks[0].dataset.digest
    return chunks[0].dataset, [json.loads(line) for line in jsonl.splitlines()]


async def test_what_is_approved_is_frozen_and_exported(plane: Plane) -> None:
    by_input = {one.input: one.id for one in await learnt(plane)}
    review = pb.ReviewExampleRequest(reason="checked", verdict="approve")
    for name in ("question 0", "question 1"):
        review.id = by_input[name]
        assert (await plane.call("ReviewExample", review)).state == "approved"
    edited = pb.ReviewExampleRequest(id=by_input["question x"], reason="mended", verdict="approve", correction="polite")
    assert (await plane.call("ReviewExample", edited)).correction == "polite"
    gone = pb.ReviewExampleRequest(id=by_input["question 2"], reason="nonsense", verdict="reject")
    assert (await plane.call("ReviewExample", gone)).state == "rejected"
    creation = pb.CreateDatasetRequest(agent_id="tax", reason="first", train=0.5, validation=0.25, holdout=0.25)
    made = await plane.call("CreateDataset", creation)
    assert (made.version, sum(made.counts.values())) == (1, 3)
    dataset, lines = await export(plane)
    assert dataset.digest == made.digest
    assert len(lines) == 3
    assert "polite" in json.dumps(lines)
    assert "question 2" not in json.dumps(lines)
    by_part = {part: (await export(plane, part=part))[1] for part in ("train", "validation", "holdout")}
    assert {part: len(some) for part, some in by_part.items()} == dict(made.counts)
    assert {part: [one for one in lines if one["part"] == part] for part in by_part} == by_part
    (asked_twice,) = [one for one in lines if one["input"] == "question 0"]
    assert (asked_twice["output"], asked_twice["correction"]) == ("wrong", "answer 0")
    assert set(asked_twice["trace_ids"]) == {ONE.trace_id.hex(), TWO.trace_id.hex()}
    later = pb.ReviewExampleRequest(id=by_input["question 0"], reason="no more", verdict="reject")
    await plane.call("ReviewExample", later)
    assert (await export(plane, version=1))[1] == lines  # a version never changes
    second = await plane.call("CreateDataset", pb.CreateDatasetRequest(agent_id="tax", reason="second"))
    assert (second.version, sum(second.counts.values())) == (2, 2)
    reply = await plane.call("ListDatasets", pb.ListDatasetsRequest(agent_id="tax"))
    assert [one.version for one in reply.datasets] == [2, 1]


async def test_a_question_that_was_mended_is_divided_as_what_it_is(plane: Plane) -> None:
    """Else a model would be trained on what it is judged by."""
    await plane.db.write(call_index.add, [ONE])
    asked = [f"typo {at}" for at in range(16)]  # their own hashes would put them into several parts
    for at, question in enumerate(asked):
        await collect(plane, said(input=question, correction=f"answer {at}"))
    await join(plane)
    for one in (await plane.call("ListExamples", pb.ListExamplesRequest(agent_id="tax"))).examples:
        mended = pb.ReviewExampleRequest(id=one.id, reason="typo", verdict="approve", input="What is due?")
        await plane.call("ReviewExample", mended)
    creation = pb.CreateDatasetRequest(agent_id="tax", reason="x", train=0.4, validation=0.3, holdout=0.3)
    made = await plane.call("CreateDataset", creation)
    assert sorted(made.counts.values()) == [0, 0, len(asked)]


@pytest.mark.parametrize(
    ("method", "request_", "code", "text"),
    [
        ("ReviewExample", pb.ReviewExampleRequest(id=9, verdict="approve", reason="x"), "NOT_FOUND", "no example 9"),
        ("ReviewExample", pb.ReviewExampleRequest(id=9, verdict="maybe", reason="x"), "INVALID_ARGUMENT", "verdict"),
        ("ReviewExample", pb.ReviewExampleRequest(id=9, verdict="approve"), "INVALID_ARGUMENT", "reason"),
        ("ListExamples", pb.ListExamplesRequest(state="odd"), "INVALID_ARGUMENT", "state"),
        ("CreateDataset", pb.CreateDatasetRequest(agent_id="tax", reason="x"), "INVALID_ARGUMENT", "approve some"),
        (
            "CreateDataset",
            pb.CreateDatasetRequest(agent_id="tax", reason="x", train=0.5, validation=0.1, holdout=0.1),
            *("INVALID_ARGUMENT", "0.7 together"),
        ),
        ("CreateDataset", pb.CreateDatasetRequest(reason="x"), "INVALID_ARGUMENT", "agent_id"),
    ],
)
async def test_what_cannot_be_done_says_why(plane: Plane, method: str, request_: Any, code: str, text: str) -> None:
    error = await plane.refused(method, request_)
    assert (error.code().name, text in error.details()) == (code, True), error.details()


async def test_a_viewer_reads_and_changes_nothing(plane: Plane) -> None:
    created = await plane.call("CreateToken", operator_pb2.CreateTokenRequest(name="eve", role="viewer", reason="x"))
    viewer = (*REMOTE, ("authorization", f"Bearer {created.token}"))
    example = (await learnt(plane))[0]
    changes = {
        "CollectFeedback": feedback_pb2.CollectFeedbackRequest(feedback=[said(rating=1.0)]),
        "ReviewExample": pb.ReviewExampleRequest(id=example.id, verdict="approve", reason="x"),
        "CreateDataset": pb.CreateDatasetRequest(agent_id="tax", reason="x"),
    }
    for method, request in changes.items():
        error = await plane.refused(method, request, viewer)
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED, method
    assert example in (await plane.call("ListExamples", pb.ListExamplesRequest(state="candidate"), viewer)).examples
    assert (await plane.call("ListFeedback", pb.ListFeedbackRequest(), viewer)).feedback
    assert not (await plane.call("ListDatasets", pb.ListDatasetsRequest(), viewer)).datasets
    created = await plane.call("CreateToken", operator_pb2.CreateTokenRequest(name="ann", role="operator", reason="x"))
    operator = (*REMOTE, ("authorization", f"Bearer {created.token}"))
    reviewed = await plane.call("ReviewExample", changes["ReviewExample"], operator)
    assert (reviewed.state, reviewed.reviewer) == ("approved", "ann")
