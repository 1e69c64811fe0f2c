"""Kubernetes' HorizontalPodAutoscaler v2 with its defaults, on an external metric: demand, an average value per pod.

    desired = ceil(current x metric / target), unchanged while metric / target is within 1 +- tolerance

Every 15 s; up by at most the larger of 100 % and 4 pods in 15 s; down by at most 100 % in 15 s, to the highest
recommendation of the last 300 s (stabilisation window). Source: kubernetes/kubernetes,
pkg/controller/podautoscaler/{horizontal,replica_calculator}.go and the defaults of autoscaling/v2.

Deliberately not here: the delay of a metrics pipeline. It is shown the demand of the moment, which is to its advantage;
a utilization would stop at 1 and grow by 1 / target a decision at the most.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil

from bench.sim_scale.scaler import View

_HAIR = 1e-9


@dataclass(slots=True)
class Hpa:
    """`target`: calls per pod."""

    target: float
    low: int = 1
    high: int = 1_000
    tolerance: float = 0.1
    stabilization_s: float = 300.0
    period_s: float = 15.0  # of the scale-up policies
    grow_share: float = 1.0
    grow_pods: int = 4
    name: str = "HPA v2"
    tick_s: float = 15.0
    _current: int = 0
    _recommended: list[tuple[float, int]] = field(default_factory=list)
    _added: list[tuple[float, int]] = field(default_factory=list)

    def decide(self, view: View) -> int:
        self._current = self._current or view.ready + view.starting
        recommended = self.recommend(view.running + view.waiting)
        stabilized = self._stabilize(view.now_s, recommended)
        desired = min(max(stabilized, self.low), self.high, max(self._current, self._limit(view.now_s)))
        if desired > self._current:
            self._added.append((view.now_s, desired - self._current))
        self._current = desired
        return desired

    def recommend(self, demand: float) -> int:
        """What the metric alone says."""
        ratio = demand / (self.target * self._current) if self._current else 1.0
        return self._current if abs(ratio - 1.0) <= self.tolerance else ceil(demand / self.target - _HAIR)

    def _stabilize(self, now_s: float, recommended: int) -> int:
        """Never below what was recommended within the window; up there is none."""
        self._recommended = [one for one in self._recommended if one[0] > now_s - self.stabilization_s]
        self._recommended.append((now_s, recommended))
        highest = max([count for _, count in self._recommended])
        return max(recommended, min(self._current, highest))

    def _limit(self, now_s: float) -> int:
        """The most there may be, by what was there when the period began."""
        self._added = [one for one in self._added if one[0] > now_s - self.period_s]
        start = self._current - sum([count for _, count in self._added])
        return max(start + self.grow_pods, ceil(start * (1.0 + self.grow_share) - _HAIR))
