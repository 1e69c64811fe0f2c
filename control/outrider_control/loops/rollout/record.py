"""A rollout in the store, in the journal, in a webhook's message and in the operator's record.

Always holds: what is stored reads back equal; JSON holds no number that JSON does not have; a field that a newer
program stored is passed over, one that an older one did not know has its default.

Deliberately not here: when any of it is written (`act`).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from outrider.v1 import experiment_pb2 as pb
from outrider_control.core.decision import Decision
from outrider_control.loops.rollout.types import Base, Rollout, Run, Spec, Transition
from outrider_control.state.rollouts import RolloutRow

AUTHOR = "rollout"
KIND = "rollout"

_ROLLOUT = frozenset([field.name for field in dataclasses.fields(Rollout)])
_RUN = frozenset([field.name for field in dataclasses.fields(Run)])


def to_json(rollout: Rollout) -> str:
    """As it is stored."""
    return json.dumps(plain(dataclasses.asdict(rollout)), ensure_ascii=False, separators=(",", ":"))


def from_json(text: str) -> Rollout:
    """From what was stored."""
    data = {name: value for name, value in json.loads(text).items() if name in _ROLLOUT}
    data["runs"] = tuple([_run(one) for one in data.get("runs", ())])
    return Rollout(**data)


def _run(data: Mapping[str, Any]) -> Run:
    fields = {name: value for name, value in data.items() if name in _RUN}
    base = fields.pop("base", None)
    if base is not None:
        calls_to = {int(bucket): calls for bucket, calls in base["calls_to"].items()}
        fields["base"] = Base(base["num"], base["den"], calls_to)
    return Run(**fields)


def plain(value: Any) -> Any:
    """As JSON has it: what is no finite number is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value


def entry(row: RolloutRow, transition: Transition, now_ms: int, told: int, untold: int) -> Decision:
    """A transition, for the journal."""
    outcome: dict[str, Any] = {
        "rollout": row.name,
        "action": transition.action,
        "before": transition.before,
        "phase": transition.phase,
        "step": transition.step,
        "weight_before": transition.weight_before,
        "weight": transition.weight,
    }
    if row.experiment:
        outcome["experiment"] = row.experiment
    if told or untold:
        outcome["webhooks"] = told
    if untold:
        outcome["webhooks_not_told"] = untold
    inputs = plain(transition.inputs)
    return Decision(KIND, transition.author or AUTHOR, transition.reason, row.agent_id, inputs, outcome, now_ms)


def message(row: RolloutRow, transition: Transition, key: str, now_ms: int) -> str:
    """A transition, for its webhooks."""
    body = {
        "id": key,
        "event": transition.action,
        "rollout": row.name,
        "agent_id": row.agent_id,
        "before": transition.before,
        "phase": transition.phase,
        "step": transition.step,
        "weight_before": transition.weight_before,
        "weight": transition.weight,
        "reason": transition.reason,
        "author": transition.author or AUTHOR,
        "experiment": row.experiment,
        "at_ms": now_ms,
    }
    return json.dumps(body, ensure_ascii=False)


def record(row: RolloutRow, spec: Spec, sidecars: int, confirmed: int) -> pb.RolloutRecord:
    """The operator's view."""
    rollout = from_json(row.state)
    found = pb.RolloutRecord(
        spec=pb.RolloutSpec.FromString(row.spec),
        phase=rollout.phase,
        step=rollout.step,
        weight=rollout.weight,
        reason=rollout.reason,
        created_unix_ms=row.created_ms,
        step_started_unix_ms=rollout.step_started_ms,
        ended_unix_ms=row.ended_ms,
        author=row.author,
        sidecars=sidecars,
        confirmed=confirmed,
        candidate_units=rollout.candidate_units,
        stable_units=rollout.stable_units,
        experiment=row.experiment,
        problem=rollout.problem,
    )
    for analysis, run in zip(spec.analyses_of(rollout.step), rollout.runs, strict=False):
        one = found.analyses.add(
            metric=analysis.metric.name,
            state=run.state,
            successful=run.successful,
            failed=run.failed,
            inconclusive=run.inconclusive,
            errors=run.errors,
            reason=run.reason,
        )
        if run.value is not None:
            one.value = run.value
        if run.stable_value is not None:
            one.stable_value = run.stable_value
    return found
