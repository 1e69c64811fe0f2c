"""How many units an experiment needs, and how soon it is likely to end.

Fixed horizon: n per unit of variance from the normal quantiles (Chow, Shao, Wang, "Sample Size Calculations", 3.2).
Sequential: a confidence sequence tuned for N* = N looks at a Brownian motion with drift; whether it ever excludes 0 by
N depends on mu = effect / standard error at N alone, so one table of simulated paths per alpha (seeded, the same for
all questions) answers every question. The simulation has 400 looks.

Always holds: the same question has the same answer; what cannot be answered is a ValueError that says why.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf, isfinite, log, sqrt
from random import Random
from statistics import NormalDist, median

from outrider_control.core.stats.sequences import tuned_rho2

_NORMAL = NormalDist()
_PATHS = 1_000
_LOOKS = 400
_MAX_MU = 12.0
MAX_UNITS = 10**12


@dataclass(frozen=True, slots=True)
class Plan:
    """What an experiment needs."""

    units: int  # of all variants together
    power: float
    median_units: int  # by which half of them are over, where the effect is what was said


def plan(
    minimum_effect: float,
    deviation: float,
    alpha: float = 0.05,
    power: float = 0.8,
    shares: Sequence[float] = (0.5, 0.5),
    sequential: bool = True,
) -> Plan:
    """Units for an effect of `minimum_effect` on units' values with standard deviation `deviation`.

    `shares` of the first variant and of the others; each other one is compared with the first at alpha over their
    number, and the smallest of them decides.
    """
    if not (isfinite(minimum_effect) and minimum_effect):
        raise ValueError("the smallest effect worth finding must be a number other than 0")
    if not (isfinite(deviation) and deviation > 0.0):
        raise ValueError("the standard deviation must be more than 0")
    if not 0.0 < alpha < 0.5 or not alpha < power < 1.0:
        raise ValueError("alpha must lie between 0 and 0.5, power between alpha and 1")
    if len(shares) < 2 or min(shares) <= 0.0:
        raise ValueError("two variants at least need a share of the traffic")
    level = alpha / (len(shares) - 1)
    mu = mu_for(level, power) if sequential else _NORMAL.inv_cdf(1.0 - level / 2.0) + _NORMAL.inv_cdf(power)
    # Variance of the difference per unit of all: deviation^2 (1 / share of the first + 1 / share of the smallest).
    factor = 1.0 / shares[0] + 1.0 / min(shares[1:])
    units = (mu * deviation / minimum_effect) ** 2 * factor
    if units > MAX_UNITS:
        raise ValueError(f"more than {MAX_UNITS:,} units would be needed")
    total = max(2 * len(shares), ceil(units))
    if not sequential:
        return Plan(total, power, total)
    return Plan(total, crossing(level, mu)[0], ceil(total * crossing(level, mu)[1]))


def power_of(mu: float, alpha: float, sequential: bool) -> float:
    """The chance to find an effect of `mu` standard errors (at the last look)."""
    if sequential:
        return crossing(alpha, abs(mu))[0]
    quantile = _NORMAL.inv_cdf(1.0 - alpha / 2.0)
    return _NORMAL.cdf(abs(mu) - quantile) + _NORMAL.cdf(-abs(mu) - quantile)


def crossing(alpha: float, mu: float) -> tuple[float, float]:
    """(chance that 0 is ever excluded, median share of N by then; 1 where less than half are over)."""
    needed = _needed(alpha)
    # A path with drift mu t crosses where mu is at least what the path needs: see `_needed`.
    times = [_first(path, mu) for path in needed]
    found = sum([time is not None for time in times])
    return found / len(times), median([1.0 if time is None else time for time in times])


def mu_for(alpha: float, power: float) -> float:
    """The drift that is found with this chance."""
    low, high = 0.0, _MAX_MU
    for _ in range(30):
        middle = (low + high) / 2.0
        if crossing(alpha, middle)[0] < power:
            low = middle
        else:
            high = middle
    return high


def _first(path: tuple[list[float], list[float]], mu: float) -> float | None:
    """When a path with this drift first crosses; `path` holds running minima of the drift needed, negated and rising,
    and their times."""
    rising, times = path
    at = bisect_left(rising, -mu)
    return times[at] if at < len(times) else None


@functools.lru_cache(maxsize=16)
def _needed(alpha: float) -> list[tuple[list[float], list[float]]]:
    """For each path: new lows of the drift it needs to cross the upper boundary, negated (rising), and when.

    With time t = n / N in (0, 1], S_t = B_t + mu t and boundary sqrt((t r + 1) (ln(t r + 1) - 2 ln alpha) / r),
    r = rho^2 N. Crossing below is left out: it is no finding.
    """
    r = tuned_rho2(alpha, 1)
    rng = Random(20_211)
    step = 1.0 / _LOOKS
    times = [(at + 1) * step for at in range(_LOOKS)]
    bounds = [sqrt((t * r + 1.0) * (log(t * r + 1.0) - 2.0 * log(alpha)) / r) for t in times]
    paths = []
    for _ in range(_PATHS):
        position, least = 0.0, inf
        rising: list[float] = []
        when: list[float] = []
        for t, bound in zip(times, bounds, strict=True):
            position += rng.gauss(0.0, sqrt(step))
            needed = (bound - position) / t
            if needed < least:
                least = needed
                rising.append(-needed)
                when.append(t)
        paths.append((rising, when))
    return paths
