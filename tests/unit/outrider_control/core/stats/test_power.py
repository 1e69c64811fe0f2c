"""Plans against scipy, against the simulation of what is decided, and questions that have no answer."""

from __future__ import annotations

from math import inf, nan, sqrt
from typing import Any

import pytest

from outrider_control.core.stats import power
from outrider_control.core.stats.power import crossing, mu_for, plan, power_of
from outrider_control.loops.experiment.simulate import Scenario, simulate

SD = sqrt(0.315 * 0.685)  # of a rate between .30 and .33


@pytest.mark.parametrize("alpha", [0.01, 0.05])
@pytest.mark.parametrize("wanted", [0.8, 0.95])
def test_fixed_is_the_textbooks(alpha: float, wanted: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    quantiles = stats.norm.ppf(1.0 - alpha / 2.0) + stats.norm.ppf(wanted)
    needed = 4.0 * (quantiles * SD / 0.03) ** 2
    found = plan(0.03, SD, alpha, wanted, sequential=False)
    assert found.units == pytest.approx(needed, abs=1.0)
    assert found.median_units == found.units
    assert power_of(quantiles, alpha, False) == pytest.approx(wanted, abs=1e-3)


def test_fixed_power_without_an_effect_is_alpha() -> None:
    assert power_of(0.0, 0.05, False) == pytest.approx(0.05)


def test_sequential_needs_more_at_most_and_less_mostly() -> None:
    sequential, fixed = plan(0.03, SD), plan(0.03, SD, sequential=False)
    assert fixed.units < sequential.units < 2 * fixed.units
    assert sequential.median_units < sequential.units
    assert sequential.power == pytest.approx(0.8, abs=0.01)


def test_sequential_is_what_the_code_that_decides_does() -> None:
    wanted = plan(0.03, SD, power=0.9)
    found = simulate(Scenario(p_a=0.30, p_b=0.33, units=wanted.units, looks=100, runs=300))
    assert found.reject_rate == pytest.approx(0.9, abs=0.06)
    assert found.median_units == pytest.approx(wanted.median_units, rel=0.15)


def test_hardly_ever_crosses_without_an_effect() -> None:
    assert crossing(0.05, 0.0)[0] <= 0.025  # of one side
    assert crossing(0.05, 0.0)[1] == 1.0
    assert crossing(0.05, 10.0) == (1.0, pytest.approx(0.1, abs=0.1))
    assert power_of(-4.0, 0.05, True) == power_of(4.0, 0.05, True)


def test_drift_that_is_found_with_a_chance() -> None:
    assert mu_for(0.05, 0.5) < mu_for(0.05, 0.8) < mu_for(0.01, 0.8)
    assert crossing(0.05, mu_for(0.05, 0.8))[0] >= 0.8


def test_more_variants_and_lesser_shares_need_more() -> None:
    two = plan(0.03, SD).units
    assert plan(0.03, SD, shares=(0.9, 0.1)).units > 2 * two
    assert plan(0.03, SD, shares=(0.34, 0.33, 0.33)).units > two
    assert plan(-0.03, SD).units == two


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"minimum_effect": 0.0}, "smallest effect"),
        ({"minimum_effect": nan}, "smallest effect"),
        ({"deviation": 0.0}, "standard deviation"),
        ({"deviation": inf}, "standard deviation"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": 0.5}, "alpha"),
        ({"power": 0.04}, "power"),
        ({"power": 1.0}, "power"),
        ({"shares": (1.0,)}, "two variants"),
        ({"shares": (1.0, 0.0)}, "two variants"),
        ({"minimum_effect": 1e-9}, "more than"),
    ],
)
def test_questions_without_an_answer(arguments: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        plan(**dict[str, Any](minimum_effect=0.03, deviation=SD) | arguments)


def test_the_same_question_has_the_same_answer() -> None:
    first = plan(0.05, 1.0, alpha=0.031)
    power._needed.cache_clear()
    assert plan(0.05, 1.0, alpha=0.031) == first
