"""The requests of the operator's API about experiments, rollouts, feedback and learning examples.

One function per RPC, as `operator_requests` has them of all others, and `create_ab_test`, the name that agents'
builders know for creating and starting an experiment.

Always holds: what a caller does not say is not sent, so that the control plane's own defaults hold.

Deliberately not here: sending (`operator`, `operator_async`), reading specs (`experiment_spec`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from outrider.experiment_spec import (
    ExperimentFields,
    FeedbackFields,
    GuardrailFields,
    MetricFields,
    RolloutFields,
    Shares,
    Variants,
    ab_test_of,
    experiment_of,
    feedback_of,
    rollout_of,
)
from outrider.operator_requests import Request
from outrider.v1 import experiment_pb2 as pb
from outrider.v1 import feedback_pb2


def create_experiment(spec: ExperimentFields, reason: str, start: bool = False) -> Request[pb.ExperimentRecord]:
    """A mapping has the fields of `ExperimentSpec` by name; PolicyError where it is none."""
    message = pb.CreateExperimentRequest(spec=experiment_of(spec), reason=reason, start=start)
    return Request("CreateExperiment", message)


def create_ab_test(
    agent_id: str,
    name: str,
    variants: Variants,
    success_metric: MetricFields,
    reason: str,
    *,
    split: Shares = (),
    sample_size: int = 0,
    minimum_effect: float = 0.0,
    guardrails: Sequence[GuardrailFields] = (),
    traffic: float = 0.0,
    unit: str = "",
    method: str = "",
    alpha: float = 0.0,
    hypothesis: str = "",
    overrides: Mapping[str, str] | None = None,
    rollout: RolloutFields | None = None,
    start: bool = True,
    **more: Any,
) -> Request[pb.ExperimentRecord]:
    """Create an experiment and, unless `start` is false, begin it.

    `variants`: what each one sets, by name (`{"control": None, "v2": {"labels": {"version": "v2"}}}`), or a list of
    short forms (`["control", "v2:version=v2"]`); the first is what the others are compared with. `split`: their shares,
    in order or by name; default: equal. `success_metric`: "error_rate", "latency_quantile:0.95", "slow_share:2000", the
    name of a score, ... `more`: further fields of `ExperimentSpec`. PolicyError for what cannot be an experiment.
    """
    said: dict[str, Any] = {
        "sample_size": sample_size,
        "minimum_effect": minimum_effect,
        "traffic": traffic,
        "unit": unit,
        "method": method,
        "alpha": alpha,
        "hypothesis": hypothesis,
        "overrides": overrides,
    }
    fields = {**{field: value for field, value in said.items() if value}, **more}
    spec = ab_test_of(agent_id, name, variants, success_metric, split, guardrails, rollout, fields)
    return create_experiment(spec, reason, start)


def start_experiment(name: str, reason: str) -> Request[pb.ExperimentRecord]:
    return Request("StartExperiment", pb.ChangeExperimentRequest(name=name, reason=reason))


def pause_experiment(name: str, reason: str) -> Request[pb.ExperimentRecord]:
    return Request("PauseExperiment", pb.ChangeExperimentRequest(name=name, reason=reason))


def resume_experiment(name: str, reason: str) -> Request[pb.ExperimentRecord]:
    return Request("ResumeExperiment", pb.ChangeExperimentRequest(name=name, reason=reason))


def stop_experiment(name: str, reason: str, winner: str = "", abort: bool = False) -> Request[pb.ExperimentRecord]:
    message = pb.StopExperimentRequest(name=name, reason=reason, winner=winner, abort=abort)
    return Request("StopExperiment", message)


def set_experiment_traffic(name: str, reason: str, traffic: float) -> Request[pb.ExperimentRecord]:
    message = pb.SetExperimentTrafficRequest(name=name, reason=reason, traffic=traffic)
    return Request("SetExperimentTraffic", message)


def get_experiment(name: str) -> Request[pb.ExperimentRecord]:
    return Request("GetExperiment", pb.GetExperimentRequest(name=name))


def list_experiments(agent_id: str = "", state: str = "") -> Request[pb.ListExperimentsReply]:
    return Request("ListExperiments", pb.ListExperimentsRequest(agent_id=agent_id, state=state))


def plan_experiment(
    kind: str,
    baseline: float,
    minimum_effect: float,
    standard_deviation: float = 0.0,
    alpha: float = 0.0,
    power: float = 0.0,
    shares: Sequence[float] = (),
    units_per_day: float = 0.0,
    agent_id: str = "",
    method: str = "",
) -> Request[pb.PlanExperimentReply]:
    """How many units an experiment needs. `kind`: "share" (a rate of something) or "mean"."""
    message = pb.PlanExperimentRequest(
        kind=kind,
        baseline=baseline,
        minimum_effect=minimum_effect,
        standard_deviation=standard_deviation,
        alpha=alpha,
        power=power,
        shares=shares,
        units_per_day=units_per_day,
        agent_id=agent_id,
        method=method,
    )
    return Request("PlanExperiment", message)


def create_rollout(spec: RolloutFields, reason: str) -> Request[pb.RolloutRecord]:
    """A mapping has the fields of `RolloutSpec` by name; PolicyError where it is none."""
    return Request("CreateRollout", pb.CreateRolloutRequest(spec=rollout_of(spec), reason=reason))


def promote_rollout(name: str, reason: str, full: bool = False) -> Request[pb.RolloutRecord]:
    return Request("PromoteRollout", pb.ChangeRolloutRequest(name=name, reason=reason, full=full))


def pause_rollout(name: str, reason: str) -> Request[pb.RolloutRecord]:
    return Request("PauseRollout", pb.ChangeRolloutRequest(name=name, reason=reason))


def resume_rollout(name: str, reason: str) -> Request[pb.RolloutRecord]:
    return Request("ResumeRollout", pb.ChangeRolloutRequest(name=name, reason=reason))


def abort_rollout(name: str, reason: str) -> Request[pb.RolloutRecord]:
    return Request("AbortRollout", pb.ChangeRolloutRequest(name=name, reason=reason))


def get_rollout(name: str) -> Request[pb.RolloutRecord]:
    return Request("GetRollout", pb.GetRolloutRequest(name=name))


def list_rollouts(agent_id: str = "") -> Request[pb.ListRolloutsReply]:
    return Request("ListRollouts", pb.ListRolloutsRequest(agent_id=agent_id))


def collect_feedback(feedback: Sequence[FeedbackFields]) -> Request[feedback_pb2.CollectFeedbackReply]:
    """A mapping has the fields of `Feedback` by name. Sending the same again is harmless: it is taken once."""
    items = [feedback_of(item, f"feedback[{at}]") for at, item in enumerate(feedback)]
    return Request("CollectFeedback", feedback_pb2.CollectFeedbackRequest(feedback=items))


def list_feedback(
    agent_id: str = "", trace_id: str = "", unknown_only: bool = False, since_ms: int = 0, limit: int = 0
) -> Request[pb.ListFeedbackReply]:
    message = pb.ListFeedbackRequest(
        agent_id=agent_id, trace_id=trace_id, unknown_only=unknown_only, since_ms=since_ms, limit=limit
    )
    return Request("ListFeedback", message)


def get_satisfaction(agent_id: str = "", since_ms: int = 0) -> Request[pb.GetSatisfactionReply]:
    return Request("GetSatisfaction", pb.GetSatisfactionRequest(agent_id=agent_id, since_ms=since_ms))


def list_examples(
    agent_id: str = "", state: str = "", limit: int = 0, after_id: int = 0
) -> Request[pb.ListExamplesReply]:
    message = pb.ListExamplesRequest(agent_id=agent_id, state=state, limit=limit, after_id=after_id)
    return Request("ListExamples", message)


def review_example(
    example_id: int, verdict: str, reason: str, question: str | None = None, correction: str | None = None
) -> Request[pb.Example]:
    """`verdict`: "approve" or "reject". With "approve", `question` and `correction` replace what is there."""
    message = pb.ReviewExampleRequest(
        id=example_id, verdict=verdict, reason=reason, input=question, correction=correction
    )
    return Request("ReviewExample", message)


def create_dataset(
    agent_id: str, reason: str, train: float = 0.0, validation: float = 0.0, holdout: float = 0.0
) -> Request[pb.Dataset]:
    message = pb.CreateDatasetRequest(
        agent_id=agent_id, reason=reason, train=train, validation=validation, holdout=holdout
    )
    return Request("CreateDataset", message)


def list_datasets(agent_id: str = "") -> Request[pb.ListDatasetsReply]:
    return Request("ListDatasets", pb.ListDatasetsRequest(agent_id=agent_id))


def export_dataset(agent_id: str, version: int = 0, part: str = "") -> Request[pb.DatasetChunk]:
    return Request("ExportDataset", pb.ExportDatasetRequest(agent_id=agent_id, version=version, part=part))
