"""An experiment in the store, in the journal and in the operator's record.

Always holds: what is stored reads back equal; JSON holds no number that JSON does not have; nothing that is hidden is
in the operator's record.

Deliberately not here: when any of it is written (`act`).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from outrider.split import Split
from outrider.v1 import experiment_pb2 as pb
from outrider_control.core.decision import Decision as Entry
from outrider_control.loops.experiment.types import Decision, Seen, State
from outrider_control.state.experiments import ExperimentRow, LookRow

AUTHOR = "experiment"
KIND = "experiment"
_MAX_EVIDENCE = 700.0  # of which the exponential is still a number


def state_json(state: State) -> str:
    """What goes to the next look."""
    return json.dumps(plain(state.plain()), separators=(",", ":"))


def state_of(text: str) -> State:
    """From `state_json`; a new one from nothing."""
    return State.of(json.loads(text)) if text else State()


def plain(value: Any) -> Any:
    """As JSON has it: what is no finite number is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value


def decision_json(decision: Decision, seen: Seen) -> str:
    """A look's decision with what it saw of variants, for the operator's record."""
    data = {
        "at_ms": decision.at_ms,
        "action": decision.action,
        "reason": decision.reason,
        "conclusion": decision.conclusion,
        "verdict": decision.verdict,
        "winner": decision.winner,
        "harmful": list(decision.harmful),
        "comparisons": [{**dataclasses.asdict(one), "relative": one.relative} for one in decision.comparisons],
        "guardrails": [dataclasses.asdict(one) for one in decision.guardrails],
        "srm": dataclasses.asdict(decision.srm),
        "best": list(decision.best),
        "hidden": decision.hidden,
        "variants": [
            {
                "name": one.name,
                "units": one.units,
                "calls": one.calls,
                "feedback": one.feedback,
                "satisfaction": one.satisfaction,
            }
            for one in seen.variants
        ],
        "flipped": seen.flipped,
        "left_out": seen.left_out,
    }
    return json.dumps(plain(data), ensure_ascii=False, separators=(",", ":"))


def look_of(row: ExperimentRow, decision: Decision, seen: Seen, number: int) -> LookRow | None:
    """For the course; None: there is nothing to show of it."""
    rows = [
        [one.variant, one.effect, one.low, one.high]
        for one in decision.comparisons
        if one.low is not None and one.high is not None and one.effect is not None
    ]
    if not rows or decision.hidden:
        return None
    units = sum([one.units for one in seen.variants])
    return LookRow(row.name, number, decision.at_ms, units, json.dumps(plain(rows), separators=(",", ":")))


def entry(
    row: ExperimentRow,
    action: str,
    author: str,
    reason: str,
    now_ms: int,
    inputs: Mapping[str, Any] | None = None,
    **outcome: Any,
) -> Entry:
    """A change, for the journal."""
    said = {"experiment": row.name, "action": action, "state": row.state, **outcome}
    return Entry(KIND, author, reason, row.agent_id, plain(dict(inputs or {})), plain(said), now_ms)


def record(row: ExperimentRow, split: Split | None, course: Sequence[LookRow] = (), problem: str = "") -> Any:
    """The operator's view; `split` as it is in force."""
    spec = pb.ExperimentSpec.FromString(row.spec)
    data: dict[str, Any] = json.loads(row.decision) if row.decision else {}
    state = state_of(row.carried)
    found = pb.ExperimentRecord(
        spec=spec,
        state=row.state,
        verdict=row.verdict,
        winner=row.winner,
        reason=row.reason,
        conclusion=data.get("conclusion") or _nothing_yet(row),
        created_unix_ms=row.created_ms,
        started_unix_ms=row.started_ms,
        stopped_unix_ms=row.stopped_ms,
        author=row.author,
        looks=state.looks,
        hidden=bool(data.get("hidden")),
        looked_unix_ms=state.last_ms,
        traffic=spec.traffic,
        problem=problem,
        rollout=row.rollout,
    )
    _variants(found, spec, data, state, split)
    if not found.hidden:
        for one in data.get("comparisons", ()):
            _set(found.comparisons.add(variant=one["variant"], verdict=one["verdict"]), one)
        for look in course:
            for variant, effect, low, high in json.loads(look.comparisons):
                found.course.add(
                    at_unix_ms=look.at_ms, units=look.units, variant=variant, effect=effect, low=low, high=high
                )
    for one in data.get("guardrails", ()):
        rail = found.guardrails.add(
            metric=one["metric"], variant=one["variant"], margin=one["margin"] or 0.0, state=one["state"]
        )
        for field in ("harm", "low"):
            if one[field] is not None:
                setattr(rail, field, one[field])
    ratio = data.get("srm", {})
    if ratio.get("p_value") is not None:
        found.srm.p_value = ratio["p_value"]
    found.srm.bayes_factor = math.exp(min(_MAX_EVIDENCE, ratio.get("log_evidence") or 0.0))
    found.srm.mismatch = bool(ratio.get("mismatch"))
    return found


def _variants(
    found: pb.ExperimentRecord, spec: pb.ExperimentSpec, data: Mapping[str, Any], state: State, split: Split | None
) -> None:
    seen = {one["name"]: one for one in data.get("variants", ())}
    in_force = {one.name: one.share for one in split.variants} if split is not None else {}
    values: dict[str, float | None] = {}
    for one in data.get("comparisons", ()) if not found.hidden else ():
        values.setdefault(spec.variants[0].name, one["control"])
        values[one["variant"]] = one["value"]
    best = data.get("best") or ()
    for at, variant in enumerate(spec.variants):
        told = seen.get(variant.name, {})
        shares = state.shares or [one.share for one in spec.variants]
        one = found.variants.add(
            name=variant.name,
            share=in_force.get(variant.name, shares[at]),
            units=told.get("units", 0),
            calls=told.get("calls", 0),
            feedback=told.get("feedback", 0),
        )
        value = values.get(variant.name)
        if value is not None:
            one.value = value
        if told.get("satisfaction") is not None and not (found.hidden and spec.metric.name == "rating"):
            one.satisfaction = told["satisfaction"]
        if at < len(best):
            one.best = best[at]
        found.units += one.units


def _set(comparison: pb.Comparison, data: Mapping[str, Any]) -> None:
    for field in ("effect", "low", "high", "p_value", "relative"):
        if data[field] is not None:
            setattr(comparison, field, data[field])


def _nothing_yet(row: ExperimentRow) -> str:
    return "Nothing may be concluded: it has not begun." if row.state == "draft" else "Nothing may be concluded yet."
