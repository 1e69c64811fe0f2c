"""What a rollout is made of: what is wanted, where it stands, what is seen of it, what follows.

Always holds: plain frozen data, comparable and without I/O; a figure that is not known is None, never 0; times in a
step are milliseconds of its own clock (`elapsed_ms`), which goes on only while somebody looks, so that neither a jump
of the clock nor a time without a control plane counts.

Deliberately not here: the decision (`advance`), how it is stored (`record`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from outrider_control.loops.experiment.types import Metric, VariantSeen

# Phases
INITIALIZING: Final = "initializing"  # its endpoints are not all there
WAITING: Final = "waiting"  # a gate before the candidate has any traffic
PROGRESSING: Final = "progressing"
WAITING_PROMOTION: Final = "waiting_promotion"  # a gate
PAUSED: Final = "paused"  # by hand, or because nothing can be concluded
PROMOTING: Final = "promoting"  # everything goes to the candidate; sidecars are told
FINALISING: Final = "finalising"  # they have taken it
SUCCEEDED: Final = "succeeded"
FAILED: Final = "failed"
ENDED: Final = (SUCCEEDED, FAILED)
PHASES: Final = (
    *(INITIALIZING, WAITING, PROGRESSING, WAITING_PROMOTION, PAUSED, PROMOTING, FINALISING),
    *ENDED,
)
# In which a step is under way.
STEPPING: Final = (WAITING, PROGRESSING, WAITING_PROMOTION, PAUSED)

# What measurements and analyses come to, the better first.
SUCCESSFUL: Final = "successful"
RUNNING: Final = "running"
INCONCLUSIVE: Final = "inconclusive"
ERROR: Final = "error"
FAILED_ANALYSIS: Final = "failed"

ERROR_LIMIT: Final = 4  # errors in a row that an analysis bears
CONFIRM_MS: Final = 60_000  # that sidecars may take to confirm the last weight
MAX_LOOK_MS: Final = 10_000  # a longer time between two looks counts as this


class UnknownRollout(LookupError):
    """There is no rollout of that name."""


@dataclass(frozen=True, slots=True)
class Analysis:
    """One measurement that must be good for a step to end."""

    metric: Metric
    max: float | None = None
    min: float | None = None
    margin: float | None = None  # against the stable version: worse by at most this
    min_units: int = 50
    interval_ms: int = 10_000
    count: int = 1  # measurements that must be successful
    failure_limit: int = 0
    inconclusive_limit: int = 0  # 0: no bound


@dataclass(frozen=True, slots=True)
class Step:
    """One weight, for a time and until its analyses are good."""

    weight: float
    pause_ms: int = 0
    confirm: bool = False
    analyses: tuple[Analysis, ...] = ()


@dataclass(frozen=True, slots=True)
class Spec:
    """What of a rollout decides."""

    name: str
    agent_id: str
    candidate: str
    stable: str
    steps: tuple[Step, ...]
    analyses: tuple[Analysis, ...] = ()
    progress_deadline_ms: int = 0

    def analyses_of(self, step: int) -> tuple[Analysis, ...]:
        """A candidate without traffic is not measured."""
        one = self.steps[step]
        return (one.analyses or self.analyses) if one.weight > 0.0 else ()


@dataclass(frozen=True, slots=True)
class Base:
    """Where a measurement counts from: the candidate's sums by then. `calls_to`: calls up to a bucket of latency."""

    num: float = 0.0
    den: float = 0.0
    calls_to: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One: SUCCESSFUL, FAILED_ANALYSIS, INCONCLUSIVE or ERROR, and why. `base` is where the next one counts from."""

    state: str
    reason: str
    base: Base
    value: float | None = None
    stable_value: float | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """One analysis in one step."""

    base: Base | None = None  # None: it counts from the next look that sees units
    due_ms: int = 0  # by the step's clock
    state: str = RUNNING
    successful: int = 0
    failed: int = 0
    inconclusive: int = 0
    errors: int = 0
    errors_in_row: int = 0
    value: float | None = None
    stable_value: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Rollout:
    """Where it stands. All that a control plane needs to go on with it, but its spec."""

    phase: str = INITIALIZING
    step: int = 0
    weight: float = 0.0
    aborted: bool = False
    reason: str = ""
    problem: str = ""  # what keeps it, for people; empty: nothing
    resumes: str = ""  # PAUSED: the phase to go on in
    elapsed_ms: int = 0  # in this step, or in PROMOTING
    seen_ms: int = 0  # unix time up to which `elapsed_ms` counts
    step_started_ms: int = 0  # unix time
    ended_ms: int = 0
    runs: tuple[Run, ...] = ()
    candidate_units: int = 0
    stable_units: int = 0

    @property
    def ended(self) -> bool:
        return self.phase in ENDED


@dataclass(frozen=True, slots=True)
class Seen:
    """A rollout at one look. None: nothing of that variant is known."""

    candidate: VariantSeen | None = None
    stable: VariantSeen | None = None
    counted: bool = True  # whether units were looked at; if not, both are None
    missing: str = ""  # endpoints that a variant needs and that are not there, for people
    unconfirmed: int = 0  # sidecars that are connected and have not taken the weight


@dataclass(frozen=True, slots=True)
class Transition:
    """One change that is journalled and told. `author` is empty: the loop's own."""

    action: str  # "initialize", "step", "gate", "pause", "resume", "promote", "finalise", "succeed", "abort"
    before: str  # phase
    phase: str
    step: int
    weight_before: float
    weight: float
    reason: str
    author: str = ""
    inputs: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
