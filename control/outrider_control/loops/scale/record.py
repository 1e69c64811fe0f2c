"""What is said of an agent's scale: the operator's record, the journal's entry, and JSON for other control planes.

Always holds: what is not known is absent; JSON holds no number that JSON does not have.

Deliberately not here: how any of it comes about (`act`).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from google.protobuf.json_format import MessageToDict, ParseDict

from outrider.v1 import operator_pb2
from outrider_control.core import decision as journal
from outrider_control.loops.scale.types import Decision, Instance, Seen
from outrider_control.state.scales import ScaleRow

AUTHOR = "scaler"
KIND = "scale"
MAX_LISTED = 200  # instances in a report
_MAX_COUNT = 2**31 - 1  # of a field

SCALING = "scaling"
PAUSED = "paused"
DISABLED = "disabled"
NO_ENGINE = "no engine"
NO_DATA = "no data"
FAILING = "failing"


class Report(NamedTuple):
    """All that is known of one agent's scale."""

    record: operator_pb2.ScaleRecord
    last: Decision | None
    instances: Sequence[Instance]


def record(
    agent_id: str, state: str, engine: str, row: ScaleRow, seen: Seen | None, last: Decision | None, problem: str
) -> operator_pb2.ScaleRecord:
    """The operator's view."""
    found = operator_pb2.ScaleRecord(
        agent_id=agent_id,
        engine=engine,
        state=state,
        desired=_count(row.desired),
        changed_unix_ms=row.changed_ms,
        paused_by=row.paused_by,
        paused_reason=row.paused_reason,
        problem=problem,
    )
    if seen is not None:
        found.ready, found.starting, found.draining = _count(seen.ready), _count(seen.starting), _count(seen.draining)
        if seen.in_flight is not None and seen.queued is not None:
            found.demand, found.queued = seen.in_flight + seen.queued, seen.queued
    if last is not None:
        if last.capacity is not None:
            found.capacity, found.capacity_source = last.capacity, last.capacity_source
        if last.utilization is not None:
            found.utilization = last.utilization
        found.panic, found.confidence = last.panic, last.confidence
        found.min_instances, found.max_instances = _count(last.min_instances), _count(last.max_instances)
        found.reason, found.decided_unix_ms = last.reason, last.at_ms
    return found


def entry(decision: Decision, engine: str, before: int | None) -> journal.Decision:
    """A change, for the journal."""
    return journal.Decision(
        KIND,
        AUTHOR,
        decision.reason,
        decision.agent_id,
        {"engine": engine, **plain(decision.inputs)},
        plain(
            {
                "action": decision.action,
                "from": before,
                "to": decision.desired,
                "panic": decision.panic,
                "confidence": decision.confidence,
                "demand": decision.demand,
                "capacity": decision.capacity,
                "capacity_source": decision.capacity_source,
                "utilization": decision.utilization,
                "min_instances": decision.min_instances,
                "max_instances": decision.max_instances,
            }
        ),
        decision.at_ms,
    )


def note(agent_id: str, reason: str, engine: str, desired: int | None, inputs: Mapping[str, Any], now_ms: int) -> Any:
    """Something to be known that changes no number, for the journal."""
    outcome = {"action": "hold", "from": desired, "to": desired}
    return journal.Decision(KIND, AUTHOR, reason, agent_id, {"engine": engine, **plain(inputs)}, outcome, now_ms)


def plain(value: Any) -> Any:
    """A value as JSON can hold it: what is no number there becomes text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(one) for one in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain({one.name: getattr(value, one.name) for one in dataclasses.fields(value)})
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def to_json(report: Report) -> str:
    """For the store."""
    return json.dumps(
        {
            "record": plain(MessageToDict(report.record, preserving_proto_field_name=True)),
            "last": plain(report.last) if report.last is not None else None,
            "instances": [plain(one) for one in report.instances[:MAX_LISTED]],
        },
        separators=(",", ":"),
        ensure_ascii=False,
    )


def from_json(text: str) -> Report | None:
    """None: it is of a version that is not known, or there is none."""
    try:
        data = json.loads(text)
        found = ParseDict(data["record"], operator_pb2.ScaleRecord(), ignore_unknown_fields=True)
        last = Decision(**_known(Decision, data["last"])) if data["last"] is not None else None
        return Report(found, last, tuple([Instance(**_known(Instance, one)) for one in data["instances"]]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _known(cls: type, data: Mapping[str, Any]) -> dict[str, Any]:
    names = {one.name for one in dataclasses.fields(cls)}
    return {name: value for name, value in data.items() if name in names}


def _count(number: int | None) -> int:
    return max(0, min(number or 0, _MAX_COUNT))
