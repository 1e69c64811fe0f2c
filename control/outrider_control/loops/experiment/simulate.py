"""Experiments that are made up, decided by `decide` itself: how often it errs, how often it finds, and how soon.

Units are drawn by numpy, summed up to each look, and given to `decide` as the moments that a mesh would have. A unit
is a session with `cluster` calls on average (geometric), which are alike: each has its own chance (beta) or its own
level (lognormal), `ALIKE` of the variance. Outcomes are a rate (`p_a`, `p_b`) or lognormal values (`mean_a`, `mean_b`,
`sd`), looks are evenly spaced over the units.

Always holds: the same scenario gives the same report; every run is decided by the code that decides in production,
with its state carried from look to look.

Deliberately not here: how a report is shown, or judged (`bench.sim_experiment`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isfinite, log, sqrt
from random import Random
from statistics import median
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from outrider_control.core.stats.moments import Moments
from outrider_control.loops.experiment.decide import RESHARE_MS, decide
from outrider_control.loops.experiment.types import (
    BANDIT,
    HARM,
    METHODS,
    RESHARE,
    SEQUENTIAL,
    STOP,
    UP,
    WIN,
    Metric,
    Seen,
    Spec,
    State,
    VariantSeen,
)

ALIKE: Final = 0.3  # of the variance of calls, the part that is the session's
MAX_UNITS: Final = 10_000_000  # of one run: they are all in memory at once
_METRIC: Final = Metric("attribute:simulated", UP)
_START_MS: Final = 1_000_000
_PARTS: Final = 6  # n, num, den, num^2, num den, den^2
_Z: Final = 1.959964  # of a 95 % interval


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is played. ValueError: it cannot be. More of the metric is better."""

    p_a: float | None = None
    p_b: float | None = None
    mean_a: float | None = None
    mean_b: float | None = None
    sd: float = 0.0  # of one call's value
    cluster: float = 1.0  # calls of a session, on average
    share: float = 0.5  # of the first variant, as planned
    came: float | None = None  # of the first variant, as units come; None: as planned
    units: int = 20_000
    looks: int = 100
    runs: int = 2_000
    alpha: float = 0.05
    minimum_effect: float = 0.0
    min_units: int = 100
    method: str = SEQUENTIAL
    seed: int = 1

    def __post_init__(self) -> None:
        rates = [value for value in (self.p_a, self.p_b) if value is not None]
        means = [value for value in (self.mean_a, self.mean_b) if value is not None]
        if sorted((len(rates), len(means))) != [0, 2]:
            raise ValueError("say what is compared: p_a and p_b, or mean_a, mean_b and sd")
        if not all([0.0 <= value <= 1.0 for value in rates]):
            raise ValueError("p_a and p_b must lie between 0 and 1")
        if means and not all([0.0 < value < 1e50 for value in (*means, self.sd)]):
            raise ValueError("mean_a, mean_b and sd must be more than 0 (values are lognormal)")
        if not (1.0 <= self.cluster <= 1_000.0):
            raise ValueError("cluster must lie between 1 and 1000 calls")
        if not all([0.0 < share < 1.0 for share in (self.share, 0.5 if self.came is None else self.came)]):
            raise ValueError("share must lie between 0 and 1")
        if not 2 <= self.units <= MAX_UNITS or not 1 <= self.looks <= self.units or self.runs < 1:
            raise ValueError(
                f"units must lie between 2 and {MAX_UNITS:,}, looks between 1 and units, runs be at least 1"
            )
        if not 0.0 < self.alpha < 0.5 or not (isfinite(self.minimum_effect) and self.minimum_effect >= 0.0):
            raise ValueError("alpha must lie between 0 and 0.5, minimum_effect must not be negative")
        if self.method not in METHODS or self.min_units < 2:
            raise ValueError(f"method is one of {', '.join(METHODS)}, min_units is at least 2")

    def spec(self) -> Spec:
        """The experiment that is decided."""
        return Spec(
            name="simulated",
            variants=("A", "B"),
            shares=(self.share, 1.0 - self.share),
            metric=_METRIC,
            sample_size=self.units,
            method=self.method,
            alpha=self.alpha,
            minimum_effect=self.minimum_effect,
            min_units=self.min_units,
        )


