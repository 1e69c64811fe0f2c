"""Knative's pod autoscaler: mean concurrency over a stable and a panic window, every 2 s.

    stable = ceil(mean over 60 s / target), panic = ceil(mean over 6 s / target), both within
    [floor(ready / 2), ceil(1000 x ready)]; panic mode from panic / ready >= threshold on, until a stable window after
    it last was; in panic mode the highest of both there has been in it; then the highest of the scale-down delay.

Starts in panic mode where more than one pod is ready. Source: knative/serving, pkg/autoscaler/scaling/autoscaler.go and
config-autoscaler. Concurrency is what runs and what waits in the activator: our queue stands for it.

Deliberately not here: the delay of scraping pods (means are exact, to its advantage), scale to zero, initial scale.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import ceil, floor

from bench.sim_scale.scaler import View

_HAIR = 1e-9


@dataclass(slots=True)
class Kpa:
    """`target`: calls per pod, target utilization x container concurrency."""

    target: float
    low: int = 1
    high: int = 1_000
    stable_s: float = 60.0
    panic_s: float = 6.0
    panic_threshold: float = 2.0
    max_up: float = 1_000.0
    max_down: float = 2.0
    scale_down_delay_s: float = 0.0
    name: str = "Knative KPA"
    tick_s: float = 2.0
    panic_at_s: float | None = None  # when it was last over the threshold
    _panic_pods: int = 0
    _is_first: bool = True
    _seen: deque[tuple[float, float]] = field(default_factory=deque)  # (now_s, demand_s), a tick more than the window
    _delayed: deque[tuple[float, int]] = field(default_factory=deque)

    def decide(self, view: View) -> int:
        self._seen.append((view.now_s, view.demand_s))
        while len(self._seen) > 2 and self._seen[1][0] <= view.now_s - self.stable_s:
            self._seen.popleft()
        if self._is_first and view.ready > 1:
            self.panic_at_s, self._panic_pods = view.now_s, view.ready
        self._is_first = False
        demand = view.running + view.waiting
        return self.step(view.now_s, view.ready, self._mean(self.stable_s, demand), self._mean(self.panic_s, demand))

    def step(self, now_s: float, ready: int, stable: float, panic: float) -> int:
        """One tick, by the means of both windows."""
        ready = max(1, ready)
        least, most = floor(ready / self.max_down), ceil(ready * self.max_up - _HAIR)
        wanted_panic = ceil(panic / self.target - _HAIR)
        desired = min(max(ceil(stable / self.target - _HAIR), least), most)
        if wanted_panic / ready >= self.panic_threshold:
            self.panic_at_s = now_s
        elif self.panic_at_s is not None and self.panic_at_s + self.stable_s < now_s:
            self.panic_at_s, self._panic_pods = None, 0
        if self.panic_at_s is not None:
            self._panic_pods = max(self._panic_pods, desired, min(max(wanted_panic, least), most))
            desired = self._panic_pods
        return min(max(self._delay(now_s, desired), self.low), self.high)

    def _mean(self, window_s: float, demand: float) -> float:
        """Of the last `window_s`, or since the start if that is less."""
        now_s, newest = self._seen[-1]
        since_s, oldest = next(one for one in self._seen if one[0] >= now_s - window_s)
        return (newest - oldest) / (now_s - since_s) if now_s > since_s else demand

    def _delay(self, now_s: float, desired: int) -> int:
        """The highest of the scale-down delay; as a queue in which only those stay that may still become it."""
        while self._delayed and self._delayed[-1][1] <= desired:
            self._delayed.pop()
        self._delayed.append((now_s, desired))
        while self._delayed[0][0] < now_s - self.scale_down_delay_s:
            self._delayed.popleft()
        return self._delayed[0][1]
