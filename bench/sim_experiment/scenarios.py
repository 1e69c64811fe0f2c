"""What is played, and what must come of it.

Always holds: no difference (A/A) in every kind of metric; each requirement names its bound and its row.

Deliberately not here: how it is played (`outrider_control.loops.experiment.simulate`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import numpy as np

from outrider_control.loops.experiment.simulate import Scenario, simulate
from outrider_control.loops.experiment.types import BANDIT, FIXED

ALPHA = 0.05
NO_DIFFERENCE = "no difference"  # rows that begin with it must hardly ever reject
FIXED_ROW = f"{NO_DIFFERENCE}, rate .3, fixed horizon"
POWER = ".30 against .33"
SRM = "no difference, units come 48/52 instead of 50/50"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    name: str
    scenario: Scenario


@dataclass(frozen=True, slots=True)
class Verdict:
    """One requirement."""

    what: str
    is_met: bool
    found: str


def rows(runs: int, looks: int, units: int, seed: int) -> list[Row]:
    """Everything that is played."""
    base = Scenario(p_a=0.3, p_b=0.3, units=units, looks=looks, runs=runs, alpha=ALPHA, seed=seed)
    latency = replace(base, p_a=None, p_b=None, mean_a=1_000.0, mean_b=1_000.0, sd=1_300.0)
    found = [
        Row(f"{NO_DIFFERENCE}, rate .02", replace(base, p_a=0.02, p_b=0.02)),
        Row(f"{NO_DIFFERENCE}, rate .3", base),
        Row(f"{NO_DIFFERENCE}, rate .5", replace(base, p_a=0.5, p_b=0.5)),
        Row(f"{NO_DIFFERENCE}, lognormal latency", latency),
        Row(f"{NO_DIFFERENCE}, rate .3, sessions of 5 calls", replace(base, cluster=5.0)),
        Row(f"{NO_DIFFERENCE}, lognormal latency, sessions of 5 calls", replace(latency, cluster=5.0)),
        Row(f"{NO_DIFFERENCE}, rate .02, shares 90/10", replace(base, p_a=0.02, p_b=0.02, share=0.9)),
        Row(FIXED_ROW, replace(base, method=FIXED)),
        Row(f"{NO_DIFFERENCE}, rate .3, bandit", replace(base, method=BANDIT)),
        Row(POWER, replace(base, p_b=0.33)),
        Row(".30 against .32", replace(base, p_b=0.32)),
        Row(".30 against .33, fixed horizon", replace(base, p_b=0.33, method=FIXED)),
        Row(".30 against .33, bandit", replace(base, p_b=0.33, method=BANDIT)),
        Row("1000 ms against 950 ms, lognormal", replace(latency, mean_b=950.0)),
        Row(SRM, replace(base, came=0.48)),
    ]
    # Rows are drawn apart: what is counted over all of them is counted over as many experiments.
    return [replace(row, scenario=replace(row.scenario, seed=seed + at)) for at, row in enumerate(found)]


def played(row: Row) -> dict[str, Any]:
    """One row's report, and how long it took."""
    begun = time.perf_counter()
    return simulate(row.scenario).plain() | {"seconds": round(time.perf_counter() - begun, 1)}


def peeking(runs: int, looks: int, units: int, seed: int) -> float:
    """How often a plain z-test at every look is ever significant, where there is no difference (rate .3)."""
    drawn = np.random.default_rng(seed)
    half = units // looks // 2
    bound = 1.959964
    found = 0
    for _ in range(runs):
        successes = np.cumsum(drawn.binomial(half, 0.3, (2, looks)), axis=1)
        counts = half * np.arange(1, looks + 1)
        rates = successes / counts
        error = np.sqrt(np.maximum((rates * (1.0 - rates)).sum(axis=0), 1e-12) / counts)
        found += bool(np.any(np.abs(rates[1] - rates[0]) > bound * error))
    return found / runs


def verdicts(reports: Mapping[str, Mapping[str, Any]]) -> list[Verdict]:
    """What must be reached."""
    found = [_errs(name, told) for name, told in reports.items() if name.startswith(NO_DIFFERENCE)]
    power = reports[POWER]
    if power["units"] == 20_000:
        rate = power["reject_rate"]
        found.append(Verdict(f"{POWER} at 20,000 units: found in at least 93 %", rate >= 0.93, f"{rate:.2%}"))
        rate = reports[SRM]["srm_rate"]
        found.append(Verdict("48/52 in 20,000 units: found in at least 80 %", rate >= 0.8, f"{rate:.2%}"))
    fair = [told for name, told in reports.items() if name != SRM]
    alarms, runs = _alarms(fair)
    what = "units that come as planned: an alarm in at most 0.1 %"
    found.append(Verdict(what, alarms <= 0.001 * runs, f"{alarms} of {runs:,}"))
    return found


def _errs(name: str, told: Mapping[str, Any]) -> Verdict:
    """One look errs in 5 % of experiments, no less: what is seen of it lies on both sides of that."""
    chance = 3.0 * error_of(ALPHA, told["runs"]) if name == FIXED_ROW else 0.0
    what = f"{name}: a verdict in at most 5 %" + (", give or take 3 standard errors" if chance else "")
    return Verdict(what, told["reject_rate"] <= ALPHA + chance, f"{told['reject_rate']:.2%}")


def _alarms(reports: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    runs = sum([told["runs"] for told in reports])
    return round(sum([told["srm_rate"] * told["runs"] for told in reports])), runs


def error_of(rate: float, runs: int) -> float:
    """The standard error of a rate."""
    return sqrt(rate * (1.0 - rate) / runs)
