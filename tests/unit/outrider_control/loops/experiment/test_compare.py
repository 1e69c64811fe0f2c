"""Comparisons and guardrails: intervals against the statistics they come from, verdicts, drift, quantiles."""

from __future__ import annotations

from dataclasses import replace
from math import ceil, inf, log2

import numpy as np
import pytest

from outrider_control.core.stats import sequences
from outrider_control.core.stats.moments import Moments, effect_of
from outrider_control.core.stats.quantiles import SCALE, BucketMoments
from outrider_control.loops.experiment import compare
from outrider_control.loops.experiment.compare import comparisons, expected_units, guardrails, intersected, verdict_of
from outrider_control.loops.experiment.types import (
    FIXED,
    ComparisonResult,
    Guardrail,
    GuardrailResult,
    Metric,
    Running,
    Spec,
    VariantSeen,
)
from tests.unit.outrider_control.loops.experiment.made import ACCURACY, ERRORS, SPEC, THREE, rate, seen, variant

P95 = Metric("latency_quantile", quantile=0.95)


def latencies(rng: np.random.Generator, n: int, level: float) -> BucketMoments:
    moments = BucketMoments()
    for value in rng.lognormal(level, 0.5, n):
        moments.add({ceil(log2(value) * (1 << SCALE)) - 1: 1})
    return moments


def one(spec: Spec, *variants: VariantSeen) -> ComparisonResult:
    return comparisons(spec, seen(*variants), {})[0][0]


def width(of: ComparisonResult) -> float:
    assert of.low is not None
    assert of.high is not None
    return of.high - of.low


def test_sequential_is_the_confidence_sequence() -> None:
    found = one(SPEC, variant("A", 2_000, 600), variant("B", 2_000, 640))
    wanted = sequences.interval(effect_of(rate(2_000, 600), rate(2_000, 640)), 0.05, 20_000)
    assert wanted is not None
    assert (found.low, found.high, found.p_value) == (wanted.low, wanted.high, wanted.p_value)
    assert (found.control, found.value, found.effect) == (0.3, 0.32, pytest.approx(0.02))


def test_fixed_is_the_z_interval_and_carries_nothing() -> None:
    sides = variant("A", 2_000, 600), variant("B", 2_000, 640)
    found, running = comparisons(replace(SPEC, method=FIXED), seen(*sides), {})
    wanted = sequences.fixed_interval(effect_of(rate(2_000, 600), rate(2_000, 640)), 0.05)
    assert wanted is not None
    assert (found[0].low, found[0].high, found[0].p_value) == (wanted.low, wanted.high, wanted.p_value)
    assert running == {}


def test_history_is_used_where_it_is_asked_for() -> None:
    rng = np.random.default_rng(1)

    def side(name: str) -> VariantSeen:
        moments = Moments()
        for before in rng.normal(10.0, 2.0, 500):
            moments.add((before + rng.normal(0.0, 0.5), 1.0, before, 1.0))
        return VariantSeen(name, 500, 500, {ACCURACY.key: moments})

    sides = side("A"), side("B")
    plain, adjusted = one(SPEC, *sides), one(replace(SPEC, history=True), *sides)
    assert width(adjusted) < 0.5 * width(plain)


def test_level_and_size_are_divided_among_comparisons() -> None:
    assert expected_units(SPEC) == 20_000
    assert expected_units(THREE) == 20_000
    assert expected_units(replace(SPEC, sample_size=0)) == compare.DEFAULT_UNITS
    sides = [variant(name, 2_000, 600) for name in THREE.variants]
    found, _ = comparisons(THREE, seen(*sides), {})
    wanted = sequences.interval(effect_of(rate(2_000, 600), rate(2_000, 600)), 0.025, 20_000)
    assert wanted is not None
    assert [(row.low, row.high) for row in found] == [(wanted.low, wanted.high)] * 2


@pytest.mark.parametrize(
    ("low", "high", "up", "minimum", "wanted"),
    [
        (0.01, 0.02, True, 0.0, "better"),
        (0.01, 0.02, False, 0.0, "worse"),
        (-0.02, -0.01, True, 0.0, "worse"),
        (-0.02, -0.01, False, 0.0, "better"),
        (-0.01, 0.01, True, 0.0, "open"),
        (-0.01, 0.01, True, 0.02, "no_difference"),
        (-0.01, 0.03, True, 0.02, "open"),
        (0.0, 0.03, True, 0.0, "open"),
        (-inf, inf, True, 1.0, "open"),
    ],
)
def test_verdicts_of_intervals(low: float, high: float, up: bool, minimum: float, wanted: str) -> None:
    assert verdict_of(low, high, up, minimum) == wanted


def test_intervals_are_those_of_all_looks() -> None:
    early = {"B": Running(0.005, 0.03)}
    found, running = comparisons(SPEC, seen(variant("A", 2_000, 600), variant("B", 2_000, 640)), early)
    assert (found[0].low, found[0].high, found[0].verdict) == (0.005, 0.03, "better")
    assert running["B"] == early["B"]


def test_an_effect_that_changes_is_told_by_what_holds_for_it() -> None:
    """No difference is compatible with both: from then on a look's own interval holds, of the mean effect."""
    early = {"B": Running(-0.5, -0.4)}
    sides = variant("A", 2_000, 600), variant("B", 2_000, 640)
    found, running = comparisons(SPEC, seen(*sides), early)
    assert running["B"].drifted
    assert (found[0].low, found[0].high) == (one(SPEC, *sides).low, one(SPEC, *sides).high)
    assert found[0].verdict == "open"
    again, running = comparisons(SPEC, seen(*sides), running)
    assert running["B"].drifted
    assert again == found


