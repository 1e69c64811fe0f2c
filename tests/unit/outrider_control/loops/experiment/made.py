"""Experiments as they are seen: units by counts, for tests of what is decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from random import Random
from typing import Any

from outrider_control.core.stats.moments import Moments
from outrider_control.core.stats.quantiles import BucketMoments
from outrider_control.loops.experiment.decide import decide
from outrider_control.loops.experiment.types import Decision, Guardrail, Metric, Seen, Spec, State, VariantSeen

ACCURACY = Metric("accuracy")
ERRORS = Metric("error_rate")
SPEC = Spec("checkout", ("A", "B"), (0.5, 0.5), ACCURACY, sample_size=20_000)
THREE = replace(SPEC, variants=("A", "B", "C"), shares=(1 / 3, 1 / 3, 1 / 3), sample_size=30_000)
GUARDED = replace(SPEC, guardrails=(Guardrail(ERRORS, margin=0.01),))


def rate(n: int, successes: float) -> Moments:
    """Units with one call each."""
    return Moments.of(n, [successes, n, 0.0, 0.0], [successes, successes, 0.0, 0.0, n, 0.0, 0.0, 0.0, 0.0, 0.0])


def variant(
    name: str, n: int, successes: float = 0.0, failed: float | None = None, buckets: BucketMoments | None = None
) -> VariantSeen:
    """With its accuracy, and its errors where they are told."""
    moments: dict[str, Moments] = {ACCURACY.key: rate(n, successes)} if n else {}
    if n and failed is not None:
        moments[ERRORS.key] = rate(n, failed)
    return VariantSeen(name, n, n, moments, buckets)


def seen(*variants: VariantSeen, **more: Any) -> Seen:
    return Seen(0, 0, variants, **more)


def look(
    spec: Spec, *variants: VariantSeen, state: State | None = None, now_ms: int = 1_000, seed: int = 1
) -> tuple[Decision, State]:
    return decide(seen(*variants), state or State(), spec, now_ms, Random(seed))


def verdicts(decision: Decision) -> Mapping[str, str]:
    return {one.variant: one.verdict for one in decision.comparisons}
