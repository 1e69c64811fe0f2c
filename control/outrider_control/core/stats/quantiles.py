"""Quantiles of calls' latency, by units: intervals that hold at every look, and differences of two of them.

A share of calls at or below a bound is a ratio over units like any other (`moments`); its confidence sequence, turned
around, is one of the quantile: those bounds at which the share may be q. For that it has to hold at the true quantile
alone, so no correction over the bounds is needed (Howard, Ramdas 2022, "Sequential estimation of quantiles", section
2, by inversion). The bounds are those of an exponential histogram (`core.histogram`) at `SCALE`: 1.1 % apart at most,
each way. The difference of two quantiles lies between the differences of their intervals' ends, each held at half the
level.

Always holds: a unit's calls may grow; its cost is the number of buckets it occupies; no data is None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

from outrider_control.core.stats.moments import Effect
from outrider_control.core.stats.sequences import fixed_interval, interval

SCALE = 5
LOWEST = -(1 << 40)  # the bucket of values of 0

Buckets = Mapping[int, int]  # bucket -> calls


def upper_bound_of(bucket: int) -> float:
    """The value that everything in a bucket is below."""
    return 0.0 if bucket == LOWEST else 2.0 ** ((bucket + 1) / (1 << SCALE))


class BucketMoments:
    """Moments of the share of calls at or below every bucket, over units."""

    __slots__ = ("_shares", "_squares", "_with_calls", "calls", "calls_squared", "n")

    def __init__(self) -> None:
        self.n = 0
        self.calls = 0.0
        self.calls_squared = 0.0
        # Steps of piecewise constant sums over buckets: of x, of x^2 and of x times the unit's calls.
        self._shares: dict[int, float] = {}
        self._squares: dict[int, float] = {}
        self._with_calls: dict[int, float] = {}

    def add(self, buckets: Buckets) -> None:
        """Count one unit."""
        self._change(buckets, 1.0)

    def remove(self, buckets: Buckets) -> None:
        """Take back what was added."""
        self._change(buckets, -1.0)

    def _change(self, buckets: Buckets, sign: float) -> None:
        calls = float(sum(buckets.values()))
        if not calls:
            return
        self.n += int(sign)
        self.calls += sign * calls
        self.calls_squared += sign * calls * calls
        below = 0.0
        for bucket in sorted(buckets):
            before, below = below, below + buckets[bucket]
            _step(self._shares, bucket, sign * (below - before))
            _step(self._squares, bucket, sign * (below * below - before * before))
            _step(self._with_calls, bucket, sign * (below - before) * calls)

    def merged(self, other: BucketMoments) -> BucketMoments:
        """Of the units of both."""
        whole = BucketMoments()
        for one in (self, other):
            whole.n += one.n
            whole.calls += one.calls
            whole.calls_squared += one.calls_squared
            for name in ("_shares", "_squares", "_with_calls"):
                steps = getattr(whole, name)
                for bucket, step in getattr(one, name).items():
                    _step(steps, bucket, step)
        return whole

    def shares(self) -> list[tuple[int, float, float]]:
        """(bucket, share of calls at or below it, variance of that share) for every occupied bucket, rising."""
        found = []
        x = xx = xy = 0.0
        if self.n < 2 or self.calls <= 0.0:
            return []
        mean_calls = self.calls / self.n
        for bucket in sorted(self._shares):
            x += self._shares[bucket]
            xx += self._squares.get(bucket, 0.0)
            xy += self._with_calls.get(bucket, 0.0)
            ratio = min(1.0, max(0.0, x / self.calls))
            squares = xx - 2.0 * ratio * xy + ratio * ratio * self.calls_squared
            found.append((bucket, ratio, max(0.0, squares) / (self.n - 1) / mean_calls**2 / self.n))
        return found


def _step(steps: dict[int, float], bucket: int, change: float) -> None:
    value = steps.get(bucket, 0.0) + change
    if value:
        steps[bucket] = value
    else:
        steps.pop(bucket, None)


@dataclass(frozen=True, slots=True)
class Quantile:
    """A quantile, and what is compatible with the data; `high` is infinite where more calls are needed to bound it."""

    value: float
    low: float
    high: float


def quantile(of: BucketMoments, q: float, alpha: float, expected_units: int | None) -> Quantile | None:
    """The q-quantile of calls; `expected_units` None: for one look that was fixed beforehand."""
    shares = of.shares()
    if not shares:
        return None
    at, _, spread = next((row for row in shares if row[1] >= q - 1e-12), shares[-1])
    # Near 0 and 1 hardly a unit differs: where the share may be q, its variance is at least that at the quantile that
    # is seen, and that of as many calls which do not resemble each other.
    least = max(spread, q * (1.0 - q) / of.calls)
    value, low, high = upper_bound_of(at), 0.0, inf
    for bucket, share, variance in shares:
        bound = upper_bound_of(bucket)
        floor, ceiling = _share_interval(share, max(variance, least), of.n, alpha, expected_units)
        if ceiling < q:  # surely fewer calls are at or below: the quantile is above
            low = bound
        if floor > q:  # surely more are
            high = bound
            break
    return Quantile(value, min(low, value), max(high, value))


def _share_interval(
    share: float, variance: float, n: int, alpha: float, expected_units: int | None
) -> tuple[float, float]:
    effect = Effect(0.0, share, share, variance, n)
    found = fixed_interval(effect, alpha) if expected_units is None else interval(effect, alpha, expected_units)
    return (0.0, 1.0) if found is None else (found.low, found.high)


@dataclass(frozen=True, slots=True)
class QuantileDifference:
    """A treated variant's quantile less the first one's."""

    control: float
    treated: float
    difference: float
    low: float
    high: float


def difference(
    control: BucketMoments, treated: BucketMoments, q: float, alpha: float, expected_units: int | None
) -> QuantileDifference | None:
    """The difference with its interval, each side held at alpha / 2; None: no data on a side."""
    expected = None if expected_units is None else max(1, expected_units // 2)
    one, two = quantile(control, q, alpha / 2.0, expected), quantile(treated, q, alpha / 2.0, expected)
    if one is None or two is None:
        return None
    return QuantileDifference(one.value, two.value, two.value - one.value, two.low - one.high, two.high - one.low)
