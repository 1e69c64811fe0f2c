"""What the scale loop sees, keeps, decides and drives: plain data, and the interface of engines.

Always holds: None means "not known", never zero; times are unix milliseconds.

Deliberately not here: how it is found out (`observe`), the decision (`decide`), what is done (`act`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Protocol

_NOTHING: Mapping[str, Any] = MappingProxyType({})

# States of an instance.
STARTING: Final = "starting"
READY: Final = "ready"
DRAINING: Final = "draining"
FAILED: Final = "failed"


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance as its engine knows it."""

    name: str  # the engine's: "tax-3", a pod's name
    address: str = ""  # as callers' sidecars dial it; empty: not known (yet)
    state: str = STARTING
    started_ms: int = 0
    note: str = ""  # in words, for people: the last lines of a process that died


class EngineError(Exception):
    """An engine could not do what was asked: what, where, and what to do about it."""


class Engine(Protocol):
    """Starts and ends instances of agents. Every method may raise EngineError and nothing else.

    `chooses`: whether `shrink` ends the very instances that are named (they are drained by then); else the loop drains
    nothing and the platform's own hooks (preStop) do. `pulls`: whether the platform asks for the demand by itself and
    decides (KEDA); then `grow` and `shrink` are never called.
    """

    name: str  # of its section in the configuration
    kind: str  # "local", "kubernetes", "keda", "webhook"
    chooses: bool
    pulls: bool

    def has(self, agent_id: str) -> bool:
        """Whether it is told how to run this agent."""
        ...

    async def start(self) -> None:
        """Begin; take over what a control plane before has left running."""
        ...

    async def instances(self, agent_id: str) -> Sequence[Instance]:
        """All there are, those that have failed lately included."""
        ...

    async def grow(self, agent_id: str, desired: int) -> None:
        """Bring the number of instances up to `desired`; returns once it is asked for, not once they are ready."""
        ...

    async def shrink(self, agent_id: str, desired: int, leaving: Sequence[Instance]) -> None:
        """Bring the number down to `desired` by ending `leaving`."""
        ...

    async def close(self) -> None:
        """Let go. Instances go on."""
        ...


@dataclass(frozen=True, slots=True)
class Seen:
    """One agent at one moment."""

    agent_id: str
    now_ms: int
    in_flight: float | None  # calls that run; None: no sidecar's report is fresh
    queued: float | None  # calls that wait
    ready: int  # instances that serve
    starting: int = 0  # asked for and not serving yet
    draining: int = 0  # given no more calls
    capacity: float | None = None  # calls at once of one instance, as the endpoints or ingresses say
    capacity_source: str = ""  # "endpoints" or "learnt" (an ingress whose limit adapts); empty without
    reports: int = 0  # fresh reports of sidecars
    sidecars: int = 0  # connected: those without a fresh report lower the confidence
    newest_report_ms: int = 0  # 0: there has never been one
    finished_per_s: float | None = None  # calls ended per second, for learning a capacity


@dataclass(frozen=True, slots=True)
class State:
    """What is carried from one decision to the next. A fresh one after a restart knows `desired` from the store."""

    desired: int = 0
    changed_ms: int = 0  # when `desired` was last changed, either way; 0: never
    samples: tuple[tuple[int, float], ...] = ()  # (at_ms, demand), oldest first, no older than the stable window
    peaks: tuple[tuple[int, float], ...] = ()  # (at_ms, demand), falling: the highest of the cooldown comes first
    panic_since_ms: int = 0  # 0: no panic
    panic_until_ms: int = 0  # when it ends if demand does not rise again
    steady_since_ms: int = 0  # from when on no look was without data; 0: the last one was
    idle_since_ms: int = 0  # 0: there is demand
    flow: tuple[float, ...] = ()  # what is kept of the calls that come and go
    arrivals: tuple[tuple[int, float, float], ...] = ()  # (at_ms, seconds, calls in them), of the panic window
    learnt_capacity: float | None = None
    learning: tuple[float, ...] = ()  # what the learner keeps
    restored: bool = False  # from the store, nothing was seen since


@dataclass(frozen=True, slots=True)
class Decision:
    """How many instances there should be, and why."""

    agent_id: str
    at_ms: int
    desired: int
    action: str  # "up", "down", "hold"
    reason: str  # for people
    confidence: float = 1.0
    panic: bool = False
    demand: float | None = None
    capacity: float | None = None
    capacity_source: str = ""  # "policy", "endpoints", "learnt"
    utilization: float | None = None
    min_instances: int = 0  # bounds after the cost cap
    max_instances: int = 0
    inputs: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)  # all of it, as JSON can hold it
