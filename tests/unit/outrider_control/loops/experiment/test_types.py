"""Names of metrics, margins, and a state that goes through JSON."""

from __future__ import annotations

import json
from math import inf

import pytest

from outrider_control.loops.experiment.types import ComparisonResult, Guardrail, Metric, Running, State


@pytest.mark.parametrize(
    ("metric", "key", "up", "label"),
    [
        (Metric("error_rate"), "error_rate", False, "error_rate"),
        (Metric("slow_share", threshold_ms=2_000.0), "slow_share:2000", False, "slow_share:2000"),
        (Metric("accuracy"), "score:accuracy", True, "accuracy"),
        (Metric("helpfulness"), "score:helpfulness", True, "helpfulness"),
        (Metric("rating"), "rating", True, "rating"),
        (Metric("attribute:retries", "down"), "attribute:retries", False, "attribute:retries"),
        (Metric("latency_quantile", quantile=0.95), "latency_quantile", False, "P95 latency"),
        (Metric("cost", "up"), "cost", True, "cost"),
    ],
)
def test_metrics(metric: Metric, key: str, up: bool, label: str) -> None:
    assert (metric.key, metric.up, metric.label) == (key, up, label)


def test_margins() -> None:
    assert Guardrail(Metric("cost"), margin=0.5).allowed(10.0) == 0.5
    assert Guardrail(Metric("cost"), relative_margin=0.1).allowed(-10.0) == 1.0
    assert Guardrail(Metric("cost")).allowed(10.0) == 0.0


def test_relative_effects() -> None:
    assert ComparisonResult("B", control=-2.0, effect=1.0).relative == 0.5
    assert ComparisonResult("B", control=0.0, effect=1.0).relative is None
    assert ComparisonResult("B").relative is None


def test_state_goes_through_json() -> None:
    state = State(
        3,
        1_000,
        1.25,
        500,
        {"B": Running(-0.5, inf), "C": Running(-inf, 0.25), "D": Running(drifted=True)},
        (0.25, 0.0, 0.75),
        400,
        ("C",),
    )
    assert State.of(json.loads(json.dumps(state.plain(), allow_nan=False))) == state
    assert State.of({}) == State()
