"""Experiments and rollouts as a control plane tells of them, for the tests of what is shown."""

from __future__ import annotations

from typing import Any

from outrider.v1 import experiment_pb2 as pb
from outrider.v1.policy_pb2 import VariantPolicy

HOUR_MS = 3_600_000


def spec(**fields: Any) -> pb.ExperimentSpec:
    base: dict[str, Any] = {
        "name": "shorter",
        "agent_id": "tax",
        "variants": [
            VariantPolicy(name="control", share=0.5),
            VariantPolicy(name="v2", share=0.5, labels={"version": "v2"}, model="m2"),
        ],
        "metric": pb.Metric(name="error_rate"),
        "guardrails": [pb.Guardrail(metric=pb.Metric(name="latency_quantile", quantile=0.95), margin=50)],
        "sample_size": 20_000,
        "unit": "session",
    }
    return pb.ExperimentSpec(**(base | fields))


def looks(count: int, effect: float = -0.03, variant: str = "v2") -> list[pb.Look]:
    """A course that narrows."""
    made = []
    for at in range(1, count + 1):
        half = 0.1 / at**0.5
        made.append(
            pb.Look(
                at_unix_ms=at, units=at * 100, variant=variant, effect=effect, low=effect - half, high=effect + half
            )
        )
    return made


def running(**fields: Any) -> pb.ExperimentRecord:
    base: dict[str, Any] = {
        "spec": spec(),
        "state": "running",
        "conclusion": "v2 fails less often than control, by 1.2 to 4.8 percentage points",
        "variants": [
            pb.VariantResult(
                name="control", share=0.5, units=5_003, calls=15_100, value=0.3, satisfaction=3.5, feedback=9
            ),
            pb.VariantResult(name="v2", share=0.5, units=4_997, calls=15_000, value=0.27),
        ],
        "comparisons": [
            pb.Comparison(
                variant="v2", effect=-0.03, low=-0.048, high=-0.012, p_value=0.0004, relative=-0.1, verdict="better"
            )
        ],
        "guardrails": [
            pb.GuardrailResult(
                metric="latency_quantile:0.95", variant="v2", harm=12.0, low=-3.0, margin=50, state="open"
            ),
            pb.GuardrailResult(metric="cost", variant="v2", margin=0.001, state="unknown"),
        ],
        "srm": pb.SrmResult(p_value=0.43, bayes_factor=0.01),
        "course": looks(30),
        "looks": 100,
        "units": 10_000,
        "started_unix_ms": 1,
        "traffic": 0.5,
    }
    return pb.ExperimentRecord(**(base | fields))


def rollout(**fields: Any) -> pb.RolloutRecord:
    steps = [
        pb.RolloutStep(weight=0.05, pause_s=60),
        pb.RolloutStep(weight=0.25, pause_s=300, confirm=True),
        pb.RolloutStep(weight=1),
    ]
    base: dict[str, Any] = {
        "spec": pb.RolloutSpec(
            name="out",
            agent_id="tax",
            candidate=VariantPolicy(name="candidate", labels={"version": "v2"}),
            steps=steps,
            analyses=[pb.Analysis(metric=pb.Metric(name="error_rate"), max=0.02)],
        ),
        "phase": "progressing",
        "step": 1,
        "weight": 0.25,
        "reason": "step 2 measures",
        "sidecars": 51,
        "confirmed": 50,
        "candidate_units": 1_200,
        "stable_units": 3_600,
        "step_started_unix_ms": 1,
        "created_unix_ms": 1,
        "analyses": [
            pb.AnalysisResult(metric="error_rate", state="running", value=0.012, successful=2, inconclusive=1)
        ],
    }
    return pb.RolloutRecord(**(base | fields))
