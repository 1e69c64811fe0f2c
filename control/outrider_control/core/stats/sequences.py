"""Intervals and p-values for a difference: valid at every look at once, or of one look that was fixed beforehand.

Confidence sequence: Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas, "Time-uniform central limit theory and asymptotic
confidence sequences" (arXiv 2103.06476): Robbins' normal mixture, with half-width

    sqrt(s2) sqrt(2 (N r + 1) / (N^2 r) ln(sqrt(N r + 1) / alpha)),      r = rho^2

(theorem 2.2), one-sided with ln(1 + sqrt(N r + 1) / (2 alpha)) (proposition B.1); N units on both sides together, s2 =
N var(D). rho is tuned for the look at which one expects to decide: r = (-2 ln alpha + ln(1 - 2 ln alpha)) / N*. The
p-value is 1 over the mixture's value against no difference, at most 1.

Always holds: no data, or no variance, is None, never an interval; nothing here looks at a clock.

Deliberately not here: the variance of a difference (`moments`), how many comparisons there are (`correction`).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log, sqrt
from statistics import NormalDist

from outrider_control.core.stats.moments import Effect

_NORMAL = NormalDist()
_MAX_EXPONENT = 700.0


@dataclass(frozen=True, slots=True)
class Interval:
    """What is compatible with the data. One-sided ones have an infinite end."""

    low: float
    high: float
    p_value: float | None  # against no difference; None: it has none


def tuned_rho2(alpha: float, expected_units: int) -> float:
    """rho^2 for which the sequence is narrowest at `expected_units` units (equation 10)."""
    return (-2.0 * log(alpha) + log(1.0 - 2.0 * log(alpha))) / max(1, expected_units)


def interval(effect: Effect | None, alpha: float, expected_units: int) -> Interval | None:
    """The confidence sequence at this look; `alpha` for both sides together."""
    if effect is None or effect.variance <= 0.0:
        return None
    n, rho2 = effect.units, tuned_rho2(alpha, expected_units)
    spread = n * rho2 + 1.0
    width = sqrt(effect.variance * n) * sqrt(2.0 * spread / (n * n * rho2) * log(sqrt(spread) / alpha))
    evidence = rho2 * effect.difference**2 * n / (2.0 * effect.variance * spread)
    p_value = min(1.0, sqrt(spread) * exp(-min(evidence, _MAX_EXPONENT)))
    return Interval(effect.difference - width, effect.difference + width, p_value)


def lower_bound(effect: Effect | None, alpha: float, expected_units: int) -> float | None:
    """What the true difference is above, at every look at once, but for a chance of `alpha`."""
    if effect is None or effect.variance <= 0.0:
        return None
    n, rho2 = effect.units, tuned_rho2(min(0.5, 2.0 * alpha), expected_units)
    spread = n * rho2 + 1.0
    scale = sqrt(2.0 * spread / (n * n * rho2) * log(1.0 + sqrt(spread) / (2.0 * alpha)))
    return effect.difference - sqrt(effect.variance * n) * scale


def upper_bound(effect: Effect | None, alpha: float, expected_units: int) -> float | None:
    """As `lower_bound`, from above."""
    if effect is None:
        return None
    turned = Effect(effect.treated, effect.control, -effect.difference, effect.variance, effect.units)
    low = lower_bound(turned, alpha, expected_units)
    return None if low is None else -low


def fixed_interval(effect: Effect | None, alpha: float) -> Interval | None:
    """The z interval of one look, two-sided (Wald)."""
    if effect is None or effect.variance <= 0.0:
        return None
    error = sqrt(effect.variance)
    width = _NORMAL.inv_cdf(1.0 - alpha / 2.0) * error
    p_value = 2.0 * (1.0 - _NORMAL.cdf(abs(effect.difference) / error))
    return Interval(effect.difference - width, effect.difference + width, max(0.0, min(1.0, p_value)))


def fixed_lower_bound(effect: Effect | None, alpha: float) -> float | None:
    """What the true difference is above, at one look."""
    if effect is None or effect.variance <= 0.0:
        return None
    return effect.difference - _NORMAL.inv_cdf(1.0 - alpha) * sqrt(effect.variance)
