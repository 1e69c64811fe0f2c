"""Thompson sampling: shares of traffic in proportion to the chance that each variant is the best one.

Posterior of a variant's value: normal around its ratio with the delta method's variance (a flat prior; units are many
by then). Russo and others 2018, "A Tutorial on Thompson Sampling". Of two variants the chances are the normal's, of
more they are counted over seeded draws.

Always holds: shares are at least `floor`, together 1; while any variant has fewer than `burn_in` units, or nothing was
counted of it, all stay equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from random import Random
from statistics import NormalDist

from outrider_control.core.stats.moments import Moments

DRAWS = 2_000
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Allocation:
    """Shares, and the chances they come from."""

    shares: tuple[float, ...]
    best: tuple[float, ...]
    is_burning_in: bool


def allocate(variants: Sequence[Moments], up: bool, floor: float, burn_in: int, rng: Random) -> Allocation:
    """Shares of the next traffic; `up`: more of the metric is better. ValueError: the floors are more than all."""
    count = len(variants)
    if count < 2 or floor * count > 1.0 + 1e-9:
        raise ValueError(f"{count} variants cannot have a share of {floor} each")
    equal = (1.0 / count,) * count
    ratios = [one.ratio for one in variants]
    known = [ratio for ratio in ratios if ratio is not None]
    if len(known) < count or min([one.n for one in variants]) < max(2, burn_in):
        return Allocation(equal, equal, True)
    errors = [sqrt(one.variance(ratio) / one.n) for one, ratio in zip(variants, known, strict=True)]
    sign = 1.0 if up else -1.0
    if count == 2:
        best = _best_of_two(sign * (known[1] - known[0]), sqrt(errors[0] ** 2 + errors[1] ** 2))
        return Allocation(_with_floor(best, floor), best, False)
    wins = [0] * count
    for _ in range(DRAWS):
        drawn = [sign * rng.gauss(ratio, error) for ratio, error in zip(known, errors, strict=True)]
        wins[drawn.index(max(drawn))] += 1
    best = tuple([won / DRAWS for won in wins])
    return Allocation(_with_floor(best, floor), best, False)


def _best_of_two(gain: float, error: float) -> tuple[float, float]:
    second = _NORMAL.cdf(gain / error) if error > 0.0 else 0.5 if gain == 0.0 else float(gain > 0.0)
    return 1.0 - second, second


def _with_floor(best: Sequence[float], floor: float) -> tuple[float, ...]:
    """Everybody has the floor, and what is left is divided by chance."""
    left = 1.0 - floor * len(best)
    return tuple([floor + left * chance for chance in best])