@dataclass(frozen=True, slots=True)
class Report:
    """How it went. Rates are of all runs."""

    reject_rate: float  # a winner or a loser was named: power, or false positives where there is no difference
    reject_low: float  # 95 % interval of that rate (Wilson)
    reject_high: float
    win_rate: float
    harm_rate: float
    no_difference_rate: float
    inconclusive_rate: float
    srm_rate: float
    median_units: float  # when runs end
    median_units_rejected: float | None  # when those do that named one; None: none did
    share_b: float  # of all units, the second variant's
    runs: int
    looks: int
    units: int

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)


def simulate(scenario: Scenario) -> Report:
    """Play all runs."""
    streams = np.random.SeedSequence(scenario.seed).spawn(scenario.runs)
    verdicts: list[str] = []
    mismatches = ended_b = ended = 0
    lengths: list[int] = []
    for at, stream in enumerate(streams):
        verdict, mismatch, counts = _run(
            scenario, np.random.default_rng(stream), Random(scenario.seed * 1_000_003 + at)
        )
        verdicts.append(verdict)
        mismatches += mismatch
        ended_b += counts[1]
        ended += sum(counts)
        lengths.append(sum(counts))
    rejected = [length for verdict, length in zip(verdicts, lengths, strict=True) if verdict in (WIN, HARM)]
    low, high = wilson(len(rejected), scenario.runs)
    rates = {name: verdicts.count(name) / scenario.runs for name in set(verdicts)}
    return Report(
        reject_rate=len(rejected) / scenario.runs,
        reject_low=low,
        reject_high=high,
        win_rate=rates.get(WIN, 0.0),
        harm_rate=rates.get(HARM, 0.0),
        no_difference_rate=rates.get("no_difference", 0.0),
        inconclusive_rate=rates.get("inconclusive", 0.0),
        srm_rate=mismatches / scenario.runs,
        median_units=median(lengths),
        median_units_rejected=median(rejected) if rejected else None,
        share_b=ended_b / ended,
        runs=scenario.runs,
        looks=scenario.looks,
        units=scenario.units,
    )


