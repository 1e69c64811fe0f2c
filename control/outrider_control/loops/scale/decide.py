"""How many instances an agent should have: demand over what one instance is to carry.

    demand = calls that run + calls that wait
    needed = demand / (target_utilization x capacity of one instance)

Demand and not utilization, for utilization stops at 1 and could ask for 1 / target as many at the most. Two windows, as
Knative's: the stable one, and the panic one for sudden rises; between `scale_down` and `scale_up` nothing is done.

Always holds:
- The number lies between the bounds. The cost cap lowers the upper one, never below the lower one.
- Fewer instances only after a whole stable window without a gap in the data, out of panic, `cooldown_s` after the last
  change, with (nearly) all sidecars heard of; and then as many as the highest demand of the cooldown needs (mean of a
  panic window), so that what comes again soon finds them. Only lowered bounds go before that.
- Without data, or without a capacity, the last number stays; calls that wait at zero instances get one at once.
- Pure: the same arguments give the same decision, and every decision carries what it was taken from.

Deliberately not here: what is seen (`observe`), what is done (`act`), backing off from an engine that fails (`loop`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil, floor, isfinite
from typing import Any, NamedTuple

from outrider.policy import Scaling
from outrider_control.loops.scale import capacity, forecast
from outrider_control.loops.scale.forecast import Flow
from outrider_control.loops.scale.types import Decision, Seen, State

SURE = 0.9  # confidence below which nothing is taken away
MAX_SAMPLES = 600  # in the stable window; closer ones become one, the larger
GAP_MS = 5_000  # without data, or the panic window where that is longer: the stable window begins anew
_HAIR = 1e-9  # of rounding in a quotient that is rounded up
_COUNTS = ("in_flight", "queued", "ready", "starting")


class Bounds(NamedTuple):
    low: int
    high: int
    note: str = ""  # where the cost cap rules


class Figures(NamedTuple):
    """What a decision is taken from, worked out."""

    demand: float
    stable: float  # mean of the stable window
    panic: float  # mean of the panic window, or what the calls that arrive come to where that is more
    highest: float  # mean of the panic window within the cooldown
    ahead: float | None  # forecast
    capacity: float
    source: str


class Case(NamedTuple):
    """One call of `decide`."""

    seen: Seen
    state: State
    scaling: Scaling
    now_ms: int
    base: int  # what there is to be if nothing speaks against it
    bounds: Bounds
    confidence: float
    refused: dict[str, float]  # figures that cannot be
    figures: Figures | None = None


class Verdict(NamedTuple):
    desired: int
    why: str


def decide(seen: Seen, state: State, scaling: Scaling, now_ms: int) -> tuple[Decision, State]:
    """How many instances there should be, and what to pass on to the next decision. `now_ms` never goes back."""
    case = Case(seen, state, scaling, now_ms, _base(seen, state), _bounds(scaling), _confidence(seen), _refused(seen))
    if not scaling.enabled:
        bounds = Bounds(case.base, case.base)
        return _settle(_blind(case)._replace(bounds=bounds), Verdict(case.base, "scaling is off in the policy"))
    impossible = [f"{name} is {value}" for name, value in case.refused.items() if name in _COUNTS]
    if impossible:
        return _settle(_blind(case), Verdict(case.base, f"no data: {', '.join(impossible)}, which cannot be"))
    if seen.in_flight is None or seen.queued is None:
        return _settle(_blind(case), Verdict(case.base, "no data: no sidecar's report is fresh"))
    case = case._replace(state=_remember(case, seen.in_flight + seen.queued))
    size, source = capacity.known(seen, case.state, scaling)
    if size is None:
        return _settle(case, _without_capacity(case, seen.in_flight + seen.queued))
    case = case._replace(figures=_figures(case, size, source))
    case = case._replace(state=_panic(case))
    return _settle(case, _verdict(case))


def _base(seen: Seen, state: State) -> int:
    """What was decided last; at first what there is, so that a restart takes nothing away."""
    if state.restored or not (state.changed_ms or state.desired or state.samples):
        return max(0, state.desired, seen.ready + seen.starting)
    return state.desired


def _bounds(scaling: Scaling) -> Bounds:
    low, high = scaling.min_instances, max(scaling.min_instances, scaling.max_instances)
    if scaling.instance_usd_per_h <= 0 or scaling.max_usd_per_h <= 0:
        return Bounds(low, high)
    affordable = floor(scaling.max_usd_per_h / scaling.instance_usd_per_h + _HAIR)
    if affordable >= high:
        return Bounds(low, high)
    note = f"{scaling.max_usd_per_h:g} USD per hour pay for {affordable}"
    if affordable < low:
        return Bounds(low, low, f"{note}, but min_instances {low} stands")
    return Bounds(low, affordable, note)


def _confidence(seen: Seen) -> float:
    """The share of the sidecars that is heard of: who is not may have calls that nobody counts."""
    if seen.in_flight is None:
        return 0.0
    return min(1.0, max(0, seen.reports) / seen.sidecars) if seen.sidecars > 0 else 1.0


def _refused(seen: Seen) -> dict[str, float]:
    values = {name: getattr(seen, name) for name in (*_COUNTS, "capacity", "finished_per_s")}
    return {name: value for name, value in values.items() if value is not None and not (isfinite(value) and value >= 0)}


def _blind(case: Case) -> Case:
    """Nothing could be learnt from this look."""
    return case._replace(state=replace(case.state, steady_since_ms=0, idle_since_ms=0), confidence=0.0)


def _remember(case: Case, demand: float) -> State:
    """The state with this look in it."""
    state, now_ms, window_ms = case.state, case.now_ms, case.scaling.stable_window_s * 1_000
    samples = [sample for sample in state.samples if now_ms - sample[0] < window_ms]
    if samples and (now_ms - samples[-1][0]) * MAX_SAMPLES < window_ms:
        samples[-1] = samples[-1][0], max(samples[-1][1], demand)
    else:
        samples.append((now_ms, demand))
    panic = _mean_since(samples, now_ms - case.scaling.panic_window_s * 1_000)
    gap_ms = max(GAP_MS, case.scaling.panic_window_s * 1_000)
    is_steady = bool(state.samples) and now_ms - state.samples[-1][0] <= gap_ms
    learnt, learning = capacity.learn(case.seen, state)
    panic_ms = case.scaling.panic_window_s * 1_000
    flow, arrivals = forecast.flow(case.seen, Flow(*state.flow), state.arrivals, now_ms, panic_ms, window_ms)
    return replace(
        state,
        samples=tuple(samples),
        peaks=_peaks(state.peaks, now_ms, panic, max(window_ms, case.scaling.cooldown_s * 1_000)),
        idle_since_ms=0 if demand else state.idle_since_ms or now_ms,
        steady_since_ms=(state.steady_since_ms if is_steady else 0) or now_ms,
        flow=tuple(flow),
        arrivals=arrivals,
        learnt_capacity=learnt,
        learning=learning,
    )


def _mean_since(samples: Sequence[tuple[int, float]], since_ms: int) -> float:
    """Of the samples after that, of the newest one at least."""
    lately = [demand for at_ms, demand in samples if at_ms > since_ms] or [samples[-1][1]]
    return sum(lately) / len(lately)


def _peaks(
    peaks: Sequence[tuple[int, float]], now_ms: int, demand: float, window_ms: int
) -> tuple[tuple[int, float], ...]:
    """The highest demand of a window that moves: those alone, falling, that still may become it."""
    kept = [peak for peak in peaks if now_ms - peak[0] < window_ms and peak[1] > demand]
    if kept and (now_ms - kept[-1][0]) * MAX_SAMPLES < window_ms:  # the higher one stays for the lower one
        return (*kept[:-1], (now_ms, kept[-1][1]))
    return (*kept, (now_ms, demand))


def _figures(case: Case, size: float, source: str) -> Figures:
    state, scaling = case.state, case.scaling
    panic = _mean_since(state.samples, case.now_ms - scaling.panic_window_s * 1_000)
    panic = max(panic, forecast.surge(Flow(*state.flow), state.arrivals) or 0.0)
    ahead = forecast.linear(state.samples, scaling.horizon_s * 1_000) if scaling.predictive else None
    return Figures(state.samples[-1][1], _mean_since(state.samples, 0), panic, state.peaks[0][1], ahead, size, source)


def _needed(case: Case, demand: float) -> int:
    """Instances that carry a demand at the target."""
    assert case.figures is not None
    return ceil(demand / (case.scaling.target_utilization * case.figures.capacity) - _HAIR)


def _panic(case: Case) -> State:
    """Panic begins when the demand is so many times what serves, and ends a stable window after it last was.

    It also begins when more than one serves at the first look: what they were needed for is not known.
    """
    seen, state, now_ms = case.seen, case.state, case.now_ms
    assert case.figures is not None
    is_first = state.restored or not (state.changed_ms or state.panic_until_ms or len(state.samples) > 1)
    over = _needed(case, case.figures.panic) / max(1, seen.ready) >= case.scaling.panic_threshold
    if over or (is_first and seen.ready > 1):
        until_ms = now_ms + case.scaling.stable_window_s * 1_000
        return replace(state, panic_since_ms=state.panic_since_ms or now_ms, panic_until_ms=until_ms)
    return replace(state, panic_since_ms=0) if now_ms > state.panic_until_ms else state


def _without_capacity(case: Case, demand: float) -> Verdict:
    if demand and not case.base:
        return Verdict(1, f"{_calls(demand)} and no instance; how many one serves is not known yet")
    declare = "declare scaling.capacity, or the capacity of the endpoints; or it is learnt once instances are full"
    return Verdict(case.base, f"how many calls at once an instance serves is not known: {declare}")


def _verdict(case: Case) -> Verdict:
    figures, base = case.figures, case.base
    assert figures is not None
    if not base and figures.demand:
        wanted = max(1, _needed(case, figures.demand))
        return Verdict(wanted, f"no instance and {_need(case, figures.demand, 'now', wanted)}")
    more = _more(case)
    if more.desired > base:
        return more
    wanted = 0
    idle_s = (case.now_ms - case.state.idle_since_ms) / 1_000 if case.state.idle_since_ms else 0.0
    if base and not case.bounds.low and idle_s and idle_s >= case.scaling.idle_s:
        return _guarded(case, Verdict(0, f"no call for {idle_s:.0f} s"))
    if more.why:
        return more
    threshold = min(case.scaling.scale_down, case.scaling.target_utilization)
    if _utilization(case, figures.stable) >= threshold:
        return Verdict(base, f"{_load(case)} is between {threshold:.0%} and {_upper(case):.0%}")
    wanted = max(1, _needed(case, figures.highest), _needed(case, figures.ahead or 0.0))
    slowest = floor(case.seen.ready / case.scaling.max_down)
    slow = f", at most by {case.scaling.max_down:g} at a time" if wanted < slowest else ""
    wanted = max(wanted, slowest)
    if wanted >= base or (base - wanted) < case.scaling.tolerance * base:
        return Verdict(base, f"{_load(case)}, and {_need(case, figures.highest, 'at its highest', wanted)}")
    return _guarded(
        case, Verdict(wanted, f"{_need(case, figures.highest, 'at its highest', wanted)}{slow}; {_load(case)}")
    )


def _more(case: Case) -> Verdict:
    """More than `base`, or `base`: with a reason where more was wanted."""
    figures, base, scaling = case.figures, case.base, case.scaling
    assert figures is not None
    reasons: list[tuple[float, str]] = []
    if case.state.panic_since_ms and _utilization(case, figures.panic) > 1.0:
        reasons.append((figures.panic, f"over {scaling.panic_window_s} s, panic"))
    if _utilization(case, figures.stable) > _upper(case):
        reasons.append((figures.stable, f"over {scaling.stable_window_s} s"))
    if figures.ahead is not None and _utilization(case, figures.ahead) > _upper(case):
        reasons.append((figures.ahead, f"forecast for {scaling.horizon_s} s ahead"))
    if not reasons:
        return Verdict(base, "")
    demand, window = max(reasons)
    wanted = _needed(case, demand)
    why = f"{_need(case, demand, window, wanted)}; {_load(case)}"
    if wanted <= base or (wanted - base) < scaling.tolerance * base:
        return Verdict(base, why)
    fastest = max(base, ceil(scaling.max_up * max(1, case.seen.ready) - _HAIR))
    slow = f", at most {scaling.max_up:g} times what serves at once" if wanted > fastest else ""
    return Verdict(min(wanted, fastest), f"{why}{slow}")


def _guarded(case: Case, verdict: Verdict) -> Verdict:
    """Fewer, if it is time."""
    state, scaling, now_ms = case.state, case.scaling, case.now_ms
    since_s = (now_ms - state.changed_ms) / 1_000
    steady_s = (now_ms - state.steady_since_ms) / 1_000
    if state.panic_since_ms:
        why = f"{(state.panic_until_ms - now_ms) / 1_000:.0f} s of panic are left"
    elif state.changed_ms and since_s < scaling.cooldown_s:
        why = f"the last change is {since_s:.0f} s ago and cooldown_s is {scaling.cooldown_s}"
    elif steady_s < scaling.stable_window_s:
        why = f"there is data without a gap for {steady_s:.0f} s only, and stable_window_s is {scaling.stable_window_s}"
    elif case.confidence < SURE:
        why = f"only {max(0, case.seen.reports)} of {case.seen.sidecars} sidecars report"
    else:
        return verdict
    return Verdict(case.base, f"{verdict.why}, which would do with {verdict.desired}; but {why}")


def _settle(case: Case, verdict: Verdict) -> tuple[Decision, State]:
    """The decision within its bounds, with the state that follows from it."""
    seen, state, bounds, base, figures = case.seen, case.state, case.bounds, case.base, case.figures
    desired = min(max(verdict.desired, bounds.low), bounds.high)
    why = verdict.why
    if desired != verdict.desired:
        bound = "min_instances" if desired > verdict.desired else "max_instances"
        why = f"{why}; {bound} is {desired}" if not bounds.note else f"{why}; {bounds.note}"
    unused = [f"{name} is {value}, which cannot be" for name, value in case.refused.items() if name not in _COUNTS]
    why = "; ".join([why, *unused])
    action = "up" if desired > base else "down" if desired < base else "hold"
    change = f"{action} from {base} to {desired}" if desired != base else f"hold {desired}"
    known = seen.in_flight is not None and seen.queued is not None and not case.refused.keys() & set(_COUNTS)
    is_blind = not known or not case.scaling.enabled
    demand = (seen.in_flight or 0.0) + (seen.queued or 0.0) if known else None
    utilization = _utilization(case, figures.demand) if figures is not None and seen.ready else None
    decision = Decision(
        seen.agent_id,
        case.now_ms,
        desired,
        action,
        f"{change}: {why}",
        case.confidence,
        bool(state.panic_since_ms),
        demand,
        figures.capacity if figures is not None else None,
        figures.source if figures is not None else "",
        utilization,
        bounds.low,
        bounds.high,
        _inputs(case),
    )
    changed_ms = case.now_ms if desired != base else state.changed_ms
    return decision, replace(
        state, desired=desired, changed_ms=changed_ms, restored=state.restored and is_blind and desired == base
    )


def _inputs(case: Case) -> dict[str, Any]:
    """Everything the decision was taken from, as JSON can hold it: NaN and infinities are text."""
    seen, state, scaling, figures = case.seen, case.state, case.scaling, case.figures
    inputs: dict[str, Any] = {name: getattr(seen, name) for name in Seen.__slots__ if name != "agent_id"}
    inputs |= {"desired_before": case.base, "changed_ms": state.changed_ms, "restored": state.restored}
    inputs |= {"panic_until_ms": state.panic_until_ms if state.panic_since_ms else 0}
    inputs |= {"idle_since_ms": state.idle_since_ms, "steady_since_ms": state.steady_since_ms}
    inputs |= {"learnt_capacity": state.learnt_capacity, "samples": len(state.samples)}
    if figures is not None:
        inputs |= {"stable_demand": figures.stable, "panic_demand": figures.panic, "highest_demand": figures.highest}
        inputs |= {"forecast": figures.ahead}
    inputs |= {f"policy.{name}": getattr(scaling, name) for name in Scaling.__slots__}
    return {
        name: str(value) if isinstance(value, float) and not isfinite(value) else value
        for name, value in inputs.items()
    }


def _utilization(case: Case, demand: float) -> float:
    """Of what serves; with nothing that serves, of one instance."""
    assert case.figures is not None
    return demand / (max(1, case.seen.ready) * case.figures.capacity)


def _upper(case: Case) -> float:
    return max(case.scaling.scale_up, case.scaling.target_utilization)


def _calls(demand: float) -> str:
    return f"{demand:.4g} call" if demand == 1 else f"{demand:.4g} calls"


def _need(case: Case, demand: float, window: str, wanted: int) -> str:
    assert case.figures is not None
    each = f"{case.scaling.target_utilization:.0%} of {case.figures.capacity:.4g} each ({case.figures.source})"
    return f"{_calls(demand)} ({window}) need {max(wanted, _needed(case, demand))} at {each}"


def _load(case: Case) -> str:
    assert case.figures is not None
    load = _utilization(case, case.figures.stable)
    return f"utilization {load:.0%} over {case.scaling.stable_window_s} s with {case.seen.ready} serving"
