from __future__ import annotations

import math
import random

import pytest

from outrider_control.core.stats.moments import Moments
from outrider_control.core.stats.quantiles import upper_bound_of
from outrider_control.core.unit_sums import bucket_of
from outrider_control.loops.experiment.types import Metric, VariantSeen
from outrider_control.loops.rollout.measure import base_of, measure
from outrider_control.loops.rollout.types import (
    ERROR,
    FAILED_ANALYSIS,
    INCONCLUSIVE,
    SUCCESSFUL,
    Analysis,
    Base,
    Seen,
)
from tests.rollouts import slow, variant

ERRORS = Analysis(Metric("error_rate"), max=0.1, min_units=50)


def seen(candidate: VariantSeen | None, stable: VariantSeen | None = None) -> Seen:
    return Seen(candidate, stable)


@pytest.mark.parametrize(
    "candidate",
    [None, VariantSeen("candidate"), variant("candidate", 49), variant("candidate", 500, key="rating")],
    ids=["unknown", "no units", "too few", "another metric"],
)
def test_no_data_is_inconclusive(candidate: VariantSeen | None) -> None:
    found = measure(ERRORS, Base(), seen(candidate))
    assert found.state == INCONCLUSIVE
    assert found.value is None
    assert found.base == Base()
    assert found.reason


@pytest.mark.parametrize(
    ("failed", "state"), [(0, SUCCESSFUL), (10, SUCCESSFUL), (11, FAILED_ANALYSIS), (100, FAILED_ANALYSIS)]
)
def test_a_bound_above(failed: int, state: str) -> None:
    found = measure(ERRORS, Base(), seen(variant("candidate", 100, failed)))
    assert (found.state, found.value) == (state, failed / 100)


@pytest.mark.parametrize(("value", "state"), [(39, FAILED_ANALYSIS), (40, SUCCESSFUL)])
def test_a_bound_below(value: int, state: str) -> None:
    rating = Analysis(Metric("rating"), min=0.4, min_units=10)
    found = measure(rating, Base(), seen(variant("candidate", 100, value, "rating")))
    assert found.state == state


def test_each_measurement_is_of_what_came_since_the_last_conclusive_one() -> None:
    first = measure(ERRORS, Base(), seen(variant("candidate", 100, 0)))
    assert first.state == SUCCESSFUL
    nothing = measure(ERRORS, first.base, seen(variant("candidate", 100, 0)))
    assert (nothing.state, nothing.base) == (INCONCLUSIVE, first.base)
    few = measure(ERRORS, nothing.base, seen(variant("candidate", 149, 49)))
    assert (few.state, few.base) == (INCONCLUSIVE, first.base)  # it goes on gathering
    enough = measure(ERRORS, few.base, seen(variant("candidate", 150, 50)))
    assert (enough.state, enough.value) == (FAILED_ANALYSIS, 1.0)  # and not the 0.33 of all that came


def test_units_that_were_taken_out_are_not_counted_as_calls() -> None:
    before = base_of(ERRORS, variant("candidate", 200)) or Base()
    found = measure(ERRORS, before, seen(variant("candidate", 150)))
    assert found.state == INCONCLUSIVE
    assert measure(ERRORS, found.base, seen(variant("candidate", 210, 30))).state == FAILED_ANALYSIS


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("entry", [0, 1])
def test_what_is_no_number_is_an_error(value: float, entry: int) -> None:
    candidate = variant("candidate", 100)
    candidate.moments["error_rate"].sums[entry] = value
    found = measure(ERRORS, Base(), seen(candidate))
    assert (found.state, found.base) == (ERROR, Base())


def test_a_quantile_of_a_window() -> None:
    p95 = Analysis(Metric("latency_quantile", quantile=0.95), max=100.0, min_units=10)
    fast, late = {bucket_of(50.0): 1}, {bucket_of(400.0): 1}
    first = measure(p95, Base(), seen(slow("candidate", [fast] * 100)))
    assert first.state == SUCCESSFUL
    assert first.value == pytest.approx(upper_bound_of(bucket_of(50.0)))
    second = measure(p95, first.base, seen(slow("candidate", [fast] * 109 + [late])))
    assert second.state == FAILED_ANALYSIS  # one of ten; of all it is less than one in a hundred
    assert second.value == pytest.approx(upper_bound_of(bucket_of(400.0)))


def compared(margin: float, candidate_rate: float, stable_rate: float, units: int) -> str:
    rng = random.Random(7)
    sides = []
    for name, rate in (("candidate", candidate_rate), ("stable", stable_rate)):
        moments = Moments()
        for _ in range(units):
            moments.add((float(rng.random() < rate), 1.0, 0.0, 0.0))
        sides.append(VariantSeen(name, units, units, {"error_rate": moments}))
    analysis = Analysis(Metric("error_rate"), margin=margin, min_units=50)
    found = measure(analysis, Base(), seen(sides[0], sides[1]))
    assert found.stable_value == sides[1].moments["error_rate"].ratio
    return found.state


def test_against_the_stable_version() -> None:
    assert compared(0.05, 0.10, 0.10, 20_000) == SUCCESSFUL
    assert compared(0.05, 0.30, 0.10, 5_000) == FAILED_ANALYSIS
    assert compared(0.01, 0.11, 0.10, 200) == INCONCLUSIVE


def test_without_a_stable_version_nothing_is_compared() -> None:
    analysis = Analysis(Metric("error_rate"), margin=0.05, min_units=50)
    found = measure(analysis, Base(), seen(variant("candidate", 100)))
    assert found.state == INCONCLUSIVE
    assert "stable" in found.reason


def test_a_bound_that_is_broken_outweighs_a_comparison_that_is_open() -> None:
    analysis = Analysis(Metric("error_rate"), max=0.1, margin=0.05, min_units=50)
    found = measure(analysis, Base(), seen(variant("candidate", 100, 50)))
    assert found.state == FAILED_ANALYSIS
