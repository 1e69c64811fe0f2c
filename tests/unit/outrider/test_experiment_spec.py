"""Experiments, rollouts and feedback from plain data, and `create_ab_test`."""

from __future__ import annotations

from typing import Any

import pytest

from outrider.experiment_requests import create_ab_test
from outrider.experiment_spec import experiment_of, feedback_of, rollout_of
from outrider.operator import AsyncOperator, Operator
from outrider.policy import PolicyError
from outrider.v1 import experiment_pb2 as pb
from outrider.v1.feedback_pb2 import Feedback
from outrider.v1.policy_pb2 import VariantPolicy
from tests.unit.outrider_control.commands.operator_server import OperatorServer

SHORT = {
    "name": "shorter",
    "agent_id": "tax",
    "variants": ["control", {"name": "v2", "labels": {"version": "v2"}}],
    "metric": "error_rate",
    "guardrails": ["cost:+10%", {"metric": {"name": "rating", "direction": "up"}, "margin": 1}],
    "sample_size": 20_000,
    "stop_for_win": False,
    "overrides": {"tester-1": "v2"},
    "rollout": {"name": "r", "candidate": "candidate:version=v2", "steps": ["5%:60s", {"weight": 1}]},
}


def test_an_experiment_from_a_file() -> None:
    assert experiment_of(SHORT) == pb.ExperimentSpec(
        name="shorter",
        agent_id="tax",
        variants=[
            VariantPolicy(name="control", share=0.5),
            VariantPolicy(name="v2", share=0.5, labels={"version": "v2"}),
        ],
        metric=pb.Metric(name="error_rate"),
        guardrails=[
            pb.Guardrail(metric=pb.Metric(name="cost"), relative_margin=0.1),
            pb.Guardrail(metric=pb.Metric(name="rating", direction="up"), margin=1),
        ],
        sample_size=20_000,
        stop_for_win=False,
        overrides={"tester-1": "v2"},
        rollout=pb.RolloutSpec(
            name="r",
            candidate=VariantPolicy(name="candidate", labels={"version": "v2"}),
            steps=[pb.RolloutStep(weight=0.05, pause_s=60), pb.RolloutStep(weight=1)],
        ),
    )


def test_a_message_is_taken_as_it_is() -> None:
    spec = pb.ExperimentSpec(name="n", variants=[VariantPolicy(name="a"), VariantPolicy(name="b")])
    assert experiment_of(spec) is spec
    assert [one.share for one in spec.variants] == [0, 0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"varaints": []}, r"^varaints: is not a field; did you mean 'variants'\?"),
        ({"variants": "control"}, r"^variants: 'control' is not a list"),
        ({"variants": [7]}, r"^variants\[0\]: 7 is not a mapping of fields"),
        ({"variants": [{"name": "a", "aborted": True}]}, r"^variants\[0\]\.aborted: is not a field"),
        ({"variants": ["a:b"]}, r"^variants\[0\]: 'b' in 'a:b' is not KEY=VALUE"),
        ({"metric": "latency_quantile"}, r"^metric: .* has no number"),
        ({"guardrails": [{"metric": "cost", "margin": "1"}]}, r"^guardrails\[0\]\.margin: '1' is not a number"),
        ({"sample_size": 1e3}, r"^sample_size: 1000\.0 is not a whole number"),
        ({"sample_size": 2**80}, r"^sample_size: .* is out of range"),
        ({"alpha": float("nan")}, r"^alpha: nan is not a number"),
        ({"overrides": {"u": 1}}, r"^overrides\.u: 1 is not text: put it in quotes"),
        ({"overrides": ["u"]}, r"^overrides: \['u'\] is not a mapping"),
        ({"rollout": {"steps": ["5"]}}, r"^rollout\.steps\[0\]: '5' is no share"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(change: dict[str, Any], said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        experiment_of({**SHORT, **change})


def test_feedback_and_rollouts() -> None:
    item = {"call_id": "c1", "rating": 4, "labels": ["tone"], "scores": {"accuracy": 1}}
    assert feedback_of(item) == Feedback(call_id="c1", rating=4.0, labels=["tone"], scores={"accuracy": 1.0})
    with pytest.raises(PolicyError, match=r"^feedback\[0\]\.scores\.accuracy: nan is not a number"):
        feedback_of({"scores": {"accuracy": float("nan")}}, "feedback[0]")
    made = rollout_of({"name": "r", "analyses": ["error_rate<=0.02"], "webhooks": ["http://h"]})
    assert made.analyses[0].max == 0.02
    assert not made.analyses[0].HasField("min")


@pytest.mark.parametrize(
    ("variants", "split"),
    [
        ({"control": None, "v2": {"labels": {"version": "v2"}}}, (0.75, 0.25)),
        (["control", "v2:version=v2"], {"control": 0.75}),
        (["control@0.75", VariantPolicy(name="v2", labels={"version": "v2"})], ()),
    ],
)
def test_create_ab_test(variants: Any, split: Any) -> None:
    made = create_ab_test(
        "tax", "shorter", variants, "latency_quantile:0.95", "try", split=split, sample_size=9, idle_s=60
    )
    wanted = pb.ExperimentSpec(
        name="shorter",
        agent_id="tax",
        variants=[
            VariantPolicy(name="control", share=0.75),
            VariantPolicy(name="v2", share=0.25, labels={"version": "v2"}),
        ],
        metric=pb.Metric(name="latency_quantile", quantile=0.95),
        sample_size=9,
        idle_s=60,
    )
    assert made.message == pb.CreateExperimentRequest(spec=wanted, reason="try", start=True)


def test_what_no_ab_test_can_be() -> None:
    with pytest.raises(PolicyError, match=r"split: has 1 shares for 2 variants"):
        create_ab_test("tax", "n", ["a", "b"], "cost", "r", split=[1.0])
    with pytest.raises(PolicyError, match=r"split\.c: is not a field"):
        create_ab_test("tax", "n", ["a", "b"], "cost", "r", split={"c": 1.0})
    with pytest.raises(PolicyError, match=r"sample_sise: is not a field; did you mean 'sample_size'"):
        create_ab_test("tax", "n", ["a", "b"], "cost", "r", sample_sise=4)


async def test_both_clients_send_it_and_get_a_record() -> None:
    with OperatorServer() as server:
        server.stand_in.replies["CreateExperiment"] = pb.ExperimentRecord(state="running")
        with Operator(server.address) as operator:
            record = operator.create_ab_test("tax", "n", ["a", "b"], "cost", "try", start=False)
            assert record.state == "running"
        async with AsyncOperator(server.address) as aio:
            assert (await aio.create_ab_test("tax", "n", ["a", "b"], "cost", "try", start=False)).state == "running"
        first, second = server.stand_in.requests("CreateExperiment")
        assert first == second
        assert not first.start
