"""What an experiment's decision is made of, and what it is.

Always holds: plain frozen data, comparable and without I/O; a figure that is not known is None, never 0.

Deliberately not here: where it is seen (`observe`), the decision (`decide`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, isfinite
from types import MappingProxyType
from typing import Any, Final

from outrider_control.core.stats.moments import Moments
from outrider_control.core.stats.quantiles import BucketMoments

UP: Final = "up"
DOWN: Final = "down"

SEQUENTIAL: Final = "sequential"
FIXED: Final = "fixed"
BANDIT: Final = "bandit"
METHODS: Final = (SEQUENTIAL, FIXED, BANDIT)

# Actions
HOLD: Final = "hold"
STOP: Final = "stop"
RESHARE: Final = "reshare"

# Verdicts; "" is none yet, "stopped" is by hand.
WIN: Final = "win"
HARM: Final = "harm"
NO_DIFFERENCE: Final = "no_difference"
SRM: Final = "srm"
INCONCLUSIVE: Final = "inconclusive"
STOPPED: Final = "stopped"

QUANTILE: Final = "latency_quantile"

# Metrics that are known by name, and their own direction. Every other name is a score of feedback, "attribute:NAME" a
# numeric attribute of the span.
DIRECTIONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "error_rate": DOWN,
        "latency_mean": DOWN,
        "slow_share": DOWN,
        QUANTILE: DOWN,
        "first_chunk_mean": DOWN,
        "cost": DOWN,
        "tokens": DOWN,
        "rating": UP,
        "complaint_rate": DOWN,
        "accuracy": UP,
    }
)


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of calls; times are milliseconds."""

    name: str
    direction: str = ""  # UP or DOWN; empty: the metric's own
    threshold_ms: float = 0.0  # slow_share
    quantile: float = 0.0  # latency_quantile

    @property
    def key(self) -> str:
        """Under which its sums are kept: "error_rate", "slow_share:2000", "score:accuracy", "attribute:x"."""
        if self.name == "slow_share":
            return f"slow_share:{self.threshold_ms:g}"
        if self.name == "accuracy" or (self.name not in DIRECTIONS and not self.name.startswith("attribute:")):
            return f"score:{self.name}"
        return self.name

    @property
    def up(self) -> bool:
        """Whether more of it is better."""
        return (self.direction or DIRECTIONS.get(self.name, UP)) == UP

    @property
    def is_quantile(self) -> bool:
        return self.name == QUANTILE

    @property
    def label(self) -> str:
        """For people."""
        if self.is_quantile:
            return f"P{self.quantile * 100:g} latency"
        return self.key.removeprefix("score:")


@dataclass(frozen=True, slots=True)
class Guardrail:
    """What must not get worse by more than a margin, plain or relative to the first variant's value."""

    metric: Metric
    margin: float = 0.0
    relative_margin: float = 0.0

    def allowed(self, control: float) -> float:
        return self.margin or self.relative_margin * abs(control)


@dataclass(frozen=True, slots=True)
class Spec:
    """What of an experiment decides. The first variant is what the others are compared with."""

    name: str
    variants: tuple[str, ...]
    shares: tuple[float, ...]
    metric: Metric
    guardrails: tuple[Guardrail, ...] = ()
    sample_size: int = 0  # units of all variants; 0: not said
    method: str = SEQUENTIAL
    alpha: float = 0.05
    minimum_effect: float = 0.0
    stop_for_win: bool = True
    history: bool = False
    bandit_floor: float = 0.05
    bandit_burn_in: int = 100
    min_units: int = 100  # of every variant, before anything is concluded
    max_duration_s: int = 0


