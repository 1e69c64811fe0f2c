"""Moments of units: all that the comparison of two variants by a mean or a ratio needs to know.

A unit (a session, a user) is a vector (num, den, num0, den0): the sum and the count of a metric over its calls, and the
same over its history before the experiment. A metric of a variant is a ratio R = sum(num) / sum(den): calls of one unit
resemble each other, so the units are the sample, and the variance of R is the delta method's (Deng, Knoblich, Lu 2018,
"Applying the Delta Method in Metric Analytics", section 3): with z = (num - R den) / mean(den), var(R) = var(z) / n.

Always holds: adding and removing are exact opposites up to rounding, so that a unit may grow; nothing is known of
fewer than two units, or where no call was counted (None, never 0); what is no finite number is refused.

Deliberately not here: intervals (`sequences`), what is counted (`core.unit_sums`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

_SIZE = 4
_ROUNDING = 1e-12  # of sums over a million units
MAX_VALUE = 1e100  # its square, and sums of squares, are numbers still
_PAIRS = tuple([(one, other) for one in range(_SIZE) for other in range(one, _SIZE)])


class Moments:
    """Sums of units' vectors and of the products of their entries."""

    __slots__ = ("n", "products", "sums")

    def __init__(self) -> None:
        self.n = 0
        self.sums = [0.0] * _SIZE
        self.products = [0.0] * len(_PAIRS)

    def add(self, vector: Sequence[float]) -> None:
        """Count one unit: (num, den, num0, den0). ValueError: not four finite numbers."""
        self._change(vector, 1)

    def remove(self, vector: Sequence[float]) -> None:
        """Take back what was added."""
        self._change(vector, -1)

    def merged(self, other: Moments) -> Moments:
        """Of the units of both."""
        whole = Moments()
        whole.n = self.n + other.n
        whole.sums = [one + two for one, two in zip(self.sums, other.sums, strict=True)]
        whole.products = [one + two for one, two in zip(self.products, other.products, strict=True)]
        return whole

    @classmethod
    def of(cls, n: int, sums: Sequence[float], products: Sequence[float]) -> Moments:
        """From sums made elsewhere; `products` as `add` has them: of (0,0), (0,1), ... (3,3). ValueError: they are not
        finite, or not as many."""
        if (
            len(sums) != _SIZE
            or len(products) != len(_PAIRS)
            or not all([isfinite(sum(sums)), isfinite(sum(products))])
        ):
            raise ValueError(f"moments are {_SIZE} and {len(_PAIRS)} finite sums, not {sums}, {products}")
        found = cls()
        found.n, found.sums, found.products = n, list(sums), list(products)
        return found

    def _change(self, vector: Sequence[float], sign: int) -> None:
        # NaN is not at most anything.
        if len(vector) != _SIZE or not all([abs(value) <= MAX_VALUE for value in vector]):
            raise ValueError(f"a unit is four numbers of at most {MAX_VALUE:g}, not {vector}")
        self.n += sign
        if not self.n:  # rounding does not outlive the last unit
            self.sums, self.products = [0.0] * _SIZE, [0.0] * len(_PAIRS)
            return
        sums, products = self.sums, self.products
        for at, value in enumerate(vector):
            sums[at] += sign * value
        for at, (one, other) in enumerate(_PAIRS):
            products[at] += sign * vector[one] * vector[other]

    def product(self, one: int, other: int) -> float:
        """The sum of entry `one` times entry `other`."""
        low, high = min(one, other), max(one, other)
        return self.products[low * _SIZE - low * (low - 1) // 2 + high - low]

    @property
    def ratio(self) -> float | None:
        """sum(num) / sum(den); None: nothing was counted."""
        return self.sums[0] / self.sums[1] if self.n and self.sums[1] > 0.0 else None

    @property
    def evenly(self) -> float:
        """How many units with equal counts know as much (Kish's effective sample size): units that counted nothing do
        not matter, and one that outweighs all others makes it small."""
        return self.sums[1] ** 2 / self.product(1, 1) if self.n and self.product(1, 1) > 0.0 else 0.0

    @property
    def has_history(self) -> bool:
        """Whether units were known before."""
        return self.sums[3] > 0.0

    def variance(self, ratio: float) -> float:
        """Of z = (num - ratio den) / mean(den) over units (n - 1 below); 0 for fewer than two."""
        n = self.n
        if n < 2 or self.sums[1] <= 0.0:
            return 0.0
        mean_den = self.sums[1] / n
        mean = (self.sums[0] / mean_den - ratio * n) / n
        return max(0.0, self.squares(ratio) - n * mean * mean) / (n - 1)

    def squares(self, ratio: float) -> float:
        """The sum of z^2; 0 where nothing was counted. Of large values that hardly differ no more is believed than
        what rounding leaves."""
        if self.sums[1] <= 0.0:
            return 0.0
        mean_den = self.sums[1] / self.n
        terms = self.product(0, 0), -2.0 * ratio * self.product(0, 1), ratio * ratio * self.product(1, 1)
        rounding = _ROUNDING * (abs(terms[0]) + abs(terms[1]) + abs(terms[2]))
        return max(sum(terms), rounding) / (mean_den * mean_den)


@dataclass(frozen=True, slots=True)
class Effect:
    """A treated variant less the first one, in the metric's unit."""

    control: float
    treated: float
    difference: float  # after the adjustment for history, where there was one
    variance: float  # of the difference
    units: int  # of both
    adjusted: bool = False  # for history

    @property
    def relative(self) -> float | None:
        """The difference over the first variant's value."""
        return self.difference / abs(self.control) if self.control else None


def effect_of(control: Moments, treated: Moments, with_history: bool = False) -> Effect | None:
    """The effect and its variance; None: fewer than two units on a side, or nothing counted there.

    The variance is the larger of the variants' own and of that under no difference (pooled, around the ratio of both):
    the former is too small where events are rare, and none where a side has not seen any.
    """
    one, two = control.ratio, treated.ratio
    if one is None or two is None or control.n < 2 or treated.n < 2:
        return None
    pooled = (control.sums[0] + treated.sums[0]) / (control.sums[1] + treated.sums[1])
    own = control.variance(one) / control.n + treated.variance(two) / treated.n
    units = control.n + treated.n
    squares = (control.squares(pooled) + treated.squares(pooled)) / (units - 2)
    variance = max(own, squares * (1.0 / control.n + 1.0 / treated.n))
    difference = two - one
    plain = Effect(one, two, difference, variance, units)
    if variance <= 0.0 or not with_history:
        return plain
    return _adjusted(control, treated, plain, own) or plain


def value_of(variant: Moments) -> Effect | None:
    """One variant's value by itself, as an effect against 0; None: fewer than two units, or nothing counted."""
    ratio = variant.ratio
    if ratio is None or variant.n < 2:
        return None
    return Effect(0.0, ratio, ratio, variant.variance(ratio) / variant.n, variant.n)


def _adjusted(control: Moments, treated: Moments, plain: Effect, own: float) -> Effect | None:
    """CUPED (Deng, Xu, Kohavi, Walker 2013) for ratios: z less theta times the same of the history, whose expectation
    is equal in both variants because it was before. Theta is pooled. The variance is lowered in proportion to that of
    the variants' own (`own`). None where it is not lowered."""
    both = control.merged(treated)
    if not both.has_history:
        return None
    ratio0, mean0 = both.sums[2] / both.sums[3], both.sums[3] / both.n
    sides = [_Side(control, plain.control, ratio0, mean0), _Side(treated, plain.treated, ratio0, mean0)]
    spread = sum([side.variance0 * (side.n - 1) for side in sides])
    if spread <= 0.0:
        return None
    theta = sum([side.covariance * (side.n - 1) for side in sides]) / spread
    variance = sum([side.adjusted_variance(theta) / side.n for side in sides])
    if not 0.0 < variance < own:
        return None
    difference = plain.difference - theta * (sides[1].mean0 - sides[0].mean0)
    return Effect(plain.control, plain.treated, difference, plain.variance * variance / own, plain.units, True)


class _Side:
    """One variant's z and c (the history's z, centred on both variants' ratio)."""

    __slots__ = ("covariance", "mean0", "n", "variance", "variance0")

    def __init__(self, of: Moments, ratio: float, ratio0: float, mean_den0: float):
        n = self.n = of.n
        mean_den = of.sums[1] / n
        self.mean0 = (of.sums[2] - ratio0 * of.sums[3]) / n / mean_den0
        squares0 = of.product(2, 2) - 2.0 * ratio0 * of.product(2, 3) + ratio0 * ratio0 * of.product(3, 3)
        self.variance0 = max(0.0, squares0 / mean_den0**2 - n * self.mean0**2) / (n - 1)
        cross = (
            of.product(0, 2) - ratio0 * of.product(0, 3) - ratio * of.product(1, 2) + ratio * ratio0 * of.product(1, 3)
        )
        self.covariance = cross / (mean_den * mean_den0) / (n - 1)  # the mean of z is 0
        self.variance = of.variance(ratio)

    def adjusted_variance(self, theta: float) -> float:
        return max(0.0, self.variance - 2.0 * theta * self.covariance + theta * theta * self.variance0)