def wilson(found: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a rate (Wilson 1927)."""
    rate, z2 = found / of, _Z * _Z
    middle = (rate + z2 / (2.0 * of)) / (1.0 + z2 / of)
    width = _Z * sqrt(rate * (1.0 - rate) / of + z2 / (4.0 * of * of)) / (1.0 + z2 / of)
    return max(0.0, middle - width), min(1.0, middle + width)


def _run(scenario: Scenario, drawn: np.random.Generator, rng: Random) -> tuple[str, bool, tuple[int, int]]:
    """Verdict, whether the ratio was alarming, units of both variants at the end."""
    spec, state = scenario.spec(), State()
    share = scenario.share if scenario.came is None else scenario.came
    course = _Course(scenario, drawn, share)
    look = 0
    while True:
        variants = course.at(look, share)
        now_ms = _START_MS + look * RESHARE_MS
        decision, state = decide(Seen(now_ms, _START_MS, variants), state, spec, now_ms, rng)
        if decision.action == STOP:
            return decision.verdict, decision.srm.mismatch, (variants[0].units, variants[1].units)
        if decision.action == RESHARE:
            share = decision.shares[0]
        look += 1


class _Course:
    """What is seen of one run at its looks. The last look has all units, so every run ends."""

    __slots__ = ("_all", "_bounds", "_drawn", "_scenario", "_sums")

    def __init__(self, scenario: Scenario, drawn: np.random.Generator, share: float):
        self._scenario = scenario
        self._drawn = drawn
        self._bounds = np.linspace(0, scenario.units, scenario.looks + 1).astype(np.int64)
        self._sums: NDArray[np.float64] = np.zeros((2, _PARTS))
        self._all: list[Any] = []
        if scenario.method != BANDIT:  # whose shares are known look by look only; all others' are drawn at once
            rows = _units(scenario, drawn, scenario.units, share)
            steps = [np.add.reduceat(part, self._bounds[:-1], axis=1) for part in rows]
            self._all = np.cumsum(np.stack(steps), axis=2).transpose(2, 0, 1).tolist()

    def at(self, look: int, share: float) -> tuple[VariantSeen, VariantSeen]:
        """Both variants by one look; looks are asked for in order."""
        if self._all:
            sums = self._all[look]
        else:
            count = int(self._bounds[look + 1] - self._bounds[look])
            self._sums += np.stack([part.sum(axis=1) for part in _units(self._scenario, self._drawn, count, share)])
            sums = self._sums.tolist()
        return _seen("A", sums[0]), _seen("B", sums[1])


def _seen(name: str, sums: list[float]) -> VariantSeen:
    n, num, den, num_num, num_den, den_den = sums
    products = [num_num, num_den, 0.0, 0.0, den_den, 0.0, 0.0, 0.0, 0.0, 0.0]
    return VariantSeen(name, int(n), int(den), {_METRIC.key: Moments.of(int(n), [num, den, 0.0, 0.0], products)})


def _units(scenario: Scenario, drawn: np.random.Generator, count: int, share: float) -> list[NDArray[np.float64]]:
    """For both variants: 1, num, den and their products of every unit; all 0 where the unit is the other one's."""
    is_b = drawn.random(count) >= share
    den = drawn.geometric(1.0 / scenario.cluster, count) if scenario.cluster > 1.0 else np.ones(count, dtype=np.int64)
    if scenario.p_a is not None and scenario.p_b is not None:
        num = _rates(drawn, np.where(is_b, scenario.p_b, scenario.p_a), den, scenario.cluster > 1.0)
    else:
        num = _values(scenario, drawn, is_b, den)
    whole = den.astype(np.float64)
    every = np.stack([np.ones(count), num, whole, num * num, num * whole, whole * whole])
    return [every * ~is_b, every * is_b]


def _rates(
    drawn: np.random.Generator, chance: NDArray[np.float64], den: NDArray[np.int64], alike: bool
) -> NDArray[np.float64]:
    """Successes of each unit."""
    if not alike:
        return (drawn.random(len(den)) < chance).astype(np.float64)
    weight = (1.0 - ALIKE) / ALIKE  # a beta's of which ALIKE is the correlation of two calls
    inside = (chance > 0.0) & (chance < 1.0)
    held = np.where(inside, chance, 0.5)
    own = np.where(inside, drawn.beta(weight * held, weight * (1.0 - held)), chance)
    return drawn.binomial(den, own).astype(np.float64)


def _values(
    scenario: Scenario, drawn: np.random.Generator, is_b: NDArray[np.bool_], den: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The sum of each unit's calls."""
    mean_a, mean_b = scenario.mean_a or 0.0, scenario.mean_b or 0.0
    spreads = [log(1.0 + (scenario.sd / mean) ** 2) for mean in (mean_a, mean_b)]
    spread = np.where(is_b, spreads[1], spreads[0])
    level = np.where(is_b, log(mean_b), log(mean_a)) - spread / 2.0
    if scenario.cluster <= 1.0:
        return np.exp(level + np.sqrt(spread) * drawn.standard_normal(len(den)))
    level = level + np.sqrt(spread * ALIKE) * drawn.standard_normal(len(den))
    each = np.repeat(level, den) + np.repeat(np.sqrt(spread * (1.0 - ALIKE)), den) * drawn.standard_normal(den.sum())
    return np.add.reduceat(np.exp(each), np.concatenate(([0], np.cumsum(den)[:-1])))
