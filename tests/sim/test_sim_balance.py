"""The balancing simulator tells strategies apart, and the default one does what it is the default for."""

from __future__ import annotations

from math import isnan

import pytest

from bench.sim_balance import SCENARIOS, Result, Run, percentile

CALLS = 12_000
STEADY, SLOW, SLOW_MIDDLE, COLD, FAILING = SCENARIOS


def play(strategy: str, scenario: object, seed: int = 1) -> Result:
    return Run(strategy, scenario, CALLS, seed).play()  # type: ignore[arg-type]


def share(result: Result) -> float:
    return result.to_special / result.calls


def test_the_same_seed_gives_the_same_run() -> None:
    assert play("peak_ewma", SLOW) == play("peak_ewma", SLOW)
    assert play("peak_ewma", SLOW) != play("peak_ewma", SLOW, seed=2)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_counted_call_ends(scenario: object) -> None:
    result = play("least_request", scenario)
    assert 0 < result.calls <= CALLS
    assert len(result.latencies_s) + result.failures == result.calls


def test_peak_ewma_keeps_away_from_a_slow_endpoint() -> None:
    assert share(play("peak_ewma", SLOW)) < 0.02 < share(play("least_request", SLOW)) < share(play("round_robin", SLOW))


def test_peak_ewma_keeps_away_from_an_endpoint_that_fails_fast() -> None:
    assert share(play("peak_ewma", FAILING)) < 0.01
    assert share(play("least_request", FAILING)) > 0.25  # it looks idle


def test_peak_ewma_spreads_evenly_in_a_steady_fleet() -> None:
    assert share(play("peak_ewma", STEADY)) == pytest.approx(0.2, abs=0.05)


def test_percentiles_are_of_the_nearest_rank() -> None:
    values = [4.0, 1.0, 3.0, 2.0]
    assert [percentile(values, part) for part in (0.0, 0.25, 0.5, 0.51, 0.99, 1.0)] == [1, 1, 2, 3, 4, 4]
    assert isnan(percentile([], 0.5))