@dataclass(frozen=True, slots=True)
class VariantSeen:
    """One variant by now. `moments` and `buckets` by the metric's key."""

    name: str
    units: int = 0
    calls: int = 0
    moments: Mapping[str, Moments] = field(default_factory=lambda: MappingProxyType({}))
    buckets: BucketMoments | None = None  # of latency in milliseconds, where a quantile is asked for
    feedback: int = 0
    satisfaction: float | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """One experiment at one look. `variants` in the order of the spec; `now_ms`: when it was read."""

    now_ms: int
    started_ms: int
    variants: tuple[VariantSeen, ...]
    flipped: int = 0  # units that were left out because their variant changed
    left_out: int = 0  # units past the bound of what is kept


@dataclass(frozen=True, slots=True)
class Running:
    """The intersection of a comparison's intervals at all looks. An end that is not known is infinite."""

    low: float = -inf
    high: float = inf
    drifted: bool = False  # it was empty once: the effect changes over time, and only a look's own interval holds


@dataclass(frozen=True, slots=True)
class State:
    """What is carried from look to look."""

    looks: int = 0
    last_ms: int = 0  # of the last look
    srm_log_evidence: float = 0.0  # the highest of all looks
    elapsed_ms: int = 0  # while it ran, as far as the clock can be believed
    running: Mapping[str, Running] = field(default_factory=lambda: MappingProxyType({}))  # by variant
    shares: tuple[float, ...] = ()  # in force; empty: the spec's
    reshared_ms: int = 0  # bandit: elapsed when shares last followed the chances; 0: they have not
    out: tuple[str, ...] = ()  # variants that were taken out for harm

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it."""
        running = {
            name: [_finite(one.low), _finite(one.high), one.drifted] for name, one in sorted(self.running.items())
        }
        return {
            "looks": self.looks,
            "last_ms": self.last_ms,
            "srm_log_evidence": self.srm_log_evidence,
            "elapsed_ms": self.elapsed_ms,
            "running": running,
            "shares": list(self.shares),
            "reshared_ms": self.reshared_ms,
            "out": list(self.out),
        }

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> State:
        """From `plain`; what is missing has its default."""
        running = {
            name: Running(-inf if low is None else low, inf if high is None else high, bool(drifted))
            for name, (low, high, drifted) in plain.get("running", {}).items()
        }
        return cls(
            int(plain.get("looks", 0)),
            int(plain.get("last_ms", 0)),
            float(plain.get("srm_log_evidence", 0.0)),
            int(plain.get("elapsed_ms", 0)),
            running,
            tuple(plain.get("shares", ())),
            int(plain.get("reshared_ms", 0)),
            tuple(plain.get("out", ())),
        )


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


@dataclass(frozen=True, slots=True)
class ComparisonResult:
    """One variant against the first by the main metric."""

    variant: str
    control: float | None = None
    value: float | None = None
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    verdict: str = "open"  # "better", "worse", "no_difference", "open"

    @property
    def relative(self) -> float | None:
        return self.effect / abs(self.control) if self.effect is not None and self.control else None


@dataclass(frozen=True, slots=True)
class GuardrailResult:
    """One guardrail and one variant; `harm` counts worse up."""

    metric: str
    variant: str
    harm: float | None
    low: float | None  # the least harm that is compatible with the data
    high: float | None
    margin: float
    state: str  # "kept", "open", "breached", "unknown"


@dataclass(frozen=True, slots=True)
class SrmSeen:
    """Whether units came as they were to be divided."""

    p_value: float | None = None
    log_evidence: float = 0.0
    mismatch: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done, why, and what may be concluded."""

    at_ms: int
    action: str
    reason: str  # why this action
    conclusion: str  # one sentence
    verdict: str = ""  # only where the action is to stop
    winner: str = ""
    harmful: tuple[str, ...] = ()  # variants that are to be aborted: with "stop", or with "reshare" while others go on
    comparisons: tuple[ComparisonResult, ...] = ()
    guardrails: tuple[GuardrailResult, ...] = ()
    srm: SrmSeen = field(default_factory=SrmSeen)
    shares: tuple[float, ...] = ()  # reshare: those to come
    best: tuple[float, ...] = ()  # bandit: chances to be the best
    hidden: bool = False  # fixed horizon: no figure of the main metric is to be shown yet
    inputs: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
