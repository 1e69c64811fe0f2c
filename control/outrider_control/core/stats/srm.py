"""Sample ratio mismatch: whether units came as they were to be divided.

The report has the p-value of Pearson's chi-square test. The alarm has to hold at every look: the Bayes factor of a
Dirichlet-multinomial alternative against the shares as planned is a martingale under them, so it is ever 1/alpha or
more with a chance of at most alpha (Lindon, Malek 2020, "Anytime-valid inference for multinomial count data",
proposition 1). The alternative is concentrated near the planned shares (`CONCENTRATION` units' worth), where real
mismatches are.

Always holds: no units, or one variant, is no evidence (1), never an alarm.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, inf, lgamma, log

ALPHA = 0.001
CONCENTRATION = 1_000.0


def chi2_p(counts: Sequence[float], shares: Sequence[float]) -> float | None:
    """The p-value of counts against shares (together 1); None: no units, or a single variant with a share."""
    used = [(count, share) for count, share in zip(counts, shares, strict=True) if share > 0.0]
    total = sum([count for count, _ in used])
    if total <= 0 or len(used) < 2:
        return None
    statistic = sum([(count - total * share) ** 2 / (total * share) for count, share in used])
    return chi2_sf(statistic, len(used) - 1)


def log_bayes_factor(counts: Sequence[float], shares: Sequence[float]) -> float:
    """ln of the evidence for other shares; 0: none. Infinite: units of a variant that has no share."""
    prior = [CONCENTRATION * share for share in shares]
    if sum(counts) <= 0:
        return 0.0
    evidence = lgamma(sum(prior)) - lgamma(sum(prior) + sum(counts))
    for count, share, weight in zip(counts, shares, prior, strict=True):
        if count <= 0:
            continue
        if share <= 0.0:
            return inf
        evidence += lgamma(weight + count) - lgamma(weight) - count * log(share)
    return evidence


def is_mismatch(log_evidence: float, alpha: float = ALPHA) -> bool:
    """Whether the evidence is an alarm. It is one for good: keep the highest evidence of all looks."""
    return log_evidence >= -log(alpha)


def chi2_sf(statistic: float, degrees: int) -> float:
    """The chance of a larger chi-square value: the upper regularised gamma function Q(degrees / 2, statistic / 2).

    By its series or its continued fraction, whichever converges (Numerical Recipes, 3rd edition, section 6.2).
    """
    shape, x = degrees / 2.0, statistic / 2.0
    if x <= 0.0:
        return 1.0
    scale = exp(-x + shape * log(x) - lgamma(shape))
    if x < shape + 1.0:
        term = total = 1.0 / shape
        for step in range(1, 1_000):
            term *= x / (shape + step)
            total += term
            if term < total * 1e-16:
                break
        return max(0.0, 1.0 - total * scale)
    tiny = 1e-300
    b = x + 1.0 - shape
    c, d = 1.0 / tiny, 1.0 / b
    fraction = d
    for step in range(1, 1_000):
        a = -step * (step - shape)
        b += 2.0
        d = 1.0 / (a * d + b or tiny)
        c = b + a / c or tiny
        change = d * c
        fraction *= change
        if abs(change - 1.0) < 1e-16:
            break
    return min(1.0, scale * fraction)
