"""Comparisons of variants by one metric, and of guardrails: intervals, verdicts, in the method that was chosen.

Always holds: pure; without data a comparison is open and a guardrail unknown; "better" and "worse" are said only where
the whole interval is on one side of no difference. A sequential comparison's interval is the intersection of those at
all looks: each holds with all others at once. That supposes one effect over the whole time; where the intersection is
empty the effect has changed, and from then on a look's own interval is what holds, of the mean effect by then.

A bandit's shares follow what was seen, so no interval of the difference is built from both variants' units at once:
each variant has its own, valid at every number of its units however these came about, at half the level.

Deliberately not here: what follows from them (`decide`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import inf, isfinite

from outrider_control.core.stats import correction, quantiles, sequences
from outrider_control.core.stats.moments import Effect, Moments, effect_of, value_of
from outrider_control.loops.experiment.types import (
    BANDIT,
    FIXED,
    ComparisonResult,
    Guardrail,
    GuardrailResult,
    Metric,
    Running,
    Seen,
    Spec,
    VariantSeen,
)

DEFAULT_UNITS = 10_000  # where the sequential test is narrowest if no sample size was said


def comparisons(
    spec: Spec, seen: Seen, running: Mapping[str, Running]
) -> tuple[tuple[ComparisonResult, ...], Mapping[str, Running]]:
    """Every variant but the first, by the main metric; and the intersections that go to the next look."""
    alpha = correction.level_of_each(spec.alpha, len(seen.variants) - 1)
    control = seen.variants[0]
    found = [_compared(spec, control, treated, alpha) for treated in seen.variants[1:]]
    if spec.method == FIXED:
        return tuple(found), running
    carried = dict(running)
    results = []
    for one in found:
        carried[one.variant] = after = intersected(running.get(one.variant, Running()), one.low, one.high)
        if not after.drifted:
            verdict = verdict_of(after.low, after.high, spec.metric.up, spec.minimum_effect)
            one = replace(one, low=_known(after.low), high=_known(after.high), verdict=verdict)
        results.append(one)
    return tuple(results), carried


def intersected(before: Running, low: float | None, high: float | None) -> Running:
    """With another look's interval; None: that end is not known."""
    if before.drifted:
        return before
    least = max(before.low, -inf if low is None else low)
    most = min(before.high, inf if high is None else high)
    return Running(drifted=True) if least > most else Running(least, most)


def _known(end: float) -> float | None:
    return end if isfinite(end) else None


def expected_units(spec: Spec) -> int:
    """Of one comparison: its part of the sample size."""
    total = spec.sample_size or DEFAULT_UNITS
    return max(2, round(total * 2 / max(2, len(spec.variants))))


