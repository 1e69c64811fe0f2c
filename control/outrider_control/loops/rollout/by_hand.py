"""What a person changes of a rollout: promote, pause, resume, abort.

Always holds: pure; what cannot be done in a phase is Refused with what can; nothing by hand raises the weight of what
was aborted.

Deliberately not here: who may (`api.roles`), that it is carried out (`act`).
"""

from __future__ import annotations

import dataclasses

from outrider_control.loops.rollout import advance, verdict
from outrider_control.loops.rollout.advance import Moved
from outrider_control.loops.rollout.types import (
    FAILED,
    FINALISING,
    INITIALIZING,
    PAUSED,
    PROMOTING,
    SUCCEEDED,
    WAITING,
    WAITING_PROMOTION,
    Rollout,
    Seen,
    Spec,
)


class Refused(Exception):
    """It cannot be done in this phase; the text says why, and what can."""


def promote(rollout: Rollout, spec: Spec, seen: Seen, now_ms: int, author: str, reason: str, full: bool) -> Moved:
    """On to the next step, past a gate, a pause or what is not concluded; `full`: past all of them."""
    _check_open(rollout)
    if rollout.phase in (PROMOTING, FINALISING):
        raise Refused(f"it is {rollout.phase} already: everything goes to the candidate")
    if seen.missing:
        raise Refused(f"{seen.missing}; it can be promoted once they are there")
    if full:
        return advance.begin_promotion(rollout, now_ms, reason, author)
    starts = rollout.phase == INITIALIZING or (rollout.phase == PAUSED and rollout.resumes == INITIALIZING)
    step = 0 if starts else rollout.step + 1
    return advance.begin_step(rollout, spec, step, seen, now_ms, "step", reason, author)


def pause(rollout: Rollout, author: str, reason: str) -> Moved:
    """It stays at its weight; analyses that fail abort it all the same."""
    _check_open(rollout)
    if rollout.phase == PAUSED:
        raise Refused("it is paused already")
    if rollout.phase in (PROMOTING, FINALISING):
        raise Refused(f"it is {rollout.phase}: everything goes to the candidate; abort brings it back")
    return advance.pause(rollout, reason, author)


def resume(rollout: Rollout, spec: Spec, author: str, reason: str) -> Moved:
    """It goes on where it was paused; what was inconclusive is measured again."""
    _check_open(rollout)
    if rollout.phase != PAUSED:
        gate = rollout.phase in (WAITING, WAITING_PROMOTION)
        raise Refused("it waits to be promoted" if gate else f"it is not paused: it is {rollout.phase}")
    if rollout.resumes == INITIALIZING:
        return advance.moved(rollout, "resume", reason, author, phase=INITIALIZING, resumes="")
    analyses = spec.analyses_of(rollout.step)
    runs = [verdict.again(run, analysis) for run, analysis in zip(rollout.runs, analyses, strict=True)]
    deadline_ms = spec.progress_deadline_ms
    before, elapsed_ms = rollout, rollout.elapsed_ms
    if deadline_ms and elapsed_ms >= deadline_ms:  # a new deadline
        runs = [dataclasses.replace(run, due_ms=max(0, run.due_ms - elapsed_ms)) for run in runs]
        elapsed_ms = 0
    phase = before.resumes
    return advance.moved(
        rollout, "resume", reason, author, phase=phase, resumes="", runs=tuple(runs), elapsed_ms=elapsed_ms
    )


def abort(rollout: Rollout, now_ms: int, author: str, reason: str) -> Moved:
    """Everything back to the stable version. What has succeeded is taken back too, while nothing has followed it."""
    if rollout.phase == FAILED:
        raise Refused("it has failed already: everything is on the stable version")
    return advance.abort(rollout, now_ms, reason, author)


def _check_open(rollout: Rollout) -> None:
    if rollout.phase == SUCCEEDED:
        raise Refused("it has succeeded; abort brings the stable version back")
    if rollout.phase == FAILED:
        raise Refused("it has failed: create another one")
