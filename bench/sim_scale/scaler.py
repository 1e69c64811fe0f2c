"""What a scaler is to the simulator, and our own: the control plane's `decide`, unchanged.

Always holds: all scalers are shown the same figures at the same cost; none sees a call that has not arrived yet.

Deliberately not here: Kubernetes' (`hpa`), Knative's (`kpa`), how a number becomes instances (`fleet`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from outrider.policy import Scaling
from outrider_control.loops.scale.decide import decide
from outrider_control.loops.scale.types import Decision, Seen, State

EPOCH_MS = 1_800_000_000_000  # the simulation's second 0


@dataclass(slots=True)
class View:
    """The fleet at one moment."""

    now_s: float
    running: int
    waiting: int
    ready: int
    starting: int
    draining: int
    capacity: int  # calls at once of one instance
    demand_s: float = 0.0  # integral of running + waiting since the start: means over any time follow from it
    ended: int = 0  # calls since the start


class Scaler(Protocol):
    name: str
    tick_s: float

    def decide(self, view: View) -> int:
        """How many instances there should be."""
        ...


class Ours:
    """`outrider_control.loops.scale.decide`, once a second as the loop asks it."""

    tick_s = 1.0

    def __init__(self, scaling: Scaling, name: str = "outrider"):
        self.name = name
        self.scaling = scaling
        self.state = State()
        self.last: Decision | None = None
        self._before: tuple[float, int] = (0.0, 0)

    def decide(self, view: View) -> int:
        passed_s = view.now_s - self._before[0]
        rate = (view.ended - self._before[1]) / passed_s if passed_s > 0 else None
        self._before = view.now_s, view.ended
        now_ms = EPOCH_MS + round(view.now_s * 1_000)
        seen = Seen(
            "agent",
            now_ms,
            view.running,
            view.waiting,
            view.ready,
            view.starting,
            view.draining,
            view.capacity,
            "endpoints",
            reports=1,
            sidecars=1,
            newest_report_ms=now_ms,
            finished_per_s=rate,
        )
        self.last, self.state = decide(seen, self.state, self.scaling, now_ms)
        return self.last.desired
