"""Whether an agent is well, and why not: from figures, endpoints and sidecars to a state and reasons.

Always holds: pure; each reason says what is wrong and what to do; the state is that of the worst reason; an agent that
nobody called and of which nothing is known to be wrong is "unknown", never "healthy": no data is no good news.

Deliberately not here: alerts over time (a loop's work), how a single call went (`explain`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from outrider.policy import Agent
from outrider_control.core.figures import Figures

HEALTHY: Final = "healthy"
DEGRADED: Final = "degraded"
UNHEALTHY: Final = "unhealthy"
UNKNOWN: Final = "unknown"
INFO: Final = "info"
SEVERITIES: Final = (UNHEALTHY, DEGRADED, INFO)  # the worst first

ENOUGH_CALLS: Final = 20  # from how many calls on a share of errors says something
MANY_ERRORS: Final = 0.5
SOME_ERRORS: Final = 0.05
LONG_QUEUE_MS: Final = 1_000
LATE_MS: Final = 30_000  # a sidecar that is behind for so long does not just take its time
SKEWED_MS: Final = 5_000
_SHOWN: Final = 3  # sidecars named one by one

_ADVICE: Final = {
    "UNAVAILABLE": "its endpoints cannot be reached: see `outrider endpoints`, and whether the agent runs",
    "DEADLINE_EXCEEDED": "it is too slow for its callers: see P95, timeout_ms, and add instances",
    "RESOURCE_EXHAUSTED": "calls are refused for load: add instances or raise limits.max_in_flight",
    "UNIMPLEMENTED": "callers ask for methods it does not have: compare versions of caller and agent",
    "INTERNAL": "the agent fails: see its log and `outrider traces list --errors`",
    "UNKNOWN": "the agent raises errors: see its log and `outrider traces list --errors`",
    "DATA_LOSS": "the agent loses data: see its log",
}
_OTHERWISE: Final = "see `outrider traces list --errors`"


class Reason(NamedTuple):
    """One reason."""

    severity: str
    text: str


@dataclass(frozen=True, slots=True)
class SidecarState:
    """What matters here of one sidecar."""

    name: str  # node, or instance
    beside: bool  # whether it stands beside this agent
    connected: bool
    behind: int
    silent_ms: int  # since it last took an update
    clock_offset_ms: int
    refusals: tuple[str, ...] = ()  # of this agent's resources


@dataclass(frozen=True, slots=True)
class AgentState:
    """What is known of one agent."""

    figures: Figures  # of the last minutes
    agent: Agent | None = None  # its policy; None: it has none
    endpoints: int = 0
    sidecars: Sequence[SidecarState] = field(default_factory=tuple)  # of the mesh
    in_flight: int = 0
    queued: int = 0
    capacity: int = 0  # 0: not known


class Verdict(NamedTuple):
    """The state and its reasons, the worst first."""

    state: str
    reasons: tuple[Reason, ...]


def judge(seen: AgentState) -> Verdict:
    """How an agent is."""
    reasons = [
        *_policy(seen),
        *_endpoints(seen),
        *_errors(seen.figures),
        *_load(seen),
        *_sidecars(seen.sidecars),
        *_figures(seen.figures),
    ]
    reasons.sort(key=lambda reason: SEVERITIES.index(reason.severity))
    worst = reasons[0].severity if reasons else INFO
    if worst != INFO:
        return Verdict(worst, tuple(reasons))
    if not seen.figures.requests:
        return Verdict(UNKNOWN, (Reason(INFO, "no calls in the last five minutes"), *reasons))
    return Verdict(HEALTHY, tuple(reasons))


def _policy(seen: AgentState) -> Iterator[Reason]:
    if seen.agent is None:
        yield Reason(DEGRADED, "it has no policy, so sidecars do not know it: `outrider agents apply -f FILE`")


def _endpoints(seen: AgentState) -> Iterator[Reason]:
    if seen.agent is None:
        return
    if not seen.endpoints:
        yield Reason(
            UNHEALTHY,
            "it has no endpoint, so every call fails: start an instance that registers itself, or name one in "
            "`endpoints` of its policy",
        )
        return
    wanted = seen.agent.scaling.min_instances
    if seen.endpoints < wanted:
        text = f"{seen.endpoints} of at least {wanted} endpoints (scaling.min_instances): start more instances"
        yield Reason(DEGRADED, text)


def _errors(figures: Figures) -> Iterator[Reason]:
    rate = figures.error_rate
    if not rate:
        return
    finished = figures.requests - figures.cancelled
    if rate < SOME_ERRORS:
        severity = INFO
    elif rate >= MANY_ERRORS and finished >= ENOUGH_CALLS:
        severity = UNHEALTHY
    else:  # few calls: noteworthy, and no proof
        severity = DEGRADED
    failing = {name: count for name, count in (figures.statuses or {}).items() if name in _ADVICE}
    text = f"{figures.errors:,} of {finished:,} calls failed ({rate:.1%})"
    if failing:
        most = max(failing, key=lambda name: (failing[name], name))
        text += f", mostly {most}: {_ADVICE[most]}"
    else:
        text += f": {_OTHERWISE}"
    yield Reason(severity, text)


def _load(seen: AgentState) -> Iterator[Reason]:
    (waited_us,) = seen.figures.queue_us(0.95)
    if waited_us is not None and waited_us > LONG_QUEUE_MS * 1_000:
        text = f"calls wait {waited_us / 1_000_000:,.1f} s (P95) for admission: add instances"
        yield Reason(DEGRADED, text)
    elif seen.queued and seen.capacity and seen.in_flight >= seen.capacity:
        text = f"all {seen.capacity:,} places are taken and {seen.queued:,} calls wait: add instances"
        yield Reason(DEGRADED, text)


def _sidecars(sidecars: Sequence[SidecarState]) -> Iterator[Reason]:
    for sidecar in [one for one in sidecars if one.refusals][:_SHOWN]:
        text = f"sidecar {sidecar.name} refuses what it was sent and keeps the one before: {sidecar.refusals[0]};"
        yield Reason(DEGRADED, f"{text} mend the policy and apply again, roll back, or bring the sidecar up to date")
    connected = [one for one in sidecars if one.connected]
    late = [one.name for one in connected if one.behind and one.silent_ms > LATE_MS and not one.refusals]
    if late:
        yield Reason(DEGRADED, f"{_named(late)} took no update for {LATE_MS // 1_000} s: see its log, or restart it")
    gone = [one.name for one in sidecars if one.beside and not one.connected]
    beside = [one.name for one in connected if one.beside]
    if gone and not beside:
        text = f"{_named(gone)} beside it is not connected: it runs on the policy it holds; see that it runs"
        yield Reason(DEGRADED, text)
    if not connected:
        yield Reason(INFO, "no sidecar is connected, so a change of policy reaches nobody now")
    skewed = [one.name for one in connected if abs(one.clock_offset_ms) > SKEWED_MS]
    if skewed:
        yield Reason(INFO, f"the clock of {_named(skewed)} is off by more than {SKEWED_MS // 1_000} s: set it by NTP")


def _figures(figures: Figures) -> Iterator[Reason]:
    if figures.dropped:
        yield Reason(INFO, f"{figures.dropped:,} spans were dropped, so the figures are too low: see `outrider status`")
    if figures.unpriced:
        text = f"{figures.unpriced:,} calls used a model without a known price: name it in `prices` of the config"
        yield Reason(INFO, text)


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"sidecar {shown}{more}"