def test_intersections() -> None:
    assert intersected(Running(), None, None) == Running()
    assert intersected(Running(), -1.0, None) == Running(-1.0, inf)
    assert intersected(Running(-1.0, 1.0), -2.0, 0.5) == Running(-1.0, 0.5)
    assert intersected(Running(-1.0, 1.0), 2.0, 3.0).drifted
    assert intersected(Running(drifted=True), 2.0, 3.0) == Running(drifted=True)


# -- quantiles -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sequential", FIXED])
@pytest.mark.parametrize(("level", "wanted"), [(5.0, "open"), (5.6, "worse"), (4.4, "better")])
def test_a_quantile_of_latency(method: str, level: float, wanted: str) -> None:
    rng = np.random.default_rng(2)
    spec = replace(SPEC, metric=P95, method=method)
    sides = [
        VariantSeen("A", 4_000, 4_000, {}, latencies(rng, 4_000, 5.0)),
        VariantSeen("B", 4_000, 4_000, {}, latencies(rng, 4_000, level)),
    ]
    found = one(spec, *sides)
    assert found.verdict == wanted
    assert found.p_value is None
    assert found.control == pytest.approx(np.exp(5.0 + 0.5 * 1.645), rel=0.05)


def test_a_quantile_without_enough_is_open() -> None:
    rng = np.random.default_rng(3)
    spec = replace(SPEC, metric=P95)
    few = VariantSeen("B", 50, 50, {}, latencies(rng, 50, 9.0))
    many = VariantSeen("A", 4_000, 4_000, {}, latencies(rng, 4_000, 5.0))
    assert one(spec, many, few).verdict == "open"
    assert one(spec, many, VariantSeen("B", 4_000)).verdict == "open"
    hardly = replace(few, units=200, buckets=latencies(rng, 110, 5.0))
    assert one(replace(spec, metric=replace(P95, quantile=0.999)), many, hardly).high is None


# -- guardrails ------------------------------------------------------------------------------------------------------


def guarded(rail: Guardrail, *variants: VariantSeen) -> GuardrailResult:
    return guardrails(replace(SPEC, guardrails=(rail,)), seen(*variants))[0]


@pytest.mark.parametrize(("failed", "wanted"), [(100, "kept"), (20, "kept"), (170, "open"), (400, "breached")])
def test_states_of_a_guardrail(failed: int, wanted: str) -> None:
    found = guarded(Guardrail(ERRORS, margin=0.01), variant("A", 10_000, 0, 100), variant("B", 10_000, 0, failed))
    assert (found.state, found.margin) == (wanted, 0.01)
    assert found.harm == pytest.approx((failed - 100) / 10_000)
    assert found.low is not None
    assert found.high is not None
    assert found.harm is not None
    assert found.low < found.harm < found.high


def test_harm_counts_worse_up() -> None:
    found = guarded(Guardrail(ACCURACY, margin=0.01), variant("A", 10_000, 5_000), variant("B", 10_000, 4_000))
    assert (found.state, found.harm) == ("breached", pytest.approx(0.1))
    assert found.low is not None
    assert found.low > 0.0


def test_relative_margin_is_of_the_first_variant() -> None:
    sides = variant("A", 10_000, 0, 1_000), variant("B", 10_000, 0, 1_300)
    assert guarded(Guardrail(ERRORS, relative_margin=0.1), *sides).state == "breached"
    assert guarded(Guardrail(ERRORS, relative_margin=1.0), *sides).margin == pytest.approx(0.1)


def test_too_few_units_are_unknown() -> None:
    assert guarded(Guardrail(ERRORS, margin=0.0), variant("A", 99, 0, 0), variant("B", 99, 0, 99)).state == "unknown"


def test_guardrails_share_the_level() -> None:
    sides = variant("A", 10_000, 0, 100), variant("B", 10_000, 0, 150)
    alone = guarded(Guardrail(ERRORS), *sides)
    many = guardrails(replace(SPEC, guardrails=(Guardrail(ERRORS),) * 5), seen(*sides))
    assert len(many) == 5
    assert many[0].low is not None
    assert alone.low is not None
    assert many[0].low < alone.low


def test_a_quantile_as_guardrail() -> None:
    rng = np.random.default_rng(4)
    fast, slow = latencies(rng, 4_000, 5.0), latencies(rng, 4_000, 5.6)
    one_side, other = VariantSeen("A", 4_000, 4_000, {}, fast), VariantSeen("B", 4_000, 4_000, {}, slow)
    assert guarded(Guardrail(P95, margin=10.0), one_side, other).state == "breached"
    assert guarded(Guardrail(P95, margin=5_000.0), one_side, other).state == "kept"
    assert guarded(Guardrail(P95), one_side, replace(other, buckets=None)).state == "unknown"


def test_guardrails_err_at_most_at_their_level() -> None:
    """100 looks at two variants alike, no margin: a breach in at most 5 % of them."""
    rng = np.random.default_rng(5)
    spec = replace(SPEC, guardrails=(Guardrail(ERRORS),), sample_size=20_000)
    breached = 0
    for _ in range(300):
        failures = np.cumsum(rng.binomial(100, 0.02, (2, 100)), axis=1)
        looks = [
            guardrails(spec, seen(variant("A", n, 0, int(a)), variant("B", n, 0, int(b))))[0].state
            for n, a, b in zip(range(100, 10_001, 100), failures[0], failures[1], strict=True)
        ]
        breached += "breached" in looks
    assert breached <= 15