def _compared(spec: Spec, control: VariantSeen, treated: VariantSeen, alpha: float) -> ComparisonResult:
    metric = spec.metric
    if metric.is_quantile:
        return _compared_quantile(spec, control, treated, alpha)
    effect = _effect(spec, control, treated, metric.key, spec.history)
    if effect is None or min(control.units, treated.units) < spec.min_units:
        values = _values(control, treated, metric)
        return ComparisonResult(treated.name, *values, None, None, None, None, "open")
    if spec.method == FIXED:
        found = sequences.fixed_interval(effect, alpha)
    elif spec.method == BANDIT:
        found = _apart(control.moments[metric.key], treated.moments[metric.key], alpha, expected_units(spec) // 2)
    else:
        found = sequences.interval(effect, alpha, expected_units(spec))
    if found is None:
        return ComparisonResult(
            treated.name, effect.control, effect.treated, effect.difference, None, None, None, "open"
        )
    p_value = None if found.p_value is None else correction.adjusted_p(found.p_value, len(spec.variants) - 1)
    verdict = verdict_of(found.low, found.high, metric.up, spec.minimum_effect)
    return ComparisonResult(
        treated.name, effect.control, effect.treated, effect.difference, found.low, found.high, p_value, verdict
    )


def _apart(control: Moments, treated: Moments, alpha: float, expected: int) -> sequences.Interval | None:
    """The difference from an interval of each variant's own."""
    one = sequences.interval(value_of(control), alpha / 2.0, expected)
    two = sequences.interval(value_of(treated), alpha / 2.0, expected)
    if one is None or two is None:
        return None
    # No p-value comes out of two intervals.
    return sequences.Interval(two.low - one.high, two.high - one.low, None)


def _compared_quantile(spec: Spec, control: VariantSeen, treated: VariantSeen, alpha: float) -> ComparisonResult:
    found = None
    if control.buckets is not None and treated.buckets is not None:
        expected = None if spec.method == FIXED else expected_units(spec)
        found = quantiles.difference(control.buckets, treated.buckets, spec.metric.quantile, alpha, expected)
    if found is None or min(control.units, treated.units) < spec.min_units:
        return ComparisonResult(treated.name, None, None, None, None, None, None, "open")
    verdict = verdict_of(found.low, found.high, spec.metric.up, spec.minimum_effect)
    values = found.control, found.treated, found.difference
    return ComparisonResult(treated.name, *values, _known(found.low), _known(found.high), None, verdict)


def _effect(spec: Spec, control: VariantSeen, treated: VariantSeen, key: str, history: bool) -> Effect | None:
    one, two = control.moments.get(key), treated.moments.get(key)
    if one is None or two is None or min(one.evenly, two.evenly) < spec.min_units:
        return None
    return effect_of(one, two, history)


def _values(control: VariantSeen, treated: VariantSeen, metric: Metric) -> tuple[float | None, float | None]:
    none = Moments()
    return control.moments.get(metric.key, none).ratio, treated.moments.get(metric.key, none).ratio


def verdict_of(low: float, high: float, up: bool, minimum_effect: float) -> str:
    """What an interval says."""
    if low > 0.0:
        return "better" if up else "worse"
    if high < 0.0:
        return "worse" if up else "better"
    if minimum_effect > 0.0 and -minimum_effect < low and high < minimum_effect:
        return "no_difference"
    return "open"


# -- guardrails ------------------------------------------------------------------------------------------------------


def guardrails(spec: Spec, seen: Seen) -> tuple[GuardrailResult, ...]:
    """Every guardrail for every variant but the first: non-inferiority, one-sided, Bonferroni over all of them.

    They are looked at all the time whatever the method is, so their bounds are always valid ones.
    """
    questions = len(spec.guardrails) * (len(seen.variants) - 1)
    alpha = correction.level_of_each(spec.alpha, questions)
    control = seen.variants[0]
    return tuple(
        [_guarded(spec, rail, control, treated, alpha) for rail in spec.guardrails for treated in seen.variants[1:]]
    )


def _guarded(spec: Spec, rail: Guardrail, control: VariantSeen, treated: VariantSeen, alpha: float) -> GuardrailResult:
    metric = rail.metric
    enough = min(control.units, treated.units) >= spec.min_units
    bounds = _harm_bounds(spec, metric, control, treated, alpha) if enough else None
    if bounds is None:
        margin = rail.allowed(_values(control, treated, metric)[0] or 0.0)
        return GuardrailResult(metric.label, treated.name, None, None, None, margin, "unknown")
    value, harm, low, high = bounds
    margin = rail.allowed(value)
    state = "breached" if low > margin else "kept" if high <= margin else "open"
    return GuardrailResult(
        metric.label,
        treated.name,
        harm,
        _known(low),
        _known(high),
        margin,
        state,
    )


def _harm_bounds(
    spec: Spec, metric: Metric, control: VariantSeen, treated: VariantSeen, alpha: float
) -> tuple[float, float, float, float] | None:
    """(the first variant's value, harm, lower bound, upper bound)."""
    sign, expected = -1.0 if metric.up else 1.0, expected_units(spec)
    if metric.is_quantile:
        if control.buckets is None or treated.buckets is None:
            return None
        # Each of the two bounds is one-sided: twice the level for the interval.
        found = quantiles.difference(control.buckets, treated.buckets, metric.quantile, 2.0 * alpha, expected)
        if found is None:
            return None
        ends = sorted((sign * found.low, sign * found.high))
        return found.control, sign * found.difference, ends[0], ends[1]
    effect = _effect(spec, control, treated, metric.key, False)
    low = sequences.lower_bound(effect, alpha, expected)
    high = sequences.upper_bound(effect, alpha, expected)
    if effect is None or low is None or high is None:
        return None
    ends = sorted((sign * low, sign * high))
    return effect.control, sign * effect.difference, ends[0], ends[1]
