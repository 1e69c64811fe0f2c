"""Made-up experiments: false positives, power, ratio, each kind of outcome, and scenarios that cannot be played."""

from __future__ import annotations

from dataclasses import replace
from math import nan
from typing import Any

import numpy as np
import pytest

from outrider_control.loops.experiment import simulate as simulation
from outrider_control.loops.experiment.simulate import ALIKE, Scenario, simulate, wilson

RATE = Scenario(p_a=0.3, p_b=0.3, units=8_000, looks=40, runs=200)
VALUES = Scenario(mean_a=1_000.0, mean_b=1_000.0, sd=1_300.0, units=8_000, looks=40, runs=200)


@pytest.mark.parametrize(
    "scenario",
    [
        replace(RATE, p_a=0.02, p_b=0.02),
        RATE,
        replace(RATE, p_a=0.5, p_b=0.5),
        replace(RATE, cluster=4.0),
        VALUES,
        replace(VALUES, cluster=4.0),
        replace(RATE, share=0.9),
    ],
    ids=["rare", "rate", "half", "sessions", "latency", "latency of sessions", "90/10"],
)
def test_hardly_errs_where_there_is_no_difference(scenario: Scenario) -> None:
    """At most 5 % in truth; 200 runs show about 1.5 %, and 10 or more with less than one chance in a thousand."""
    report = simulate(scenario)
    assert report.reject_rate < 0.05
    assert report.srm_rate <= 0.01
    assert report.reject_rate + report.inconclusive_rate + report.srm_rate == pytest.approx(1.0)
    assert report.median_units == scenario.units


@pytest.mark.parametrize(
    ("scenario", "side"),
    [
        (replace(RATE, p_b=0.36), "win_rate"),
        (replace(RATE, p_b=0.24), "harm_rate"),
        (replace(RATE, p_b=0.40, cluster=4.0), "win_rate"),
        (replace(VALUES, mean_b=1_250.0), "win_rate"),
        (replace(VALUES, mean_b=1_300.0, cluster=4.0), "win_rate"),
        (replace(RATE, p_b=0.36, method="fixed"), "win_rate"),
    ],
)
def test_finds_what_is_there(scenario: Scenario, side: str) -> None:
    report = simulate(scenario)
    assert getattr(report, side) > 0.95
    assert report.reject_rate == getattr(report, side)
    assert report.median_units_rejected is not None
    assert (report.median_units < scenario.units) == (scenario.method == "sequential")


def test_power_of_the_case_that_is_promised() -> None:
    report = simulate(Scenario(p_a=0.30, p_b=0.33, units=20_000, looks=100, runs=200))
    assert report.reject_rate >= 0.9
    assert report.reject_low < report.reject_rate < report.reject_high


def test_finds_a_mismatch_and_gives_no_verdict_then() -> None:
    report = simulate(replace(RATE, p_b=0.34, units=20_000, came=0.45, runs=100))
    assert report.srm_rate > 0.9
    assert report.share_b == pytest.approx(0.55, abs=0.01)
    assert report.win_rate < 0.2


def test_finds_that_there_is_no_difference() -> None:
    report = simulate(replace(RATE, minimum_effect=0.08, runs=50))
    assert report.no_difference_rate > 0.9
    assert report.median_units < RATE.units


def test_a_bandit_moves_its_traffic() -> None:
    report = simulate(replace(RATE, p_b=0.4, runs=20, looks=40, method="bandit"))
    assert report.share_b > 0.7
    assert simulate(replace(RATE, runs=50, method="bandit")).reject_rate < 0.05


def test_the_same_scenario_gives_the_same_report() -> None:
    few = replace(RATE, runs=20)
    assert simulate(few) == simulate(few)
    assert simulate(few).plain() != simulate(replace(few, seed=2)).plain()


def test_one_look_and_as_many_as_units() -> None:
    assert simulate(replace(RATE, looks=1, runs=10, p_b=0.4)).win_rate == 1.0
    every = simulate(replace(RATE, units=300, looks=300, runs=5, min_units=2))
    assert every.looks == 300


