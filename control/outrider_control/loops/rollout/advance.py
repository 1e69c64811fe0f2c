"""The decision: where a rollout stands after one look at it.

The phases are Flagger's (Initializing, Waiting, Progressing, WaitingPromotion, Promoting, Finalising, Succeeded,
Failed) and "paused". A step sets its weight, lasts its pause, goes on until its analyses are successful, then waits at
its gate. What failed or erred brings everything back to the stable version in the same transition that says so.

Always holds: pure, and everything it needs is in its arguments, so that it goes on the same after any stop; one
transition at a time, each to be stored before the next look; SUCCEEDED is reached over successful analyses of every
step, or over a person's promotion; after an abort the weight is 0 and stays it.

Deliberately not here: measuring (`measure`), what analyses come to (`verdict`), what is changed by hand (`by_hand`),
that it is carried out (`act`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from outrider_control.loops.rollout import verdict
from outrider_control.loops.rollout.measure import base_of, measure
from outrider_control.loops.rollout.types import (
    CONFIRM_MS,
    ERROR,
    FAILED,
    FAILED_ANALYSIS,
    FINALISING,
    INCONCLUSIVE,
    INITIALIZING,
    MAX_LOOK_MS,
    PAUSED,
    PROGRESSING,
    PROMOTING,
    STEPPING,
    SUCCEEDED,
    SUCCESSFUL,
    WAITING,
    WAITING_PROMOTION,
    Rollout,
    Run,
    Seen,
    Spec,
    Transition,
)

Moved = tuple[Rollout, Transition | None]


def advance(rollout: Rollout, spec: Spec, seen: Seen, now_ms: int) -> Moved:
    """The rollout after this look, and the transition, if there is one."""
    if rollout.ended:
        return rollout, None
    rollout = _looked_at(rollout, seen, now_ms)
    if rollout.phase in STEPPING:
        return _step(rollout, spec, seen, now_ms)
    if rollout.phase == INITIALIZING:
        if seen.missing:
            return dataclasses.replace(rollout, problem=seen.missing), None
        return begin_step(rollout, spec, 0, seen, now_ms, "initialize", "every variant has endpoints")
    if rollout.phase == PROMOTING:
        return _promote(rollout, seen)
    reason = f"everything is on {spec.candidate}"
    return _moved(rollout, "succeed", reason, phase=SUCCEEDED, ended_ms=max(1, now_ms), problem="", runs=())


def _looked_at(rollout: Rollout, seen: Seen, now_ms: int) -> Rollout:
    """The step's clock goes on, by what can be believed."""
    passed_ms = min(max(0, now_ms - rollout.seen_ms), MAX_LOOK_MS) if rollout.seen_ms else 0
    candidate, stable = seen.candidate, seen.stable
    return dataclasses.replace(
        rollout,
        elapsed_ms=rollout.elapsed_ms + passed_ms,
        seen_ms=now_ms,
        candidate_units=candidate.units if candidate is not None else rollout.candidate_units,
        stable_units=stable.units if stable is not None else rollout.stable_units,
    )


# -- a step ----------------------------------------------------------------------------------------------------------


def begin_step(
    rollout: Rollout, spec: Spec, step: int, seen: Seen, now_ms: int, action: str, reason: str, author: str = ""
) -> Moved:
    """At the beginning of a step. Past the last one: everything goes to the candidate."""
    if step >= len(spec.steps):
        return begin_promotion(rollout, now_ms, reason, author)
    runs = [
        Run(base_of(one, seen.candidate) if seen.counted else None, one.interval_ms) for one in spec.analyses_of(step)
    ]
    return _moved(
        rollout,
        action,
        reason,
        author,
        phase=PROGRESSING,
        step=step,
        weight=spec.steps[step].weight,
        elapsed_ms=0,
        step_started_ms=now_ms,
        runs=tuple(runs),
        problem="",
        resumes="",
    )


def begin_promotion(rollout: Rollout, now_ms: int, reason: str, author: str = "") -> Moved:
    """Everything to the candidate."""
    return _moved(
        rollout,
        "promote",
        reason,
        author,
        phase=PROMOTING,
        weight=1.0,
        elapsed_ms=0,
        step_started_ms=now_ms,
        runs=(),
        problem="",
        resumes="",
    )


