"""What the demand is going to be: by a straight line through what was seen, and by the calls that arrive.

`linear` is AIBrix's predictor: no forecast of fewer than three moments, none below 0 and none above four times the
demand there is. `surge` is Little's law: calls that arrive per second times the time a call takes are the calls at once
it comes to. Demand itself shows a step in the load only once so many calls have arrived, which takes as long as a call.

Always holds: a surge is one only where the rate has doubled for certain, by `DEVIATIONS` of what the count of calls
usually varies by, and that is at least Poisson's: few calls are none, nor are batches where calls come in batches.

Deliberately not here: what is done with it (`decide`).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, sqrt
from typing import NamedTuple

from outrider_control.loops.scale.types import Seen

MIN_POINTS = 3
MAX_GROWTH = 4.0  # times the newest demand
MIN_LOOKS, MAX_LOOKS = 10.0, 10_000.0  # before the time of a call is believed; that are counted
DEVIATIONS = 3.0  # by which more must arrive than chance brings
GROWTH = 2.0  # times the mean rate, that arrivals come to at least
SHORTEST_MS = 1_900  # that arrivals are counted over: two looks of a loop that is a little early


def linear(samples: Sequence[tuple[int, float]], horizon_ms: int) -> float | None:
    """Demand in `horizon_ms` after the newest of `samples` ((at_ms, demand), oldest first), by least squares.

    None: too few of them, or all of one moment.
    """
    if len(samples) < MIN_POINTS:
        return None
    newest_ms, newest = samples[-1]
    times = [at_ms - newest_ms for at_ms, _ in samples]  # small numbers: squares of unix times lose digits
    mean_ms = sum(times) / len(times)
    mean = sum([demand for _, demand in samples]) / len(samples)
    spread = sum([(time - mean_ms) ** 2 for time in times])
    if spread <= 0.0:
        return None
    slope = sum([(time - mean_ms) * (demand - mean) for time, (_, demand) in zip(times, samples, strict=True)]) / spread
    return min(max(0.0, mean + slope * (horizon_ms - mean_ms)), MAX_GROWTH * newest)


class Flow(NamedTuple):
    """What is kept of the calls that come and go, as `State.flow` holds it."""

    at_ms: float = 0.0  # of the last look
    demand: float = 0.0  # then
    looks: float = 0.0
    running: float = 0.0  # calls at once, mean of about the stable window
    per_s: float = 0.0  # calls ended, the same
    arrived: float = 0.0  # calls per look, the same, up to the panic window: what it holds may be a surge
    arrived_squared: float = 0.0

    @property
    def dispersion(self) -> float:
        """Variance of the calls of one look over their mean; 1 for calls that come by chance, more for batches."""
        variance = self.arrived_squared - self.arrived * self.arrived
        return max(1.0, variance / self.arrived) if self.arrived > 1e-3 else 1.0

    @property
    def call_s(self) -> float | None:
        """How long a call takes."""
        return self.running / self.per_s if self.looks >= MIN_LOOKS and self.per_s > 1e-3 else None


Arrivals = tuple[tuple[int, float, float], ...]  # (at_ms, seconds, calls that arrived in them), oldest first


def flow(
    seen: Seen, before: Flow, arrivals: Arrivals, now_ms: int, panic_ms: int, stable_ms: int
) -> tuple[Flow, Arrivals]:
    """With one more look; `seen` holds usable figures of calls. Arrivals are kept for the panic window."""
    demand = (seen.in_flight or 0.0) + (seen.queued or 0.0)
    passed_ms, rate = now_ms - before.at_ms, seen.finished_per_s
    kept = [one for one in arrivals if one[0] > now_ms - panic_ms]
    arrived, squared = before.arrived, before.arrived_squared
    for _, passed_s, calls in arrivals[: len(arrivals) - len(kept)]:
        share = max(passed_s * 1_000 / stable_ms, 1.0 / (before.looks + 1.0))
        arrived, squared = arrived + share * (calls - arrived), squared + share * (calls * calls - squared)
    before = before._replace(arrived=arrived, arrived_squared=squared)
    if rate is None or not isfinite(rate) or rate < 0.0 or not before.at_ms or not 0 < passed_ms <= panic_ms:
        return before._replace(at_ms=float(now_ms), demand=demand), tuple(kept)
    passed_s = passed_ms / 1_000
    kept.append((now_ms, passed_s, max(0.0, rate * passed_s + demand - before.demand)))
    share = max(passed_ms / stable_ms, 1.0 / (before.looks + 1.0))
    running = before.running + share * ((seen.in_flight or 0.0) - before.running)
    per_s = before.per_s + share * (rate - before.per_s)
    looks = min(before.looks + 1.0, MAX_LOOKS)
    return Flow(float(now_ms), demand, looks, running, per_s, arrived, squared), tuple(kept)


def surge(now: Flow, arrivals: Arrivals) -> float | None:
    """Calls at once that what arrives comes to, by the steepest of the times up to now; None: not known."""
    call_s = now.call_s
    if call_s is None:
        return None
    steepest, calls, seconds = 0.0, 0.0, 0.0
    for _, passed_s, arrived in reversed(arrivals):
        calls, seconds = calls + arrived, seconds + passed_s
        if seconds * 1_000 < SHORTEST_MS:
            continue
        if calls - DEVIATIONS * sqrt(calls * now.dispersion) >= GROWTH * now.per_s * seconds:
            steepest = max(steepest, calls / seconds)
    return steepest * call_s