def test_rates_of_nothing_and_of_everything() -> None:
    assert simulate(replace(RATE, p_a=0.0, p_b=0.0, runs=5)).reject_rate == 0.0
    assert simulate(replace(RATE, p_a=0.0, p_b=1.0, cluster=3.0, runs=5)).win_rate == 1.0


@pytest.mark.parametrize("cluster", [1.0, 4.0])
def test_units_have_the_means_that_are_asked_for(cluster: float) -> None:
    for scenario in (replace(VALUES, mean_b=2_000.0, cluster=cluster), replace(RATE, p_b=0.6, cluster=cluster)):
        one, two = simulation._units(scenario, np.random.default_rng(1), 100_000, 0.25)
        (n_a, num_a, den_a, *_), (n_b, num_b, den_b, *_) = one.sum(axis=1), two.sum(axis=1)
        assert n_a == pytest.approx(25_000, rel=0.05)
        assert n_a + n_b == 100_000
        assert (den_a + den_b) / 100_000 == pytest.approx(cluster, rel=0.02)
        wanted = (scenario.mean_a, scenario.mean_b) if scenario.sd else (scenario.p_a, scenario.p_b)
        assert (num_a / den_a, num_b / den_b) == pytest.approx(wanted, rel=0.04)


def test_calls_of_a_session_are_alike() -> None:
    """The correlation of two calls of a session is ALIKE: seen in the variance of a session's successes."""
    scenario = replace(RATE, cluster=4.0)
    one, _ = simulation._units(scenario, np.random.default_rng(2), 200_000, 1.0)
    num, den = one[1], one[2]
    pairs = den == 4
    variance = num[pairs].var()
    assert variance == pytest.approx(4 * 0.21 * (1.0 + 3.0 * ALIKE), rel=0.05)


def test_interval_of_a_rate() -> None:
    stats = pytest.importorskip("scipy.stats")
    for found, of in ((0, 50), (3, 200), (200, 200)):
        wanted = stats.binomtest(found, of).proportion_ci(method="wilson")
        assert wilson(found, of) == pytest.approx((wanted.low, wanted.high), abs=1e-6)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({}, "say what is compared"),
        ({"p_a": 0.1}, "say what is compared"),
        ({"p_a": 0.1, "p_b": 0.2, "mean_a": 1.0, "mean_b": 1.0, "sd": 1.0}, "say what is compared"),
        ({"p_a": 0.1, "p_b": 0.2, "mean_a": 1.0}, "say what is compared"),
        ({"p_a": 0.1, "p_b": 1.2}, "between 0 and 1"),
        ({"p_a": nan, "p_b": 0.2}, "between 0 and 1"),
        ({"mean_a": 1.0, "mean_b": 1.0}, "more than 0"),
        ({"mean_a": -1.0, "mean_b": 1.0, "sd": 1.0}, "more than 0"),
        ({"mean_a": 1.0, "mean_b": 1.0, "sd": nan}, "more than 0"),
        ({"p_a": 0.1, "p_b": 0.2, "cluster": 0.5}, "cluster"),
        ({"p_a": 0.1, "p_b": 0.2, "share": 1.0}, "share"),
        ({"p_a": 0.1, "p_b": 0.2, "came": 0.0}, "share"),
        ({"p_a": 0.1, "p_b": 0.2, "units": 1}, "units"),
        ({"p_a": 0.1, "p_b": 0.2, "looks": 0}, "looks"),
        ({"p_a": 0.1, "p_b": 0.2, "runs": 0}, "runs"),
        ({"p_a": 0.1, "p_b": 0.2, "alpha": 0.5}, "alpha"),
        ({"p_a": 0.1, "p_b": 0.2, "minimum_effect": -1.0}, "minimum_effect"),
        ({"p_a": 0.1, "p_b": 0.2, "method": "guess"}, "method"),
        ({"p_a": 0.1, "p_b": 0.2, "min_units": 1}, "min_units"),
    ],
)
def test_what_cannot_be_played(fields: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        Scenario(**fields)
