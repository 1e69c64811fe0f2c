"""One measurement of an analysis: what the candidate's calls say since the last one that said something.

Always holds: pure; a measurement counts only what came since the last conclusive one of its step, and needs
`min_units` units and as many observations, so that each is of its own data and no data is inconclusive; against the
stable version all units of the rollout count, by the sequential test that holds at every look. What is no finite
number is an error, never a value.

Deliberately not here: how many of them are needed (`verdict`), when one is due (`advance`).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

from outrider_control.core.stats.quantiles import BucketMoments, upper_bound_of
from outrider_control.loops.experiment import compare
from outrider_control.loops.experiment.types import Guardrail, VariantSeen
from outrider_control.loops.experiment.types import Spec as ComparisonSpec
from outrider_control.loops.rollout.types import (
    ERROR,
    FAILED_ANALYSIS,
    INCONCLUSIVE,
    SUCCESSFUL,
    Analysis,
    Base,
    Measurement,
    Seen,
)
from outrider_control.loops.rollout.verdict import worst

ALPHA = 0.05  # of all comparisons of a step together, each side


def base_of(analysis: Analysis, candidate: VariantSeen | None) -> Base | None:
    """Where a measurement that begins at this look counts from; None: the sums are no numbers."""
    if candidate is None:
        return Base()
    if analysis.metric.is_quantile:
        return Base(0.0, *_calls_to(candidate.buckets))
    moments = candidate.moments.get(analysis.metric.key)
    if moments is None:
        return Base()
    num, den = moments.sums[0], moments.sums[1]
    return Base(num, den) if isfinite(num) and isfinite(den) else None


def measure(analysis: Analysis, base: Base, seen: Seen, comparisons: int = 1) -> Measurement:
    """`comparisons`: analyses of the step that compare; they share the chance of a wrong one."""
    now = base_of(analysis, seen.candidate)
    if now is None:
        return Measurement(ERROR, f"the sums of {analysis.metric.label} are no numbers", base)
    units = seen.candidate.units if seen.candidate is not None else 0
    count = now.den - base.den
    if count < 0.0:  # units were left out since: their sums cannot be told apart
        return Measurement(INCONCLUSIVE, "units were taken out; it counts from here on", now)
    if units < analysis.min_units:
        return Measurement(INCONCLUSIVE, f"{units} units of the candidate, {analysis.min_units} are needed", base)
    if count <= 0.0 or count < analysis.min_units:
        reason = f"{count:g} observations since the last measurement, {analysis.min_units} are needed"
        return Measurement(INCONCLUSIVE, reason, base)
    value = _value(analysis, base, now)
    if not isfinite(value):
        return Measurement(ERROR, f"{analysis.metric.label} is no number: {value}", now)
    state, reason, stable = SUCCESSFUL, f"{value:.6g} of {count:g} observations", None
    if analysis.max is not None and value > analysis.max:
        state, reason = FAILED_ANALYSIS, f"{value:.6g} is above {analysis.max:g}"
    elif analysis.min is not None and value < analysis.min:
        state, reason = FAILED_ANALYSIS, f"{value:.6g} is below {analysis.min:g}"
    if analysis.margin is not None:
        compared, why, stable = _compared(analysis, seen, max(1, comparisons))
        if worst((state, compared)) != state:
            state, reason = compared, why
        elif state == SUCCESSFUL:
            reason = f"{reason}; {why}"
    return Measurement(state, reason, base if state == INCONCLUSIVE else now, value, stable)


def _value(analysis: Analysis, base: Base, now: Base) -> float:
    if analysis.metric.is_quantile:
        return _quantile(base.calls_to, now.calls_to, analysis.metric.quantile)
    return (now.num - base.num) / (now.den - base.den)


def _compared(analysis: Analysis, seen: Seen, comparisons: int) -> tuple[str, str, float | None]:
    """Not worse by more than the margin: what can be said, why, and the stable version's value."""
    one, two = seen.stable, seen.candidate
    if one is None or two is None:
        return INCONCLUSIVE, "there is no stable version to compare with", None
    metric, margin = analysis.metric, analysis.margin or 0.0
    spec = ComparisonSpec(
        name="",
        variants=(one.name, two.name),
        shares=(0.5, 0.5),
        metric=metric,
        guardrails=(Guardrail(metric, margin),),
        alpha=ALPHA / comparisons,
        min_units=analysis.min_units,
    )
    found = compare.guardrails(spec, compare_seen(one, two))[0]
    known = one.moments.get(metric.key)
    value = known.ratio if known is not None and not metric.is_quantile else None
    if metric.is_quantile:
        total = base_of(analysis, one)
        value = _quantile({}, total.calls_to, metric.quantile) if total is not None and total.den else None
    if found.state == "unknown":
        return INCONCLUSIVE, "there are too few units to compare with the stable version", value
    low = "?" if found.low is None else f"{found.low:.4g}"
    high = "?" if found.high is None else f"{found.high:.4g}"
    against = f"worse than the stable version by {low} to {high}, {margin:g} is allowed"
    state = {"breached": FAILED_ANALYSIS, "kept": SUCCESSFUL}.get(found.state, INCONCLUSIVE)
    return state, against, value


def compare_seen(stable: VariantSeen, candidate: VariantSeen) -> compare.Seen:
    return compare.Seen(0, 0, (stable, candidate))


def _calls_to(buckets: BucketMoments | None) -> tuple[float, Mapping[int, float]]:
    """Calls, and calls at or below each bucket."""
    shares = buckets.shares() if buckets is not None else []  # of one unit alone there are none
    if buckets is None or not shares:
        return 0.0, {}
    return buckets.calls, {bucket: share * buckets.calls for bucket, share, _ in shares}


def _quantile(before: Mapping[int, float], now: Mapping[int, float], q: float) -> float:
    """Of the calls between two states of the same sums."""
    found: list[tuple[int, float]] = []
    low = 0.0
    below = sorted(before.items())
    at = 0
    for bucket in sorted(now):
        while at < len(below) and below[at][0] <= bucket:
            low = below[at][1]
            at += 1
        found.append((bucket, now[bucket] - low))
    total = found[-1][1] if found else 0.0
    wanted = q * total - 1e-9
    return upper_bound_of(next((bucket for bucket, calls in found if calls >= wanted), found[-1][0])) if found else 0.0