def _step(rollout: Rollout, spec: Spec, seen: Seen, now_ms: int) -> Moved:
    rollout = dataclasses.replace(_measured(rollout, spec, seen), problem=seen.missing)
    analyses = spec.analyses_of(rollout.step)
    states = [run.state for run in rollout.runs]
    state = verdict.worst(states)
    if state in (FAILED_ANALYSIS, ERROR):
        at = states.index(state)
        label, run = analyses[at].metric.label, rollout.runs[at]
        word = "failed" if state == FAILED_ANALYSIS else "could not be measured"
        return abort(rollout, now_ms, f"{label} {word}: {run.reason}")
    if rollout.phase == PAUSED:
        return rollout, None
    if state == INCONCLUSIVE:
        at = states.index(state)
        return pause(rollout, f"{analyses[at].metric.label} is inconclusive: {rollout.runs[at].reason}")
    step = spec.steps[rollout.step]
    if state != SUCCESSFUL:
        if 0 < spec.progress_deadline_ms <= rollout.elapsed_ms:
            waits = ", ".join(_waits(rollout, spec))
            return pause(rollout, f"no verdict within {spec.progress_deadline_ms // 1_000} s: {waits}")
        return rollout, None
    if rollout.elapsed_ms < step.pause_ms or rollout.phase in (WAITING, WAITING_PROMOTION):
        return rollout, None
    good = "its analyses are successful" if rollout.runs else "its time is over"
    if step.confirm:
        phase = WAITING_PROMOTION if rollout.weight > 0.0 else WAITING
        return _moved(rollout, "gate", f"step {rollout.step + 1}: {good}; it waits to be promoted", phase=phase)
    return begin_step(rollout, spec, rollout.step + 1, seen, now_ms, "step", f"step {rollout.step + 1}: {good}")


def _measured(rollout: Rollout, spec: Spec, seen: Seen) -> Rollout:
    """With a measurement of every analysis that is due."""
    analyses = spec.analyses_of(rollout.step)
    if not seen.counted or all([run.base is not None and run.due_ms > rollout.elapsed_ms for run in rollout.runs]):
        return rollout
    comparisons = sum([one.margin is not None for one in analyses])
    runs = []
    for analysis, run in zip(analyses, rollout.runs, strict=True):
        if run.base is None:
            run = dataclasses.replace(run, base=base_of(analysis, seen.candidate))
        elif run.due_ms <= rollout.elapsed_ms:
            run = verdict.counted(run, analysis, measure(analysis, run.base, seen, comparisons))
            run = dataclasses.replace(run, due_ms=rollout.elapsed_ms + analysis.interval_ms)
        runs.append(run)
    return dataclasses.replace(rollout, runs=tuple(runs))


def _waits(rollout: Rollout, spec: Spec) -> list[str]:
    analyses = spec.analyses_of(rollout.step)
    return [
        f"{analysis.metric.label}: {run.reason or 'not measured yet'}"
        for analysis, run in zip(analyses, rollout.runs, strict=True)
        if run.state != SUCCESSFUL
    ]


# -- the end ---------------------------------------------------------------------------------------------------------


def _promote(rollout: Rollout, seen: Seen) -> Moved:
    if seen.unconfirmed and rollout.elapsed_ms < CONFIRM_MS:
        return dataclasses.replace(rollout, problem=f"{seen.unconfirmed} sidecars have not taken the weight yet"), None
    reason = "all sidecars that are connected have taken the weight"
    if seen.unconfirmed:
        reason = f"{seen.unconfirmed} sidecars have not taken the weight in {CONFIRM_MS // 1_000} s"
    return _moved(rollout, "finalise", reason, phase=FINALISING, problem="")


def abort(rollout: Rollout, now_ms: int, reason: str, author: str = "") -> Moved:
    """Everything back to the stable version."""
    return _moved(
        rollout,
        "abort",
        reason,
        author,
        phase=FAILED,
        weight=0.0,
        aborted=True,
        ended_ms=max(1, now_ms),
        problem="",
        resumes="",
    )


def pause(rollout: Rollout, reason: str, author: str = "") -> Moved:
    """It stays at its weight."""
    return _moved(rollout, "pause", reason, author, phase=PAUSED, resumes=rollout.phase)


def _moved(rollout: Rollout, action: str, reason: str, author: str = "", **changes: Any) -> Moved:
    after = dataclasses.replace(rollout, reason=reason, **changes)
    inputs = seen_of(rollout)
    return after, Transition(
        action, rollout.phase, after.phase, after.step, rollout.weight, after.weight, reason, author, inputs
    )


def moved(rollout: Rollout, action: str, reason: str, author: str, **changes: Any) -> Moved:
    """A transition by hand."""
    return _moved(rollout, action, reason, author, **changes)


def seen_of(rollout: Rollout) -> Mapping[str, Any]:
    """What a transition was made from, for the journal."""
    return {
        "step": rollout.step,
        "elapsed_ms": rollout.elapsed_ms,
        "candidate_units": rollout.candidate_units,
        "stable_units": rollout.stable_units,
        "analyses": [
            {
                "state": run.state,
                "value": run.value,
                "stable_value": run.stable_value,
                "successful": run.successful,
                "failed": run.failed,
                "inconclusive": run.inconclusive,
                "errors": run.errors,
                "reason": run.reason,
            }
            for run in rollout.runs
        ],
    }
