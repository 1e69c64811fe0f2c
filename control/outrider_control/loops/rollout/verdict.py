"""The verdict algebra: measurements to an analysis, analyses to a step.

As Argo Rollouts has it (analysis-run controller, `assessMetricStatus`): an analysis has failed with more failed
measurements than its limit, is an error with more than four errors in a row, is inconclusive with more inconclusive
ones than its limit, and successful with as many successful ones as were asked for; the worst of its analyses counts for
the step. It goes on measuring as long as its step lasts: what was successful may still fail.

Always holds: pure; only measurements that were successful lead to SUCCESSFUL.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from outrider_control.loops.rollout.types import (
    ERROR,
    ERROR_LIMIT,
    FAILED_ANALYSIS,
    INCONCLUSIVE,
    RUNNING,
    SUCCESSFUL,
    Analysis,
    Measurement,
    Run,
)

_ORDER = {SUCCESSFUL: 0, RUNNING: 1, INCONCLUSIVE: 2, ERROR: 3, FAILED_ANALYSIS: 4}


def worst(states: Iterable[str]) -> str:
    """Of several; SUCCESSFUL of none."""
    return max(states, key=_ORDER.__getitem__, default=SUCCESSFUL)


def counted(run: Run, analysis: Analysis, found: Measurement) -> Run:
    """The analysis after one more measurement."""
    state = found.state
    errors_in_row = run.errors_in_row + 1 if state == ERROR else 0
    run = dataclasses.replace(
        run,
        base=found.base,
        successful=run.successful + (state == SUCCESSFUL),
        failed=run.failed + (state == FAILED_ANALYSIS),
        inconclusive=run.inconclusive + (state == INCONCLUSIVE),
        errors=run.errors + (state == ERROR),
        errors_in_row=errors_in_row,
        value=run.value if found.value is None else found.value,
        stable_value=run.stable_value if found.stable_value is None else found.stable_value,
        reason=found.reason,
    )
    return dataclasses.replace(run, state=state_of(run, analysis))


def state_of(run: Run, analysis: Analysis) -> str:
    """What the measurements so far come to."""
    if run.failed > analysis.failure_limit:
        return FAILED_ANALYSIS
    if run.errors_in_row > ERROR_LIMIT:
        return ERROR
    if run.successful >= analysis.count:
        return SUCCESSFUL
    if analysis.inconclusive_limit and run.inconclusive > analysis.inconclusive_limit:
        return INCONCLUSIVE
    return RUNNING


def again(run: Run, analysis: Analysis) -> Run:
    """Somebody lets a step go on: what could not be concluded does not count any more; what failed does."""
    run = dataclasses.replace(run, inconclusive=0, errors_in_row=0)
    return dataclasses.replace(run, state=state_of(run, analysis))
